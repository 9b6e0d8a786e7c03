"""Every encoder live against transformers in fp32, over configs that vary in all that changes the mathematics.

Every pair of values of two keys is in one of the cases; `make reference-full` (FIRESTEEL_TEST_FULL=1) takes all
combinations of those that change the formula. The seed is printed when a test fails; FIRESTEEL_TEST_SEED=n runs it
again.
"""

import itertools
import os
import time

import firesteel
import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference
SEED = int(os.environ.get("FIRESTEEL_TEST_SEED", time.time_ns() % 2**31))
FULL = os.environ.get("FIRESTEEL_TEST_FULL") == "1"
STATES, LOGITS = 1e-5, 1e-4  # relative, by the norm of the row
TYPES = sorted(path.stem for path in tiny.MODELS.glob("*.json") if path.stem != "torch_transformer")

SIZES = ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"]
HEADS = [(48, 3), (48, 1), (96, 12), (36, 3)]
LAYERS, INNER = [1, 2, 3], [96, 52]
ACTIVATIONS = ["gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh"]
# A factor is a list of values; each value is what it changes in the config.
COMMON = {
    "heads": [{"hidden_size": width, "num_attention_heads": heads} for width, heads in HEADS],
    "layers": [{"num_hidden_layers": layers} for layers in LAYERS],
    "inner": [{"intermediate_size": inner} for inner in INNER],
    "act": [{"hidden_act": act} for act in ACTIVATIONS],
    "eps": [{"layer_norm_eps": eps} for eps in (1e-12, 1e-5, 1e-2)],
    "positions": [{"max_position_embeddings": positions} for positions in (72, 130)],
    "types": [{"type_vocab_size": types} for types in (1, 2, 3)],
    "vocabulary": [{"vocab_size": vocabulary} for vocabulary in (160, 97)],
}
PAD = {"pad": [{"pad_token_id": pad} for pad in (1, 0, 5)]}
WIDTHS = {"embedding": [{"embedding_size": width} for width in (32, 48, 96)]}
FACTORS = {
    "bert": COMMON,
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), COMMON | PAD),
    "electra": COMMON | WIDTHS,
    "albert": COMMON | WIDTHS | {"groups": [{"num_hidden_groups": groups} for groups in (1, 2, 3)]},
    "distilbert": {
        "heads": [{"dim": width, "n_heads": heads} for width, heads in HEADS],
        "layers": [{"n_layers": layers} for layers in LAYERS],
        "inner": [{"hidden_dim": inner} for inner in INNER],
        "act": [{"activation": act} for act in ACTIVATIONS],
        "positions": COMMON["positions"],
        "sinusoidal": [{"sinusoidal_pos_embds": flag} for flag in (False, True)],
        "vocabulary": COMMON["vocabulary"],
    },
    "mpnet": {key: COMMON[key] for key in COMMON if key != "types"}
    | {"buckets": [{"relative_attention_num_buckets": buckets} for buckets in (32, 40)]},
}
# Of these all combinations are taken in full runs, while the others go round.
WHOLE = {"heads", "act", "eps", "types", "pad", "embedding", "groups", "sinusoidal", "buckets"}
# What changes where the numbers come from and go to; never all combinations of it.
FILES = {
    "dtype": [{"dtype": dtype} for dtype in ("F32", "F16", "BF16")],
    "labels": [{"labels": labels} for labels in (0, 3, 1)],
}


def pairwise(factors: dict[str, list[dict[str, object]]]) -> list[tuple[int, ...]]:
    """Choices of a value a factor, so that each pair of values of two factors is in one: greedily, always the same."""
    sizes = [len(values) for values in factors.values()]
    left = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(sizes)), 2)
        for i in range(sizes[a])
        for j in range(sizes[b])
    }
    random, cases = np.random.RandomState(0), []
    while left:
        best, most = None, -1
        for _ in range(60):
            a, i, b, j = sorted(left)[random.randint(len(left))]
            case = [random.randint(size) for size in sizes]
            case[a], case[b] = i, j
            covers = sum((a, case[a], b, case[b]) in left for a, b in itertools.combinations(range(len(sizes)), 2))
            if covers > most:
                best, most = tuple(case), covers
        cases.append(best)
        left -= {(a, best[a], b, best[b]) for a, b in itertools.combinations(range(len(sizes)), 2)}
    return cases


def factors_of(model_type: str) -> dict[str, list[dict[str, object]]]:
    """Those above; of a type without its own, BERT's that its config has, and each of its switches."""
    if model_type in FACTORS:
        return FACTORS[model_type]
    config = tiny.architecture_config(model_type)
    found = {name: values for name, values in COMMON.items() if values[0].keys() <= config.keys()}
    switches = [key for key, value in config.items() if isinstance(value, bool) and key != "use_cache"]
    return found | {key: [{key: flag} for flag in (False, True)] for key in switches}


def cases_of(model_type: str) -> list[dict[str, object]]:
    factors = factors_of(model_type)
    choices = pairwise(factors | FILES)
    if FULL:
        every = itertools.product(*(range(len(values) if key in WHOLE else 1) for key, values in factors.items()))
        for number, choice in enumerate(every):
            varied = zip(choice, factors.items(), strict=True)
            sizes = [i if key in WHOLE else (number + at) % len(values) for at, (i, (key, values)) in enumerate(varied)]
            choices.append((*sizes, number % 3, number // 3 % 3))
    return [
        {
            key: value
            for i, values in zip(choice, (factors | FILES).values(), strict=True)
            for key, value in values[i].items()
        }
        for choice in choices
    ]


def rows_of(config: object, lengths: tuple[int, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(token ids, types of tokens) a row; the types are one after the other, as pairs have them."""
    rows = tiny.rows(SEED + 1, lengths, vocab=config.vocab_size)
    count = getattr(config, "type_vocab_size", 1)
    types = [np.sort(np.random.RandomState(SEED + len(row)).randint(0, count, len(row))) for row in rows]
    return rows, types


def theirs(model: object, rows: list[np.ndarray], types: list[np.ndarray]) -> list[np.ndarray]:
    """transformers' hidden states [tokens, width] or logits [1, labels] a row, each computed alone."""
    found = []
    for row, typed in zip(rows, types, strict=True):
        given = {"input_ids": torch.from_numpy(row.astype(np.int64))[None]}
        if getattr(model.config, "type_vocab_size", 1) > 1:
            given["token_type_ids"] = torch.from_numpy(typed.astype(np.int64))[None]
        with torch.inference_mode():
            out = model(**given)
        found.append((out.logits if "logits" in out else out.last_hidden_state[0]).numpy())
    return found


def ours(folder: object, rows: list[np.ndarray], types: list[np.ndarray], task: str) -> list[np.ndarray]:
    from firesteel import _core
    from firesteel.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    engine = _core.Engine(config=checkpoint.config, tensors=checkpoint.tensors, files=checkpoint.files, dtype="fp32")
    width = engine.settings["labels" if task == "classify" else "width"]
    ids = np.concatenate([row | typed.astype(np.int32) << 24 for row, typed in zip(rows, types, strict=True)])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    out = np.full((len(rows) if task == "classify" else len(ids), width), np.nan, np.float32)
    job = engine.submit(ids.astype(np.int32), offsets, out, task=task)
    assert job.wait(120) and not job.errors
    engine.close()
    return list(out[:, None]) if task == "classify" else np.split(out, offsets[1:-1])


@pytest.fixture(autouse=True)
def say_the_seed():
    print(f"FIRESTEEL_TEST_SEED={SEED}")
    torch.set_num_threads(1)  # these models are small


@pytest.mark.parametrize("model_type", TYPES)
def test_configs(model_type, tmp_path):
    for number, case in enumerate(cases_of(model_type)):
        print(model_type, case)  # of the last one, where it fails
        options = {key: case[key] for key in ("dtype", "labels")}
        changes = {key: value for key, value in case.items() if key not in options}
        if changes.get("num_hidden_groups", 1) > changes.get("num_hidden_layers", 2):
            continue  # refused by both
        folder = tiny.write_architecture(tmp_path / str(number), model_type, seed=SEED + number, **options, **changes)
        kind = transformers.AutoModelForSequenceClassification if case["labels"] else transformers.AutoModel
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        most = model.config.max_position_embeddings - (6 if "pad_token_id" in case or model_type == "mpnet" else 0)
        rows, types = rows_of(model.config, (1, 2, 19, most))
        task, limit = ("classify", LOGITS) if case["labels"] else ("hidden_states", STATES)
        found, expected = ours(folder, rows, types, task), theirs(model, rows, types)
        off = [error(*pair, task) for pair in zip(found, expected, strict=True)]
        if max(off) > limit:  # random weights may be so ill-conditioned that fp32 itself is further from the truth
            exact = theirs(model.double(), rows, types)
            own = [error(*pair, task) for pair in zip(expected, exact, strict=True)]
            off = [error(*pair, task) for pair in zip(found, exact, strict=True)]
            assert max(off) < max(limit, 2 * max(own)) < 20 * limit, (case, off, own)


def error(found: np.ndarray, expected: np.ndarray, task: str) -> float:
    """Relative, by the norm of each row; of logits, which may all be next to nothing, against 1 at least."""
    if task == "hidden_states":
        return tiny.error_per_row(found, expected.astype(np.float32))
    return float(np.abs(found - expected).max() / max(1, np.abs(expected).max()))


@pytest.mark.parametrize("model_type", TYPES)
def test_the_longest_row_is_transformers_own(model_type, tmp_path):
    """One more token than we take is one more than transformers has positions for."""
    folder = tiny.write_architecture(tmp_path / "model", model_type, seed=SEED)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with firesteel.Engine(folder) as engine:
        most = engine.settings["positions"]
    row = np.full(most, 7, np.int64)
    with torch.inference_mode():
        assert model(torch.from_numpy(row)[None]).last_hidden_state.shape[1] == most
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(torch.from_numpy(np.full(most + 1, 7, np.int64))[None])


@pytest.mark.parametrize("model_type", TYPES)
def test_what_transformers_saves_is_read(model_type, tmp_path):
    """Its own files, of its classes with a head of another kind too: names, buffers and keys as it writes them."""
    config = transformers.AutoConfig.for_model(**tiny.architecture_config(model_type))
    torch.manual_seed(SEED)
    for kind in (
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForTokenClassification",
        "AutoModelForQuestionAnswering",
    ):
        model = getattr(transformers, kind).from_config(config, attn_implementation="eager").eval()
        model.save_pretrained(tmp_path / kind)
        rows, types = rows_of(config, (3, 31))
        base = transformers.AutoModel.from_pretrained(tmp_path / kind, attn_implementation="eager").eval()
        for found, expected in zip(
            ours(tmp_path / kind, rows, types, "hidden_states"), theirs(base, rows, types), strict=True
        ):
            assert tiny.error_per_row(found, expected) < STATES


def test_pairs_of_values_are_all_there():
    factors = {"a": [{}] * 3, "b": [{}] * 2, "c": [{}] * 4}
    cases = pairwise(factors)
    assert {(case[0], case[2]) for case in cases} == set(itertools.product(range(3), range(4)))
    assert len(cases) < 3 * 2 * 4
