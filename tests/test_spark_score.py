"""score takes what Spark takes: columns of any name, fields, expressions; every other column comes out as it was."""

from functools import reduce

import firesteel
import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.spark

CONFIG, REQUEST = firesteel.ConfigError, firesteel.RequestError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("score") / "model"))


@pytest.fixture(scope="module")
def embed(model):
    return firesteel.embed_udf(model)


@pytest.fixture
def case_sensitive(spark):
    spark.conf.set("spark.sql.caseSensitive", "true")
    yield
    spark.conf.unset("spark.sql.caseSensitive")


# --- which column is scored ------------------------------------------------------------------------------------------

TABLE = """SELECT 'the date' AS text, 'a row' AS `s.text`,
                  named_struct('text', 'in a field', 'deep', named_struct('c', 'far')) AS s,
                  named_struct('x y', 'spaces') AS `b.c`, map('k', 'of a map', 'j', 'x') AS m,
                  array('first', 'last') AS arr, 'small' AS name, 'large' AS NAME, 'nothing' AS ``, 'star' AS `*`,
                  'price' AS `price.eur`, '日本' AS `日本 🎉`, 'one' AS twice, 'two' AS twice, 'tick' AS `a``b`,
                  7 AS n"""


def columns():
    import pyspark.sql.functions as F

    return [
        ("text", "the date"),
        ("TEXT", "the date"),  # by Spark's rule, where no other column has that very name
        ("`text`", "the date"),
        ("s.text", "a row"),  # the exact name wins over the field
        ("`s`.`text`", "in a field"),
        ("s.deep.c", "far"),
        ("S.Deep.C", "far"),
        ("`b.c`.`x y`", "spaces"),
        ("m.k", "of a map"),
        ("name", "small"),
        ("NAME", "large"),
        ("", "nothing"),
        ("*", "star"),
        ("price.eur", "price"),
        ("日本 🎉", "日本"),
        ("a`b", "tick"),
        (F.upper("text"), "THE DATE"),
        (F.col("arr")[1], "last"),
        (F.expr("m['j']"), "x"),
        (F.concat_ws(" ", F.col("text"), F.col("`price.eur`")).alias("text"), "the date price"),
        (F.lit("the same"), "the same"),
    ]


def test_a_column_is_found_by_name_or_made_by_an_expression(spark, model, embed):
    import pyspark.sql.functions as F

    df, cases = spark.sql(TABLE), columns()
    cases.append((df["arr"].getItem(0), "first"))
    parts = []
    for number, (column, _) in enumerate(cases):
        scored = firesteel.score(df, embed, column, output="v")
        assert scored.columns == [*df.columns, "v"]
        parts.append(scored.select(F.lit(number).alias("i"), "v"))
    found = {row.i: row.v for row in reduce(lambda one, other: one.union(other), parts).collect()}
    with firesteel.Engine(model, threads=1) as engine:
        vectors = engine.embed([text for _, text in cases])
    wrong = [cases[i][0] for i, vector in enumerate(vectors) if not np.array_equal(np.float32(found[i]), vector)]
    assert len(found) == len(cases) and not wrong


def test_after_a_join_names_may_stand_twice(spark, embed):
    import pyspark.sql.functions as F

    left = spark.sql("SELECT 1 AS id, 'left' AS text, 'a' AS note").alias("l")
    right = spark.sql("SELECT 1 AS id, 'right' AS text, 'b' AS note").alias("r")
    joined = left.join(right, F.col("l.id") == F.col("r.id"))
    for column in ("l.text", F.col("l.text"), left["text"]):
        scored = firesteel.score(joined, embed, column, output="v")
        assert scored.schema.fields[:-1] == joined.schema.fields
    first = scored.first()
    assert tuple(first)[:-1] == (1, "left", "a", 1, "right", "b")
    assert first.v == left.select(embed("text")).first()[0]


def test_two_inputs_one_of_them_made(spark, tmp_path):
    """Where each stands is counted through both."""
    from firesteel.spark._inputs import find_inputs

    df = spark.sql("SELECT 'a' AS t, 'b' AS u")
    places, made = find_inputs(df, ("u", df.t))
    assert places == [1, 2] and len(made) == 1
    places, made = find_inputs(df, (df.u, "T"))
    assert places == [2, 3] and len(made) == 2


WRONG = [
    ("txet", CONFIG, "the table has no column 'txet'; did you mean text? its columns are text, s.text, s, b.c"),
    ("s.nothing", CONFIG, "the table has no column 's.nothing'; its columns are"),
    ("twice", CONFIG, "the table has 2 columns 'twice', so it is ambiguous"),
    ("Name", CONFIG, "the table has several columns 'Name', as Spark compares names: name, NAME"),
    ("s.*", CONFIG, "the table has no column 's.*'"),
    ("`text", CONFIG, "the table has no column '`text'"),
    ("m['k']", CONFIG, "and an expression goes as a Column: F.expr(...)"),
    ("n", REQUEST, "column n is int; string (text) or array<int> (token ids), or for models"),
    ("s", REQUEST, "column s is struct<text:string,deep:struct<c:string>>; string (text)"),
    ("arr", REQUEST, "column arr is array<string>; string (text)"),
    (3, CONFIG, "columns are 3; score takes names of columns, as strings, and expressions"),
    (None, CONFIG, "columns are None"),
    (["text"], CONFIG, "columns are ['text']"),
    (b"text", CONFIG, "columns are b'text'"),
]


@pytest.mark.parametrize(("column", "kind", "words"), WRONG, ids=[repr(case[0]) for case in WRONG])
def test_a_column_that_is_none_is_told_before_anything_runs(spark, embed, column, kind, words):
    with pytest.raises(kind) as refused:
        firesteel.score(spark.sql(TABLE), embed, column)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_an_expression_is_checked_as_a_name_is(spark, embed):
    import pyspark.sql.functions as F
    from pyspark.sql.utils import AnalysisException

    df = spark.sql(TABLE)
    with pytest.raises(REQUEST, match=r"column size\(arr\) is int; string"):
        firesteel.score(df, embed, F.size("arr"))
    other = spark.sql("SELECT 'x' AS other")
    for column in (other["other"], F.explode("arr"), F.max("text"), F.col("*"), F.col("s.*"), F.col("nowhere")):
        with pytest.raises(AnalysisException):
            _ = firesteel.score(df, embed, column).schema


def test_many_columns_are_not_all_listed(spark, embed):
    df = spark.range(1).selectExpr(*(f"id AS c{i}" for i in range(300)))
    with pytest.raises(CONFIG, match=r"c18, c19 and 280 more, and an expression"):
        firesteel.score(df, embed, "nothing alike")


def test_case_counts_where_spark_says_so(spark, embed, case_sensitive):
    df = spark.sql("SELECT 'a' AS text, 1 AS Text, 2 AS s")
    assert firesteel.score(df, embed, "text", output="TEXT").columns == ["text", "Text", "s", "TEXT"]
    assert firesteel.score(df, embed, "text", output="S").columns == ["text", "Text", "s", "S"]
    with pytest.raises(CONFIG, match="the table has no column 'TEXT'"):
        firesteel.score(df, embed, "TEXT")


@pytest.mark.parametrize("output", ["Text", "PRICE.eur", "twice", "nAmE", "", 3, None])
def test_an_output_that_the_table_has_is_refused(spark, embed, output):
    with pytest.raises(CONFIG, match="output is "):
        firesteel.score(spark.sql(TABLE), embed, "text", output=output)


@pytest.mark.parametrize("output", ["a.b", "s.new", "a b", "`v`", "日本"])
def test_an_output_is_a_plain_name(spark, embed, output):
    scored = firesteel.score(spark.sql(TABLE), embed, "text", output=output)
    assert scored.columns[-1] == output and scored.schema[-1].dataType.simpleString() == "array<float>"


# --- what is carried -------------------------------------------------------------------------------------------------

CARRIED = """SELECT 'the date' AS text, 1 AS `price.eur`, 2 AS `a b`, 3 AS ``, 4 AS `日本 🎉`, 5 AS twice, 6 AS twice,
                    7 AS Twice, 8 AS `c1`, 9 AS `c0`, 10 AS `firesteel_0`, NULL AS nothing,
                    CAST(NULL AS INT) AS missing, X'00ff' AS bytes, date'2024-01-01' AS day,
                    timestamp'2024-01-01 00:00:00' AS at,
                    timestamp_ntz'2024-01-01 00:00:00' AS ntz, INTERVAL '1 02:03:04' DAY TO SECOND AS days,
                    1.25BD AS d, CAST(1 AS DECIMAL(38, 10)) AS wide, 1Y AS tiny, true AS yes, map('a', map(1, 2)) AS m,
                    array(named_struct('i', INTERVAL '1' DAY)) AS nested, array(null) AS nulls,
                    named_struct('a.b', 1, '', 2) AS s"""


def test_every_other_column_comes_out_as_it_was(spark, embed):
    import pyspark.sql.functions as F

    df = spark.sql(CARRIED).withColumn("noted", F.col("c1").alias("noted", metadata={"unit": "eur"}))
    df = df.withColumn("x" * 3000, F.lit("long"))
    for column in ("text", F.lower("text")):
        scored = firesteel.score(df, embed, column, output="v")
        assert scored.schema.fields[:-1] == df.schema.fields  # types, nullability, metadata
        assert [field.metadata for field in scored.schema.fields[:-1]] == [f.metadata for f in df.schema.fields]
        assert scored.schema[-1].nullable and len(scored.columns) == len(df.columns) + 1
    assert tuple(scored.first())[:-1] == tuple(df.first())


def test_user_defined_types_are_carried(spark, embed):
    from pyspark.ml.linalg import Vectors

    df = spark.createDataFrame([("a", Vectors.dense(1.0, 2.0)), ("b", Vectors.sparse(3, {1: 4.0}))], ["text", "vector"])
    scored = firesteel.score(df, embed, "text", output="v").drop("v")
    assert scored.schema == df.schema
    assert sorted(scored.collect()) == sorted(df.collect())


def test_variants_are_carried(spark, embed):
    import pyspark.sql.functions as F

    if not hasattr(F, "parse_json"):
        pytest.skip("Spark has variants from 4.0 on")
    df = spark.sql("""SELECT 'a' AS text, parse_json('{"a": [1]}') AS j""")
    assert firesteel.score(df, embed, "text").selectExpr("to_json(j)").first()[0] == '{"a":[1]}'


def test_char_and_varchar_of_a_table(spark, embed):
    spark.sql("DROP TABLE IF EXISTS score_chars")
    spark.sql("CREATE TABLE score_chars (id INT, c CHAR(10), v VARCHAR(10)) USING parquet")
    try:
        spark.sql("INSERT INTO score_chars VALUES (1, 'the date', 'a row'), (2, NULL, NULL)")
        df = spark.table("score_chars")
        for column in ("c", "v"):
            scored = firesteel.score(df, embed, column, output="e")
            assert scored.schema.fields[:-1] == df.schema.fields
            assert [f.metadata for f in scored.schema.fields[:-1]] == [f.metadata for f in df.schema.fields]
            expected = df.withColumn("e", embed(column))
            assert sorted(scored.collect(), key=lambda row: row.id) == sorted(
                expected.collect(), key=lambda row: row.id
            )
    finally:
        spark.sql("DROP TABLE score_chars")


def test_char_and_varchar_as_types_of_their_own(spark, embed):
    """As Spark has them from 4.0 on, where it is told to keep them; before it makes them strings."""
    try:
        spark.conf.set("spark.sql.preserveCharVarcharTypeInfo", "true")
        query = "SELECT CAST('ab' AS CHAR(4)) AS c, CAST('a row' AS VARCHAR(9)) AS `v.v`, 1 AS n"
        df = spark.sql(query).selectExpr("*", "array(c) AS cs", "named_struct('x', `v.v`) AS twice", "n AS twice")
        for column in ("c", "v.v", "twice.x"):
            place = "`v.v`" if column == "v.v" else column
            given = (
                df.drop("twice") if column != "twice.x" else df.select("*").toDF("c", "v.v", "n", "cs", "twice", "m")
            )
            scored = firesteel.score(given, embed, column, output="e.e")
            assert scored.schema.fields[:-1] == given.schema.fields
            assert scored.first() == given.withColumn("e.e", embed(place)).first()
        assert firesteel.score(df, embed, "c").schema.fields[:-1] == df.schema.fields
    finally:
        spark.conf.unset("spark.sql.preserveCharVarcharTypeInfo")


NOT_CARRIED = [
    ("INTERVAL '1-2' YEAR TO MONTH", "interval year to month, and Spark cannot hand interval year to month to Python"),
    ("array(INTERVAL '2' MONTH)", "array<interval month>, and Spark cannot hand interval month to Python"),
    ("named_struct('a', 1, 'a', 2)", "struct<a:int,a:int>, and Spark cannot hand a struct with two fields of one name"),
    ("map('k', array(named_struct('x', 1, 'x', 2)))", "cannot hand a struct with two fields of one name"),
    ("array()", "array<void>, and Spark cannot hand void that is never null"),
    ("map()", "map<void,void>, and Spark cannot hand void that is never null"),
]


@pytest.mark.parametrize(("made", "words"), NOT_CARRIED, ids=[made for made, _ in NOT_CARRIED])
def test_what_arrow_cannot_carry_is_told_before_anything_runs(spark, embed, made, words):
    df = spark.sql(f"SELECT 'a row' AS text, {made} AS `odd.one`")
    with pytest.raises(REQUEST) as refused:
        firesteel.score(df, embed, "text")
    said = str(refused.value)
    assert said.startswith("column odd.one is ") and words in said and "\n" not in said
    assert said.endswith("or call the function in withColumn")


def test_what_the_message_advises_works(spark, embed):
    df = spark.sql("SELECT 'a row' AS text, INTERVAL '1' MONTH AS i")
    assert len(df.withColumn("v", embed("text")).select("v").first().v) == 48
    assert len(firesteel.score(df.select("text"), embed, "text", output="v").first().v) == 48
    assert firesteel.score(df.withColumn("i", df.i.cast("string")), embed, "text", output="v").columns[1] == "i"


def test_one_narrow_pass(spark, embed):
    """Neither a shuffle nor a second Python worker."""
    import contextlib
    import io

    df = spark.sql(TABLE)
    with contextlib.redirect_stdout(io.StringIO()) as plan:
        firesteel.score(df, embed, df.s.text).explain()
    said = plan.getvalue()
    assert said.count("MapInArrow") == 1 and "Exchange" not in said and "EvalPython" not in said
