"""NumPy's scalars as options: each is the number, truth or text that it is, everywhere, and keys the same job.

The walk goes over every option of every public function that takes some; one that is new has to be given a value here.
"""

import inspect
import json

import firesteel
import numpy as np
import pytest
import tiny
from firesteel.engine.options import byte_count, engine_options
from firesteel.host import settings
from firesteel.host.text import one_line
from firesteel.host.values import plain
from firesteel.manager import lifecycle

WHOLE = [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.intc, np.longlong]
REAL = [np.float16, np.float32, np.float64, np.longdouble]
KINDS = {int: WHOLE, float: REAL, bool: [np.bool_], str: [np.str_]}

# Values of each option, as Python has them.
ENGINE = {
    "devices": ["cpu", ["cpu:0", "cpu:1"]],
    "parallel": ["replicate"],
    "dtype": ["fp32"],
    "max_memory": [1 << 40, "2GB"],
    "threads": [2],
    "cpu_path": ["portable"],
}
REQUEST = {
    "pooling": ["cls", ["cls", "mean"]],
    "normalize": [False, "auto"],
    "max_length": [12],
    "prompt": ["date: "],
    "prompt_name": ["query"],
    "dimensions": [7],
    "truncate": [True, "left", "error"],
}
UDF = {"manager": [False], "details": [True], "on_error": ["null"], "max_errors": [0.5, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sentence = {"transformer": {"max_seq_length": 32}, "settings": {"prompts": {"query": "date: "}}}
    return tiny.write(tmp_path_factory.mktemp("options") / "model", sentence=sentence)


@pytest.fixture(scope="module")
def engine(folder):
    with firesteel.Engine(folder, devices="cpu", threads=1) as opened:
        yield opened


def numpys(value):
    """The value as NumPy may have it, and as an array without axes."""
    if isinstance(value, list):
        return [[np.str_(item) for item in value]]
    fits = [kind for kind in KINDS[type(value)] if kind not in WHOLE or value <= np.iinfo(kind).max]
    return [*(kind(value) for kind in fits), np.array(value)]


def cases(options):
    return [
        pytest.param(name, value, as_numpy, id=f"{name}={value}-{type(as_numpy).__name__}-{number}")
        for name, values in options.items()
        for value in values
        for number, as_numpy in enumerate(numpys(value))
    ]


@pytest.mark.parametrize(
    ("function", "walked"),
    [
        (firesteel.embed_udf, ENGINE | REQUEST | UDF),
        (firesteel.Engine, ENGINE),
        (firesteel.connect, {**ENGINE, "idle_ttl": [], "timeout": []}),
        (firesteel.plan, {name: values for name, values in ENGINE.items() if name not in ("max_memory", "threads")}),
        (firesteel.Engine.embed, REQUEST),
        (firesteel.Engine.start_embed, REQUEST),
    ],
    ids=lambda case: getattr(case, "__qualname__", ""),
)
def test_the_walk_leaves_no_option_out(function, walked):
    others = {"self", "model", "texts", "unknown", "memory"}
    assert set(inspect.signature(function).parameters) - others == set(walked)


@pytest.mark.parametrize(("name", "value", "as_numpy"), cases(ENGINE | REQUEST | UDF))
def test_a_job_is_keyed_by_what_the_scalar_is(folder, name, value, as_numpy):
    job, same = (firesteel.embed_udf(folder, **{name: given}).job for given in (value, as_numpy))
    assert job == same and hash(job) == hash(same) and repr(job) == repr(same)  # so no scalar of NumPy's travels


@pytest.mark.parametrize(
    ("name", "value", "as_numpy"),
    cases(ENGINE | UDF | {"output": ["first"], "max_length": [12], "truncate": [True, "error"]}),
)
def test_a_job_of_hidden_states_too(folder, name, value, as_numpy):
    udf, same = (firesteel.hidden_states_udf(folder, **{name: given}) for given in (value, as_numpy))
    assert udf == same and hash(udf) == hash(same) and repr(udf.job) == repr(same.job)


@pytest.mark.parametrize(("name", "value", "as_numpy"), cases(ENGINE))
def test_an_engine_and_a_manager_get_what_the_scalar_is(name, value, as_numpy):
    options, same = (engine_options(**{name: given}) for given in (value, as_numpy))
    assert json.dumps(same) == json.dumps(options)  # as it goes to a manager


def test_an_engine_takes_them_all(folder):
    options = {
        "devices": [np.str_("cpu:0")],
        "parallel": np.str_("replicate"),
        "dtype": np.str_("fp32"),
        "max_memory": np.int64(1 << 30),
        "threads": np.int32(1),
        "cpu_path": np.str_("portable"),
    }
    with firesteel.Engine(np.str_(folder), **options) as engine:
        assert engine.embed(["a row"]).shape == (1, 48)
        assert engine.stats()["devices"][0]["threads"] == 1


@pytest.mark.parametrize(("name", "value", "as_numpy"), cases(REQUEST))
def test_a_request_is_what_the_scalar_is(engine, name, value, as_numpy):
    expected = engine.embed(["the first row", "date"], **{name: value})
    np.testing.assert_array_equal(engine.embed(["the first row", "date"], **{name: as_numpy}), expected)
    if name in ("pooling", "dimensions"):
        assert engine.dimension(**{name: as_numpy}) == expected.shape[1]
    if name in ("max_length", "truncate"):
        states, _, errors = engine.start_hidden_states(["the first row"], **{name: as_numpy}).flat_result()
        assert len(states) and not errors


@pytest.mark.parametrize("memory", [10**9, [10**9, 2 * 10**9], "1GB", ["1GB", 10**9]], ids=str)
def test_plan_takes_them(folder, memory):
    devices = ["cpu:0", "cpu:1"]
    kinds = {int: np.int64, str: np.str_}
    given = [kinds[type(size)](size) for size in memory] if isinstance(memory, list) else kinds[type(memory)](memory)
    options = {"parallel": np.str_("split"), "dtype": np.str_("fp32"), "devices": [np.str_(name) for name in devices]}
    plain_options = {"parallel": "split", "dtype": "fp32", "devices": devices}
    assert firesteel.plan(folder, memory=given, **options) == firesteel.plan(folder, memory=memory, **plain_options)


class Reached(Exception):
    pass


@pytest.mark.parametrize("timeout", [np.int64(7), np.float32(7), np.uint8(7), np.array(7.0)], ids=repr)
@pytest.mark.parametrize("idle_ttl", [np.int64(3), np.float64(3), np.float16(3), np.array(3)], ids=repr)
def test_connect_takes_them(folder, monkeypatch, timeout, idle_ttl):
    def reach(patience, idle_ttl):
        assert (type(patience), patience, type(idle_ttl), idle_ttl) == (float, 7.0, float, 3.0)
        raise Reached

    monkeypatch.setattr(lifecycle, "reach", reach)
    with pytest.raises(Reached):
        firesteel.connect(folder, timeout=timeout, idle_ttl=idle_ttl, threads=np.int64(1), devices=np.str_("cpu"))


# --- what is refused stays refused ------------------------------------------------------------------------------------

WRONG = [
    ({"max_length": np.float64(64.5)}, "max_length is 64.5"),
    ({"max_length": np.float32(64)}, "max_length is 64.0"),  # as 64.0 is
    ({"max_length": np.float64("nan")}, "max_length is nan"),
    ({"max_length": np.bool_(True)}, "max_length is True"),
    ({"max_length": np.int64(0)}, "max_length is 0"),
    ({"max_length": np.str_("64")}, "max_length is '64'"),
    ({"max_length": np.timedelta64(64)}, "max_length is "),
    ({"max_length": np.array([64])}, "max_length is array([64])"),
    ({"dimensions": np.float64(7)}, "dimensions is 7.0"),
    ({"dimensions": np.uint8(49)}, "dimensions is 49; vectors have 48"),
    ({"normalize": np.int64(1)}, "normalize is 1"),
    ({"truncate": np.bool_(False)}, "truncate is False"),
    ({"prompt": np.int64(3)}, "prompt is a int"),
    ({"threads": np.float32(2)}, "threads is 2.0"),
    ({"threads": np.bool_(True)}, "threads is True"),
    ({"threads": np.int64(5000)}, "threads is 5000"),
    ({"max_memory": np.float64(1e9)}, "max_memory is 1000000000.0"),
    ({"max_memory": np.int64(-1)}, "max_memory is -1"),
    ({"max_memory": np.bool_(True)}, "max_memory is True"),
    ({"devices": np.int64(0)}, "devices is 0"),
    ({"dtype": np.float32}, "dtype is "),
    ({"details": np.int64(1)}, "details is 1"),
    ({"manager": np.int64(0)}, "manager is 0"),
    ({"max_errors": np.float32(1.5)}, "max_errors is 1.5"),
    ({"max_errors": np.float64("nan")}, "max_errors is nan"),
    ({"max_errors": np.bool_(True)}, "max_errors is True"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_scalar_of_the_wrong_kind_is_refused(folder, engine, options, words):
    asks = [lambda: firesteel.embed_udf(folder, **options)]
    (name,) = options
    asks += [lambda: firesteel.Engine(folder, **options)] if name in ENGINE else []
    asks += [lambda: engine.embed(["a"], **options)] if name in REQUEST else []
    for ask in asks:
        with pytest.raises(firesteel.Error) as refused:
            ask()
        assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", [np.float64("nan"), np.bool_(True), np.int64(-1), True, np.inf], ids=repr)
def test_seconds_of_the_wrong_kind_are_refused(wrong):
    with pytest.raises(firesteel.ConfigError, match="idle_ttl is .*; it takes a number of seconds"):
        settings.seconds("MANAGER_IDLE_TTL", wrong)


def test_bytes_may_be_a_scalar():
    assert byte_count(np.int64(10**9)) == byte_count(np.str_("1GB")) == 10**9
    assert type(byte_count(np.uint64(5))) is int


@pytest.mark.parametrize("value", [None, "a", b"a", 3, 0.5, True, object, np.timedelta64(3), np.array([1, 2])], ids=str)
def test_what_is_no_scalar_stays_what_it_is(value):
    assert plain(value) is value


def test_a_path_of_other_bytes_is_text_with_escapes():
    assert one_line("/a/\udcff\udc80b") == "/a/\\xff\\x80b"
    assert one_line("/a/\ud800") == "/a/\\ud800"
    assert one_line("/models/\u00e9t\u00e9") == "/models/\u00e9t\u00e9"


# --- sentences name the folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt9"}, "config.json: model_type 'gpt9' is not known"),
        ({"hidden_act": "spline"}, 'config.json: hidden_act = "spline"'),
        ({"hidden_size": None}, "config.json"),
        ({"is_decoder": True}, "config.json"),
        ({"architectures": ["BertLMHeadModel"]}, "config.json: architectures names"),
    ],
    ids=lambda case: str(case) if isinstance(case, dict) else "",
)
@pytest.mark.parametrize("sub", ["", "0_Transformer"])
def test_functions_and_plan_name_the_folder_that_is_wrong(tmp_path, change, words, sub):
    root = tmp_path / "a model"
    tiny.write(root / sub)
    if sub:
        parts = [("Transformer", sub), ("Pooling", "1_Pooling")]
        listed = [
            {"idx": number, "name": name, "path": path, "type": f"sentence_transformers.models.{name}"}
            for number, (name, path) in enumerate(parts)
        ]
        (root / "modules.json").write_text(json.dumps(listed))
        (root / "1_Pooling").mkdir()
        (root / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    config = json.loads((root / sub / "config.json").read_text()) | change
    (root / sub / "config.json").write_text(json.dumps(config))
    said = []
    for ask in (firesteel.embed_udf, firesteel.hidden_states_udf, firesteel.plan, firesteel.Engine):
        with pytest.raises(firesteel.Error) as refused:
            ask(root)
        said.append(str(refused.value))
        assert str(root / sub) in said[-1] and words in said[-1] and "config/config.json" not in said[-1]
    assert len(set(said)) == 1


def test_numbers_that_cannot_be_cut_name_the_folder_as_the_engine_does(tmp_path):
    model = tiny.write(tmp_path / "model")
    said = []
    for ask in (firesteel.embed_udf, firesteel.Engine):
        with pytest.raises(firesteel.ConfigError) as refused:
            ask(model, devices=["cpu:0", "cpu:1"], parallel="tensor")
        said.append(str(refused.value))
    assert said[0] == said[1]
