"""A column function called from SQL, where nobody counts the arguments but we.

test_spark_connect.py has it over Connect.
"""

import firesteel
import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.spark

TOO_MANY = "takes 1 column; 2 were given; concat_ws(' ', ...) makes one text of several"
# What is asked -> what is said.
CALLS = [
    ("sql_embed(a, b)", f"sql_embed {TOO_MANY}"),
    ("sql_embed(a, a)", f"sql_embed {TOO_MANY}"),  # the same column, which Spark hands over once
    ("sql_embed('cat', 1)", f"sql_embed {TOO_MANY}"),
    ("sql_embed(*)", f"sql_embed {TOO_MANY}"),
    ("sql_embed()", "sql_embed takes 1 column; 0 were given"),
    ("sql_plain(a, b)", f"embed_udf's function {TOO_MANY}"),
    ("sql_plain()", "embed_udf's function takes 1 column; 0 were given"),
    ("sql_states()", "sql_states takes 1 or 2 columns; 0 were given"),
    ("sql_states(a, b, a)", "sql_states takes 1 or 2 columns; 3 were given"),
    ("sql_pandas(a, b)", f"embed_udf's function {TOO_MANY}"),
    ("sql_pandas()", "embed_udf's function takes 1 column; 0 were given"),
    ("sql_embed(1)", "is int; string (text) or array<int>"),
    ("sql_embed(struct(a, b))", "is struct<"),
    ("sql_pandas(struct(a, b))", "is a struct of a, b; string (text) or array<int>"),
    ("sql_embed(map(a, 1))", "is map<string,int"),
    ("sql_embed(array(a))", "is array<string>; string"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("sql") / "model"))


@pytest.fixture(scope="module")
def known(spark, model):
    """The session, with a table `sql_table` of a and b, and functions by every way that SQL gets to know one."""
    import pyspark.sql.functions as F
    from firesteel.spark import _udf

    embed = firesteel.embed_udf(model)
    assert firesteel.register(spark, "sql_embed", embed) == embed
    firesteel.register(spark, "sql_states", firesteel.hidden_states_udf(model))
    spark.udf.register("sql_plain", embed)
    spark.udf.register("sql_pandas", F.pandas_udf(_udf.pandas_function(embed.job), embed.returnType))
    spark.sql("SELECT 'the date' AS a, 'a row' AS b").createOrReplaceTempView("sql_table")
    return spark


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[call for call, _ in CALLS])
def test_a_call_that_cannot_be_right_says_so(known, call, words):
    with pytest.raises(Exception) as failed:
        known.sql(f"SELECT {call} AS v FROM sql_table").collect()
    assert words in str(failed.value) and "IndexError" not in str(failed.value)


def test_every_way_to_call_it_is_counted(known):
    import pyspark.sql.functions as F

    df = known.table("sql_table")
    for asked in (
        df.select(F.expr("sql_embed(a, b)")),
        df.selectExpr("upper(a)", "sql_embed(a, b)"),
        df.select(F.call_udf("sql_embed", "a", "b")),
        df.select(F.call_function("sql_embed", F.lower("a"), F.lit(1))),
        df.where("size(sql_embed(a, b)) > 1"),
        known.range(1).selectExpr("sql_embed(id, id)"),
    ):
        with pytest.raises(Exception, match="sql_embed takes 1 column; 2 were given"):
            asked.collect()


def test_arguments_have_no_names(known):
    """Spark's own sentence; before 4.0 an error as well."""
    for call in ("sql_embed(text => a)", "sql_embed(a, more => b)", "sql_states(a, targets => b)"):
        with pytest.raises(Exception, match="(?i)named_?.?parameters|An error occurred"):
            known.sql(f"SELECT {call} FROM sql_table").collect()


def test_right_calls_are_computed(known, model):
    with firesteel.Engine(model, threads=1) as engine:
        date, row = engine.embed(["the date", "a row"])
    query = "SELECT sql_embed(a) AS a, sql_plain(b) AS b, sql_pandas(concat_ws(' ', a)) AS c, sql_embed(NULL) AS d"
    found = known.sql(f"{query} FROM sql_table").first()
    for vector, expected in zip(found, (date, row, date), strict=False):
        assert np.array_equal(np.float32(vector), expected)
    assert found.d is None


def test_an_index_error_of_another_function_stays_one(model):
    """Before Spark 4.1 its worker raises one where a function gets no column, and only that one is ours to tell."""
    from firesteel.spark import _udf

    def of_another():
        yield [][0]

    worker = compile("def of_worker():\n    yield [][0]\n", "/lib/pyspark.zip/pyspark/worker.py", "exec")
    names = {}
    exec(worker, names)
    job = firesteel.embed_udf(model).job
    with pytest.raises(IndexError):
        next(_udf._given(job, of_another(), "f"))
    with pytest.raises(firesteel.ConfigError, match="f takes 1 column; 0 were given"):
        next(_udf._given(job, names["of_worker"](), "f"))
