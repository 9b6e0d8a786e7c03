"""classify_udf and rerank_udf in real Spark jobs: every way a column may go gives the scores that the engine gives."""

import json
import math
import pickle
import warnings

import firesteel
import numpy as np
import pytest
import tiny
from firesteel import ConfigError, RequestError
from firesteel.table import scores as arrow_scores

TEXTS = ["first row", None, "", "the last column of the table", "parse a date string", "first row"]
PAIRS = ["of a table", "the", "a date", None, "", "of a table"]
NAMES = ["no", "perhaps", "yes"]
spark_only = pytest.mark.spark


def write(folder, names, kind="bert", **changes):
    tiny.write_architecture(folder, kind, labels=len(names))
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {str(place): name for place, name in enumerate(names)}} | changes
    (folder / "config.json").write_text(json.dumps(config))
    tiny.write_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("spark") / "classifier", NAMES)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    return write(tmp_path_factory.mktemp("spark") / "reranker", ["relevant"])


@pytest.fixture(scope="module")
def engine(model):
    with firesteel.Engine(model, threads=1) as opened:
        yield opened


@pytest.fixture
def df(spark):
    rows = [(i, text, pair) for i, (text, pair) in enumerate(zip(TEXTS, PAIRS, strict=True))]
    return spark.createDataFrame(rows, "id int, text string, pair string")


def of_the_engine(engine, *sides):
    """float32 [labels], or None for a row with a null."""
    good = [None not in row for row in zip(*sides, strict=True)]
    scores = iter(engine.classify(*([text for text, use in zip(side, good, strict=True) if use] for side in sides)))
    return [next(scores) if use else None for use in good]


# --- what a row becomes -----------------------------------------------------------------------------------------------


def as_label(row):
    place = int(row.argmax())
    return NAMES[place], row[place]


def check(found, expected, make):
    """Rows of (id, value) against the engine's scores, bit for bit; make(scores) -> what the value should be."""
    found = {row[0]: row[1] for row in found}
    assert len(found) == len(expected)
    for number, row in enumerate(expected):
        value = found[number]
        if row is None:
            assert value is None, f"row {number}"
            continue
        assert plain(value) == make(row), f"row {number}"


def plain(value):
    """Spark's float, a double in Python, as the float32 that it was."""
    if isinstance(value, dict):
        return {name: np.float32(score) for name, score in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return (value[0], np.float32(value[1])) if isinstance(value, tuple) else np.float32(value)


def ranking(row, most=9):
    order = sorted(range(len(row)), key=lambda place: (-row[place], place))[:most]
    return [(NAMES[place], row[place]) for place in order]


SHAPES = {
    "label": ({}, as_label),
    "one": ({"top_k": 1}, lambda row: ranking(row, 1)),
    "two": ({"top_k": 2}, lambda row: ranking(row, 2)),
    "more than there are": ({"top_k": 9}, ranking),
    "all": ({"scores": "all"}, lambda row: dict(zip(NAMES, row, strict=True))),
}


def by_name(spark, df, udf, columns):
    return df.select("id", udf(*columns))


def with_column(spark, df, udf, columns):
    return df.withColumn("v", udf(*(df[name] for name in columns))).select("id", "v")


def by_score(spark, df, udf, columns):
    return firesteel.score(df, udf, *columns, output="v").select("id", "v")


def by_sql(spark, df, udf, columns):
    firesteel.register(spark, "tiny_labels", udf)
    df.createOrReplaceTempView("tiny_pairs")
    return spark.sql(f"SELECT id, tiny_labels({', '.join(columns)}) FROM tiny_pairs")


WAYS = [by_name, with_column, by_score, by_sql]


@spark_only
@pytest.mark.parametrize("columns", [("text",), ("text", "pair")], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_gives_the_engines_scores(spark, df, model, engine, way, shape, columns):
    options, make = SHAPES[shape]
    expected = of_the_engine(engine, *(TEXTS, PAIRS)[: len(columns)])
    check(way(spark, df, firesteel.classify_udf(model, **options), columns).collect(), expected, make)


@spark_only
@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_through_pandas(spark, df, model, engine, shape, details):
    """The function for Spark before 4.1, which this Spark runs as well: there a null struct has null fields."""
    import pyspark.sql.functions as F
    from firesteel.spark import _udf

    options, make = SHAPES[shape]
    job = firesteel.classify_udf(model, details=details, **options).job
    function = F.pandas_udf(_udf.pandas_function(job), _udf.result_type(job))
    result = function("text", "pair")
    found = df.select("id", result.getField("result") if details else result).collect()
    if shape == "label" and not details:
        found = [(number, None if value.label is None else value) for number, value in found]
    check(found, of_the_engine(engine, TEXTS, PAIRS), make)


@spark_only
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_null_row_is_null_before_spark_4_1_too(spark, df, model, engine, monkeypatch, deterministic):
    import pyspark.sql.functions as F

    monkeypatch.delattr(F, "arrow_udf", raising=False)
    udf = firesteel.classify_udf(model, max_length=63)  # of which no other test has Spark's object
    udf = udf if deterministic else udf.asNondeterministic()
    found = df.select("id", udf("text", "pair").alias("v"))
    assert found.schema["v"].dataType == udf.returnType
    check(found.collect(), of_the_engine(engine, TEXTS, PAIRS), as_label)


@spark_only
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("raw", [False, True])
def test_rerank(spark, df, reranker, way, raw):
    good = [row for row in range(len(TEXTS)) if TEXTS[row] is not None and PAIRS[row] is not None]
    with firesteel.Engine(reranker, threads=1) as opened:
        found = opened.rerank([TEXTS[row] for row in good], [PAIRS[row] for row in good], raw=raw)
    expected = [None] * len(TEXTS)
    for row, score in zip(good, found, strict=True):
        expected[row] = score
    udf = firesteel.rerank_udf(reranker, raw=raw)
    check(way(spark, df, udf, ("text", "pair")).collect(), expected, lambda score: score)


@spark_only
def test_rerank_through_pandas(spark, df, reranker):
    import pyspark.sql.functions as F
    from firesteel.spark import _udf

    udf = firesteel.rerank_udf(reranker)
    function = F.pandas_udf(_udf.pandas_function(udf.job), udf.returnType)
    expected = dict(df.select("id", udf("text", "pair")).collect())
    assert dict(df.select("id", function("text", "pair")).collect()) == expected
    assert expected[1] is None and 0 < expected[0] < 1


@spark_only
def test_token_ids_and_a_literal(spark, model, reranker, engine):
    import pyspark.sql.functions as F

    ids = [[2, 45, 60, 3], None, [2, 3]]
    df = spark.createDataFrame(list(enumerate(ids)), "id int, ids array<int>")
    scores = iter(engine.classify([row for row in ids if row is not None]))
    expected = [None if row is None else next(scores) for row in ids]
    check(df.select("id", firesteel.classify_udf(model)("ids")).collect(), expected, as_label)
    query = df.select(firesteel.rerank_udf(reranker)(F.lit("a date"), F.lit("the row")).alias("v"))
    with firesteel.Engine(reranker, threads=1) as opened:
        assert {row.v for row in query.collect()} == {float(opened.rerank("a date", ["the row"])[0])}


@spark_only
@pytest.mark.parametrize("manager", [True, False])
def test_details_and_faults(spark, model, manager):
    rows = [(0, "fine", "a"), (1, "too long " * 40, "b"), (2, None, "c"), (3, "fine", None), (4, "fine", "long " * 60)]
    df = spark.createDataFrame(rows, "id int, text string, pair string").coalesce(1)
    options = dict(truncate="error", max_length=16, manager=manager)
    udf = firesteel.classify_udf(model, details=True, scores="all", **options)
    found = {row.id: row.v for row in df.select("id", udf("text", "pair").alias("v")).collect()}
    assert set(found[0].result) == set(NAMES) and math.isclose(sum(found[0].result.values()), 1, rel_tol=1e-6)
    assert found[0].error is None and found[0].prompt_tokens > 3 and found[0].finish_reason == "stop"
    assert [found[row].error_code for row in (1, 4)] == ["TOO_LONG"] * 2 and found[1].result is None
    assert found[2] is None and found[3] is None
    nulls = df.select("id", firesteel.classify_udf(model, on_error="null", **options)("text", "pair").alias("v"))
    assert [row.id for row in nulls.collect() if row.v is not None] == [0]
    with pytest.raises(Exception, match=r"TOO_LONG.*on_error="):
        df.select(firesteel.classify_udf(model, **options)("text", "pair")).collect()


@spark_only
def test_bytes_that_are_no_text(spark, model, reranker):
    df = spark.sql("SELECT 'fine' AS text, CAST(X'ff' AS STRING) AS pair")
    for udf in (firesteel.classify_udf(model, details=True), firesteel.rerank_udf(reranker, details=True)):
        (row,) = df.select(udf("text", "pair").alias("v")).collect()
        (other,) = df.select(udf("pair", "text").alias("v")).collect()
        assert row.v.error_code == other.v.error_code == "BAD_UTF8" and row.v.result is None
        assert row.v.error.startswith("of its ") and other.v.error.startswith("byte 0 of the text")


SQL = [
    ("c()", "c takes 1 or 2 columns; 0 were given"),
    ("c('a', 'b', 'c')", "c takes 1 or 2 columns; 3 were given"),
    ("r('a')", "r takes 2 columns: the query first, then the document; 1 was given"),
    ("r()", "r takes 2 columns: the query first, then the document; 0 were given"),
    ("c(1)", "the column given to classify_udf is int; string (text)"),
    ("c('a', 1)", "the second texts given to classify_udf is int"),
    ("r('a', array(1))", "documents has rows of token ids; a pair is two texts"),
]


@spark_only
@pytest.mark.parametrize(("call", "words"), SQL, ids=[call for call, _ in SQL])
def test_a_call_that_cannot_be_right_says_so(spark, model, reranker, call, words):
    for name, udf in (("c", firesteel.classify_udf(model)), ("r", firesteel.rerank_udf(reranker))):
        firesteel.register(spark, f"scored_{name}", udf)
    with pytest.raises(Exception) as failed:
        spark.sql(f"SELECT scored_{call} AS v").collect()
    assert words in str(failed.value)


@spark_only
def test_a_table_is_grouped_by_label(spark, df, model, engine):
    labels = firesteel.classify_udf(model)
    found = df.where("text IS NOT NULL").select(labels("text").getField("label").alias("label"))
    expected = [as_label(row)[0] for row in of_the_engine(engine, TEXTS) if row is not None]
    assert {row.label: row["count"] for row in found.groupBy("label").count().collect()} == {
        label: expected.count(label) for label in expected
    }


@spark_only
def test_progress_counts_pairs(spark, df, model, capsys):
    udf = firesteel.classify_udf(model, max_length=12, truncate="error", details=True)
    with firesteel.progress(spark) as run:
        rows = firesteel.score(df, udf, "text", "pair", output="v").collect()
    report = run.report
    failed = sum(row.v is not None and row.v.error_code == "TOO_LONG" for row in rows)
    assert (report.rows, report.nulls, report.errors) == (6, 2, {"TOO_LONG": failed} if failed else {})
    assert report.tokens == sum(row.v.prompt_tokens for row in rows if row.v is not None)
    assert "6 rows" in capsys.readouterr().out


@spark_only
def test_warm_tells_nothing_of_heads(spark, model):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has a head")
        assert firesteel.warm(spark, model, threads=1) == 1


# --- without Spark ----------------------------------------------------------------------------------------------------


def test_ties_are_in_the_order_of_the_labels():
    scores = np.array([[1, 2, 2], [0, 0, 0], [3, 1, 3]], np.float32)
    good = np.array([True, True, False])
    best = arrow_scores.best(scores, NAMES, good).to_pylist()
    assert best == [{"label": "perhaps", "score": 2}, {"label": "no", "score": 0}, None]
    ranked = arrow_scores.ranked(scores, NAMES, good, 2).to_pylist()
    assert [[one["label"] for one in row] for row in ranked[:2]] == [["perhaps", "yes"], ["no", "perhaps"]]
    assert ranked[2] is None
    for array in (
        arrow_scores.best(scores, NAMES, good),
        arrow_scores.ranked(scores, NAMES, good, 5),
        arrow_scores.by_name(scores, NAMES, good),
        arrow_scores.best(scores[:0], NAMES, good[:0]),
        arrow_scores.by_name(scores[:0], NAMES, good[:0]),
    ):
        array.validate(full=True)
    assert dict(arrow_scores.by_name(scores, NAMES, good)[1].as_py()) == dict.fromkeys(NAMES, 0)


OPTIONS = [
    (dict(top_k=0), "top_k is 0; a whole number from 1 on, or None, belongs there"),
    (dict(top_k=True), "top_k is True"),
    (dict(scores="some"), "scores is 'some'; \"all\", or None, belongs there"),
    (dict(scores="all", top_k=2), "top_k makes an array of the best labels"),
    (dict(raw="no"), "raw is 'no'; True or False belongs there"),
    (dict(max_length=65), "max_length is 65; the model has 64 positions"),
    (dict(truncate="cut"), "truncate is 'cut'"),
    (dict(top=3), "classify_udf has no option top; did you mean top_k?"),
    (dict(pooling="cls"), "classify_udf has no option pooling"),
    (dict(device="cpu"), "did you mean devices?"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=str)
def test_options_are_checked_on_the_driver(model, options, words):
    with pytest.raises((ConfigError, RequestError)) as refused:
        firesteel.classify_udf(model, **options)
    assert words in str(refused.value)


def test_models_are_checked_on_the_driver(tmp_path, model, reranker):
    plain = tiny.write(tmp_path / "plain")
    for make in (firesteel.classify_udf, firesteel.rerank_udf):
        with pytest.raises(ConfigError, match="has no .*embed makes vectors"):
            make(plain)
    with pytest.raises(ConfigError, match=r"its head has 3 labels \(no, perhaps, yes\)"):
        firesteel.rerank_udf(model)
    twins = write(tmp_path / "twins", ["a", "b", "a"])
    assert firesteel.classify_udf(twins, top_k=3)
    with pytest.raises(ConfigError, match="two labels are named 'a'.*top_k=3 gives an array"):
        firesteel.classify_udf(twins, scores="all")
    short = write(tmp_path / "short", ["a", "b"], id2label={"0": "a"})
    with pytest.raises(firesteel.CheckpointError, match="id2label names 1 labels, and the head has 2"):
        firesteel.classify_udf(short)
    odd = write(tmp_path / "odd", ["a"], sbert_ce_default_activation_function="mine.Tanh")
    with pytest.raises(ConfigError, match="'mine.Tanh' is not known"):
        firesteel.rerank_udf(odd)
    assert firesteel.rerank_udf(odd, raw=True) and firesteel.classify_udf(reranker)


def test_a_function_is_a_description(model, reranker):
    one, other = firesteel.classify_udf(model, top_k=2), firesteel.classify_udf(model, top_k=3)
    assert one == firesteel.classify_udf(model, top_k=np.int64(2)) != other
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one) == f"classify_udf({model!r}, top_k=2)"
    assert repr(firesteel.rerank_udf(reranker, raw=True)) == f"rerank_udf({reranker!r}, raw=True)"
    assert one.returnType.simpleString() == "array<struct<label:string,score:float>>"
    assert firesteel.classify_udf(model).returnType.simpleString() == "struct<label:string,score:float>"
    assert firesteel.classify_udf(model, scores="all").returnType.simpleString() == "map<string,float>"
    assert firesteel.rerank_udf(reranker).returnType.simpleString() == "float"
    with pytest.raises(ConfigError, match="rerank_udf's function takes 2 columns: the query first"):
        firesteel.rerank_udf(reranker)("a")
