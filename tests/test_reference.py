"""Live against transformers and sentence-transformers, on inputs that are new in every run.

The seed is printed when a test fails; FIRESTEEL_TEST_SEED=n runs it again."""

import os
import time

import chain_kit
import firesteel
import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.reference
SEED = int(os.environ.get("FIRESTEEL_TEST_SEED", time.time_ns() % 2**31))
LIMIT = 1e-5  # relative, by the norm of the row


@pytest.fixture(autouse=True)
def say_the_seed():
    print(f"FIRESTEEL_TEST_SEED={SEED}")
    torch.set_num_threads(1)  # these models are small


def reference(folder, rows):
    """transformers' last_hidden_state, float32 [tokens, hidden] a row, each row computed alone."""
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.from_numpy(row.astype(np.int64))[None]).last_hidden_state[0].numpy() for row in rows]


CASES = {
    "1 head": {"hidden": 48, "heads": 1},
    "3 heads": {"hidden": 48, "heads": 3},
    "12 heads": {"hidden": 96, "heads": 12, "inner": 200},
    "12 heads of 32": {"hidden": 384, "heads": 12, "inner": 1536, "positions": 128},
    "12 heads of 64": {"hidden": 768, "heads": 12, "inner": 3072, "positions": 128, "layers": 1},
    "width 36": {"hidden": 36, "heads": 3, "inner": 52},
    "width 40": {"hidden": 40, "heads": 2, "inner": 100},
    "width 100": {"hidden": 100, "heads": 4, "inner": 36},
    "width 7": {"hidden": 7, "heads": 1, "inner": 5},
    "heads of 1": {"hidden": 12, "heads": 12, "inner": 31},
    "one layer": {"layers": 1},
    "six layers": {"layers": 6},
    "512 positions": {"positions": 512},
    "gelu_new": {"act": "gelu_new"},
    "gelu_pytorch_tanh": {"act": "gelu_pytorch_tanh"},
    "relu": {"act": "relu"},
    "silu": {"act": "silu"},
    "fp16 on disk": {"dtype": "F16"},
    "bf16 on disk": {"dtype": "BF16"},
    "three shards": {"shards": 3},
    "prefix": {"prefix": "bert."},
    "bf16, prefix, shards": {"dtype": "BF16", "prefix": "bert.", "shards": 2, "hidden": 36},
}


@pytest.mark.parametrize("case", CASES)
def test_hidden_states(case, tmp_path):
    options = CASES[case]
    positions = options.get("positions", 64)
    folder = tiny.write(tmp_path / "model", seed=SEED, **options)
    lengths = (1, 2, *np.random.RandomState(SEED).randint(3, positions, 5), positions)
    rows = tiny.rows(SEED + 1, lengths)
    with firesteel.Engine(folder) as engine:
        found = engine.hidden_states(rows)
        mean = engine.embed(rows, normalize=False)
    expected = reference(folder, rows)
    for ours, theirs in zip(found, expected, strict=True):
        assert tiny.error_per_row(ours, theirs) < LIMIT, len(ours)
    assert tiny.error_per_row(mean, np.stack([row.mean(axis=0) for row in expected])) < LIMIT


@pytest.mark.parametrize("path", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("case", ["12 heads of 32", "width 100"])
def test_each_kernel_path(case, path, tmp_path):
    folder = tiny.write(tmp_path / "model", seed=SEED, **CASES[case])
    rows = tiny.rows(SEED + 1, (1, 5, 33, 64))
    if why := dict(firesteel._core.host()["paths"]).get(path, "not compiled for this architecture"):
        pytest.skip(why)  # the CPU lacks it; any other failure to open is a failure of the test
    engine = firesteel.Engine(folder, cpu_path=path)
    with engine:
        for ours, theirs in zip(engine.hidden_states(rows), reference(folder, rows), strict=True):
            assert tiny.error_per_row(ours, theirs) < LIMIT


ALPHABETS = ["the table of dates", "abcdefghij 0123456789 ", "aé中ß.,;:!? ", "\u0600\u0915\U0001f600 \t\n\u200d[SEP]x"]


def texts(count, longest, words):
    random = np.random.RandomState(SEED + 2)
    made = ["", " ", "a", "word " * longest]
    while len(made) < count:
        kind = random.randint(0, len(ALPHABETS) + 1)
        if kind == len(ALPHABETS):
            made.append(" ".join(random.choice(words, random.randint(1, longest))))
        else:
            made.append("".join(random.choice(list(ALPHABETS[kind]), random.randint(1, 3 * longest))))
    return made


def compare_with_sentence_transformers(folder, rows, **options):
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    with firesteel.Engine(folder) as engine:
        found = engine.embed(rows, **options)
    names = {"prompt": "prompt", "prompt_name": "prompt_name", "dimensions": "truncate_dim"}
    theirs = {names[key]: value for key, value in options.items() if key in names}
    expected = np.concatenate([model.encode([text], convert_to_numpy=True, **theirs) for text in rows])
    off = [tiny.error_per_row(found[row], expected[row]) for row in range(len(rows))]
    assert max(off) < LIMIT, {rows[row]: error for row, error in enumerate(off) if error >= LIMIT}


def test_minilm(minilm):
    with open(os.path.join(minilm, "vocab.txt"), encoding="utf-8") as file:
        words = [line.strip() for line in file if line.strip().isalpha()]
    compare_with_sentence_transformers(minilm, texts(40, 120, words))


SENTENCES = {
    "mean, normalised": {},
    "mean": {"normalize": False},
    "cls": {"pooling": {"pooling_mode_cls_token": True}},
    "max": {"pooling": {"pooling_mode": "max"}, "normalize": False},
    "sqrt": {"pooling": {"pooling_mode_mean_sqrt_len_tokens": True}, "normalize": False},
    "weighted": {"pooling": {"pooling_mode": "weightedmean"}},
    "last": {"pooling": {"pooling_mode_lasttoken": True}},
    "three, as booleans": {
        "pooling": dict.fromkeys(
            ("pooling_mode_mean_tokens", "pooling_mode_max_tokens", "pooling_mode_cls_token"), True
        ),
        "normalize": False,
    },
    "two, in their order": {"pooling": {"pooling_mode": ["mean", "cls"]}},
    "short": {"transformer": {"max_seq_length": 10, "do_lower_case": True}},
    "default prompt": {"settings": {"prompts": {"q": "date: "}, "default_prompt_name": "q"}},
    "truncated": {"settings": {"truncate_dim": 20}, "normalize": False},
}


@pytest.mark.parametrize("case", SENTENCES)
def test_folders_of_sentence_transformers(case, tmp_path):
    folder = tiny.write(tmp_path / "model", seed=SEED, sentence=SENTENCES[case])
    compare_with_sentence_transformers(folder, texts(24, 30, tiny.WORDS))


OPTIONS = [{"prompt": "parse: "}, {"prompt_name": "q"}, {"prompt_name": "document"}, {"prompt": ""}, {"dimensions": 17}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "settings", [{"prompts": {"q": "date: "}}, {"prompts": {"q": "", "document": "row "}}], ids=str
)
def test_options_of_sentence_transformers(options, settings, tmp_path):
    folder = tiny.write(tmp_path / "model", seed=SEED, sentence={"normalize": False, "settings": settings})
    compare_with_sentence_transformers(folder, texts(24, 30, tiny.WORDS), **options)


@pytest.mark.parametrize("name", ["query", "document", "quary"])
def test_names_of_prompts_that_a_folder_does_not_give(name, tmp_path):
    folder = tiny.write(tmp_path / "model", seed=SEED, sentence={})
    if name != "quary":
        return compare_with_sentence_transformers(folder, tiny.WORDS, prompt_name=name)
    for ask in (
        sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode,
        firesteel.Engine(folder).embed,
    ):
        with pytest.raises((ValueError, firesteel.RequestError), match="quary"):
            ask(["a"], prompt_name=name)


def test_a_bare_folder_is_pooled_as_sentence_transformers_does(tmp_path):
    compare_with_sentence_transformers(tiny.write(tmp_path / "model", seed=SEED), texts(24, 30, tiny.WORDS))


def test_a_folder_that_sentence_transformers_saved(minilm, tmp_path):
    """Newer releases write other keys and other module paths than the folder on the hub has."""
    sentence_transformers.SentenceTransformer(minilm, device="cpu").save(str(tmp_path), create_model_card=False)
    with firesteel.Engine(minilm) as old, firesteel.Engine(tmp_path) as new:
        rows = texts(20, 60, tiny.WORDS)
        np.testing.assert_array_equal(new.embed(rows), old.embed(rows))


@pytest.mark.parametrize("chain", chain_kit.CHAINS)
@pytest.mark.parametrize("saved", ["by an old release", "by this release"])
def test_modules_behind_pooling(chain, saved, tmp_path):
    folder = chain_kit.write(tmp_path / "model", chain_kit.CHAINS[chain], seed=SEED)
    if saved == "by this release":
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        folder = tmp_path / "saved"
        model.save(str(folder), create_model_card=False)
    compare_with_sentence_transformers(folder, texts(24, 30, tiny.WORDS))


@pytest.mark.parametrize("options", [{"dimensions": 5}, {"prompt": "parse: "}], ids=str)
def test_options_with_modules_behind_pooling(options, tmp_path):
    folder = chain_kit.write(tmp_path / "model", chain_kit.CHAINS["two of dense"][:1], seed=SEED)
    compare_with_sentence_transformers(folder, texts(24, 30, tiny.WORDS), **options)


def test_several_poolings_before_a_dense_module(tmp_path):
    pooling = {"pooling_mode": ["mean", "cls", "max"]}
    folder = chain_kit.write(tmp_path / "model", [("Dense", 48, 9, "Tanh")], pooling=pooling, seed=SEED)
    compare_with_sentence_transformers(folder, texts(24, 30, tiny.WORDS))


def test_a_folder_that_transformers_saved_in_shards(tmp_path):
    folder = tiny.write(tmp_path / "model", seed=SEED)
    saved = transformers.BertModel.from_pretrained(folder)
    saved.half().save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    rows = tiny.rows(SEED, (1, 30, 64))
    with firesteel.Engine(tmp_path / "saved") as engine:
        found = engine.hidden_states(rows)
    for ours, theirs in zip(found, reference(tmp_path / "saved", rows), strict=True):
        assert tiny.error_per_row(ours, theirs) < LIMIT
