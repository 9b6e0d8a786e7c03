"""What workers tell of their manager: one line for each model, and what it warns of, each line once."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import firesteel
import pytest
import tiny
from firesteel import ManagerError
from firesteel.manager import lifecycle, relay

HERE = Path(__file__).parent
SAID = {
    "numerics": "cpu avx2 fp32",
    "placement": {"devices": [{"name": "cpu:0", "threads": 1}, {"name": "cpu:1", "threads": 1}]},
    "seconds": 0.187,
}


def line(level: str, text: str) -> str:
    return f"2026-01-02 03:04:05,678 4711 {level} {text}\n"


@pytest.fixture
def manager_log(tmp_path) -> Path:
    path = tmp_path / "key.log"
    path.write_text(line("WARNING", "of a manager before"))
    return path


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(relay, "LOOK_SECONDS", 0.0)


def append(path: Path, *lines: str) -> None:
    with open(path, "a") as file:
        file.write("".join(lines))


def test_a_spark_worker_prints_and_others_log(manager_log, capsys, caplog):
    caplog.set_level(logging.INFO, "firesteel")
    expected = (
        f"/m/bert on cpu:0, cpu:1 (cpu avx2 fp32, 2 threads), opened in 0.19 s by manager 4711 (log: {manager_log})"
    )
    for _ in range(3):
        relay.Relay(str(manager_log), False).opened("/m/bert", SAID, 4711)
    assert caplog.messages == [expected] * 3 and capsys.readouterr().err == ""
    one = relay.Relay(str(manager_log), True)
    for model in ("/m/bert", "/m/bert", "/m/other"):
        one.opened(model, SAID, 4711)
    assert capsys.readouterr().err.splitlines() == [
        f"firesteel: {expected}",
        f"firesteel: {expected}".replace("bert", "other"),
    ]
    one.opened("/m/bert", SAID | {"numerics": "cuda sm_90 bf16"}, 1)
    assert "(cuda sm_90 bf16)" in capsys.readouterr().err and len(caplog.messages) == 3


def test_warnings_are_passed_on_once_and_nothing_else_is(manager_log, at_once, capsys):
    one = relay.Relay(str(manager_log), True)
    one.look()
    append(
        manager_log, line("INFO", "opened"), line("WARNING", "a"), "Traceback ...\n", line("ERROR", "b\x1b"), "2026-01"
    )
    one.look()
    one.look()
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "firesteel: manager: " + line("WARNING", "a")[:-1],
        "firesteel: manager: " + line("ERROR", r"b\x1b")[:-1],
    ]
    append(manager_log, line("WARNING", "its end came later")[7:])
    one.look()
    assert capsys.readouterr().err.endswith(" WARNING its end came later\n")


def test_a_log_that_begins_anew_is_followed(manager_log, at_once, capsys):
    one = relay.Relay(str(manager_log), True)
    append(manager_log, line("WARNING", "before"))
    manager_log.rename(f"{manager_log}.1")
    append(manager_log, line("WARNING", "behind"))
    one.look()
    one.look()
    assert re.findall(r"WARNING (.*)", capsys.readouterr().err) == ["before", "behind"]
    manager_log.write_text(line("ERROR", "cut"))
    one.look()
    manager_log.unlink()
    one.look()
    append(manager_log, line("ERROR", "new"))
    one.look()
    assert re.findall(r"ERROR (.*)", capsys.readouterr().err) == ["cut", "new"]


def test_a_flood_is_told_by_its_end(manager_log, at_once, capsys):
    one = relay.Relay(str(manager_log), True)
    append(manager_log, *[line("WARNING", f"{i} " + "x" * 700) for i in range(1000)])
    one.look()
    said = capsys.readouterr().err
    assert len(said.splitlines()) == relay.MOST_LINES + 1 and "more warnings before these" in said
    assert "WARNING 999 xxx" in said and max(map(len, said.splitlines())) < 600


def test_it_looks_once_a_second(manager_log, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(relay, "monotonic", lambda: now[0])
    looked = []
    monkeypatch.setattr(relay, "_look", lambda path: looked.append(path) or (None, 0))
    one = relay.Relay(str(manager_log), True)
    for now[0] in (100.0, 100.4, 100.9, 101.1, 101.5):
        one.look()
    assert len(looked) == 1 + 2


@pytest.mark.parametrize("stderr", ["None", "open(os.devnull)"])
def test_a_worker_without_stderr_does_not_mind(manager_log, stderr):
    code = f"""
import os, sys
sys.stderr = {stderr}
from firesteel.manager import relay
one = relay.Relay(sys.argv[1], True)
one.opened("m", {SAID!r}, 1)
"""
    assert subprocess.run([sys.executable, "-c", code, str(manager_log)], timeout=600).returncode == 0


def test_a_manager_error_has_the_last_lines_once(manager_log):
    one = relay.Relay(str(manager_log), True)
    said = one.explained(ManagerError("it is gone"))
    assert str(said).startswith(f"it is gone; its log {manager_log} ends: ") and "of a manager before" in str(said)
    assert one.explained(said) is said


# --- with a manager

CLIENT = """
import os, sys, time
import firesteel, tiny
from firesteel.manager import lifecycle

if sys.argv[2] == "spark":
    os.environ["SPARK_EXECUTOR_DIRS"] = os.environ["FIRESTEEL_MANAGER_DIR"]
engines = [firesteel.connect(sys.argv[1], threads=2) for _ in range(2)]
print(engines[0]._core._client.manager_pid, engines[0]._core._relay._path, flush=True)
for text in sys.stdin:
    time.sleep(1.01)
    engines[0].embed(tiny.rows(1, (3, 4)))
    engines[1].stats()
    print("done", flush=True)
"""


@pytest.mark.parametrize("where", ["spark", "alone"])
def test_a_worker_relays_its_manager(tmp_path, where):
    folder = str(tiny.write(tmp_path / "model"))
    path = os.pathsep.join([str(HERE), str(Path(firesteel.__file__).parent.parent)])
    environment = os.environ | {"FIRESTEEL_MANAGER_DIR": str(tmp_path / "m"), "PYTHONPATH": path}
    command, pipe = [sys.executable, "-c", CLIENT, folder, where], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as client:
        pid, log = client.stdout.readline().split()
        try:
            append(Path(log), line("WARNING", "the disk is full"), line("INFO", "never mind"))
            for _ in range(2):
                client.stdin.write("go\n")
                client.stdin.flush()
                assert client.stdout.readline() == "done\n"
            said = client.communicate(timeout=600)[1]
        finally:
            os.kill(int(pid), signal.SIGKILL)
    assert said.count("WARNING the disk is full") == 1 and "never mind" not in said
    opened = re.findall(r"^firesteel: (.*) on cpu:0 \(cpu \S+ fp32, 2 threads\), opened in [\d.]+ s by manager (\d+) "
                        rf"\(log: {re.escape(log)}\)$", said, re.MULTILINE)  # fmt: skip
    assert opened == ([(folder, pid)] if where == "spark" else [])


def test_a_manager_that_never_answers_is_quoted(tmp_path, monkeypatch):
    """What four managers that died one after the other had to say, where nobody else says it."""
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(tmp_path / "m"))
    lifecycle.directory()
    Path(relay.of_process()._path).write_text(line("ERROR", "why it died"))

    def connect():
        raise ManagerError("nobody is there")

    from firesteel.manager.remote import Connected

    with pytest.raises(ManagerError, match=r"nobody is there; its log .* ends: .*why it died"):
        Connected(str(tiny.write(tmp_path / "model")), connect, 5.0)
