"""Heads that a folder has and vectors are made without: told by name, once a process for a model, and never by a guess.

And modules of sentence-transformers that change nothing, which are taken as they are.
"""

import json
import warnings

import firesteel
import numpy as np
import pytest
import tiny
from firesteel import ConfigError
from firesteel.host import task
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.heads import head_of

CLASSIFIER = {"classifier.weight": np.ones((3, 16), np.float32), "classifier.bias": np.ones(3, np.float32)}
SPANS = {"qa_outputs.weight": np.ones((2, 16), np.float32), "qa_outputs.bias": np.ones(2, np.float32)}
SCORES = {"classifier.weight": np.ones((1, 16), np.float32), "classifier.bias": np.ones(1, np.float32)}

HEADS = [
    ("BertForSequenceClassification", CLASSIFIER, "BertForSequenceClassification (classifier.bias, classifier.weight)"),
    ("BertForTokenClassification", CLASSIFIER, "BertForTokenClassification (classifier.bias, classifier.weight)"),
    ("BertForQuestionAnswering", SPANS, "BertForQuestionAnswering (qa_outputs.bias, qa_outputs.weight)"),
    ("BertForMultipleChoice", SCORES, "BertForMultipleChoice (classifier.bias, classifier.weight)"),
    ("BertForSequenceClassification", {}, "BertForSequenceClassification"),
    ("BertModel", CLASSIFIER, "classifier.bias, classifier.weight"),
    (None, SPANS, "qa_outputs.bias, qa_outputs.weight"),
]
NO_HEADS = ["BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction", None]


@pytest.fixture
def write(tmp_path):
    """write(architecture, head) -> a folder, whose path no other test has."""

    def make(name, head, place="model", **options):
        folder = tiny.write(tmp_path / place, hidden=16, heads=2, inner=24, layers=1, **options)
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = None if name is None else [name]
        (folder / "config.json").write_text(json.dumps(config))
        prefixed = {f"bert.{key}": value for key, value in tiny.tensors(config).items()}
        tiny.write_safetensors(folder / "model.safetensors", prefixed | head, "F32")
        return str(folder)

    return make


def sentence_of(folder, head):
    return (
        f"{folder}: has a head, {head}, that vectors are made without: they are its encoder's hidden states, pooled, "
        f"and say nothing of its labels or scores"
        + ("; classify and rerank give those" if "ForSequenceClassification" in head else "")
    )


def told(function, *given):
    """What is warned of while it runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*given)
    assert {warning.category for warning in caught} <= {UserWarning}
    return caught


# --- what a head is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "tensors", "expected"),
    [
        (["RobertaForSequenceClassification"], ["classifier.dense.weight", "classifier.out_proj.bias"], 1),
        (["DistilBertForTokenClassification"], ["distilbert.pre_classifier.weight", "classifier.bias"], 1),
        (["LlamaForSequenceClassification"], ["score.weight"], 1),
        (["XLNetForQuestionAnswering"], ["start_logits.dense.weight"], 1),
        (None, ["bert.classifier.weight"], 1),
        ("BertForSequenceClassification", [], 0),
        ([3, None], ["encoder.layer.0.output.dense.weight"], 0),
        (["BertForMaskedLM"], ["cls.predictions.bias", "cls.seq_relationship.weight", "bert.pooler.dense.weight"], 0),
        (["TransformerEncoder"], ["classifier.layers.0.linear1.weight", "classifier.norm.weight"], 0),
        (["BertModel"], ["embeddings.word_embeddings.weight", "scores.weight", "classifiers.bias"], 0),
    ],
    ids=str,
)
def test_what_counts_as_a_head(classes, tensors, expected):
    assert (head_of({"architectures": classes}, tensors) is not None) == expected


@pytest.mark.parametrize(("name", "head", "expected"), HEADS, ids=lambda value: str(value)[:30])
def test_a_head_is_named(write, name, head, expected):
    assert Checkpoint.open(write(name, head)).head == expected
    assert Checkpoint.open(write(name, head), weights=False).head == expected


# --- who tells of it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "head", "expected"), HEADS, ids=lambda value: str(value)[:30])
def test_embedding_tells_once(write, name, head, expected):
    folder = write(name, head)
    with firesteel.Engine(folder, threads=1) as engine, firesteel.Engine(folder, threads=1) as another:
        assert not told(engine.hidden_states, [[1, 2]])
        (warning,) = told(engine.embed, ["a text"])
        assert str(warning.message) == sentence_of(folder, expected)
        assert warning.filename == __file__
        assert not told(engine.embed, ["a text", "and more"])
        assert not told(another.embed, [[2, 3]])
        np.testing.assert_array_equal(engine.embed(["a text"]), another.embed(["a text"]))


@pytest.mark.parametrize("name", NO_HEADS)
def test_a_model_without_such_a_head_is_not_told_of(write, name):
    cls = {"cls.predictions.bias": np.ones(160, np.float32), "cls.seq_relationship.bias": np.ones(2, np.float32)}
    with firesteel.Engine(write(name, cls), threads=1) as engine:
        assert not told(engine.embed, ["a text"])


def test_a_sentence_folder_is_told_of_too(write):
    folder = write("BertForSequenceClassification", CLASSIFIER, sentence={"normalize": True})
    with firesteel.Engine(folder, threads=1) as engine:
        (warning,) = told(engine.embed, ["a text"])
        assert "BertForSequenceClassification (classifier.bias, classifier.weight)" in str(warning.message)


def test_a_warning_may_be_an_error(write):
    with firesteel.Engine(write("BertForTokenClassification", CLASSIFIER), threads=1) as engine:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning, match="BertForTokenClassification"):
                engine.embed(["a text"])
        assert engine.embed(["a text"]).shape == (1, 16)


def test_a_manager_is_no_way_around_it(write, tmp_path, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(tmp_path))
    folder = write("BertForQuestionAnswering", SPANS)
    with firesteel.connect(folder, threads=1, idle_ttl=1) as engine:
        (warning,) = told(engine.embed, ["a text"])
        assert str(warning.message) == sentence_of(
            folder, "BertForQuestionAnswering (qa_outputs.bias, qa_outputs.weight)"
        )
        assert not told(engine.embed, ["a text"])


def test_a_column_function_tells_on_the_driver(write):
    folder = write("BertForSequenceClassification", CLASSIFIER)
    assert not told(firesteel.hidden_states_udf, folder)
    (warning,) = told(firesteel.embed_udf, folder)
    assert "BertForSequenceClassification" in str(warning.message) and warning.filename == __file__
    assert not told(firesteel.embed_udf, folder)
    assert not told(firesteel.embed_udf, write("BertModel", {}, "another"))


def test_a_worker_tells_in_one_line_of_its_stderr(write, capsys, monkeypatch):
    folder = write("BertForSequenceClassification", CLASSIFIER)
    with firesteel.Engine(folder, threads=1) as engine:
        monkeypatch.setattr(task, "current", lambda: object())
        for _ in range(2):
            assert not told(engine.embed, ["a text"])
    expected = sentence_of(folder, "BertForSequenceClassification (classifier.bias, classifier.weight)")
    assert capsys.readouterr().err == f"firesteel: {expected}\n"


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_worker_without_stderr_does_not_mind(write, tmp_path, monkeypatch, stream):
    if stream == "closed":
        stream = (tmp_path / "stderr").open("w")
        stream.close()
    with firesteel.Engine(write("BertForSequenceClassification", CLASSIFIER), threads=1) as engine:
        monkeypatch.setattr(task, "current", lambda: object())
        monkeypatch.setattr("sys.stderr", stream)
        assert engine.embed(["a text"]).shape == (1, 16)


@pytest.mark.spark
@pytest.mark.parametrize("manager", [True, False])
def test_a_worker_of_sparks(spark, write, manager):
    """The very function that Spark would call, twice in one task; what it writes to stderr comes back as rows."""
    folder = write("BertForSequenceClassification", CLASSIFIER)

    def lines(_):
        import io
        import sys

        from firesteel.spark import _worker

        kept, sys.stderr = sys.stderr, io.StringIO()
        try:
            options = {"devices": "cpu", "parallel": "auto", "dtype": "auto", "max_memory": None, "threads": 1}
            for _ in range(2):
                with _worker.attach(folder, (*options.items(), ("cpu_path", None), ("manager", manager))) as engine:
                    engine.start_embed(["a text"]).result()
            return [line for line in sys.stderr.getvalue().splitlines() if "has a head" in line]
        finally:
            sys.stderr = kept

    expected = sentence_of(folder, "BertForSequenceClassification (classifier.bias, classifier.weight)")
    assert spark.sparkContext.parallelize([0], 1).mapPartitions(lines).collect() == [f"firesteel: {expected}"]


# --- modules that change nothing --------------------------------------------------------------------------------------

OLD, NEW, BASE = (
    "sentence_transformers.models.",
    "sentence_transformers.sentence_transformer.modules.",
    "sentence_transformers.base.modules.",
)
CHAINS = [
    # the modules behind Transformer and Pooling, whether vectors are normalised
    ([OLD + "Dropout"], False),
    ([NEW + "dropout.Dropout"], False),
    ([OLD + "Normalize", OLD + "Normalize"], True),
    ([OLD + "Dropout", OLD + "Normalize"], True),
    ([BASE + "normalize.Normalize", NEW + "dropout.Dropout", BASE + "normalize.Normalize"], True),
    ([], False),
]


def write_chain(folder, behind, transformer=OLD + "Transformer", pooling=OLD + "Pooling"):
    listed = [(transformer, ""), (pooling, "1_Pooling")]
    listed += [(kind, f"{number}_{kind.rpartition('.')[2]}") for number, kind in enumerate(behind, 2)]
    modules = [{"idx": i, "name": str(i), "path": at, "type": kind} for i, (kind, at) in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for kind, at in listed[2:]:
        (folder / at).mkdir(exist_ok=True)
        (folder / at / "config.json").write_text(json.dumps({"dropout": 0.5} if kind.endswith("Dropout") else {}))


@pytest.mark.parametrize(("behind", "normalize"), CHAINS, ids=lambda value: str(value)[-60:])
@pytest.mark.parametrize(
    "ways",
    [
        (OLD + "Transformer", OLD + "Pooling"),
        (BASE + "transformer.Transformer", NEW + "pooling.Pooling"),
        (NEW + "transformer.Transformer", NEW + "Pooling"),
    ],
    ids=str,
)
def test_chains_that_compute_what_is_understood(tmp_path, behind, normalize, ways):
    folder = tiny.write(tmp_path / "model", hidden=16, heads=2, inner=24, layers=1, sentence={"normalize": False})
    with firesteel.Engine(folder, threads=1) as engine:
        plain = engine.embed(["a text", "and another"])
        unit = engine.embed(["a text", "and another"], normalize=True)
    write_chain(folder, behind, *ways)
    with firesteel.Engine(folder, threads=1) as engine:
        np.testing.assert_array_equal(engine.embed(["a text", "and another"]), unit if normalize else plain)


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        (["mine.Dropout"], "module mine.Dropout is not understood; known are sentence-transformers' Transformer, Po"),
        (["mine.Router"], "module mine.Router is not understood"),
        ([OLD + "Denser"], f"module {OLD}Denser is not understood"),
        ([OLD + "LSTM"], f"module {OLD}LSTM puts an LSTM behind a model of words, which does not run here; known are"),
        ([OLD + "WeightedLayerPooling"], "WeightedLayerPooling mixes the hidden states of several layers, which does"),
        (["sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"], "makes sparse vectors"),
        ([OLD + "Asym"], f"module {OLD}Asym picks modules by task, which does not run here; save a model of each"),
        (["sentence_transformers_too.models.Normalize"], "is not understood"),
        ([OLD + "Pooling"], "the modules are Transformer, Pooling, Pooling; only Transformer, Pooling and then"),
        ([OLD + "Normalize", OLD + "Transformer"], "the modules are Transformer, Pooling, Normalize, Transformer"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_other_chains_are_refused_by_name(tmp_path, behind, words):
    folder = tiny.write(tmp_path / "model", hidden=16, heads=2, inner=24, layers=1, sentence={})
    write_chain(folder, behind)
    with pytest.raises(ConfigError) as refused:
        Checkpoint.open(folder)
    assert words in str(refused.value)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("key", ["rate", "module_input_name"])
def test_settings_of_dropout_and_of_each_normalize_are_read(tmp_path, key, at):
    folder = tiny.write(tmp_path / "model", hidden=16, heads=2, inner=24, layers=1, sentence={})
    write_chain(folder, [OLD + "Normalize", OLD + "Dropout", OLD + "Normalize"])
    place = ["2_Normalize", "3_Dropout", "4_Normalize"][at]
    (folder / place / "config.json").write_text(json.dumps({key: "token_embeddings"}))
    with pytest.raises(ConfigError, match=f'{place}/config.json: {key} = "token_embeddings" is not supported'):
        Checkpoint.open(folder)


@pytest.mark.reference
@pytest.mark.parametrize("normalize", [0, 1, 2])
def test_a_chain_as_sentence_transformers_saves_it(tmp_path, normalize):
    """Its newest release moved the modules to other packages; dropout and a second Normalize are among them."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    base = tiny.write(tmp_path / "base", hidden=16, heads=2, inner=24, layers=1)
    made = [modules.Transformer(str(base)), modules.Pooling(16, "mean"), modules.Dropout(0.5)]
    model = library.SentenceTransformer(modules=made + [modules.Normalize() for _ in range(normalize)], device="cpu")
    model.save(str(tmp_path / "model"))
    texts = ["the first row", "a date"]
    with firesteel.Engine(tmp_path / "model", threads=1) as engine:
        assert tiny.error_per_row(engine.embed(texts), model.encode(texts)) < 1e-5
