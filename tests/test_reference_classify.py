"""classify against transformers' text-classification pipeline, rerank against sentence-transformers' CrossEncoder: the
same 200 awkward texts and pairs, of a BERT and a RoBERTa with tokenizers of their own."""

import json
import random

import firesteel
import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch", reason="made by: make test-reference")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.reference
POSITIONS = 64
LOGITS, PROBABILITIES = 1e-4, 1e-5
AWKWARD = [
    "",
    " ",
    "\n\t",
    "a",
    "a\x00b\x00",
    "\x00",
    "👩\u200d👩\u200d👧 ☃ 🏳️\u200d🌈",
    "naïve É ÜBER ＤＯＧ e\u0301",
    "東京 a東b、東京",
    "नमस्ते 123,456.78 مرحبا",
    "the \u200bfirst\u00a0row\u3000of\u2028it",
    "a\x07b\r\n\x1b[0m\u202e\ufeff",
    "\U0010ffff \ufffd \ue000",
    "x" * 5000,
    "the " * 10_000,
    "the date, the row. " * 20,
    "it's we're I'LL don't ``the'' \"row\"",
    "!?.,;:" * 9,
]
COUNT = 200


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)  # these models are small


@pytest.fixture(scope="module")
def texts():
    """200 of them, the awkward ones first."""
    chance = random.Random(7)
    letters = "abc xyz the of é中😀.,'0 9\t\x00ÄßΩ"
    made = ["".join(chance.choices(letters, k=chance.randint(0, 160))) for _ in range(COUNT - len(AWKWARD))]
    return [*AWKWARD, *made]


def byte_pairs(folder):
    """A tokenizer of RoBERTa's kind: byte pairs learnt from a few sentences."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learning = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the date of a row", "parse the first column, it's the last"] * 3, learning)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    named = dict(bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>", unk_token="<unk>")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": POSITIONS, "add_prefix_space": False}
    settings |= named | {"pad_token": "<pad>", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write(folder, kind, labels, **changes):
    if kind == "bert":
        tiny.write_architecture(folder, kind, labels=labels, **changes)
        tiny.write_tokenizer(folder)
    else:
        tiny.write_architecture(folder, kind, labels=labels, vocab_size=400, **changes)
        byte_pairs(folder)
    return folder


def by_pipeline(folder, inputs, names, **options):
    """float64 [rows, labels], each row computed alone, as a pipeline does."""
    classifier = transformers.pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
    found = classifier(inputs, top_k=None, truncation=True, max_length=POSITIONS, **options)
    scores = [{one["label"]: one["score"] for one in row} for row in found]
    return np.array([[row[name] for name in names] for row in scores])


def close(found, expected, limit):
    assert found.shape == expected.shape
    worst = np.abs(found - expected).max()
    assert worst < limit, f"{worst} apart"


PROBLEMS = [
    ("bert", 3, None),
    ("bert", 1, None),
    ("bert", 3, "multi_label_classification"),
    ("bert", 2, "single_label_classification"),
    ("bert", 2, "regression"),
    ("roberta", 3, None),
    ("roberta", 1, "regression"),
]


@pytest.mark.parametrize(("kind", "labels", "problem"), PROBLEMS, ids=str)
def test_classify_is_the_pipeline(tmp_path, texts, kind, labels, problem):
    folder = write(tmp_path / "model", kind, labels, problem_type=problem)
    # The pipeline takes an empty second text for none; to CrossEncoder, and here, it is a text.
    pairs = [pair or " " for pair in texts[3:] + texts[:3]]
    both = [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]
    with firesteel.Engine(folder, threads=1) as engine:
        names = engine.settings["labels"]
        close(engine.classify(texts), by_pipeline(folder, texts, names), PROBABILITIES)
        close(engine.classify(texts, pairs), by_pipeline(folder, both, names), PROBABILITIES)
        raw = by_pipeline(folder, both, names, function_to_apply="none")
        close(engine.classify(texts, pairs, raw=True), raw, LOGITS)


def test_names_are_the_pipelines(tmp_path, texts):
    names = {"0": "no", "1": "perhaps", "2": "yes"}
    folder = write(tmp_path / "model", "bert", 3, id2label=names, label2id={name: int(i) for i, name in names.items()})
    classifier = transformers.pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
    expected = [one["label"] for one in classifier(texts, truncation=True, max_length=POSITIONS)]
    with firesteel.Engine(folder, threads=1) as engine:
        best = engine.classify(texts).argmax(axis=1)
        assert [engine.settings["labels"][place] for place in best] == expected


ACTIVATIONS = [
    ("bert", {}),
    ("roberta", {}),
    ("bert", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
    ("roberta", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}}),
]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(("kind", "changes"), ACTIVATIONS, ids=str)
def test_rerank_is_the_cross_encoder(tmp_path, texts, kind, changes, saved):
    """Of a folder as it is, and as the newest release saves it: with modules.json and its own config."""
    folder = write(tmp_path / "model", kind, 1, **changes)
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    if saved:
        folder = tmp_path / "saved"
        model.save(str(folder))
        assert (folder / "modules.json").exists()
        model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    documents = texts[5:] + texts[:5]
    pairs = list(zip(texts, documents, strict=True))
    with firesteel.Engine(folder, threads=1) as engine:
        limit = LOGITS if changes else PROBABILITIES
        close(engine.rerank(texts, documents), model.predict(pairs), limit)
        raw = model.predict(pairs, activation_fn=torch.nn.Identity())
        close(engine.rerank(texts, documents, raw=True), raw, LOGITS)
        ranked = model.rank("the date of a row", documents[:50])
        found = engine.rerank("the date of a row", documents[:50])
        close(found[[one["corpus_id"] for one in ranked]], np.array([one["score"] for one in ranked]), limit)


def test_a_default_prompt(tmp_path, texts):
    """Which counts where there is a modules.json, and only there."""
    folder = write(tmp_path / "base", "bert", 1)
    prompts = {"prompts": {"ask": "the date : "}, "default_prompt_name": "ask"}
    sentence_transformers.CrossEncoder(str(folder), device="cpu", **prompts).save(str(tmp_path / "model"))
    model = sentence_transformers.CrossEncoder(str(tmp_path / "model"), device="cpu")
    pairs = [(text, "a row") for text in texts[:40]]
    assert np.abs(model.predict(pairs) - model.predict(pairs, prompt="")).max() > PROBABILITIES
    for modules in (True, False):
        if not modules:
            (tmp_path / "model" / "modules.json").unlink()
            model = sentence_transformers.CrossEncoder(str(tmp_path / "model"), device="cpu")
        with firesteel.Engine(tmp_path / "model", threads=1) as engine:
            close(engine.rerank(texts[:40], ["a row"] * 40), model.predict(pairs), PROBABILITIES)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_what_the_reference_cannot_read_is_a_row(tmp_path, kind):
    folder = write(tmp_path / "model", kind, 3)
    given = ["fine", "\ud800 lone", None, "fine"]
    with firesteel.Engine(folder, threads=1) as engine:
        pending = engine.start_classify(given, ["a", "b", "c", None])
        scores, errors = pending.result()
        assert [(row, code) for row, code, _ in errors] == [(1, "BAD_UTF8")]
        assert pending.nulls.tolist() == [False, False, True, True]
        expected = by_pipeline(folder, [{"text": "fine", "text_pair": "a"}], engine.settings["labels"])
        close(scores[:1], expected, PROBABILITIES)
