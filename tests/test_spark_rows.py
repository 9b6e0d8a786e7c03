"""What moves rows in a worker, without Spark: the window, the stream of requests, conversions, the engines kept."""

import threading
from contextlib import nullcontext
from decimal import Decimal

import firesteel
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
from firesteel.host import task
from firesteel.spark import _worker
from firesteel.table import columns, stream
from firesteel.table.job import embed_job
from firesteel.table.window import FIRST_ROWS, LARGEST_SLICE, MOST_ROWS, Window

TEXTS = ["first row", None, "", "the last column of the table", "as of date " * 20]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("rows") / "model"))


@pytest.fixture(scope="module")
def engine(model):
    with firesteel.Engine(model, threads=1) as opened:
        yield opened


# --- the window ------------------------------------------------------------------------------------------------------


def test_window_starts_small_and_doubles_as_rows_are_consumed():
    window, limits = Window(), []
    for _ in range(400):
        while rows := window.room():
            assert rows <= LARGEST_SLICE
            window.take(rows, 1)
        assert window.rows == window.limit
        if not limits or limits[-1] != window.limit:
            limits.append(window.limit)
        window.give(64, 1)
    assert limits == [256, 512, 1024, 2048, 4096, 8192]
    assert limits[0] == FIRST_ROWS and limits[-1] == MOST_ROWS


def test_window_is_bounded_by_bytes_but_never_stuck():
    window = Window(most_bytes=1000)
    window.take(window.room(), 5000)  # more than fits: allowed alone
    assert window.room() == 0
    window.give(window.rows, 5000)
    assert window.room() > 0


# --- the stream ------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands in for an engine: what was started, finished and cancelled."""

    settings = {"max_length": 8, "rows": "ids", "width": 2}

    def __init__(self, fault=lambda row: None):
        self.started, self.cancelled, self.requests, self.fault = 0, 0, [], fault

    def dimension(self, pooling, dimensions):
        return 2

    def start_embed(self, rows, **options):
        pending = RecordedPending(self, rows, self.started)
        self.started += len(rows)
        self.requests.append(len(rows))
        return pending


class RecordedPending:
    def __init__(self, engine, rows, first):
        self.engine, self.rows = engine, rows
        self.vectors = np.repeat(np.arange(first, first + len(rows), dtype=np.float32), 2).reshape(-1, 2)
        self.tokens = np.full(len(rows), 3, np.int32)
        faults = [(row, engine.fault(text)) for row, text in enumerate(rows) if text is not None]
        self.errors = [(row, "TOO_LONG", sentence) for row, sentence in faults if sentence]

    def result(self):
        return self.vectors, self.errors

    def cancel(self):
        self.engine.cancelled += len(self.rows)


def streamed(job, arrays, engine, name="the column"):
    return stream.stream(job, iter(arrays), lambda *_: nullcontext(engine), lambda array: [array], [name])


def test_first_results_cost_hundreds_of_rows_and_the_rest_is_cancelled(model):
    recorder = Recorder()
    results = streamed(embed_job(model), [pa.array(["x"] * 10_000)] * 3, recorder)
    first = next(results)[1]
    assert len(first) == 64 and recorder.started <= 256
    results.close()
    assert recorder.cancelled == recorder.started - len(first)


@pytest.mark.parametrize("sizes", [[1], [0, 3, 0], [64, 1, 300], [10_000, 7], [1] * 300, []], ids=str)
def test_every_row_comes_out_once_and_in_order(model, sizes):
    recorder = Recorder()
    arrays = [pa.array(["x"] * size, pa.string()) for size in sizes]
    seen = [(batch, result) for batch, result in streamed(embed_job(model), arrays, recorder)]
    assert all(len(batch) == len(result) for batch, result in seen)
    found = [row[0] for _, result in seen for row in result.to_pylist()]
    assert found == list(range(sum(sizes)))
    assert recorder.cancelled == 0


def test_long_texts_make_small_slices(model):
    recorder = Recorder()
    list(streamed(embed_job(model), [pa.array(["x" * 3_000_000] * 10)], recorder))
    assert max(recorder.requests) == 1


def test_no_engine_is_opened_where_there_is_no_row(model):
    def attach(*_):
        raise AssertionError("opened")

    empty = [pa.array([], pa.string())] * 2
    assert list(stream.stream(embed_job(model), iter(empty), attach, lambda array: [array], ["the column"])) == []


def test_a_faulty_row_fails_the_task_by_its_place_in_the_partition(model):
    recorder = Recorder(lambda text: "it is bad" if text == "bad" else None)
    arrays = [pa.array(["x"] * 700), pa.array(["x", "bad"])]
    with pytest.raises(firesteel.RequestError, match=r"row 701 of the partition \(TOO_LONG\): it is bad"):
        list(streamed(embed_job(model), arrays, recorder))


@pytest.mark.parametrize(
    ("rows", "bad", "most", "fails"),
    [
        (999, 999, 0.5, False),  # too few to judge
        (1000, 501, 0.5, True),
        (2000, 1000, 0.5, False),
        (2000, 30, 0.01, True),
        (2000, 2000, 1.0, False),
        (2000, 1, 0.0, True),
    ],
)
def test_max_errors_is_a_share_of_the_partition(model, rows, bad, most, fails):
    recorder = Recorder(lambda text: "it is bad" if text == "bad" else None)
    every = rows // bad
    texts = ["bad" if row % every == 0 and row // every < bad else "x" for row in range(rows)]
    results = streamed(embed_job(model, on_error="null", max_errors=most), [pa.array(texts)], recorder)
    if fails:
        with pytest.raises(firesteel.RequestError, match="max_errors is .*are TOO_LONG, as: it is bad"):
            list(results)
    else:
        assert sum(result.null_count for _, result in results) == bad


def test_null_rows_are_no_errors_and_cost_nothing(model, engine):
    job = embed_job(model, max_errors=0.0, on_error="null")
    before = engine.stats()["rows"]
    results = [result for _, result in streamed(job, [pa.nulls(3000, pa.string())], engine)]
    assert sum(result.null_count for result in results) == 3000
    assert engine.stats()["rows"] == before


@pytest.mark.parametrize("details", [False, True])
def test_results_are_the_engines(model, engine, details):
    job = embed_job(model, details=details)
    ((_, result),) = streamed(job, [pa.array(TEXTS)], engine)
    expected = iter(engine.embed([text for text in TEXTS if text is not None]))
    rows = result.to_pylist()
    for text, row in zip(TEXTS, rows, strict=True):
        if text is None:
            assert row is None
        else:
            vector = row["result"] if details else row
            assert np.array_equal(np.float32(vector), next(expected))
    if details:
        assert [row and row["prompt_tokens"] for row in rows] == [4, None, 2, 8, 62]
        assert [row and row["finish_reason"] for row in rows] == ["stop", None, "stop", "stop", "stop"]


def test_details_tell_which_rows_fill_the_length_and_which_are_too_long(model, engine):
    array = pa.array(["first", "first row table string column"])
    ((_, cut),) = streamed(embed_job(model, details=True, max_length=4), [array], engine)
    assert cut.field("finish_reason").to_pylist() == ["stop", "length"]
    ((_, refused),) = streamed(embed_job(model, details=True, max_length=4, truncate="error"), [array], engine)
    bad = refused.to_pylist()[1]
    assert bad["result"] is None and bad["error_code"] == "TOO_LONG" and bad["finish_reason"] is None
    assert bad["error"] == "the row has 7 tokens; the limit is 4" and bad["prompt_tokens"] == 0


# --- conversions -----------------------------------------------------------------------------------------------------

STRINGS = ["a", None, "", "é中"]
IDS = [[2, 45, 3], None, [], [2, 3]]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(STRINGS), STRINGS),
        (pa.array(STRINGS, pa.large_string()), STRINGS),
        (pa.array(STRINGS).dictionary_encode(), STRINGS),
        (pa.array([*STRINGS, "more"]).slice(1, 3), STRINGS[1:]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda x: str(getattr(x, "type", "")),
)
def test_text_columns(array, expected):
    assert columns.rows_of(columns.readable(array)) == (expected, [])


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64()], ids=str)
@pytest.mark.parametrize("listed", [pa.list_, pa.large_list])
def test_token_id_columns_are_taken_as_they_lie(kind, listed):
    array = pa.array([[9], *IDS, [9, 9]], listed(kind)).slice(1, len(IDS))
    rows, faults = columns.rows_of(columns.readable(array))
    assert faults == []
    assert np.array_equal(rows.nulls, [False, True, False, False])
    found = [rows.ids[a:b].tolist() for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]
    assert [found[i] for i in (0, 2, 3)] == [IDS[0], [], IDS[3]]
    assert np.shares_memory(rows.ids, array.values.to_numpy())


def test_a_null_among_token_ids_is_a_fault_of_its_row(engine):
    rows, faults = columns.rows_of(pa.array([[2, 3], [2, None, 3], None, [None]], pa.list_(pa.int32())))
    sentence = "the row has null at place {}; token ids, whole numbers, belong there"
    assert faults == [(1, "SCHEMA", sentence.format(1)), (3, "SCHEMA", sentence.format(0))]
    vectors, errors = engine.start_embed(rows).result()
    assert not errors and np.isnan(vectors).all(axis=1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_bytes_that_are_no_utf8_are_a_fault_of_their_row(kind):
    raw = pa.large_binary() if kind == pa.large_string() else pa.binary()
    array = pa.array([b"fine", b"ab\xff", None, b"also"], raw).view(kind)
    texts, faults = columns.rows_of(array)
    assert texts == ["fine", None, None, "also"]
    assert faults == [(1, "BAD_UTF8", "byte 2 of the text is not UTF-8")]


WRONG = [
    (pa.array([1]), "bigint"),
    (pa.array([1.5]), "double"),
    (pa.array([b"x"]), "binary"),
    (pa.array([["x"]]), "array<string>"),
    (pa.array([[1.5]], pa.list_(pa.float32())), "array<float>"),
    (pa.array([{"a": 1}]), "struct<a:bigint>"),
    (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())), "map<string,int>"),
    (pa.array([Decimal("1.0")], pa.decimal128(2, 1)), r"decimal\(2,1\)"),
    (pa.array([0], pa.date32()), "date"),
    (pa.array([0], pa.timestamp("us", "UTC")), "timestamp"),
    (pa.array([0], pa.timestamp("us")), "timestamp_ntz"),
    (pa.array([0], pa.duration("us")), "interval day to second"),
]


@pytest.mark.parametrize(("array", "named"), WRONG, ids=[named for _, named in WRONG])
def test_other_columns_are_refused_by_name_and_type(array, named):
    with pytest.raises(firesteel.RequestError, match=rf"column text is {named}.*; string \(text\) or array<int>"):
        columns.readable(array, "column text")


def test_vectors_are_the_matrix_itself():
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    array = columns.vectors(matrix, np.array([True, False, True, True]))
    array.validate(full=True)
    assert array.to_pylist() == [[0, 1, 2], None, [6, 7, 8], [9, 10, 11]]
    assert array.values.buffers()[1].address == matrix.ctypes.data
    assert columns.vectors(matrix[:0], np.ones(0, bool)).to_pylist() == []


def test_through_pandas_and_back():
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    series = columns.to_series(columns.vectors(matrix, np.array([True, False, True])))
    assert [None if cell is None else cell.tolist() for cell in series] == [[0, 1], None, [4, 5]]
    assert columns.from_series(pd.Series(["a", None])).to_pylist() == ["a", None]
    assert columns.from_series(pd.Series([np.array([1, 2]), None])).to_pylist() == [[1, 2], None]
    nulls = np.array([False, True, False])
    vectors = columns.vectors(matrix, np.array([True, False, False]))
    struct = columns.details(vectors, nulls, [(2, "TOO_LONG", "why")], np.int32([3, 0, 0]), np.zeros(3, bool))
    struct.validate(full=True)
    frame = columns.to_frame(struct)
    assert list(frame.columns) == [field.name for field in struct.type]
    assert frame["error_code"].tolist() == [None, None, "TOO_LONG"]
    assert frame["prompt_tokens"].tolist() == [3, pd.NA, 0]


# --- the engines a worker keeps ---------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch):
    """An empty worker, and what it opens."""
    opened = []

    class Opened(firesteel.Engine):
        def __init__(self, model, **options):
            super().__init__(model, **options)
            opened.append((model, options))

    monkeypatch.setattr(_worker, "_engines", engines := {})
    monkeypatch.setattr(_worker, "Engine", Opened)
    monkeypatch.delenv("FIRESTEEL_THREADS", raising=False)
    yield opened
    for one in engines.values():
        one.engine.close()


class Task:
    """Stands in for a TaskContext."""

    def __init__(self, cpus=1, **properties):
        self._cpus, self._properties = cpus, properties

    def cpus(self):
        return self._cpus

    def getLocalProperty(self, name):
        return self._properties.get(name.removeprefix("spark.firesteel."))


def test_an_engine_is_kept_as_long_as_its_content_is_the_same(kept, tmp_path):
    model = str(tiny.write(tmp_path / "model"))
    plain, other = embed_job(model, manager=False).engine, embed_job(model, threads=1, manager=False).engine
    with _worker.attach(model, plain) as first, _worker.attach(model, plain) as again:
        assert first is again
    with _worker.attach(model, other) as different:
        assert different is not first
    tiny.write(tmp_path / "model", seed=1)  # saved anew, other weights
    with _worker.attach(model, plain) as renewed:
        assert renewed is not first
        assert not np.array_equal(renewed.embed(["row"]), first.embed(["row"]))
    assert len(kept) == 3


def test_a_model_that_the_driver_saw_may_be_moved_while_a_job_runs(kept, tmp_path):
    """Later tasks use the engine that is open; a function made for the model saved anew gets another."""
    model = tiny.write(tmp_path / "model")
    job = embed_job(model, manager=False)
    with _worker.attach(job.model, job.engine) as first:
        expected = first.embed(["row"])
    model.rename(tmp_path / "moved")
    with _worker.attach(job.model, job.engine) as same:
        assert same is first and np.array_equal(same.embed(["row"]), expected)
    tiny.write(model, seed=1)
    anew = embed_job(model, manager=False)
    with _worker.attach(anew.model, anew.engine) as other:
        assert not np.array_equal(other.embed(["row"]), expected)
    with _worker.attach(job.model, job.engine) as same:
        assert same is first


def test_a_model_saved_anew_with_few_other_weights_is_loaded_anew(kept, tmp_path):
    """Its fingerprint may be the same, which looks at blocks of the weights only; its time is not."""
    model = tiny.write(tmp_path / "model", hidden=96, inner=400, layers=3)
    before = embed_job(model, manager=False)
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) - 4096, 101):
        data[at] ^= 1
        path.write_bytes(data)
        if embed_job(model, manager=False).model.files == before.model.files:
            break
        data[at] ^= 1
    after = embed_job(model, manager=False)
    assert after.model.files == before.model.files and after.model != before.model


def test_engines_in_use_are_never_closed(kept, tmp_path):
    models = [str(tiny.write(tmp_path / str(number), seed=number)) for number in range(6)]
    options = embed_job(models[0], manager=False).engine
    with _worker.attach(models[0], options) as first:
        for model in models[1:]:
            with _worker.attach(model, options):
                pass
        assert len(_worker._engines) == _worker.KEPT + 1
        assert len(first.embed(["still there"])) == 1


def test_a_failed_opening_is_not_kept(kept, tmp_path):
    for _ in range(2):
        with pytest.raises(firesteel.CheckpointError, match="no such folder"):
            with _worker.attach(str(tmp_path / "missing"), embed_job(str(tmp_path / "missing"), manager=False).engine):
                pass
    assert _worker._engines == {}


@pytest.mark.parametrize(
    ("option", "conf", "environment", "cpus", "threads"),
    [
        (None, None, None, None, None),  # no task: all cores
        (None, None, None, 1, 1),
        (None, None, None, 2, 2),
        (None, None, "2", 1, 2),
        (None, "1", "2", 3, 1),
        (3, "1", "2", 1, 3),
        (None, None, "0", 2, 2),
    ],
)
def test_threads_option_over_conf_over_environment_over_task_cpus(
    kept, model, monkeypatch, option, conf, environment, cpus, threads
):
    properties = {} if conf is None else {"threads": conf}
    monkeypatch.setattr(task, "current", lambda: None if cpus is None else Task(cpus, **properties))
    if environment is not None:
        monkeypatch.setenv("FIRESTEEL_THREADS", environment)
    with _worker.attach(model, embed_job(model, threads=option, manager=False).engine):
        assert kept[-1][1]["threads"] == threads


def test_knobs_of_the_session_count_only_while_an_engine_opens(kept, model, monkeypatch):
    import os

    seen = []
    monkeypatch.setattr(task, "current", lambda: Task(batch_tokens="256"))
    opening = _worker.Engine.__init__
    monkeypatch.setattr(
        _worker.Engine,
        "__init__",
        lambda *a, **k: (seen.append(os.environ.get("FIRESTEEL_BATCH_TOKENS")), opening(*a, **k))[1],
    )
    with _worker.attach(model, embed_job(model, manager=False).engine):
        assert seen == ["256"] and "FIRESTEEL_BATCH_TOKENS" not in os.environ


def test_two_threads_that_want_one_engine_open_it_once(kept, model):
    options, found = embed_job(model, manager=False).engine, []

    def use():
        with _worker.attach(model, options) as engine:
            found.append(engine)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 1 and len({id(engine) for engine in found}) == 1
