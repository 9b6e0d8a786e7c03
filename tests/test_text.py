"""No sentence can break its messenger: what leaves is valid UTF-8 and one line, whatever names it quotes."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import firesteel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from firesteel import _core
from firesteel.host.text import ESCAPES, Formatter, escape_on, one_line
from firesteel.manager import lifecycle, relay
from firesteel.model.locate import Located, resolve

LATIN = os.fsdecode(b"caf\xe9")  # as file systems have it that were written in another encoding

AWKWARD = {
    "Latin-1": (LATIN, r"caf\xe9"),
    "several bytes": (os.fsdecode(b"\xff\xfe\x80"), r"\xff\xfe\x80"),
    "half a pair": ("x\ud800y", r"x\ud800y"),
    "the other half": ("x\udfff", r"x\udfff"),
    "two halves": ("\ud83d\ude00", r"\ud83d\ude00"),
    "line breaks": ("a\nb\r\nc", r"a\nb\r\nc"),
    "a tab": ("a\tb", r"a\tb"),
    "a terminal's escape": ("\x1b[31mred", r"\x1b[31mred"),
    "NUL": ("a\0b", r"a\x00b"),
    "delete": ("a\x7fb", r"a\x7fb"),
    "next line": ("a\x85b", r"a\x85b"),
    "separators": ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
    "nothing awkward": ("größe 模型 😀 \\n", "größe 模型 😀 \\n"),
    "nothing": ("", ""),
}
ERRORS = [getattr(firesteel, name) for name in firesteel.__all__ if name.endswith("Error") or name == "OutOfMemory"]


def check_sentence(text: str) -> None:
    assert text.encode("utf-8").decode("utf-8") == text
    assert len(text.splitlines()) <= 1 and "\x1b" not in text and "\0" not in text


@pytest.mark.parametrize("name", AWKWARD)
def test_plain_text(name):
    text, expected = AWKWARD[name]
    assert one_line(text) == expected and one_line(expected) == expected
    check_sentence(one_line(text))
    assert text.encode("utf-8", ESCAPES).decode() == one_line(text) if name.startswith(("Latin", "half")) else True


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_says_plain_text(kind):
    chance = random.Random(kind.__name__)
    odd = "\n\r\t\0\x1b\x85\u2028\ud800\udfff\udc80\udce9é模😀\\'\" "
    texts = [text for text, _ in AWKWARD.values()]
    texts += ["".join(chance.choice(odd) for _ in range(chance.randrange(40))) for _ in range(300)]
    texts += ["".join(chr(chance.randrange(0x110000)) for _ in range(20)) for _ in range(100)]
    for text in texts:
        error = kind(f"{text}: is wrong")
        check_sentence(str(error))
        assert str(error) == f"{one_line(text)}: is wrong"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_errors_are_as_they_were():
    class Own(firesteel.ConfigError):
        def __init__(self, path: str) -> None:
            super().__init__(f"{path}: own")

    assert str(Own(LATIN)) == r"caf\xe9: own" and isinstance(Own("a"), firesteel.Error)
    assert firesteel.Error("a", 3, None).args == ("a", 3, None) and firesteel.Error().args == ()
    assert firesteel.Error.__module__ == "firesteel" and issubclass(firesteel.Error, Exception)
    error = firesteel.RequestError("a")
    error.rows = [(1, "SCHEMA", "b")]
    assert pickle.loads(pickle.dumps(error)).rows == error.rows
    with pytest.raises(TypeError):
        firesteel.Error(text="a")
    with pytest.raises(TypeError, match="text must be str"):
        _core.plain_text(3)


# --- places ----------------------------------------------------------------------------------------------------------

NAMES = {
    "Latin-1": b"caf\xe9",
    "Shift JIS": "模型".encode("shift_jis"),
    "a line break": b"two\nlines",
    "escape": b"\x1b[31m",
}


def folder_named(tmp_path: Path, name: bytes) -> str:
    folder = os.fsencode(tmp_path) + b"/" + name
    return os.fsdecode(shutil.copytree(os.fsencode(tiny.write(tmp_path / "plain")), folder))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_computes_in_a_folder_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(tmp_path / "m"))
    folder = folder_named(tmp_path, NAMES[name])
    with firesteel.Engine(tmp_path / "plain", threads=1) as engine:
        expected = engine.embed(["the first row", "another"])
    with firesteel.Engine(folder, threads=1) as engine, firesteel.connect(folder, threads=1) as connected:
        for opened in (engine, connected):
            assert np.array_equal(opened.embed(["the first row", "another"]), expected)
            assert opened.settings["folder"] == folder
            check_sentence(repr(opened))
        str(engine.placement).encode()
        said = json.loads(connected._core._client.ask(b'{"ask": "stats"}'))
        assert [model["name"] for model in said["models"]] == [one_line(folder)]
        log = Path(connected._core._relay._path).read_bytes().decode()
        assert f"opened {one_line(folder)} in " in log
    firesteel.plan(folder)
    located = pickle.loads(pickle.dumps(resolve(folder)))
    assert located == Located(folder)


def damage_config(folder: str) -> None:
    Path(folder, "config.json").write_text('{"model_type": "caf\\ud800"}')


def damage_weights(folder: str) -> None:
    Path(folder, "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")


def damage_tensor(folder: str) -> None:
    tiny.write_raw(
        Path(folder, "model.safetensors"),
        {"em\nb\x1b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        b"abcd",
    )


def remove_weights(folder: str) -> None:
    os.unlink(os.path.join(folder, "model.safetensors"))


def damage_tokenizer(folder: str) -> None:
    Path(folder, "tokenizer.json").write_text("{")


def change_type(folder: str) -> None:
    config = json.loads(Path(folder, "config.json").read_text())
    Path(folder, "config.json").write_text(json.dumps(config | {"hidden_act": "ge\nlu\u2028"}))


def add_key(folder: str) -> None:
    config = json.loads(Path(folder, "config.json").read_text())
    Path(folder, "config.json").write_text(json.dumps(config | {"new\nkey\x1b": 3}))


DAMAGES = [damage_config, damage_weights, damage_tensor, remove_weights, damage_tokenizer, change_type, add_key]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_wrong_in_such_a_folder_is_told(tmp_path, damage):
    folder = folder_named(tmp_path, b"caf\xe9")
    damage(folder)
    with pytest.raises(firesteel.Error) as refused, firesteel.Engine(folder, threads=1) as engine:
        engine.embed(["a text"])
    check_sentence(str(refused.value))
    assert r"caf\xe9" in str(refused.value)


@pytest.mark.parametrize("name", ["Latin-1", "line breaks", "half a pair", "a terminal's escape"])
@pytest.mark.parametrize("option", ["devices", "parallel", "dtype", "cpu_path", "max_memory"])
def test_options_of_such_text_are_told(tmp_path, option, name):
    with pytest.raises(firesteel.Error) as refused:
        firesteel.Engine(tiny.write(tmp_path / "model"), **{option: AWKWARD[name][0]})
    check_sentence(str(refused.value))


@pytest.mark.parametrize("name", ["Latin-1", "line breaks", "half a pair"])
def test_models_that_are_not_there_are_told(name):
    text = AWKWARD[name][0]
    for model in (f"/nowhere/{text}", f"nowhere {text}", f"models:/{text}", f"dbfs:/{text}", f"s3://{text}"):
        with pytest.raises(firesteel.Error) as refused:
            firesteel.Engine(model)
        check_sentence(str(refused.value))


@pytest.mark.parametrize("value", [b"caf\xe9", b"two\nlines", b"\x1b[31m"])
@pytest.mark.parametrize("knob", ["THREADS", "BATCH_TOKENS", "LIBCUDA"])
def test_knobs_of_such_values_are_told(tmp_path, monkeypatch, knob, value):
    monkeypatch.setenv(f"FIRESTEEL_{knob}", os.fsdecode(value))
    with pytest.raises(firesteel.Error) as refused:
        firesteel.Engine(tiny.write(tmp_path / "model"), devices="cuda" if knob == "LIBCUDA" else "cpu")
    check_sentence(str(refused.value))


# --- logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AWKWARD)
def test_a_record_of_the_managers_log_is_a_line(tmp_path, name):
    text, expected = AWKWARD[name]
    handler = logging.FileHandler(tmp_path / "log", encoding="utf-8", errors=ESCAPES)
    handler.setFormatter(Formatter("%(levelname)s %(message)s"))
    handler.emit(logging.makeLogRecord({"msg": "opened %s", "args": (text,), "levelname": "INFO"}))
    handler.close()
    assert (tmp_path / "log").read_bytes().decode() == f"INFO opened {expected}\n"


@pytest.mark.parametrize("name", AWKWARD)
def test_a_worker_tells_of_such_a_model_in_a_line(tmp_path, name, capsys, caplog):
    text, expected = AWKWARD[name]
    caplog.set_level(logging.INFO, "firesteel")
    said = {"numerics": "cuda", "placement": {"devices": [{"name": "cuda:0"}]}, "seconds": 1.0}
    for spark in (True, False):
        relay.Relay(str(tmp_path / "log"), spark).opened(text, said, 1)
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    assert line.startswith(f"firesteel: {expected} on cuda:0") and caplog.messages == [line.removeprefix("firesteel: ")]


def test_bytes_in_the_managers_log_are_escaped(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"one\n2026 x 1 WARNING caf\xe9 \x1b[31m\n")
    assert lifecycle.last_lines(str(log)).encode().endswith(rb"one | 2026 x 1 WARNING caf\xe9 " + b"\x1b[31m")
    check_sentence(str(firesteel.ManagerError(lifecycle.last_lines(str(log)))))
    found = relay.Relay(str(tmp_path / "other"), True)
    found._path = str(log)
    assert [line for _, line in found._new_lines()] == ["2026 x 1 WARNING caf\\xe9 \x1b[31m"]


def test_identities_may_be_made_of_such_text(monkeypatch):
    monkeypatch.setenv("SPARK_EXECUTOR_DIRS", f"/tmp/{LATIN}")
    assert lifecycle._identity("").kind == "directories"


def test_streams_escape_what_they_cannot_say(tmp_path):
    for encoding, expected in (("ascii", rb"gr\xf6\xdfe \u6a21 \xe9"), ("latin-1", b"gr\xf6\xdfe " + rb"\u6a21 \xe9")):
        with open(tmp_path / "out", "w", encoding=encoding) as stream:
            escape_on(stream)
            stream.write(os.fsdecode("größe 模 ".encode() + b"\xe9"))
        assert (tmp_path / "out").read_bytes() == expected
    escape_on(None)
    escape_on(stream)
    escape_on(object())


# --- commands --------------------------------------------------------------------------------------------------------

LOCALES = {  # environment, and the encoding of what is said
    "C": ({"LANG": "C"}, "utf-8"),
    "C without UTF-8": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "ascii"),
    "ascii": ({"PYTHONIOENCODING": "ascii"}, "ascii"),
    "latin-1, strict": ({"PYTHONIOENCODING": "latin-1:strict"}, "latin-1"),
}


def command(*arguments: bytes, **environment: str) -> subprocess.CompletedProcess:
    path = str(Path(firesteel.__file__).parent.parent)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "PYTHONIO", "LC_", "LANG"))}
    line = [os.fsencode(sys.executable), b"-m", b"firesteel", *arguments]
    return subprocess.run(line, env=clean | {"PYTHONPATH": path} | environment, capture_output=True, timeout=120)


@pytest.mark.parametrize("name", LOCALES)
def test_commands_speak_in_any_locale(tmp_path, name):
    environment, encoding = LOCALES[name]
    folder = os.fsencode(folder_named(tmp_path, "größe".encode() + b"\xe9"))
    there = command(b"plan", folder, b"--devices", b"cpu", b"--memory", b"1GB", **environment)
    assert there.returncode == 0, there.stderr
    missing = command(b"plan", folder + b"\xff\n2", **environment)
    (line, end) = missing.stderr.split(b"\n")
    assert missing.returncode == 2 and end == b"" and rb"\xe9\xff\n2" in line, missing.stderr
    wrong = command(b"plan", folder, b"--caf\xe9\n", **environment)
    assert wrong.returncode == 2 and wrong.stderr.count(b"\n") == 1 and rb"caf\xe9\n" in wrong.stderr
    for said in (there, missing, wrong):
        (said.stdout + said.stderr).decode(encoding)


def test_run_tells_of_names_that_arrow_does_not_take(tmp_path):
    model, there = os.fsencode(tiny.write(tmp_path / "model")), os.fsencode(tmp_path) + b"/in.parquet"
    pq.write_table(pa.table({"text": ["a"], "two\nlines": ["a"]}), os.fsdecode(there))
    bad = os.fsencode(tmp_path) + b"/caf\xe9.parquet"
    os.link(there, bad)
    output = os.fsencode(tmp_path) + b"/out.parquet"
    asked = {
        "an input": (bad, b"text", output, b"v"),
        "a column": (there, b"caf\xe9", output, b"v"),
        "an output": (there, b"text", bad + b"2.parquet", b"v"),
        "a new column": (there, b"text", output, b"caf\xe9"),
        "a column of two lines": (there, b"two\nlines?", output, b"v"),
    }
    for name, (source, column, target, made) in asked.items():
        flags = (b"--input", source, b"--column", column, b"--output", target, b"--output-column", made)
        said = command(b"run", model, *flags, LANG="C")
        assert said.stderr.count(b"\n") == 1 and b"Traceback" not in said.stderr, (name, said.stderr)
        assert (said.returncode == 0) == os.path.exists(target), (name, said.stderr)


def test_the_doctor_speaks_of_what_is_set(tmp_path):
    named = {"FIRESTEEL_NEW": os.fsdecode(b"caf\xe9\n"), "JAVA_HOME": os.fsdecode(b"/nowhere/caf\xe9\n"), "LANG": "C"}
    said = command(b"doctor", **named, FIRESTEEL_MANAGER_DIR=str(tmp_path))
    assert said.returncode == 0 and rb"/nowhere/caf\xe9\n" in said.stdout, said.stderr
    said.stdout.decode("utf-8")


# --- Spark -----------------------------------------------------------------------------------------------------------


@contextmanager
def ends(spark) -> Iterator[None]:
    """Jobs in here are cancelled, and so fail, where they hang."""
    limit = threading.Timer(300, spark.sparkContext.cancelAllJobs)
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


@pytest.mark.parametrize("manager", [True, False])
def test_a_job_of_spark_computes_with_such_a_folder_and_tells_what_is_wrong(spark, tmp_path, manager):
    folder = folder_named(tmp_path, b"caf\xe9")
    table = spark.createDataFrame([("a text",), (None,)], "text string").coalesce(1)
    embed, later = (firesteel.embed_udf(folder, manager=manager, max_memory=size) for size in ("1GB", "2GB"))
    with ends(spark):
        rows = table.select(embed("text").alias("v")).collect()
    assert len(rows[0].v) == 48 and rows[1].v is None
    os.unlink(os.path.join(folder, "config.json"))
    with ends(spark), pytest.raises(Exception, match=r"CheckpointError: .*caf\\xe9.*config.json"):
        table.select(later("text")).collect()
