"""embed_udf and score in real Spark jobs: every way a column may go gives the vectors that the engine gives."""

import pickle
import subprocess
import sys
import textwrap

import firesteel
import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.spark

TEXTS = ["first row", None, "", "the last column of the table", "parse a date string", "first row"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("spark") / "model"))


def of_the_engine(model):
    """float32 [48] or None for each of TEXTS."""
    with firesteel.Engine(model, threads=1) as engine:
        vectors = iter(engine.embed([text for text in TEXTS if text is not None]))
        return [None if text is None else next(vectors) for text in TEXTS]


@pytest.fixture(scope="module")
def expected(model):
    return of_the_engine(model)


@pytest.fixture
def df(spark):
    return spark.createDataFrame([(i, text) for i, text in enumerate(TEXTS)], "id int, text string")


def check(rows, expected):
    """`rows` of (id, vector) against the engine's, bit for bit."""
    found = {row[0]: row[1] for row in rows}
    assert len(found) == len(rows) == len(expected)
    for number, vector in enumerate(expected):
        if vector is None:
            assert found[number] is None
        else:
            assert np.array_equal(np.float32(found[number]), vector), f"row {number} has other bits"


def by_name(spark, df, model):
    return df.select("id", firesteel.embed_udf(model)("text"))


def by_column(spark, df, model):
    import pyspark.sql.functions as F

    return df.select("id", firesteel.embed_udf(model)(F.upper(F.lower(F.col("text")))))  # the tokenizer lower-cases


def with_column(spark, df, model):
    return df.withColumn("v", firesteel.embed_udf(model)(df.text)).select("id", "v")


def by_score(spark, df, model):
    return firesteel.score(df, firesteel.embed_udf(model), "text", output="v").select("id", "v")


def by_sql(spark, df, model):
    firesteel.register(spark, "tiny_vectors", firesteel.embed_udf(model))
    df.createOrReplaceTempView("tiny_texts")
    return spark.sql("SELECT id, tiny_vectors(text) FROM tiny_texts")


def by_details(spark, df, model):
    return df.select("id", firesteel.embed_udf(model, details=True)("text").getField("result"))


def by_pandas(spark, df, model):
    """The function for Spark before 4.1, which this Spark runs as well."""
    import pyspark.sql.functions as F
    from firesteel.spark import _udf

    job = firesteel.embed_udf(model).job
    return df.select("id", F.pandas_udf(_udf.pandas_function(job), _udf.result_type(job))("text"))


def by_pandas_with_details(spark, df, model):
    import pyspark.sql.functions as F
    from firesteel.spark import _udf

    job = firesteel.embed_udf(model, details=True).job
    function = F.pandas_udf(_udf.pandas_function(job), _udf.result_type(job))
    return df.select("id", function("text").getField("result"))


def once_a_row(spark, df, model):
    return df.select("id", firesteel.embed_udf(model).asNondeterministic()("text"))


WAYS = [by_name, by_column, with_column, by_score, by_sql, by_details, by_pandas, by_pandas_with_details, once_a_row]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_gives_the_engines_vectors(way, spark, df, model, expected):
    check(way(spark, df, model).collect(), expected)


def test_token_ids_need_no_tokenizer(spark, tmp_path):
    folder = tiny.write(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    ids = [[2, 45, 60, 3], None, [2, 3]]
    with firesteel.Engine(folder, threads=1) as engine:
        vectors = engine.embed([row for row in ids if row is not None])
    df = spark.createDataFrame(list(enumerate(ids)), "id int, ids array<int>")
    check(df.select("id", firesteel.embed_udf(folder)("ids")).collect(), [vectors[0], None, vectors[1]])
    scored = firesteel.score(df, firesteel.embed_udf(folder), "ids", output="v")
    check(scored.select("id", "v").collect(), [vectors[0], None, vectors[1]])


@pytest.mark.parametrize("parts", [1, 3, 7])
@pytest.mark.parametrize("batch", [7, 10_000])
def test_same_bits_however_the_table_is_cut(spark, model, parts, batch):
    texts = [" ".join(["date string row"] * (i % 17)) + f" {i % 50}" for i in range(700)]
    with firesteel.Engine(model, threads=2) as engine:
        expected = list(engine.embed(texts))
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", batch)
    try:
        df = spark.createDataFrame(list(enumerate(texts)), "id int, text string").repartition(parts)
        check(df.select("id", firesteel.embed_udf(model)("text")).collect(), expected)
        check(firesteel.score(df, firesteel.embed_udf(model), "text").select("id", "prediction").collect(), expected)
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")


def test_minilm_in_spark_is_minilm_in_the_engine(spark, minilm):
    texts = ["Which function parses a date string?", "Der Hund schläft.", "", "long " * 400]
    with firesteel.Engine(minilm, threads=1) as engine:
        expected = list(engine.embed(texts))
    df = spark.createDataFrame(list(enumerate(texts)), "id int, text string")
    check(df.select("id", firesteel.embed_udf(minilm)("text")).collect(), expected)


def test_details_are_a_struct_of_six(spark, df, model):
    named = df.select(firesteel.embed_udf(model, details=True)("text").alias("v"))
    assert named.schema["v"].dataType.simpleString() == (
        "struct<result:array<float>,error_code:string,error:string,prompt_tokens:int,completion_tokens:int,"
        "finish_reason:string>"
    )
    rows = [row.v for row in named.collect()]
    assert rows[1] is None
    assert [(row.error_code, row.error, row.completion_tokens, row.finish_reason) for row in rows if row] == [
        (None, None, 0, "stop")
    ] * 5
    assert [row.prompt_tokens for row in rows if row][:2] == [4, 2]


def test_score_keeps_the_table(spark, model):
    query = """SELECT id, concat('row ', id) AS text, array(id, id) AS pair, named_struct('a', id) AS s,
                      date'2024-01-01' + cast(id AS int) AS day, map('k', id) AS m, cast(id AS decimal(9, 2)) AS d
               FROM range(1000)"""
    df = spark.sql(query).repartition(3)
    scored = firesteel.score(df, firesteel.embed_udf(model), "text", output="v")
    assert scored.columns == [*df.columns, "v"]
    assert scored.schema.fields[:-1] == df.schema.fields
    assert sorted(scored.drop("v").collect(), key=lambda row: row.id) == sorted(df.collect(), key=lambda row: row.id)
    assert scored.where("size(v) = 48").count() == 1000


def test_limit_is_quick_and_leaves_the_session_usable(spark, model):
    df = spark.range(0, 200_000, 1, 2).selectExpr("concat('date row ', id) AS text")
    vectors = firesteel.embed_udf(model)
    assert len(df.select(vectors("text")).limit(5).collect()) == 5
    assert len(firesteel.score(df, vectors, "text").limit(5).collect()) == 5
    assert df.limit(300).select(vectors("text")).count() == 300


def test_empty_tables(spark, df, model):
    vectors = firesteel.embed_udf(model)
    none = df.where("id < 0")
    assert none.select(vectors("text")).collect() == []
    assert firesteel.score(none, vectors, "text").collect() == []
    nulls = spark.sql("SELECT CAST(NULL AS string) AS text, NULL AS nothing")
    assert nulls.select(vectors("text")).first()[0] is None
    assert firesteel.score(nulls, vectors, "nothing").first().prediction is None


def test_two_functions_in_one_plan(spark, df, model, expected):
    first, short = firesteel.embed_udf(model), firesteel.embed_udf(model, dimensions=8)
    rows = df.select("id", first("text").alias("a"), short("text").alias("b")).collect()
    check([(row.id, row.a) for row in rows], expected)
    check([(row.id, row.b) for row in rows], [None if v is None else v[:8] for v in expected])


# --- the object ------------------------------------------------------------------------------------------------------


def test_a_column_function_is_a_description(model, tmp_path):
    vectors = firesteel.embed_udf(model, max_length=9)
    same = firesteel.embed_udf(model, max_length=9, details=False)
    other = firesteel.embed_udf(model, max_length=8)
    assert vectors == same and hash(vectors) == hash(same) and vectors != other
    assert len({vectors, same, other}) == 2
    assert pickle.loads(pickle.dumps(vectors)) == vectors and len(pickle.dumps(vectors)) < 1000
    assert repr(vectors) == f"embed_udf({model!r}, max_length=9)"
    assert vectors.deterministic and not vectors.asNondeterministic().deterministic
    assert vectors.returnType.simpleString() == "array<float>"
    assert firesteel.embed_udf(model + "/../model") == firesteel.embed_udf(model)


def test_what_travels_is_small_and_goes_by_name(model):
    from pyspark import cloudpickle

    sent = cloudpickle.dumps(firesteel.embed_udf(model).func)
    assert len(sent) < 3000
    assert b"firesteel.spark" in sent and b"start_embed" not in sent


def test_making_one_touches_no_device(model):
    code = f"""
        import os, firesteel, pyspark.sql, pyarrow, numpy
        before = len(os.listdir("/proc/self/task"))
        firesteel.embed_udf({model!r})
        print(len(os.listdir("/proc/self/task")) - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "0", done.stderr


# --- in test_spark_cluster.py and test_spark_connect.py ---------------------------------------------------------------


def every_way(spark, model: str, texts: list[str | None]) -> tuple[list, str]:
    """A job of another driver's: [id, vector] by a column, by score and by SQL; and what a wrong column says."""
    df = spark.createDataFrame(list(enumerate(texts)), "id int, text string").repartition(2)
    found = [sorted([row[0], row[1]] for row in way(spark, df, model).collect()) for way in (by_name, by_score, by_sql)]
    try:
        spark.range(1).select(firesteel.embed_udf(model)("id")).collect()
    except Exception as error:
        return found, str(error)
    return found, "nothing"


def check_ways(said: tuple[list, str], model: str) -> None:
    found, error = said
    for rows in found:
        check(rows, of_the_engine(model))
    assert "is bigint; string (text) or array<int>" in error
