"""Engine.classify and Engine.rerank: what becomes of logits, whose labels they are, pairs, and who is sent elsewhere.

Logits are checked where the architectures are (test_architectures.py) and by transformers
(test_reference_classify.py); here NumPy says what is made of them.
"""

import json

import firesteel
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
from firesteel import CheckpointError, ConfigError, RequestError
from firesteel.engine.scores import activated
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.labels import classifier_of, labels_by_files

TEXTS = ["the first row", "", "a date", "parse a string of the table", "the first row"]
PAIRS = ["of a column", "the last", "", "is it", "of a column"]


@pytest.fixture
def write(tmp_path):
    """write(labels, **changes of config.json) -> a classifier's folder."""

    def make(labels, kind="bert", place="model", **changes):
        folder = tiny.write_architecture(tmp_path / place, kind, labels=labels, **changes)
        tiny.write_tokenizer(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """engines[labels]: opened once."""
    made = {}
    for labels in (1, 3):
        folder = tiny.write_architecture(tmp_path_factory.mktemp("labels") / str(labels), "bert", labels=labels)
        tiny.write_tokenizer(folder)
        made[labels] = firesteel.Engine(folder, threads=1)
    yield made
    for engine in made.values():
        engine.close()


def softmax(logits):
    risen = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return risen / risen.sum(axis=1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


# --- scores -----------------------------------------------------------------------------------------------------------

ACTIVATIONS = [
    (3, {}, softmax),
    (3, {"problem_type": None}, softmax),
    (3, {"problem_type": "single_label_classification"}, softmax),
    (3, {"problem_type": "multi_label_classification"}, sigmoid),
    (3, {"problem_type": "regression"}, None),
    (1, {}, sigmoid),
    (1, {"problem_type": "regression"}, None),
    (1, {"problem_type": "multi_label_classification"}, sigmoid),
    (2, {}, softmax),
]


@pytest.mark.parametrize(
    ("labels", "changes", "function"), ACTIVATIONS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_scores_are_the_pipelines(write, labels, changes, function):
    with firesteel.Engine(write(labels, **changes), threads=1) as engine:
        raw = engine.classify(TEXTS, raw=True)
        scores = engine.classify(TEXTS)
    assert raw.shape == scores.shape == (len(TEXTS), labels) and raw.dtype == scores.dtype == np.float32
    np.testing.assert_array_equal(scores, raw if function is None else function(raw).astype(np.float32))


def test_large_and_missing_logits():
    logits = np.array([[-800, 800, 0], [np.nan] * 3, [88, 89, 90], [-1e30, 1e30, 3e38]], np.float32)
    with np.errstate(all="raise"):
        found = [activated(logits, kind) for kind in ("softmax", "sigmoid", "none")]
    np.testing.assert_allclose(found[0][0], [0, 1, 0])
    np.testing.assert_allclose(found[1][3], [0, 1, 1])
    assert all(np.isnan(scores[1]).all() and np.isfinite(scores[[0, 2, 3]]).all() for scores in found)
    assert activated(logits[:0], "softmax").shape == (0, 3)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("labels", [2, 3, 7, 8, 9, 128, 1000])
def test_a_row_has_the_same_bits_in_any_company(kind, labels):
    logits = (9 * np.random.RandomState(labels).standard_normal((67, labels))).astype(np.float32)
    whole = activated(logits, kind)
    for begin, end in ((0, 1), (1, 2), (3, 20), (66, 67), (0, 66)):
        np.testing.assert_array_equal(activated(logits[begin:end], kind), whole[begin:end])


def test_rows_alone_and_together(engines):
    for engine, call in ((engines[3], "classify"), (engines[1], "rerank")):
        together = getattr(engine, call)(TEXTS, PAIRS)
        for row, (text, pair) in enumerate(zip(TEXTS, PAIRS, strict=True)):
            np.testing.assert_array_equal(getattr(engine, call)([text], [pair])[0], together[row])
        np.testing.assert_array_equal(together[0], together[4])


# --- rows and pairs ---------------------------------------------------------------------------------------------------


def test_ids_and_texts(engines):
    engine = engines[3]
    words = {word: number for number, word in enumerate(tiny.vocabulary())}
    ids = [[words["[CLS]"], *(words[word] for word in text.split()), words["[SEP]"]] for text in TEXTS]
    np.testing.assert_array_equal(engine.classify(ids), engine.classify(TEXTS))
    assert engine.classify([]).shape == (0, 3) and engines[1].rerank("a", []).shape == (0,)


@pytest.mark.parametrize("column", [list, np.array, pd.Series, pa.array, lambda texts: pa.chunked_array([texts])])
def test_columns_of_any_library(engines, column):
    found = engines[3].classify(column(TEXTS), column(PAIRS))
    np.testing.assert_array_equal(found, engines[3].classify(TEXTS, PAIRS))


def test_a_pair_is_one_row_with_types(engines):
    """What the tokenizer's template makes of it, and the model's second type."""
    engine = engines[3]
    words = {word: number for number, word in enumerate(tiny.vocabulary())}
    first = [words["[CLS]"], words["the"], words["date"], words["[SEP]"]]
    second = [words["of"], words["[SEP]"]]
    given = np.array([*first, *(word | 1 << 24 for word in second)], np.int32)
    logits = np.empty((1, 3), np.float32)
    job = engine._core.submit(given, np.array([0, len(given)], np.int64), logits, task="classify")
    assert job.wait() and not job.errors
    np.testing.assert_array_equal(engine.classify(["the date"], ["of"], raw=True), logits)
    untyped = engine.classify([[*first, *second]], raw=True)
    assert np.abs(untyped - logits).max() > 1e-3


def test_a_pair_for_a_model_without_types(write):
    folder = write(3, "distilbert")
    with firesteel.Engine(folder, threads=1) as engine:
        assert engine.settings["token_types"] == 1
        assert np.isfinite(engine.classify(TEXTS, PAIRS)).all()


def test_one_query_for_all(engines):
    engine = engines[1]
    np.testing.assert_array_equal(engine.rerank("a date", TEXTS), engine.rerank(["a date"] * len(TEXTS), TEXTS))
    raw = engine.rerank("a date", TEXTS, raw=True)
    np.testing.assert_array_equal(engine.rerank("a date", TEXTS), sigmoid(raw).astype(np.float32))
    np.testing.assert_array_equal(engine.classify(["a date"] * len(TEXTS), TEXTS, raw=True)[:, 0], raw)


def test_the_longer_of_a_pair_is_cut(engines):
    engine = engines[1]
    long = "the " * 100
    np.testing.assert_array_equal(engine.rerank("a date", [long]), engine.rerank("a date", ["the " * 59]))
    np.testing.assert_array_equal(
        engine.rerank("a date", [long], max_length=9), engine.rerank("a date", ["the the the the"])
    )
    with pytest.raises(RequestError, match="TOO_LONG"):
        engine.rerank("a date", [long], truncate="error")
    _, errors = engine.start_rerank("a date", ["the", long], truncate="error").result()
    assert [(row, code) for row, code, _ in errors] == [(1, "TOO_LONG")]


def test_nulls_and_faults_are_rows(engines):
    pending = engines[3].start_classify(["a", None, "b\ud800", "c", "d", 7], ["a", "b", "c", None, "\udfff", "e"])
    scores, errors = pending.result()
    assert pending.nulls.tolist() == [False, True, False, True, False, False]
    assert [(row, code) for row, code, _ in errors] == [(2, "BAD_UTF8"), (4, "BAD_UTF8"), (5, "SCHEMA")]
    assert np.isnan(scores[1:]).all() and np.isfinite(scores[0]).all()
    scores, errors = engines[1].start_rerank("a", [None, "b", float("nan")]).result()
    assert np.isnan(scores).tolist() == [True, False, True] and not errors
    with pytest.raises(RequestError, match=r"1 of 2 rows .* row 1 \(SCHEMA\): the row is missing"):
        engines[3].classify(["a", "b"], ["c", None])
    nothing, errors = engines[3].start_classify([None, None], ["a", None]).result()
    assert np.isnan(nothing).all() and not errors


def test_many_rows_go_in_windows(engines):
    texts = [TEXTS[row % 4] for row in range(700)]
    texts[300] = None
    scores, errors = engines[3].start_classify(texts, [PAIRS[row % 4] for row in range(700)]).result()
    expected = engines[3].classify(TEXTS[:4], PAIRS[:4])
    assert not errors and np.isnan(scores[300]).all()
    good = [row for row in range(700) if row != 300]
    np.testing.assert_array_equal(scores[good], expected[[row % 4 for row in good]])


@pytest.mark.parametrize("task", ["classify", "embed", "hidden_states"])
@pytest.mark.parametrize("kind", [list, np.int32, np.int64])
def test_types_are_not_the_users_to_give(engines, task, kind):
    row = [2, 45 | 1 << 24, 3]
    rows = [row] if kind is list else np.array([row], kind)
    with pytest.raises(RequestError, match=r"SCHEMA.*the token id 16777261 at place 1, which is in no vocabulary"):
        getattr(engines[3], task)(rows)


# --- labels -----------------------------------------------------------------------------------------------------------

NAMES = [
    ({"id2label": {"0": "no", "1": "maybe", "2": "yes"}}, ["no", "maybe", "yes"]),
    ({"id2label": {"2": "yes", "1": "maybe", "0": "no"}}, ["no", "maybe", "yes"]),
    ({"id2label": None, "label2id": None}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ({"id2label": None, "num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ({"id2label": {"0": "no", "2": "yes", "5": "never"}}, ["no", "LABEL_1", "yes"]),
    ({"id2label": {"0": 1, "1": 2, "2": 3.5}}, ["1", "2", "3.5"]),
]


@pytest.mark.parametrize(("changes", "names"), NAMES, ids=str)
def test_names_of_labels(write, changes, names):
    with firesteel.Engine(write(3, id2label=None), threads=1) as engine:
        assert engine.settings["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    folder = changed(write(3), changes)
    with firesteel.Engine(folder, threads=1) as engine:
        assert engine.settings["labels"] == names
        assert engine.classify(["a"]).shape == (1, 3)


def changed(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


REFUSED = [
    ({"id2label": {"0": "no", "1": "yes"}}, CheckpointError, "id2label names 2 labels, and the head has 3"),
    ({"id2label": {str(i): "x" for i in range(9)}}, CheckpointError, "id2label names 9 labels, and the head has 3"),
    ({"id2label": None, "num_labels": 5}, CheckpointError, "num_labels is 5, and the head has 3"),
    ({"id2label": ["a", "b", "c"]}, CheckpointError, "id2label is a list; an object"),
    ({"id2label": {"a": "0", "b": "1", "c": "2"}}, CheckpointError, "id2label has the key 'a'; numbers"),
    ({"id2label": {"0": None, "1": "a", "2": "b"}}, CheckpointError, "id2label names label 0 None; a string"),
    ({"problem_type": "ranking"}, ConfigError, "problem_type = 'ranking' is not known; known are regression,"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), REFUSED, ids=str)
def test_labels_that_do_not_fit(write, changes, kind, words):
    folder = changed(write(3), changes)
    with firesteel.Engine(folder, threads=1) as engine:
        with pytest.raises(kind) as refused:
            engine.classify(["a"])
        assert words in str(refused.value) and str(folder) in str(refused.value)
        assert len(engine.settings["labels"]) == 3
        with pytest.warns(UserWarning, match="classify and rerank give those"):
            assert engine.embed(["a"]).shape == (1, 48)
    with pytest.raises(kind):  # and so the driver says
        checkpoint = Checkpoint.open(folder)
        classifier_of(checkpoint, labels_by_files(checkpoint))


@pytest.mark.parametrize("kind", sorted(tiny.HEADS))
@pytest.mark.parametrize("labels", [0, 1, 4])
def test_what_files_tell_of_labels(write, kind, labels):
    """What the driver of Spark counts is what the engine finds."""
    folder = write(labels, kind)
    checkpoint = Checkpoint.open(folder)
    assert labels_by_files(checkpoint) == labels
    with firesteel.Engine(folder, threads=1) as engine:
        assert len(engine.settings["labels"]) == labels
    (folder / "model.safetensors").unlink()
    assert labels_by_files(Checkpoint.open(folder, weights=False), with_weights=False) == labels


# --- rerank's activation ----------------------------------------------------------------------------------------------

IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
CROSS = [
    ({}, None, sigmoid),
    ({"sbert_ce_default_activation_function": IDENTITY}, None, None),
    ({"sbert_ce_default_activation_function": SIGMOID}, None, sigmoid),
    ({"sbert_ce_default_activation_function": None}, None, sigmoid),
    ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.0.1"}}, None, None),
    ({"sentence_transformers": {"version": "4.0.1"}, "sbert_ce_default_activation_function": IDENTITY}, None, None),
    (
        {"sentence_transformers": {"activation_fn": SIGMOID}, "sbert_ce_default_activation_function": IDENTITY},
        None,
        sigmoid,
    ),
    ({}, IDENTITY, None),
    ({"sentence_transformers": {"activation_fn": SIGMOID}}, IDENTITY, None),
    ({"problem_type": "regression"}, None, sigmoid),
]


def write_cross_encoder(folder, activation, **settings):
    """The files that sentence-transformers writes from version 5 on beside a classifier's."""
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    transformer = {
        "transformer_task": "sequence-classification",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "scores",
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    written = {"__version__": {}, "activation_fn": activation, "model_type": "CrossEncoder", "prompts": {}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(written | settings))
    return folder


@pytest.mark.parametrize(
    ("changes", "written", "function"), CROSS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_the_folder_names_reranks_activation(write, changes, written, function):
    folder = changed(write(1), changes)
    if written:
        write_cross_encoder(folder, written)
    with firesteel.Engine(folder, threads=1) as engine:
        raw = engine.rerank(TEXTS, PAIRS, raw=True)
        scores = engine.rerank(TEXTS, PAIRS)
    assert scores.shape == (len(TEXTS),)
    np.testing.assert_array_equal(scores, raw if function is None else function(raw).astype(np.float32))


@pytest.mark.parametrize("named", ["torch.nn.modules.activation.Tanh", "mine.Activation", 3])
def test_an_unknown_activation_is_refused_by_name(write, named):
    folder = changed(write(1), {"sentence_transformers": {"activation_fn": named}})
    with firesteel.Engine(folder, threads=1) as engine:
        with pytest.raises(ConfigError) as refused:
            engine.rerank("a", ["b"])
        assert f"sentence_transformers.activation_fn = {named!r} is not known" in str(refused.value)
        assert "raw=True gives the logits" in str(refused.value)
        assert engine.rerank("a", ["b"], raw=True).shape == (1,)


def test_a_prompt_of_the_folder_goes_before_the_query(write):
    settings = {"prompts": {"query": "the date : "}, "default_prompt_name": "query"}
    folder = write_cross_encoder(write(1), IDENTITY, **settings)
    with firesteel.Engine(folder, threads=1) as engine:
        found = engine.rerank("of a row", ["the row"])
        given = engine.classify(["the date : of a row"], ["the row"], raw=True)
    np.testing.assert_array_equal(found, given[:, 0])


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "modules are Transformer; alone it"),
        (
            "sentence_bert_config.json",
            {"module_output_name": "logits"},
            'module_output_name = "logits" is not supported',
        ),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, 'model_type = "SparseEncoder"'),
    ],
)
def test_other_modules_alone_are_refused(write, file, change, words):
    folder = write_cross_encoder(write(1), SIGMOID)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ConfigError) as refused:
        Checkpoint.open(folder)
    assert words in str(refused.value)


# --- who is sent elsewhere --------------------------------------------------------------------------------------------


def test_a_folder_without_a_head(tmp_path):
    folder = tiny.write(tmp_path / "model")
    with firesteel.Engine(folder, threads=1) as engine:
        assert engine.settings["labels"] == []
        for call in (engine.classify, lambda texts: engine.rerank("a", texts)):
            with pytest.raises(
                ConfigError, match=r"has no \*ForSequenceClassification head, and .* embed makes vectors"
            ):
                call(["a"])


def test_a_head_of_another_kind(tmp_path, write):
    folder = changed(write(3), {"architectures": ["BertForTokenClassification"]})
    with firesteel.Engine(folder, threads=1) as engine:
        with pytest.raises(
            ConfigError, match=r"its head, BertForTokenClassification \(.*\), is none of a \*ForSequence"
        ):
            engine.classify(["a"])


def test_a_head_without_its_last_layer(tmp_path):
    folder = changed(tiny.write(tmp_path / "model"), {"architectures": ["BertForSequenceClassification"]})
    with firesteel.Engine(folder, threads=1) as engine:
        with pytest.raises(ConfigError, match="BertForSequenceClassification, lacks its last layer among the weights"):
            engine.classify(["a"])


def test_a_module_of_pytorch(tmp_path):
    import tiny_torch

    folder = tiny_torch.write(tmp_path / "model", "encoder", vocab_size=60)
    with firesteel.Engine(folder, threads=1) as engine:
        with pytest.raises(ConfigError, match="has no .* classify needs one"):
            engine.classify([[1, 2]])


def test_three_labels_are_not_reranked(engines):
    with pytest.raises(ConfigError, match=r"its head has 3 labels \(LABEL_0, .*\), and rerank needs one"):
        engines[3].rerank("a", ["b"])


ARGUMENTS = {
    "lengths": (
        lambda e: e.classify(["a"], ["b", "c"]),
        "texts has 1 rows and text_pairs has 2; a pair",
    ),
    "ids": (lambda e: e.classify([[2, 3]], ["a"]), "texts has rows of token ids; a pair is two texts"),
    "ids second": (lambda e: e.classify(["a"], [[2, 3]]), "text_pairs has rows of token ids; a pair is two texts"),
    "one text": (lambda e: e.classify("a"), "texts is one str; a list of rows belongs there"),
    "one pair": (lambda e: e.classify(["a"], "b"), "text_pairs is one str; a list of rows belongs there"),
    "raw": (lambda e: e.classify(["a"], raw="yes"), "raw is 'yes'; True or False belongs there"),
    "max_length": (lambda e: e.classify(["a"], max_length=65), "max_length is 65; the model has 64 positions"),
    "no room": (lambda e: e.classify(["a"], ["b"], max_length=2), "3 special tokens alone need 3"),
    "truncate": (lambda e: e.classify(["a"], truncate="middle"), "truncate is 'middle'"),
}
RERANKED = {
    "queries": (
        lambda e: e.rerank(["a", "b"], ["c"]),
        "queries has 2 rows and documents has 1; a pair",
    ),
    "document": (lambda e: e.rerank("a", "b"), "documents is one str; a list of rows belongs there"),
    "no query": (lambda e: e.rerank(None, ["b"]), "queries is a NoneType; a list of rows belongs there"),
    "ids": (lambda e: e.rerank("a", [[2, 3]]), "documents has rows of token ids; a pair is two texts"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_are_wrong(engines, name):
    call, words = ARGUMENTS[name]
    with pytest.raises(RequestError) as refused:
        call(engines[3])
    assert words in str(refused.value)


@pytest.mark.parametrize("name", RERANKED)
def test_arguments_of_rerank_that_are_wrong(engines, name):
    call, words = RERANKED[name]
    with pytest.raises(RequestError) as refused:
        call(engines[1])
    assert words in str(refused.value)


# --- the manager ------------------------------------------------------------------------------------------------------


def test_through_the_manager(write, engines, tmp_path, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(tmp_path))
    folder, one = write(3), write(1, place="one")
    with firesteel.connect(folder, threads=1, idle_ttl=1) as shared, firesteel.Engine(folder, threads=1) as own:
        assert shared.settings["labels"] == own.settings["labels"]
        for given in ((TEXTS,), (TEXTS, PAIRS), ([[2, 45, 3]],)):
            np.testing.assert_array_equal(shared.classify(*given), own.classify(*given))
        pending = shared.start_classify([*TEXTS, None, "a\ud800"])
        again, errors = pending.result()
        np.testing.assert_array_equal(again[: len(TEXTS)], own.classify(TEXTS))
        assert sum(pending.known) > 0 and [row for row, _, _ in errors] == [len(TEXTS) + 1]
        with pytest.warns(UserWarning):  # the same rows, and another task: nothing is known of them
            np.testing.assert_array_equal(shared.embed(TEXTS), own.embed(TEXTS))
    with firesteel.connect(one, threads=1, idle_ttl=1) as shared, firesteel.Engine(one, threads=1) as own:
        np.testing.assert_array_equal(shared.rerank("a date", TEXTS), own.rerank("a date", TEXTS))
