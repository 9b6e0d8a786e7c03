"""The door into C (firesteel._core): wrong arguments of every kind are answered by an exception, never by a crash."""

import gc
import select
import threading

import numpy as np
import pytest
import tiny
from firesteel import CheckpointError, ConfigError, Error, RequestError, _core
from firesteel.model.checkpoint import Checkpoint

IDS = np.array([2, 5, 6, 3, 2, 3], dtype=np.int32)
OFFSETS = np.array([0, 4, 6], dtype=np.int64)


def open_arguments(folder):
    checkpoint = Checkpoint.open(str(folder))
    return {"config": checkpoint.config, "tensors": checkpoint.tensors, "files": checkpoint.files, "name": str(folder)}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return open_arguments(tiny.write(tmp_path_factory.mktemp("door") / "model", seed=7))


@pytest.fixture
def engine(arguments):
    engine = _core.Engine(**arguments)
    yield engine
    engine.close()


def embed(engine, out=None, **changes):
    width = engine.settings["width"]
    out = np.full((2, width), np.nan, dtype=np.float32) if out is None else out
    request = {"ids": IDS, "offsets": OFFSETS, "out": out, "task": "embed", "pooling": ("mean",), **changes}
    return engine.submit(request.pop("ids"), request.pop("offsets"), request.pop("out"), **request), out


def test_a_job_fills_out_and_announces_itself(engine):
    job, out = embed(engine)
    assert job.wait(30) is True
    assert np.isfinite(out).all() and job.errors == []
    assert select.select([engine.fileno()], [], [], 5)[0], "the eventfd was not readable after a job had finished"
    assert engine.stats()["rows"] == 2


def test_bad_rows_are_named_and_the_others_computed(engine):
    vocabulary = engine.settings["vocabulary"]
    ids = np.array([2, 3, vocabulary, -1, 2, 3], dtype=np.int32)
    offsets = np.array([0, 2, 3, 4, 4, 6], dtype=np.int64)
    out = np.full((5, engine.settings["width"]), np.nan, dtype=np.float32)
    job, _ = embed(engine, out, ids=ids, offsets=offsets)
    assert job.wait(30)
    assert [(row, code) for row, code, _ in job.errors] == [(1, "SCHEMA"), (2, "SCHEMA"), (3, "SCHEMA")]
    assert str(vocabulary) in job.errors[0][2]
    assert np.isfinite(out[[0, 4]]).all() and np.isnan(out[1:4]).all()


@pytest.mark.parametrize(
    ("changes", "exception", "words"),
    [
        ({"ids": IDS.astype(np.int64)}, TypeError, "rows must be"),
        ({"ids": IDS[::2]}, TypeError, "rows must be"),
        ({"ids": [1, 2]}, TypeError, "rows must be"),
        ({"offsets": OFFSETS.astype(np.int32)}, TypeError, "offsets must be"),
        ({"offsets": np.array([0, 4], dtype=np.int64)}, ValueError, "offsets must run"),
        ({"offsets": np.array([], dtype=np.int64)}, ValueError, "offsets must run"),
        ({"offsets": np.array([0, 9, 6], dtype=np.int64)}, Error, "offset"),
        ({"offsets": np.array([0, -4, 6], dtype=np.int64)}, Error, "offset"),
        ({"out": np.zeros((1, 3), dtype=np.float32)}, RequestError, "out"),
        ({"out": np.zeros((2, 300))}, TypeError, "out must be"),
        ({"out": np.zeros(9999, dtype=np.float32)[::2]}, TypeError, "out must be"),
        ({"task": "dance"}, ValueError, "dance"),
        ({"pooling": ("median",)}, ValueError, "median"),
        ({"pooling": ()}, Error, "pooling"),
        ({"pooling": ("mean", "mean")}, Error, "mean"),
        ({"pooling": "mean"}, TypeError, "pooling"),
        ({"dimensions": 10**6}, Error, "1000000"),
        ({"dimensions": -1}, Error, "-1"),
    ],
    ids=lambda v: str(v)[:40] if isinstance(v, dict) else "",
)
def test_wrong_submissions(engine, changes, exception, words):
    with pytest.raises(exception, match=words):
        embed(engine, **changes)
    job, out = embed(engine)
    assert job.wait(30) and np.isfinite(out).all(), "the engine no longer works after a refused submission"


def test_read_only_out_is_refused(engine):
    out = np.zeros((2, engine.settings["width"]), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        embed(engine, out)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": 3},
        {"config": {3: 4}},
        {"tensors": 3},
        {"tensors": [3]},
        {"tensors": [("a",)]},
        {"tensors": [("a", "F32", (1,), 0, 0, "x")]},
        {"tensors": [("a\0b", "F32", (1,), 0, 0, 4)]},
        {"tensors": [("a", "F32", "xy", 0, 0, 4)]},
        {"tensors": [("a", "F32", (2**70,), 0, 0, 4)]},
        {"files": "abc"},
        {"files": [b"abc"]},
        {"devices": "cpu"},
        {"devices": [1]},
        {"threads": -1},
        {"threads": "two"},
        {"max_memory": -1},
        {"plan": 3},
        {"plan": [(0,)]},
        {"plan": [(0, 1, ())]},
        {"plan": [(0, 1, tuple(range(99)))]},
        {"plan": [(0, 1, ("x",))]},
        {"chain": 3},
        {"chain": [3]},
        {"chain": ["dense"]},
        {"chain": [()]},
        {"chain": [("dense", 3)]},
        {"chain": [("dense", "\ud800")]},
        {"chain": [("norm", "x")]},
        {"chain": [("unit", 1, 2)]},
        {"chain": [("sparse",)]},
        {"cpu_path": 3},
        {"name": 3},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_wrong_types_when_opening(arguments, changes):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        _core.Engine(**{**arguments, **changes})


def test_chains_that_the_tensors_do_not_have(arguments):
    with pytest.raises(ConfigError, match="activation sigmoid is not one we compute"):
        _core.Engine(**arguments, chain=[("dense", "sigmoid")])
    with pytest.raises(CheckpointError, match="1 missing: modules.1.weight"):
        _core.Engine(**arguments, chain=[("unit",), ("dense", "tanh")])


def test_engine_needs_its_arguments():
    with pytest.raises(TypeError, match="config="):
        _core.Engine()


# Wrong on every machine. Whether the model has to be known is in the last column.
OPTIONS = [
    ({"devices": ("tpu",)}, "of no known kind", False),
    ({"devices": ("cpu:0", "cpu:2")}, "lies beyond the 2 named", False),
    ({"devices": ()}, "names 0 devices", False),
    ({"devices": ("cpu", "cuda")}, '"cuda" stands alone', False),
    ({"dtype": "fp64"}, "is not known", False),
    ({"devices": ("cpu:1", "cpu:0"), "dtype": "fp16"}, "is not computed on cpu:1", False),
    ({"devices": ("cpu",), "threads": 1025}, "threads is 1025", False),
    ({"devices": ("cuda:0",), "cpu_path": "avx2"}, "is for CPU devices", False),
    ({"devices": ("cpu:0", "cpu:1"), "cpu_path": "mmx"}, "there is no CPU path mmx", False),
    ({"parallel": "sideways"}, "is no way to place a model", False),
    ({"devices": ("cpu:0", "cpu:1"), "parallel": "split=3"}, "devices names 2", False),
    ({"devices": ("cpu:0", "cpu:1", "cpu:2"), "parallel": "split"}, "layers into 3 stages", True),
    ({"devices": ("cpu:0", "cpu:1"), "parallel": "tensor"}, "cannot share the model's 3 attention heads", True),
]


@pytest.mark.parametrize(("options", "words", "of_the_model"), OPTIONS, ids=lambda v: str(v) if type(v) is dict else "")
def test_options_are_checked_by_the_sentence_that_opening_fails_with(arguments, options, words, of_the_model):
    with pytest.raises(ConfigError) as opened:
        _core.Engine(**arguments, **options)
    with pytest.raises(ConfigError, match=words) as checked:
        _core.check_options(**options, config=arguments["config"])
    assert str(checked.value) == str(opened.value)
    if of_the_model:
        assert _core.check_options(**options) is None
    else:
        with pytest.raises(ConfigError) as checked:
            _core.check_options(**options)
        assert str(checked.value) == str(opened.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"devices": ("auto",), "parallel": "replicate=7,split=9", "dtype": "bf16", "threads": 4096},
        {"devices": ("cuda",), "parallel": "tensor=5", "dtype": "fp16"},
        {"devices": ("cuda:9999",), "parallel": "stream"},
        {"devices": ("cpu",), "cpu_path": _core.host()["paths"][0][0], "threads": 1024},
        {"devices": ("cpu:0", "cpu:1"), "threads": 2048, "parallel": "split"},
    ],
    ids=str,
)
def test_what_depends_on_the_machine_is_not_checked(arguments, options, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_LIBCUDA", "/no/such/library.so")
    monkeypatch.setenv("FIRESTEEL_CPU_PATH", "mmx")  # a knob of this machine is not an option of others
    assert _core.check_options(**options) is None
    assert _core.check_options(**options, config=arguments["config"]) is None


@pytest.mark.parametrize(
    ("options", "exception"),
    [
        ({"devices": "cpu"}, TypeError),
        ({"devices": [1]}, TypeError),
        ({"devices": ["cpu\0"]}, ValueError),
        ({"parallel": 3}, TypeError),
        ({"dtype": "\0"}, ValueError),
        ({"cpu_path": "\ud800"}, UnicodeEncodeError),
        ({"threads": -1}, ValueError),
        ({"threads": 2**40}, OverflowError),
        ({"config": 3}, TypeError),
        ({"config": {"model_type": "gpt9"}}, ConfigError),
        ({"nonsense": 1}, TypeError),
    ],
    ids=str,
)
def test_wrong_types_when_options_are_checked(options, exception):
    with pytest.raises(exception):
        _core.check_options(**options)


def test_closed_engine_answers_with_a_sentence(arguments):
    engine = _core.Engine(**arguments)
    job, _ = embed(engine)
    engine.close()
    engine.close()
    with pytest.raises(RequestError, match="closed"):
        embed(engine)
    with pytest.raises(RequestError, match="closed"):
        job.wait(0)
    for name in ("stats", "fileno", "settings", "placement", "numerics"):
        with pytest.raises(RequestError, match="closed"):
            value = getattr(engine, name)
            value()
    job.cancel()
    del engine, job
    gc.collect()


def test_cancel_leaves_out_alone(engine):
    ids = np.tile(np.array([2, 5, 6, 3], dtype=np.int32), 20000)
    offsets = np.arange(0, len(ids) + 1, 4, dtype=np.int64)
    out = np.zeros((len(offsets) - 1, engine.settings["width"]), dtype=np.float32)
    job, _ = embed(engine, out, ids=ids, offsets=offsets)
    job.cancel()
    before = out.copy()
    again, fresh = embed(engine)
    assert again.wait(30) and np.isfinite(fresh).all()
    np.testing.assert_array_equal(out, before)


def test_close_wakes_a_waiting_thread(arguments):
    engine = _core.Engine(**arguments)
    ids = np.tile(np.arange(2, 22, dtype=np.int32), 20000)
    ids[::20] = np.arange(20000) % engine.settings["vocabulary"]
    offsets = np.arange(0, len(ids) + 1, 20, dtype=np.int64)
    out = np.zeros((len(offsets) - 1, engine.settings["width"]), dtype=np.float32)
    job, _ = embed(engine, out, ids=ids, offsets=offsets)
    ends: list[object] = []

    def wait():
        try:
            ends.append(job.wait(60))
        except RequestError as error:
            ends.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    engine.close()
    thread.join(20)
    assert not thread.is_alive() and len(ends) == 1


def test_jobs_cannot_be_made_by_hand():
    with pytest.raises(TypeError):
        _core.Job()


def test_exceptions_are_one_family():
    for name in ("CheckpointError", "ConfigError", "DeviceError", "OutOfMemory", "ManagerError", "RequestError"):
        kind = getattr(_core, name)
        assert issubclass(kind, Error) and kind.__module__ == "firesteel" and kind.__doc__


def test_host_and_lists():
    host = _core.host()
    assert host["cores"] >= 1 and 0 < host["available"] <= host["total"]
    assert any(why is None for _, why in host["paths"]), "no kernel path runs here"
    assert {"backend": "cpu", "count": host["cores"]} in _core.devices()
    assert any(a["model_type"] == "bert" and "Bert*" in a["architectures"] for a in _core.architectures())
