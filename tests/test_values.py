"""Wrong values get the sentence of their row, with its place; what holds no rows is refused as a whole."""

from __future__ import annotations

import copy
import datetime
import pickle
from decimal import Decimal
from types import SimpleNamespace

import firesteel
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
import tiny_torch
from firesteel import RequestError
from firesteel.engine.given import as_rows, hold_texts
from pyspark import cloudpickle

IDS = [1, 5, 2]
FEATURES = np.zeros((3, 48), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    made = tiny.write(tmp_path_factory.mktemp("values") / "model")
    tiny.write_tokenizer(made)
    return str(made)


@pytest.fixture(scope="module")
def engine(folder):
    with firesteel.Engine(folder, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def features_folder(tmp_path_factory) -> str:
    return str(tiny_torch.write(tmp_path_factory.mktemp("values") / "torch", "encoder"))


@pytest.fixture(scope="module")
def features_engine(features_folder):
    with firesteel.Engine(features_folder, threads=1) as opened:
        yield opened


NAN = float("nan")
MISSING = {
    "NaN first": (pd.Series([NAN, "the cat", "dog"]), [0]),
    "NaN last, of a list": (["the cat", "dog", NAN], [2]),
    "None": (["the cat", None, "dog"], [1]),
    "pd.NA": (pd.Series(["the cat", None, "dog"], dtype="string"), [1]),
    "pd.NaT beside None": ([pd.NaT, None, "dog"], [0, 1]),
    "a column of NumPy's float": (pd.Series([NAN, NAN]), [0, 1]),
    "half precision": ([np.float16("nan"), "dog"], [0]),
    "an index": (pd.Index(["the cat", NAN], dtype=object), [1]),
    "categories": (pd.Series(["the cat", None, "dog"], dtype="category"), [1]),
    "arrow": (pa.array([None, "the cat"]), [0]),
    "arrow, in chunks": (pa.chunked_array([["the cat"], [None], ["dog"]]), [1]),
    "arrow's scalars": ([pa.scalar("the cat"), pa.scalar(None, pa.string())], [1]),
    "pandas over arrow": (pd.Series(["the cat", None], dtype=pd.ArrowDtype(pa.string())), [1]),
    "objects": (np.array([NAN, "dog"], object), [0]),
    "masked": (np.ma.array(["the cat", "dog"], mask=[True, False]), [0]),
    "NaT": (np.array(["NaT", "NaT"], "datetime64[s]"), [0, 1]),
    "among ids": ([IDS, None, NAN, IDS], [1, 2]),
    "among ids of pandas": (pd.Series([NAN, IDS, pd.NA]), [0, 2]),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_value_is_a_null_row_wherever_it_stands(engine, name):
    rows, where = MISSING[name]
    vectors, errors = engine.start_embed(rows).result()
    assert errors == []
    assert [row for row in range(len(vectors)) if np.isnan(vectors[row]).all()] == where
    with pytest.raises(RequestError, match=f"row {where[0]} .*the row is missing") as raised:
        engine.embed(rows)
    assert [row for row, _, _ in raised.value.rows] == where


TAKEN = {
    "a series with another index": pd.Series(["the cat", "dog"], index=[7, 3]),
    "new strings": pd.Series(["the cat", "dog"], dtype="string"),
    "arrow": pa.array(["the cat", "dog"]),
    "arrow, large": pa.array(["the cat", "dog"], pa.large_string()),
    "arrow, in chunks": pa.chunked_array([["the cat"], ["dog"]]),
    "arrow's dictionary": pa.array(["the cat", "dog"]).dictionary_encode(),
    "objects": np.array(["the cat", "dog"], object),
    "strings of NumPy": np.array(["the cat", "dog"]),
    "np.str_": [np.str_("the cat"), np.str_("dog")],
    "a tuple": ("the cat", "dog"),
    "a generator": (text for text in ("the cat", "dog")),
    "values of a dict": {1: "the cat", 2: "dog"}.values(),
    "keys of a dict": {"the cat": 1, "dog": 2}.keys(),
}


@pytest.mark.parametrize("name", TAKEN)
def test_columns_and_sequences_are_rows(engine, name):
    assert np.array_equal(engine.embed(TAKEN[name]), engine.embed(["the cat", "dog"]))


def test_columns_of_token_ids_are_rows(engine):
    expected = engine.embed([IDS, [1, 2]])
    for rows in (pa.array([IDS, [1, 2]]), pd.Series([IDS, np.array([1, 2])]), [pa.array(IDS), pa.scalar([1, 2])]):
        assert np.array_equal(engine.embed(rows), expected)
    for row in (np.array(IDS, object), pd.array(IDS, dtype="Int64"), range(1, 4), tuple(IDS), np.array(IDS, np.uint64)):
        assert np.array_equal(engine.embed([row, [1, 2]]), engine.embed([list(map(int, row)), [1, 2]]))
    assert np.array_equal(engine.embed(np.array([IDS, IDS])), engine.embed([IDS, IDS]))


FRAME = pd.DataFrame({"id": [1, 2], "text": ["the cat", "dog"]})
POLARS = SimpleNamespace(columns=["id", "text"], schema={"id": int})  # what of theirs is looked at
NO_ROWS = {
    "a table": (FRAME, ['texts is a table, a DataFrame with the columns "id", "text"', 'such as df["text"]']),
    "a table of one column": (FRAME[["text"]], ['with the columns "text";', 'df["text"]']),
    "a table of one other column": (FRAME[["id"]], ['df["id"]']),
    "a table without names": (pd.DataFrame([["the cat"]]), ["with the columns 0;", "df[0]"]),
    "a table without columns": (pd.DataFrame(), ["with the columns (none)"]),
    "arrow's table": (pa.table({"text": ["the cat"]}), ['texts is a table, a Table with the columns "text"']),
    "arrow's batch": (pa.RecordBatch.from_pydict({"t": ["the cat"]}), ["a RecordBatch", 'df["t"]']),
    "polars' table": (POLARS, ['with the columns "id", "text"', 'df["text"]']),
    "a record array": (FRAME.to_records(index=False), ['with the columns "id", "text"']),
    "a dict": ({"text": ["the cat"]}, ["texts is a dict", "list(texts.values())"]),
    "a set": ({"the cat"}, ["texts is a set, which has no order"]),
    "a frozen set": (frozenset({"the cat"}), ["texts is a frozenset, which has no order"]),
    "one text": ("the cat", ["texts is one str; a list of rows belongs there: [text]"]),
    "one text of NumPy": (np.str_("the cat"), ["texts is one str_"]),
    "bytes": (b"the cat", ["texts is one bytes"]),
    "a bytearray": (bytearray(b"the cat"), ["texts is one bytearray"]),
    "one value": (np.array("the cat"), ["texts is one value, an array without dimensions"]),
    "a number": (7, ["texts is a int; a list of rows belongs there"]),
    "nothing": (None, ["texts is a NoneType; a list of rows belongs there"]),
    "arrow's scalar": (pa.scalar("the cat"), ["texts is a StringScalar"]),
}


@pytest.mark.parametrize("name", NO_ROWS)
def test_what_holds_no_rows_is_refused(engine, name):
    given, words = NO_ROWS[name]
    with pytest.raises(RequestError) as refused:
        engine.embed(given)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    with pytest.raises(RequestError, match=r"^rows (is|are) "):
        engine.hidden_states(given)


WRONG_ROWS = {
    "a null": ([1, None, 3], "the row has null at place 1; token ids, whole numbers, belong there"),
    "NaN": ([1, NAN], "the row has null at place 1"),
    "NA": (pd.array([1, 2, None], dtype="Int64"), "the row has null at place 2"),
    "a null of arrow's": (pa.array([None, 1]), "the row has null at place 0"),
    "masked": (np.ma.array([1, 2], mask=[False, True]), "the row has null at place 1"),
    "a float": ([1, 2.0], "the row has the float 2.0 at place 1; token ids, whole numbers, belong there"),
    "floats": (np.array([1.0, 2.0]), "the row has the float 1.0 at place 0"),
    "a decimal": ([Decimal(1)], "the row has the Decimal Decimal('1') at place 0"),
    "bools": (np.array([True, False]), "the row has the bool True at place 0"),
    "a bool beside numbers": ([3, True], "the row has the bool True at place 1"),
    "a text among them": ([1, "cat"], "the row has the str 'cat' at place 1"),
    "texts": (["the", "cat"], "the row has the str 'the' at place 0"),
    "ragged": ([1, [2, 3]], "the row has the list [2, 3] at place 1"),
    "features": (FEATURES, "the row is of shape [3, 48] and type float32; the model takes token ids [tokens]"),
    "lists of ids": ([[1, 2], [3, 4]], "the row is of shape [2, 2] and type int64; the model takes token ids"),
    "a dict": ({1: 2}, "the row is a dict; a text (str) or a list of token ids belongs there"),
    "a set": ({1}, "the row is a set; a text (str) or a list of token ids belongs there"),
    "bytes": (b"the cat", "the row is a bytes; a text (str) or a list of token ids belongs there"),
    "a number": (7, "the row is a int; a text (str) or a list of token ids belongs there"),
    "a number of NumPy's": (np.array(7), "the row is a ndarray; a text (str) or a list of token ids belongs there"),
    "a date": (datetime.date(2026, 1, 1), "the row is a date"),
    "negative": ([1, 2, -5], "the row has token id -5 at token 2; the vocabulary has 0 to 159"),
    "beyond the vocabulary": ([1, 160], "the row has token id 160 at token 1; the vocabulary has 0 to 159"),
    "beyond 32 bits": ([1, 2**40], f"the row has the token id {2**40} at place 1, which is in no vocabulary"),
    "beyond 63 bits": (np.array([3, 2**63], np.uint64), "at place 1, which is in no vocabulary"),
    "beyond 64 bits": ([2**70, 1], f"the row has the token id {2**70} at place 0, which is in no vocabulary"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_wrong_row_is_told_with_its_place_and_no_other_is_touched(engine, name):
    row, words = WRONG_ROWS[name]
    vectors, errors = engine.start_embed([IDS, [1, 2], row, IDS]).result()
    assert [(number, code) for number, code, _ in errors] == [(2, "SCHEMA")]
    assert words in errors[0][2], errors[0][2]
    assert np.isnan(vectors[2]).all() and not np.isnan(vectors[[0, 1, 3]]).any()


MIXED = {
    "a list first": ([IDS, "the cat", "dog"], [0], "the row is a list; a string belongs there"),
    "an array first": ([np.array(IDS), "the cat", "dog"], [0], "the row is a ndarray; a string belongs there"),
    "a number first": ([5, "the cat", "dog"], [0], "the row is a int; a string belongs there"),
    "a text first": (["the cat", IDS, IDS], [0], "the row is a str; a list of token ids belongs there"),
    "a text after NaN": ([NAN, IDS, "the cat", IDS], [2], "the row is a str; a list of token ids belongs there"),
    "bytes first": ([b"the cat", "the cat"], [0], "the row is a bytes; a string belongs there"),
    "as many": ([IDS, "the cat"], [0], "the row is a list; a string belongs there"),
}


@pytest.mark.parametrize("name", MIXED)
def test_most_rows_decide_what_a_call_takes(engine, name):
    rows, wrong, sentence = MIXED[name]
    assert engine.start_embed(rows).result()[1] == [(row, "SCHEMA", sentence) for row in wrong]


def test_a_row_that_is_no_feature_is_told_alone(features_engine):
    width = features_engine.settings["width"]
    good = np.zeros((2, width), np.float32)
    wrong = ["the cat", IDS, np.zeros((2, width + 1)), 7, [[None] * width], np.array(1.0)]
    _, errors = features_engine.start_hidden_states([good, *wrong, good, good, good, good, good, good]).result()
    assert [row for row, _, _ in errors] == [1, 2, 3, 4, 5, 6]
    assert all(f"numbers [tokens, {width}]" in sentence for _, _, sentence in errors), errors


def test_a_model_says_what_it_takes(engine, features_engine):
    width = features_engine.settings["width"]
    calls = [
        (engine, np.zeros((2, 3, 48)), "the rows are features; the model takes token ids"),
        (engine, [FEATURES, FEATURES], "the model takes token ids [tokens]"),
        (features_engine, ["the cat"], "the rows are texts; the model takes features"),
        (features_engine, np.array([IDS]), "the rows are token ids; the model takes features"),
        (features_engine, [IDS], f"the model takes features, numbers [tokens, {width}]"),
        (features_engine, np.zeros((1, 2, width + 1)), f"the rows have {width + 1} numbers a token"),
    ]
    for opened, rows, words in calls:
        with pytest.raises(RequestError) as refused:
            opened.hidden_states(rows)
        assert words in str(refused.value)


def test_targets_are_looked_at_like_rows(tmp_path):
    folder = tiny_torch.write(tmp_path / "model", "transformer", vocab_size=50)
    with firesteel.Engine(folder, threads=1) as opened:
        _, errors = opened.start_hidden_states([IDS] * 4, [IDS, [1, None], [1, 2.5], [1, 99]]).result()
        assert [row for row, _, _ in errors] == [1, 2, 3]
        assert errors[0][2].startswith("of its targets, the row has null at place 1")
        assert errors[1][2].startswith("of its targets, the row has the float 2.5 at place 1")
        assert "token id 99 at target 1" in errors[2][2]
        with pytest.raises(RequestError, match=r"^targets is a table, a DataFrame"):
            opened.hidden_states([IDS], pd.DataFrame({"ids": [IDS]}))


def test_rows_that_hold_bytes_of_no_text_are_their_own_fault(engine):
    array = pa.array([b"the cat", b"caf\xe9", None], pa.binary()).view(pa.string())
    _, errors = engine.start_embed(array).result()
    assert [(row, code) for row, code, _ in errors] == [(1, "BAD_UTF8")]


def test_what_most_rows_are():
    assert hold_texts(["a", None, IDS, "b"]) and not hold_texts([IDS, "a", IDS]) and not hold_texts([])
    assert not hold_texts([None, None]) and not hold_texts([1, 2]) and hold_texts([1, 2, "a"])
    assert as_rows(pd.Series(["a", NAN])) == ["a", None]


# --- Spark -----------------------------------------------------------------------------------------------------------

CELLS = {
    "a null": ("array<int>", [1, None, 3], "the row has null at place 1; token ids, whole numbers, belong there"),
    "nulls alone": ("array<bigint>", [None, None], "the row has null at place 0"),
    "a null at the end": ("array<smallint>", [1, 2, None], "the row has null at place 2"),
    "negative": ("array<int>", [1, -7], "the row has token id -7 at token 1"),
    "beyond 32 bits": ("array<bigint>", [1, 2**40], f"the row has the token id {2**40} at place 1"),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_wrong_cell_is_told_by_its_row_of_the_partition(spark, folder, name):
    kind, cell, words = CELLS[name]
    rows = [(n, cell if n == 7 else None if n == 3 else IDS) for n in range(10)]
    df = spark.createDataFrame(rows, f"id int, ids {kind}").coalesce(1)
    detailed = firesteel.embed_udf(folder, details=True)
    told = {row.id: row.e for row in df.select("id", detailed("ids").alias("e")).collect()}
    assert told[7].error_code == "SCHEMA" and told[7].error.startswith(words) and told[7].result is None
    assert told[3] is None and all(len(told[n].result) == 48 for n in range(10) if n not in (3, 7))
    with pytest.raises(Exception, match=r"row 7 of the partition \(SCHEMA\): the row has"):
        df.select(firesteel.embed_udf(folder)("ids")).collect()


def test_a_column_of_features_is_refused_by_a_model_of_token_ids(spark, folder):
    df = spark.createDataFrame([([[0.5] * 48],)], "f array<array<float>>")
    for made in (firesteel.embed_udf(folder), firesteel.hidden_states_udf(folder)):
        with pytest.raises(Exception, match=r"the column holds features.*the model takes texts, string, or token ids"):
            df.select(made("f")).collect()


def test_tables_and_columns_of_spark_are_no_rows(spark, engine):
    df = spark.createDataFrame([("the cat",)], "text string")
    for given in (df, df.text, df.collect()[0]):
        with pytest.raises(RequestError, match=r"of Spark; a list of rows belongs there: firesteel.embed_udf"):
            engine.embed(given)


# --- engines stay where they are -------------------------------------------------------------------------------------

SENT = {
    "pickle": pickle.dumps,
    "cloudpickle": cloudpickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "a closure": lambda engine: cloudpickle.dumps(lambda texts: engine.embed(texts)),
    "a method": lambda engine: cloudpickle.dumps(engine.embed),
    "in a list": lambda engine: pickle.dumps([engine]),
}


@pytest.mark.parametrize("how", SENT)
def test_an_engine_cannot_be_sent_and_says_what_to_do(engine, how):
    with pytest.raises(RequestError, match="open it inside the function .*firesteel.connect.*firesteel.embed_udf"):
        SENT[how](engine)


def test_rows_on_their_way_cannot_be_sent_either(engine):
    with pytest.raises(RequestError, match="rows on their way .* ask for their result"):
        cloudpickle.dumps(engine.start_embed(["the"]))


def test_an_engine_in_a_function_of_spark_is_told_on_the_driver(spark, engine, folder, monkeypatch, tmp_path):
    from pyspark.sql import functions as F

    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(tmp_path))
    df = spark.createDataFrame([("the cat",)], "text string")
    with firesteel.connect(folder) as connected:
        for opened in (engine, connected):

            @F.udf("int")
            def embedded(text: str, opened: firesteel.Engine = opened) -> int:
                return len(opened.embed([text]))

            with pytest.raises(Exception, match="open it inside the function .*firesteel.connect"):
                df.select(embedded("text")).collect()
