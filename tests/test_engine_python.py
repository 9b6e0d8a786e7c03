"""firesteel.Engine: options, kinds of rows, faults of rows, and what happens around it (fork, Ctrl-C, threads, close).

Numbers are compared with transformers elsewhere (test_golden.py, test_reference.py)."""

import os
import signal
import subprocess
import sys
import threading
import time

import firesteel
import numpy as np
import pytest
import tiny
from firesteel import CheckpointError, ConfigError, DeviceError, RequestError
from firesteel.engine.options import byte_count
from firesteel.engine.rows import LAST_WINDOW, FlatRows, windows_of

TEXTS = ["the table", "", "parse a date string", "first"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    prompts = {"query": "date: ", "empty": ""}
    sentence = {"transformer": {"max_seq_length": 32}, "settings": {"prompts": prompts}}
    return tiny.write(tmp_path_factory.mktemp("engine") / "model", sentence=sentence)


@pytest.fixture(scope="module")
def engine(folder):
    with firesteel.Engine(folder, threads=2) as opened:
        yield opened


# --- what goes in ----------------------------------------------------------------------------------------------------


def test_vectors(engine):
    vectors = engine.embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (4, 48) and vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert engine.dimension() == 48


@pytest.mark.parametrize(
    "rows", [[], (), np.empty((0, 5), np.int32), FlatRows(np.empty(0, np.int32), np.zeros(1, int))]
)
def test_no_rows(engine, rows):
    assert engine.embed(rows).shape == (0, 48)
    assert engine.embed(rows, pooling=["cls", "max"], dimensions=50).shape == (0, 50)
    assert engine.hidden_states(rows) == []


IDS = [[2, 77, 3], [2, 3], [2, 80, 81, 82, 3]]


@pytest.mark.parametrize(
    "rows",
    [
        IDS,
        tuple(IDS),
        [np.array(row, np.int32) for row in IDS],
        [np.array(row, np.uint8) for row in IDS],
        [np.array(row, np.uint64) for row in IDS],
        [tuple(IDS[0]), np.array(IDS[1]), IDS[2]],
        np.array([np.array(row) for row in IDS], dtype=object),
        FlatRows(np.array([9, *IDS[0], *IDS[1], *IDS[2], 9], np.int64), np.array([1, 4, 6, 11], np.int32)),
    ],
    ids=lambda rows: type(rows).__name__,
)
def test_token_ids_in_any_shape(engine, rows):
    expected = np.concatenate([engine.embed([row]) for row in IDS])
    np.testing.assert_array_equal(engine.embed(rows), expected)
    for states, row in zip(engine.hidden_states(rows), IDS, strict=True):
        assert states.shape == (len(row), 48) and states.dtype == np.float32
        np.testing.assert_array_equal(states, engine.hidden_states([row])[0])


def test_a_matrix_of_token_ids(engine):
    rows = np.array([[2, 77, 3], [2, 78, 3]])
    np.testing.assert_array_equal(engine.embed(rows), engine.embed(rows.tolist()))


def test_texts_and_their_token_ids_are_the_same(engine):
    ids = [[2, *[tiny.vocabulary().index(word) for word in text.split()], 3] for text in ("the table", "date string")]
    np.testing.assert_array_equal(engine.embed(["the table", "date string"]), engine.embed(ids))
    for text, row in zip(engine.hidden_states(["the table", "date string"]), engine.hidden_states(ids), strict=True):
        np.testing.assert_array_equal(text, row)


def test_hidden_states_of_a_row_without_tokens(engine):
    assert [len(states) for states in engine.hidden_states([[2, 3], [], [2]])] == [2, 0, 1]


def test_many_rows_take_many_windows(engine):
    texts = [f"{number % 97} table" for number in range(3000)]
    alone = engine.embed(texts[:97])
    np.testing.assert_array_equal(engine.embed(texts), np.tile(alone, (31, 1))[:3000])


@pytest.mark.parametrize(
    "rows, texts, sizes",
    [
        (["a"] * 1000, True, [256, 512, 232]),
        ([[1]] * 20000, False, [256, 512, 1024, 2048, LAST_WINDOW, LAST_WINDOW, LAST_WINDOW, 3872]),
        (["a" * 400_000] * 5, True, [2, 2, 1]),
        (["a" * 2_000_000] * 2, True, [1, 1]),
        ([None, 3, "a"], True, [3]),
        ([], True, []),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, list) else "",
)
def test_windows_are_bounded_by_rows_and_characters(rows, texts, sizes):
    windows = list(windows_of(rows, texts))
    assert [end - begin for begin, end in windows] == sizes
    assert [begin for begin, _ in windows] == [sum(sizes[:i]) for i in range(len(sizes))]


# --- options ---------------------------------------------------------------------------------------------------------


def test_the_folder_decides_and_options_overrule_it(engine):
    auto, states = engine.embed(TEXTS), engine.hidden_states(TEXTS)
    plain = engine.embed(TEXTS, normalize=False)
    mean = np.stack([row.mean(axis=0) for row in states])
    np.testing.assert_allclose(plain, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(auto, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)
    cls = np.stack([row[0] for row in states])
    np.testing.assert_allclose(engine.embed(TEXTS, pooling="cls", normalize=False), cls, rtol=1e-6)


POOLED = {
    "cls": lambda x: x[0],
    "mean": lambda x: x.mean(axis=0),
    "max": lambda x: x.max(axis=0),
    "mean_sqrt_len_tokens": lambda x: x.sum(axis=0) / np.sqrt(len(x)),
    "weightedmean": lambda x: (x * np.arange(1, len(x) + 1)[:, None]).sum(axis=0) / np.arange(1, len(x) + 1).sum(),
    "lasttoken": lambda x: x[-1],
}


@pytest.mark.parametrize("pooling", [*POOLED, ["mean", "cls"], ["max", "lasttoken", "mean_sqrt_len_tokens"]], ids=str)
@pytest.mark.parametrize("dimensions", [None, 7])
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling(engine, pooling, dimensions, normalize):
    modes = [pooling] if isinstance(pooling, str) else pooling
    states = [row.astype(np.float64) for row in engine.hidden_states(TEXTS)]
    expected = np.stack([np.concatenate([POOLED[mode](x) for mode in modes])[:dimensions] for x in states])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = engine.embed(TEXTS, pooling=pooling, normalize=normalize, dimensions=dimensions)
    assert tiny.error_per_row(found, expected) < 1e-6
    assert engine.dimension(pooling, dimensions) == expected.shape[1]


def test_the_side_that_is_cut_can_be_said(engine):
    words = ["the", "table", "of", "a"] * 20
    left, right = (engine.embed([" ".join(words)], max_length=12, truncate=side) for side in ("left", "right"))
    assert np.array_equal(left, engine.embed([" ".join(words[-10:])], max_length=12))
    assert np.array_equal(right, engine.embed([" ".join(words[:10])], max_length=12))


def test_long_texts_are_cut_at_the_folders_length(engine):
    long = "the " * 100
    assert [len(engine.hidden_states([long])[0]), engine.settings["max_length"]] == [32, 32]
    np.testing.assert_array_equal(engine.embed([long]), engine.embed(["the " * 30]))
    np.testing.assert_array_equal(engine.embed([long], max_length=12), engine.embed(["the " * 10]))
    np.testing.assert_array_equal(engine.embed([long], max_length=64), engine.embed(["the " * 62], max_length=64))


@pytest.mark.parametrize(
    ("options", "before"),
    [
        ({"prompt_name": "query"}, "date: "),
        ({"prompt": "date: "}, "date: "),
        ({"prompt": "query: "}, "query: "),  # no name, and so a text
        ({"prompt": "Query"}, "Query"),
        ({"prompt_name": np.str_("query")}, "date: "),
        ({"prompt": None, "prompt_name": None}, ""),
        ({"prompt": ""}, ""),
        ({"prompt_name": "empty"}, ""),
        ({"prompt_name": "document"}, ""),  # known everywhere, as in sentence-transformers
    ],
    ids=str,
)
def test_prompts_by_name_and_as_text(engine, options, before):
    expected = engine.embed([before + "the table"])
    np.testing.assert_array_equal(engine.embed(["the table"], **options), expected)
    found, _ = engine.start_embed(["the table"], **options).result()
    np.testing.assert_array_equal(found, expected)


PROMPTS = [
    (
        {"prompt_name": "quary"},
        "is 'quary'; did you mean \"query\"? the model's prompts are query, document, empty, and",
    ),
    ({"prompt_name": "date: "}, "prompt_name is 'date: '; the model's prompts are query, document, empty, and prompt="),
    ({"prompt_name": ""}, "prompt_name is ''; the model's prompts are"),
    ({"prompt_name": 3}, "prompt_name is a int; a string or None belongs there"),
    (
        {"prompt": "query"},
        "prompt is 'query', which is the name of one of the model's prompts; pass prompt_name='query'",
    ),
    ({"prompt": "document"}, "pass prompt_name='document', or as a text add what parts it from the row"),
    ({"prompt": np.str_("empty")}, "pass prompt_name='empty'"),
    (
        {"prompt": "a: ", "prompt_name": "query"},
        "prompt is 'a: ' and prompt_name is 'query'; give the text, or the name",
    ),
    ({"prompt": "", "prompt_name": "query"}, "prompt is '' and prompt_name is 'query'"),
]


@pytest.mark.parametrize(("options", "words"), PROMPTS, ids=[str(options) for options, _ in PROMPTS])
def test_a_prompt_that_may_be_meant_otherwise_is_refused(engine, folder, options, words):
    for ask in (lambda: engine.embed(["a"], **options), lambda: firesteel.embed_udf(folder, **options)):
        with pytest.raises(RequestError) as refused:
            ask()
        assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_prompt_whose_text_is_its_name_may_be_given_either_way(tmp_path):
    with opened_with(tmp_path, settings={"prompts": {"date": "date"}}) as engine:
        np.testing.assert_array_equal(engine.embed(["a"], prompt="date"), engine.embed(["a"], prompt_name="date"))


def test_a_folder_without_prompts(tmp_path):
    with firesteel.Engine(tiny.write(tmp_path / "model")) as engine:
        np.testing.assert_array_equal(engine.embed(["a"], prompt_name="query"), engine.embed(["a"]))
        with pytest.raises(RequestError, match="prompt_name is 'passage'; the model's prompts are query, document"):
            engine.embed(["a"], prompt_name="passage")


def opened_with(tmp_path, **sentence):
    return firesteel.Engine(tiny.write(tmp_path / "model", sentence=sentence))


def test_the_default_prompt_and_the_way_around_it(tmp_path, engine):
    settings = {"prompts": {"query": "date: "}, "default_prompt_name": "query"}
    with opened_with(tmp_path, settings=settings) as prompted:
        np.testing.assert_array_equal(prompted.embed(["the table"]), engine.embed(["date: the table"]))
        np.testing.assert_array_equal(prompted.embed(["the table"], prompt=""), engine.embed(["the table"]))
        np.testing.assert_array_equal(
            prompted.embed(["the table"], prompt_name="document"), engine.embed(["the table"])
        )
        np.testing.assert_array_equal(prompted.embed([IDS[0]]), engine.embed([IDS[0]]))


def test_prompts_that_do_not_count_are_refused_only_when_used(tmp_path):
    with opened_with(tmp_path, pooling={"pooling_mode": "mean", "include_prompt": False}) as engine:
        assert engine.embed(["a"]).shape == (1, 48)
        with pytest.raises(ConfigError, match="include_prompt"):
            engine.embed(["a"], prompt="date: ")


def test_truncate_dim_of_the_folder(tmp_path):
    with opened_with(tmp_path, settings={"truncate_dim": 8}, normalize=False) as engine:
        assert engine.embed(["a"]).shape == (1, 8) and engine.dimension() == 8
        assert engine.embed(["a"], dimensions=9).shape == (1, 9)


def test_truncate_dim_after_normalising_is_refused(tmp_path):
    with opened_with(tmp_path, settings={"truncate_dim": 8}) as engine:
        with pytest.raises(ConfigError, match="dimensions=8"):
            engine.embed(["a"])
        assert engine.embed(["a"], dimensions=8).shape == (1, 8)


@pytest.mark.parametrize(
    "options, error, part",
    [
        ({"pooling": "median"}, ConfigError, "median"),
        ({"pooling": []}, ConfigError, "list of modes"),
        ({"pooling": 3}, ConfigError, "pooling is 3"),
        ({"normalize": "yes"}, RequestError, "normalize is 'yes'"),
        ({"max_length": 65}, RequestError, "the model has 64 positions"),
        ({"max_length": 1}, RequestError, "2 special tokens"),
        ({"max_length": 0}, RequestError, "max_length is 0"),
        ({"max_length": 5.0}, RequestError, "max_length is 5.0"),
        ({"prompt": 3}, RequestError, "prompt is a int"),
        ({"prompt": "\ud800"}, RequestError, "lone surrogate"),
        ({"dimensions": 0}, RequestError, "dimensions is 0"),
        ({"dimensions": 49}, RequestError, "1 to 48"),
        ({"dimensions": True}, RequestError, "dimensions is True"),
        ({"truncate": False}, RequestError, "truncate is False"),
        ({"truncate": "cut"}, RequestError, "truncate is 'cut'"),
    ],
    ids=str,
)
def test_options_of_a_call_that_cannot_be(engine, options, error, part):
    with pytest.raises(error) as raised:
        engine.embed(["a"], **options)
    assert part in str(raised.value)


@pytest.mark.parametrize(
    "rows", ["one text", b"bytes", 3, None, FlatRows([1, 2], [0, 3]), FlatRows([1, 2], [1, 0])], ids=str
)
def test_rows_that_are_no_rows(engine, rows):
    with pytest.raises(RequestError):
        engine.embed(rows)


def test_a_prompt_for_token_ids_is_refused(engine):
    for options in ({"prompt": "date: "}, {"prompt_name": "query"}):
        with pytest.raises(RequestError, match="prompt goes before texts"):
            engine.embed([IDS[0]], **options)
    np.testing.assert_array_equal(engine.embed([IDS[0]], prompt_name="empty"), engine.embed([IDS[0]]))


@pytest.mark.parametrize(
    "options, error, part",
    [
        ({"dtype": "bf16"}, ConfigError, "fp32"),
        ({"dtype": None}, ConfigError, "dtype is None"),
        ({"devices": []}, ConfigError, "devices is []"),
        ({"devices": [0]}, ConfigError, "devices is [0]"),
        ({"devices": "tpu"}, firesteel.Error, "tpu"),
        ({"threads": 0}, ConfigError, "threads is 0"),
        ({"threads": 1.5}, ConfigError, "threads is 1.5"),
        ({"cpu_path": 3}, ConfigError, "cpu_path is 3"),
        ({"cpu_path": "sse"}, ConfigError, "sse"),
        ({"max_memory": "lots"}, ConfigError, "max_memory is 'lots'"),
        ({"max_memory": "1KB"}, firesteel.OutOfMemory, ""),
    ],
    ids=str,
)
def test_options_of_an_engine_that_cannot_be(folder, options, error, part):
    with pytest.raises(error) as raised:
        firesteel.Engine(folder, **options)
    assert part in str(raised.value)


@pytest.mark.parametrize(
    "given, size",
    [
        (None, 0),
        (1, 1),
        ("2GB", 2 * 10**9),
        ("2GiB", 2**31),
        ("1.5 gib", 3 * 2**29),
        (" 300 MB ", 3 * 10**8),
        ("1024", 1024),
        *(
            (wrong, None)
            for wrong in (0, -1, True, 1.5, "", "0", "-1GB", "2G", "1e9", "1e999GB", "9" * 400 + "TB", "２GB")
        ),
    ],
)
def test_sizes(given, size):
    if size is not None:
        assert byte_count(given) == size
        return
    with pytest.raises(ConfigError, match="max_memory"):
        byte_count(given)


# --- faults of rows --------------------------------------------------------------------------------------------------


def test_all_faulty_rows_are_named(engine):
    texts = ["a"] * 400
    texts[7], texts[300], texts[301], texts[399] = None, b"x", "\udc80", "the " * 200
    with pytest.raises(RequestError, match="^4 of 400 rows cannot be computed: row 7 ") as raised:
        engine.embed(texts, truncate="error")
    assert [(row, code) for row, code, _ in raised.value.rows] == [
        (7, "SCHEMA"),
        (300, "SCHEMA"),
        (301, "BAD_UTF8"),
        (399, "TOO_LONG"),
    ]
    for part in ("row 300 (SCHEMA): the row is a bytes", "row 399 (TOO_LONG): the row has 202 tokens; the limit is 32"):
        assert part in str(raised.value)


def test_many_faulty_rows_are_listed_in_part(engine):
    with pytest.raises(RequestError, match="row 19 .*; and 80 more$") as raised:
        engine.embed(["a\ud800"] * 100)
    assert "row 20 " not in str(raised.value) and len(raised.value.rows) == 100


@pytest.mark.parametrize(
    "row, code",
    [
        (None, "SCHEMA"),
        ("text", "SCHEMA"),
        (b"ab", "SCHEMA"),
        (3, "SCHEMA"),
        ([1.5, 2], "SCHEMA"),
        ([True, False], "SCHEMA"),
        ([[1], [2]], "SCHEMA"),
        ([1, [2]], "SCHEMA"),
        (["a"], "SCHEMA"),
        ([None, 1], "SCHEMA"),
        ([], "SCHEMA"),
        ([-1], "SCHEMA"),
        ([160], "SCHEMA"),
        ([2**31], "SCHEMA"),
        ([2**32 + 5], "SCHEMA"),
        ([-(2**63)], "SCHEMA"),
        ([2**63], "SCHEMA"),
        ([2**64], "SCHEMA"),
        ([5] * 33, "TOO_LONG"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_faulty_row_of_token_ids(engine, row, code):
    with pytest.raises(RequestError, match="^1 of 3 rows") as raised:
        engine.embed([[5, 6], row, [7]])
    assert [(where, what) for where, what, _ in raised.value.rows] == [(1, code)]
    vectors, errors = engine.start_embed([[5, 6], row, [7]]).result()
    assert [error[:2] for error in errors] == ([] if row is None else [(1, code)])
    assert np.isnan(vectors[1]).all()
    np.testing.assert_array_equal(vectors[[0, 2]], engine.embed([[5, 6], [7]]))


def test_pending_gives_faults_as_values(engine):
    texts = ["the table", None, "\ud800", "the " * 100, "", "first"] * 200
    pending = engine.start_embed(texts, truncate="error")
    vectors, errors = pending.result()
    assert pending.tokens.dtype == np.int32 and pending.tokens.tolist() == [4, 0, 0, 0, 2, 3] * 200
    assert pending.nulls.tolist() == [False, True, False, False, False, False] * 200
    assert [(row, code) for row, code, _ in errors] == [
        (6 * block + row, code) for block in range(200) for row, code in ((2, "BAD_UTF8"), (3, "TOO_LONG"))
    ]
    assert np.isnan(vectors.reshape(200, 6, 48)[:, 1:4]).all()
    good = engine.embed(["the table", "", "first"])
    np.testing.assert_array_equal(vectors.reshape(200, 6, 48)[:, [0, 4, 5]], np.tile(good, (200, 1, 1)))
    assert pending.result()[0] is vectors


def test_null_token_ids_in_flat_rows(engine):
    rows = FlatRows(np.array([5, 6, 999, 7]), np.array([0, 2, 3, 3, 4]), np.array([False, True, True, False]))
    pending = engine.start_embed(rows)
    vectors, errors = pending.result()
    assert errors == [] and pending.nulls.tolist() == [False, True, True, False]
    np.testing.assert_array_equal(vectors[[0, 3]], engine.embed([[5, 6], [7]]))
    assert np.isnan(vectors[1:3]).all()


@pytest.mark.parametrize("rows", [[None, None], []])
def test_only_nulls(engine, rows):
    vectors, errors = engine.start_embed(rows).result()
    assert vectors.shape == (len(rows), 48) and errors == [] and np.isnan(vectors).all()


# --- around it -------------------------------------------------------------------------------------------------------


def test_what_an_engine_says_about_itself(engine, folder):
    settings = engine.settings
    assert settings["folder"] == str(folder) and settings["pooling"] == ["mean"] and settings["normalize"] is True
    assert settings["prompts"] == {"query": "date: ", "empty": ""}
    assert [device.name for device in engine.placement.devices] == ["cpu:0"]
    assert engine.numerics.startswith("cpu ") and engine.numerics.endswith("fp32")
    before = engine.stats()["rows"]
    engine.embed(TEXTS)
    assert engine.stats()["rows"] == before + len(TEXTS)


def test_a_missing_tokenizer_stops_texts_only(tmp_path):
    folder = tiny.write(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with firesteel.Engine(folder) as engine:
        assert engine.embed([[5, 6]]).shape == (1, 48)
        with pytest.raises(CheckpointError, match="tokenizer.json is missing"):
            engine.embed(["a"])


def test_a_closed_engine(folder):
    engine = firesteel.Engine(folder)
    engine.close()
    engine.close()
    with pytest.raises(RequestError, match="closed"):
        engine.embed([[5, 6]])


def test_cancel(engine):
    pending = engine.start_embed(np.random.RandomState(0).randint(0, 160, (20_000, 32)))  # equal rows would be one
    pending.cancel()
    with pytest.raises(RequestError, match="cancel"):
        pending.result()
    assert engine.embed([[5]]).shape == (1, 48)


def test_a_dropped_pending_leaves_the_engine_whole(engine):
    for seed in range(20):
        engine.start_embed(np.random.RandomState(seed).randint(0, 160, (1000, 30)))
    assert np.isfinite(engine.embed(TEXTS)).all()


def test_ctrl_c_cancels_and_the_engine_goes_on(tmp_path):
    folder = tiny.write(tmp_path / "model", hidden=384, heads=12, inner=1536, layers=2, positions=512)
    with firesteel.Engine(folder) as engine:
        rows = np.random.RandomState(0).randint(0, 160, (3000, 512))
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            engine.embed(rows)
        assert time.monotonic() - began < 20  # all rows would take minutes
        assert np.isfinite(engine.embed(rows[:1])).all()


def test_threads_share_an_engine(engine):
    texts = [f"table {number}" for number in range(64)]
    expected = engine.embed(texts)
    wrong = []

    def work(seed):
        order = np.random.RandomState(seed).permutation(64)
        for _ in range(10):
            if not np.array_equal(engine.embed([texts[i] for i in order]), expected[order]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_may_not_use_the_engine(engine):
    """It is told so, at once, and it ends without hanging on threads that it does not have."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            engine.embed([[5, 6]])
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        engine.close()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert said.startswith(DeviceError.__name__) and "fork" in said
    assert np.isfinite(engine.embed(TEXTS)).all()


def fresh(code, *arguments):
    found = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_importing_touches_nothing():
    code = """
import os, sys
import firesteel
heavy = {"pyspark", "pandas", "pyarrow", "tokenizers", "torch", "transformers"} & set(sys.modules)
open_files = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)]
links = [os.readlink("/proc/self/fd/" + fd) for fd in open_files]
strange = [link for link in links if "event" in link or "socket" in link]
print(len(os.listdir("/proc/self/task")), sorted(heavy), strange)
"""
    threads, *rest = fresh("import numpy\n" + code)
    alone = fresh("import os, numpy; print(len(os.listdir('/proc/self/task')))")
    assert [threads] == alone and rest == ["[]", "[]"]


def test_memory_of_a_first_embedding(minilm):
    """Peak memory of a process that embeds one row stays under 3x the weights (its time: benchmarks/start.py)."""
    code = """
import sys
import firesteel
with firesteel.Engine(sys.argv[1], threads=2) as engine:
    engine.embed(["hello world"])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
    (kilobytes,) = fresh(code, minilm)
    weights = os.path.getsize(os.path.join(minilm, "model.safetensors"))
    assert int(kilobytes) * 1024 < 3 * weights, f"{kilobytes} kB at the peak for {weights // 1024} kB of weights"
