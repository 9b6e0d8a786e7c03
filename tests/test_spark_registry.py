"""Walks spark.__all__: every Spark-facing function has its file, its place in firesteel, and an example that runs."""

import doctest
import inspect
import json
from pathlib import Path

import firesteel
import firesteel.spark
import pytest
import tiny

ROOM = Path(firesteel.spark.__file__).parent


@pytest.fixture(scope="module")
def names(spark, minilm, tmp_path_factory):
    """What an example may use without making it."""
    import pyspark.sql.functions as F

    made = {}
    for name, labels in (("classifier", ["fair", "foul"]), ("reranker", ["LABEL_0"])):
        folder = tmp_path_factory.mktemp("examples") / name
        named = {"id2label": {str(place): label for place, label in enumerate(labels)}}
        made[name] = str(tiny.write_architecture(folder, "bert", labels=len(labels)))
        config = json.loads((folder / "config.json").read_text()) | named
        (folder / "config.json").write_text(json.dumps(config))
        tiny.write_tokenizer(folder)
    return {"spark": spark, "model": minilm, "firesteel": firesteel, "F": F, **made}


def test_spark_functions_are_public_names():
    assert set(firesteel.spark.__all__) <= set(firesteel.__all__)
    for name in firesteel.spark.__all__:
        assert getattr(firesteel, name) is getattr(firesteel.spark, name)


def test_one_small_file_a_function():
    homes = [inspect.getsourcefile(getattr(firesteel.spark, name)) for name in firesteel.spark.__all__]
    assert len(set(homes)) == len(homes), f"two functions share a file: {homes}"
    for home in homes:
        lines = Path(home).read_text("utf-8").count("\n")
        assert ROOM in Path(home).parents and lines < 150, f"{home} has {lines} lines"


@pytest.mark.spark
@pytest.mark.parametrize("name", firesteel.spark.__all__)
def test_example_of_the_docstring_runs(name, names):
    function = getattr(firesteel.spark, name)
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(function), dict(names), name, None, None)
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert results.failed == 0, "".join(said)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    return firesteel.embed_udf(tiny.write(tmp_path_factory.mktemp("registry") / "model"))


REGISTERED = [
    ("ai_embed", "begin with ai_"),
    ("AI_query", "begin with ai_"),
    ("embed text", "letters, digits and _"),
    ("1st", "letters, digits and _"),
    ("", "letters, digits and _"),
    (None, "letters, digits and _"),
]


@pytest.mark.parametrize(("name", "words"), REGISTERED, ids=str)
def test_register_refuses_a_name(name, words, vectors):
    with pytest.raises(firesteel.ConfigError, match=words):
        firesteel.register(None, name, vectors)


def test_register_refuses_what_is_no_column_function():
    with pytest.raises(firesteel.ConfigError, match="embed_udf returns"):
        firesteel.register(None, "embed_text", len)


@pytest.mark.spark
def test_sparks_own_register_takes_the_object(spark, vectors):
    spark.udf.register("tiny_embed", vectors)
    query = "SELECT size(tiny_embed(t)) AS n FROM VALUES ('first row'), (null) AS v(t)"
    assert [row.n for row in spark.sql(query).collect()] == [48, None]
    assert firesteel.register(spark, "tiny_embed", vectors) is vectors  # a second time, under the same name
    assert spark.sql(query).count() == 2
