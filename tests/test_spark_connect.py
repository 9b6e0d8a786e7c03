"""Spark Connect: a client without a JVM gets what a session of its own would. One server for all tests here."""

from __future__ import annotations

import warnings

import firesteel
import numpy as np
import pytest
import test_spark_classify
import test_spark_embed
import test_spark_sql
import tiny
from driver_kit import Driver

pytestmark = [pytest.mark.spark, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("connect")


@pytest.fixture(scope="module")
def model(place) -> str:
    return str(tiny.write(place / "model"))


@pytest.fixture(scope="module")
def driver(place):
    for package in ("grpc", "grpc_status", "zstandard"):
        pytest.importorskip(package, reason="Spark Connect needs pip install 'pyspark[connect]'")
    with Driver({"spark.remote": "local[2]"}, place) as driver:
        yield driver


def test_every_way_gives_the_engines_vectors(driver, model):
    test_spark_embed.check_ways(driver.run(test_spark_embed.every_way, model, test_spark_embed.TEXTS), model)


def progress_of_four_tasks(spark, folder: str) -> dict:
    df = spark.range(0, 40, 1, 4).selectExpr("array(int(id), 5) AS ids")
    with firesteel.progress(spark) as run:
        assert len(df.select(firesteel.embed_udf(folder)("ids")).collect()) == 40
    report = run.report
    return {name: getattr(report, name) for name in ("rows", "device_seconds", "executors", "tasks")}


def test_progress_tells_what_connect_does(driver, model):
    report = driver.run(progress_of_four_tasks, model)
    assert report["rows"] is None and report["device_seconds"] > 0, report
    assert (report["executors"], report["tasks"]) == (1, 4), report


def labels_and_scores(spark, classifier: str, reranker: str) -> list:
    """As a column, by score and by SQL."""
    warnings.simplefilter("ignore")
    df = spark.createDataFrame([("the first row", "of a table"), ("a date", None)], "text string, pair string")
    df.createOrReplaceTempView("connected_pairs")
    found = []
    for name, udf in (
        ("label", firesteel.classify_udf(classifier)),
        ("scores", firesteel.classify_udf(classifier, scores="all")),
        ("relevance", firesteel.rerank_udf(reranker)),
    ):
        firesteel.register(spark, f"connected_{name}", udf)
        tables = [
            df.select(udf("text", "pair").alias("v")),
            firesteel.score(df, udf, "text", "pair", output="v").select("v"),
            spark.sql(f"SELECT connected_{name}(text, pair) AS v FROM connected_pairs"),
        ]
        rows = [[row.v for row in table.collect()] for table in tables]
        found.append([[list(v) if name == "label" and v else v for v in row] for row in rows])
    return found


def test_labels_and_scores(driver, place):
    classifier = test_spark_classify.write(place / "classifier", test_spark_classify.NAMES)
    reranker = test_spark_classify.write(place / "reranker", ["relevant"])
    with firesteel.Engine(classifier, threads=1) as engine:
        (scores,) = engine.classify(["the first row"], ["of a table"]).tolist()
    with firesteel.Engine(reranker, threads=1) as engine:
        (relevance,) = engine.rerank(["the first row"], ["of a table"]).tolist()
    named = dict(zip(test_spark_classify.NAMES, scores, strict=True))
    best = list(max(named.items(), key=lambda item: item[1]))
    found = driver.run(labels_and_scores, classifier, reranker)
    assert found == [[[value, None]] * 3 for value in (best, named, relevance)]


# --- SQL and columns --------------------------------------------------------------------------------------------------

CALLS = ["sql_embed(a, b)", "sql_embed()", "sql_plain(a, b)", "sql_embed(x => a)", "sql_embed(1)"]


def said(ask) -> str:
    try:
        return f"nothing: {ask()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def calls_and_columns(spark, model: str, calls: list[str]) -> list:
    """What it says of wrong calls; of score's columns; of wrong columns."""
    import pyspark.sql.functions as F

    warnings.simplefilter("ignore")
    embed = firesteel.embed_udf(model)
    firesteel.register(spark, "sql_embed", embed)
    spark.udf.register("sql_plain", embed)

    def asked(call: str):
        return spark.sql(f"SELECT {call} AS v FROM (SELECT 'x' AS a, 'y' AS b)").collect()

    of_calls = {call: said(lambda call=call: asked(call)) for call in calls}
    query = "SELECT 'the date' AS text, 1 AS `price.eur`, 2 AS twice, 3 AS twice, named_struct('t', 'a row') AS s"
    df = spark.sql(query)
    texts = [("text", "the date"), ("s.t", "a row"), (F.upper("text"), "THE DATE"), (df.s.t, "a row")]
    found = []
    for column, text in [*texts, ("TEXT", "the date")]:
        scored = firesteel.score(df, embed, column, output="v.v")
        assert scored.schema.fields[:-1] == df.schema.fields, scored.schema
        row = tuple(scored.first())
        assert row[:4] == ("the date", 1, 2, 3), row
        found.append((text, row[-1]))
    wrong = [said(lambda column=column: firesteel.score(df, embed, column)) for column in ("txet", "twice", 3, "s.*")]
    return [of_calls, found, wrong]


@pytest.fixture(scope="module")
def connected(driver, model):
    return driver.run(calls_and_columns, model, CALLS)


def test_calls_are_counted(connected):
    said = connected[0]
    assert f"sql_embed {test_spark_sql.TOO_MANY}" in said["sql_embed(a, b)"]
    assert "sql_embed takes 1 column; 0 were given" in said["sql_embed()"]
    assert f"embed_udf's function {test_spark_sql.TOO_MANY}" in said["sql_plain(a, b)"]
    assert "IndexError" not in said["sql_embed(x => a)"] and not said["sql_embed(x => a)"].startswith("nothing")
    assert "is int; string (text)" in said["sql_embed(1)"]


def test_the_same_columns_are_scored(connected, model):
    with firesteel.Engine(model, threads=1) as engine:
        expected = engine.embed([text for text, _ in connected[1]])
    for (text, vector), wanted in zip(connected[1], expected, strict=True):
        assert np.array_equal(np.float32(vector), wanted), text


def test_the_wrong_column_is_named(connected):
    missing, twice, number, star = connected[2]
    assert missing.startswith("ConfigError: the table has no column 'txet'; did you mean text?")
    assert twice.startswith("ConfigError: the table has 2 columns 'twice'")
    assert number.startswith("ConfigError: columns are 3")
    assert star.startswith("ConfigError: the table has no column 's.*'")
