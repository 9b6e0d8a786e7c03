"""hidden_states_udf: hidden states as columns, of text, token ids, features, and targets of models with a decoder."""

from contextlib import nullcontext

import firesteel
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
from firesteel.table import columns, stream
from firesteel.table.job import hidden_states_job

CONFIG, REQUEST = firesteel.ConfigError, firesteel.RequestError

TEXTS = ["first row", None, "", "the last column of the table", "as of date " * 30, "first row"]
OUTPUTS = {
    "all": lambda states: states,
    "first": lambda states: states[0],
    "last": lambda states: states[-1],
    "mean": lambda states: states.mean(axis=0, dtype=np.float64).astype(np.float32),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("states") / "model"))


@pytest.fixture(scope="module")
def engine(model):
    with firesteel.Engine(model, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(engine):
    """float32 [tokens, 48] or None for each of TEXTS."""
    states = iter(engine.hidden_states([text for text in TEXTS if text is not None]))
    return [None if text is None else next(states) for text in TEXTS]


def same(found, states):
    """A cell of Spark or Arrow, and what the engine gives; bit for bit."""
    if states is None:
        return found is None
    return np.array_equal(np.array(found, np.float32).reshape(states.shape), states)


def streamed(job, batches, engine, names=("the column", "the targets")):
    given = [batch if isinstance(batch, pa.RecordBatch) else pa.record_batch([batch], ["c"]) for batch in batches]
    return stream.stream(job, given, lambda *_: nullcontext(engine), lambda batch: batch.columns, names)


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_results_are_the_engines(model, engine, expected, output, details):
    job = hidden_states_job(model, output=output, details=details)
    ((_, result),) = streamed(job, [pa.array(TEXTS)], engine)
    result.validate(full=True)
    for states, row in zip(expected, result.to_pylist(), strict=True):
        if details and states is not None:
            assert row["error_code"] is None and row["prompt_tokens"] == len(states)
            assert row["finish_reason"] == ("length" if len(states) == 64 else "stop")
            row = row["result"]
        assert same(row, None if states is None else OUTPUTS[output](states))


@pytest.mark.parametrize("output", OUTPUTS)
def test_same_bits_however_the_column_is_cut(model, engine, output):
    rows = tiny.rows(seed=7, lengths=tuple(1 + 5 * i % 64 for i in range(200)))
    expected = [OUTPUTS[output](states) for states in engine.hidden_states(rows)]
    whole = pa.array([row.tolist() for row in rows], pa.list_(pa.int32()))
    for size in (1, 7, 200):
        batches = [whole.slice(begin, size) for begin in range(0, len(whole), size)]
        found = [
            row for _, result in streamed(hidden_states_job(model, output=output), batches, engine) for row in result
        ]
        assert all(same(row.as_py(), states) for row, states in zip(found, expected, strict=True))


def test_flat_results_lie_one_after_the_other(engine):
    pending = engine.start_hidden_states([[2, 3], None, [2, 999], [], [4, 5, 6]])
    flat, offsets, errors = pending.flat_result()
    assert offsets.tolist() == [0, 2, 2, 2, 2, 5] and [row for row, _, _ in errors] == [2]
    assert pending.tokens.tolist() == [2, 0, 0, 0, 3]
    assert same(flat, np.concatenate(engine.hidden_states([[2, 3], [4, 5, 6]])))
    many = tiny.rows(seed=1, lengths=(3,) * 700)  # of several windows
    flat, offsets, _ = engine.start_hidden_states(many).flat_result()
    assert same(flat, np.concatenate(engine.hidden_states(many))) and offsets[-1] == len(flat) == 2100
    flat, offsets, _ = engine.start_hidden_states([]).flat_result()
    assert flat.shape == (0, 48) and offsets.tolist() == [0]


def test_hidden_states_are_the_engines_memory():
    flat, offsets = np.arange(15, dtype=np.float32).reshape(5, 3), np.array([0, 2, 2, 2, 5])
    array = columns.states(flat, offsets, np.array([True, True, False, True]))
    array.validate(full=True)
    assert array.type == columns.STATES
    assert array.to_pylist() == [[[0, 1, 2], [3, 4, 5]], [], None, [[6, 7, 8], [9, 10, 11], [12, 13, 14]]]
    assert array.values.values.buffers()[1].address == flat.ctypes.data


def test_more_floats_than_arrow_can_hold_are_refused(monkeypatch):
    monkeypatch.setattr(columns, "MOST_FLOATS", 14)
    with pytest.raises(REQUEST, match="1 rows are 15 floats, and an Arrow array holds 14; take output="):
        columns.states(np.zeros((5, 3), np.float32), np.array([0, 5]), np.ones(1, bool))


def test_slices_are_bounded_by_the_bytes_of_results(model, engine, monkeypatch):
    monkeypatch.setattr(stream, "SLICE_BYTES", 4 * 64 * 48 * 4)  # four rows of 64 tokens of 48 floats
    long = pa.array([[2] * 64] * 200, pa.list_(pa.int32()))
    assert max(len(result) for _, result in streamed(hidden_states_job(model), [long], engine)) == 4
    short = pa.array([[2]] * 200, pa.list_(pa.int32()))
    assert max(len(result) for _, result in streamed(hidden_states_job(model), [short], engine)) == 64


def test_rows_with_a_fault_leave_the_others_alone(model, engine):
    array = pa.array([[2, 3], [2, 999], None, [], [4, 5, 6]], pa.list_(pa.int32()))
    good = engine.hidden_states([[2, 3], [], [4, 5, 6]])
    job = hidden_states_job(model, details=True)
    ((_, result),) = streamed(job, [array], engine)
    rows = result.to_pylist()
    assert [row and row["error_code"] for row in rows] == [None, "SCHEMA", None, None, None]
    assert rows[1]["result"] is None and rows[2] is None and rows[3]["result"] == []
    assert [row and row["prompt_tokens"] for row in rows] == [2, 0, None, 0, 3]
    assert same(rows[0]["result"], good[0]) and same(rows[4]["result"], good[2])
    with pytest.raises(REQUEST, match=r"row 1 of the partition \(SCHEMA\)"):
        list(streamed(hidden_states_job(model), [array], engine))


@pytest.mark.parametrize("output", ["first", "last", "mean"])
def test_a_row_without_tokens_has_no_token_to_show(model, engine, output):
    array = pa.array([[2, 3], [], None, [2, 999]], pa.list_(pa.int32()))
    ((_, result),) = streamed(hidden_states_job(model, output=output, details=True), [array], engine)
    rows = result.to_pylist()
    assert [row and row["error_code"] for row in rows] == [None, "SCHEMA", None, "SCHEMA"]
    assert rows[1]["error"] == f'the row has no tokens, and so no result for output="{output}"'
    assert "999" in rows[3]["error"]


def test_texts_are_cut_or_refused_as_embed_does(model, engine):
    cut = hidden_states_job(model, max_length=5, details=True)
    ((_, result),) = streamed(cut, [pa.array(["the last column of the table"])], engine)
    (row,) = result.to_pylist()
    assert len(row["result"]) == 5 and row["finish_reason"] == "length"
    refused = hidden_states_job(model, max_length=5, truncate="error", details=True)
    ((_, result),) = streamed(refused, [pa.array(["the last column of the table"])], engine)
    assert result.to_pylist()[0]["error_code"] == "TOO_LONG"


# --- features ---------------------------------------------------------------------------------------------------------

FEATURES = [[[1.0, 2.0], [3.0, 4.0]], None, [], [[5.0, 6.0]]]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int32()], ids=str)
@pytest.mark.parametrize("listed", [pa.list_, pa.large_list])
def test_features_are_taken_as_they_lie(kind, listed):
    whole = pa.array([[[9.0, 9.0]], *FEATURES, [[8.0, 8.0]]], listed(listed(kind)))
    array = columns.readable(whole.slice(1, len(FEATURES)))
    rows, faults = columns.features(array, 2)
    assert faults == [] and rows.nulls.tolist() == [False, True, False, False]
    found = [rows.ids[begin:end].tolist() for begin, end in zip(rows.offsets, rows.offsets[1:], strict=False)]
    assert [found[i] for i in (0, 2, 3)] == [FEATURES[0], [], FEATURES[3]]
    assert np.shares_memory(rows.ids, whole.values.values.to_numpy())


def test_features_that_do_not_fit_are_faults_of_their_rows():
    array = pa.array(
        [[[1, 2], [3]], [[4, 5]], None, [[6, 7], [None, 6]], [[7, 8], None], [[9, 10]], [[1, 2, 3], [4, 5, 6]], []],
        pa.list_(pa.list_(pa.float32())),
    )
    rows, faults = columns.features(array, 2)
    assert faults == [
        (0, "SCHEMA", "token 1 of the row has 1 numbers; the model takes 2"),
        (3, "SCHEMA", "token 1 of the row has no number at place 0, but null"),
        (4, "SCHEMA", "token 1 of the row is null; 2 numbers belong there"),
        (6, "SCHEMA", "token 0 of the row has 3 numbers; the model takes 2"),
    ]
    assert rows.nulls.tolist() == [True, False, True, True, True, False, True, False]
    assert rows.ids.tolist() == [[4, 5], [9, 10]]
    assert rows.offsets.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_features_of_empty_arrays_have_no_type():
    rows, faults = columns.features(columns.readable(pa.array([[[]], None], pa.list_(pa.list_(pa.null())))), 2)
    assert faults == [(0, "SCHEMA", "token 0 of the row has 0 numbers; the model takes 2")]
    assert rows.ids.shape == (0, 2)


def test_hidden_states_through_pandas_and_features_back():
    flat, offsets = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 2, 2, 2, 3])
    array = columns.states(flat, offsets, np.array([True, True, False, True]))
    series = columns.to_series(array)
    assert [None if cell is None else [token.tolist() for token in cell] for cell in series] == array.to_pylist()
    cell = np.empty(2, object)  # as Spark hands it over
    cell[0], cell[1] = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    back = columns.from_series(pd.Series([cell, None]))
    assert back.to_pylist() == [[[1.0, 2.0], [3.0, 4.0]], None]


def test_features_go_to_no_model_of_tokens(model, engine):
    with pytest.raises(REQUEST, match="the column holds features, .*; the model takes texts"):
        list(streamed(hidden_states_job(model), [pa.array([[[1.0] * 48]], pa.list_(pa.list_(pa.float32())))], engine))


# --- options ----------------------------------------------------------------------------------------------------------

OPTIONS = [
    ({"output": "some"}, REQUEST, 'output is \'some\'; "all", "first", "last" or "mean" belongs there'),
    ({"output": ["all"]}, REQUEST, "output is ['all']"),
    (
        {"pooling": "cls"},
        CONFIG,
        "hidden_states_udf has no option pooling; its options are output, max_length, ",
    ),
    ({"outptu": "all"}, CONFIG, "hidden_states_udf has no option outptu; did you mean output?"),
    ({"max_length": 65}, REQUEST, "max_length is 65; the model has 64 positions, so 1 to 64 belongs there"),
    ({"max_length": 0}, REQUEST, "max_length is 0"),
    ({"truncate": "cut"}, REQUEST, "truncate is 'cut'"),
    ({"on_error": "ignore"}, CONFIG, "on_error is 'ignore'"),
]


@pytest.mark.parametrize(("options", "kind", "words"), OPTIONS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_a_wrong_option_is_refused_on_the_driver(model, options, kind, words):
    with pytest.raises(kind) as refused:
        firesteel.hidden_states_udf(model, **options)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_it_is_a_description(model):
    states = firesteel.hidden_states_udf(model)
    assert states == firesteel.hidden_states_udf(model, "all") != firesteel.hidden_states_udf(model, "mean")
    assert repr(states) == f"hidden_states_udf({model!r})"
    assert repr(firesteel.hidden_states_udf(model, "mean")) == f"hidden_states_udf({model!r}, output='mean')"
    assert states.returnType.simpleString() == "array<array<float>>"
    assert firesteel.hidden_states_udf(model, "last").returnType.simpleString() == "array<float>"
    detailed = firesteel.hidden_states_udf(model, details=True).returnType.simpleString()
    assert detailed.startswith("struct<result:array<array<float>>,error_code:string,error:string,")
    for count in (0, 3):
        with pytest.raises(CONFIG, match=f"takes 1 or 2 columns; {count} were given"):
            states(*["ids"] * count)


# --- in Spark ---------------------------------------------------------------------------------------------------------


def by_column(spark, df, udf):
    return df.select("id", udf("text"))


def by_score(spark, df, udf):
    return firesteel.score(df, udf, "text", output="v").select("id", "v")


def by_sql(spark, df, udf):
    firesteel.register(spark, "tiny_states", udf)
    df.createOrReplaceTempView("tiny_state_texts")
    return spark.sql("SELECT id, tiny_states(text) FROM tiny_state_texts")


def by_pandas(spark, df, udf):
    """The function for Spark before 4.1, which this Spark runs as well."""
    import pyspark.sql.functions as F
    from firesteel.spark import _udf

    return df.select("id", F.pandas_udf(_udf.pandas_function(udf.job), _udf.result_type(udf.job))("text"))


WAYS = [by_column, by_score, by_sql, by_pandas]


@pytest.mark.spark
@pytest.mark.parametrize("output", ["all", "mean"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_gives_the_engines_states(way, spark, model, expected, output):
    df = spark.createDataFrame(list(enumerate(TEXTS)), "id int, text string").repartition(2)
    rows = way(spark, df, firesteel.hidden_states_udf(model, output)).collect()
    assert sorted(row[0] for row in rows) == list(range(len(TEXTS)))
    for number, found in rows:
        states = expected[number]
        assert same(found, None if states is None else OUTPUTS[output](states))


@pytest.mark.spark
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_details_in_every_way(way, spark, model, expected):
    df = spark.createDataFrame(list(enumerate(TEXTS)), "id int, text string")
    udf = firesteel.hidden_states_udf(model, truncate="error", details=True)
    rows = {row[0]: row[1] for row in way(spark, df, udf).collect()}
    assert [number for number, row in rows.items() if row and row.error_code] == [4]
    assert rows[4].result is None and rows[4].error_code == "TOO_LONG"
    assert rows[1] is None or rows[1].prompt_tokens is None  # through pandas a null struct has only null fields
    assert same(rows[0].result, expected[0])


@pytest.mark.spark
def test_columns_that_are_none_of_these_are_refused(spark, model):
    states = firesteel.hidden_states_udf(model)
    df = spark.createDataFrame(
        [(["a"], [[True]], [2, 3])], "words array<string>, flags array<array<boolean>>, ids array<int>"
    )
    for column in ("words", "flags"):
        with pytest.raises(REQUEST, match=f"column {column} is array<.*; string .text. or array<int>"):
            firesteel.score(df, states, column)
        with pytest.raises(Exception, match="the column given to hidden_states_udf is array<"):
            df.select(states(column)).collect()
    with pytest.raises(Exception, match="targets were given to a model without a decoder"):
        df.select(states("ids", "ids")).collect()
    with pytest.raises(CONFIG, match="hidden_states_udf takes 1 or 2 columns; 3 were given"):
        firesteel.score(df, states, "ids", "ids", "ids")


# --- PyTorch's modules: features, and targets -------------------------------------------------------------------------

PARTS = {
    "encoder": {"norm": True},
    "encoder of ids": {"vocab_size": 60},
    "decoder": {},
    "transformer": {},
    "transformer of ids": {"vocab_size": 60},
}
LENGTHS = (3, 1, 17, 8, 33, 5)


@pytest.fixture
def module(tmp_path, request):
    """(folder, rows, targets or None) of a tiny module; the third row is null, and the fourth target."""
    import tiny_torch

    part, changes = request.param.split(" ")[0], PARTS[request.param]
    config = tiny_torch.config(part, **{name: value for name, value in changes.items() if name != "norm"})
    rows, targets = tiny_torch.rows(config, 3, LENGTHS)
    rows[2] = None
    if targets is not None:
        targets[3] = None
    return str(tiny_torch.write(tmp_path / "model", part, **changes)), rows, targets


def modules_states(folder, rows, targets):
    """What the engine gives for the rows that are not null."""
    sides = [rows] if targets is None else [rows, targets]
    live = [row for row in range(len(rows)) if all(side[row] is not None for side in sides)]
    with firesteel.Engine(folder, threads=1) as engine:
        found = engine.hidden_states(*([side[row] for row in live] for side in sides))
    return [found[live.index(row)] if row in live else None for row in range(len(rows))]


def table(spark, rows, targets):
    cells = [[None if row is None else row.tolist() for row in side] for side in (rows, targets) if side is not None]
    kinds = ["array<int>" if isinstance(next(filter(None, side))[0], int) else "array<array<float>>" for side in cells]
    names = ["source", "target"][: len(cells)]
    schema = ", ".join(["id int", *(f"{name} {kind}" for name, kind in zip(names, kinds, strict=True))])
    return spark.createDataFrame([(i, *row) for i, row in enumerate(zip(*cells, strict=True))], schema), names


@pytest.mark.spark
@pytest.mark.parametrize("output", ["all", "first"])
@pytest.mark.parametrize("module", PARTS, indirect=True)
def test_modules_in_spark_are_modules_in_the_engine(spark, module, output):
    import pyspark.sql.functions as F
    from firesteel.spark import _udf

    expected = modules_states(*module)
    df, names = table(spark, *module[1:])
    udf = firesteel.hidden_states_udf(module[0], output)
    through_pandas = F.pandas_udf(_udf.pandas_function(udf.job), _udf.result_type(udf.job))
    ways = [
        df.select("id", udf(*names)),
        df.select("id", through_pandas(*names)),
        firesteel.score(df, udf, *names, output="v").select("id", "v"),
    ]
    for way in ways:
        found = dict(map(tuple, way.collect()))
        assert len(found) == len(expected)
        for row, states in enumerate(expected):
            assert same(found[row], None if states is None else OUTPUTS[output](states))


@pytest.mark.parametrize("module", ["transformer"], indirect=True)
def test_faults_of_either_side_are_the_rows(module):
    folder, rows, targets = module
    expected = modules_states(*module)
    rows, targets = ([None if row is None else row.tolist() for row in side] for side in (rows, targets))
    rows[2] = [[1.0]]  # wrong, and its target is fine
    targets[0] = targets[0][:-1] + [None]
    targets[3] = None
    rows[3] = [[1.0]]  # wrong, but the row is null on the other side
    rows[5], targets[5] = [[1.0]], [[2.0, 3.0]]
    batch = pa.record_batch([pa.array(side, pa.list_(pa.list_(pa.float32()))) for side in (rows, targets)], ["r", "t"])
    with firesteel.Engine(folder, threads=1) as engine:
        ((_, result),) = streamed(hidden_states_job(folder, details=True), [batch], engine)
        found = result.to_pylist()
        assert [row and row["error_code"] for row in found] == ["SCHEMA", None, "SCHEMA", None, None, "SCHEMA"]
        assert found[3] is None
        assert (
            found[0]["error"]
            == f"of its targets, token {len(targets[0]) - 1} of the row is null; 48 numbers belong there"
        )
        assert found[5]["error"] == "token 0 of the row has 1 numbers; the model takes 48"
        list(streamed(hidden_states_job(folder), [batch.slice(3, 2)], engine))  # a null row fails no task
        for row in (1, 4):
            assert same(found[row]["result"], expected[row])
            assert found[row]["prompt_tokens"] == len(rows[row]) + len(targets[row])
        with pytest.raises(REQUEST, match="decoder, whose input is missing"):
            list(streamed(hidden_states_job(folder), [pa.array(rows, pa.list_(pa.list_(pa.float32())))], engine))
        texts = pa.record_batch([batch.column(0), pa.array(["a"] * len(rows))], ["r", "t"])
        with pytest.raises(REQUEST, match="the targets are string; array<int>"):
            list(streamed(hidden_states_job(folder), [texts], engine))
