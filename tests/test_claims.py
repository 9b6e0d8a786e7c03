"""Claims of GPUs: processes that open engines on one GPU of software take turns, see what the others hold, and name who
holds what is missing; what anybody else puts into the directory harms nobody.

The GPUs' memory is shared by all processes of a test (SOFTCUDA_SHARED).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import firesteel
import pytest
import tiny
from firesteel import _core
from firesteel.commands import doctor
from firesteel.engine import claims
from firesteel.host.processes import Process, look_up

HERE = Path(__file__).parent
MIB = 1 << 20
FITS_ONE, FITS_BOTH = 64 * MIB + 17_000_000, 64 * MIB + 60_000_000  # the engine leaves 64 MiB alone

# Says "ready"; for each line "devices [max_memory]" opens an engine, and says what became of it; holds all to the end.
CHILD = """
import sys, time
import firesteel
from firesteel.engine import claims
from firesteel import _core

real, held = _core.Engine, []
pause, claims.LOCK_SECONDS = float(sys.argv[2]), float(sys.argv[3])

def slow(**options):
    began = time.monotonic()
    engine = real(**options)
    time.sleep(pause)
    print("opened", began, time.monotonic(), flush=True)
    return engine

_core.Engine = slow
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "close":
        held.pop().close()
        print("closed", flush=True)
        continue
    try:
        held.append(firesteel.Engine(sys.argv[1], devices=line.strip()))
    except firesteel.OutOfMemory as error:
        print(error, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("models") / "small", hidden=48))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FIRESTEEL_CLAIMS_DIR", str(tmp_path / "claims"))
    monkeypatch.setattr(claims, "_warned", set())
    return tmp_path / "claims"


class Child:
    def __init__(self, folder: str, environment: dict[str, str], pause: float, patience: float) -> None:
        command = [sys.executable, "-c", CHILD, folder, str(pause), str(patience)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.pid, self.environment = self.process.pid, environment

    def say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def heard(self) -> str:
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        return line

    def opened(self) -> tuple[float, float]:
        line = self.heard()
        assert line.startswith("opened "), line
        return tuple(map(float, line.split()[1:]))

    def end(self) -> str:
        """What it wrote to stderr."""
        return self.process.communicate(timeout=600)[1]


@pytest.fixture
def start(folder, place, tmp_path, software_driver):
    """Starts processes that open engines; all are ended with the test."""
    started = []

    def one(memory: int = FITS_BOTH, pause: float = 0.0, patience: float = 20.0, **more: str) -> Child:
        soft = {"FIRESTEEL_LIBCUDA": software_driver, "FIRESTEEL_LIBCUBLASLT": "off", "SOFTCUDA_MEMORY": str(memory)}
        soft |= {"SOFTCUDA_SHARED": str(tmp_path / "shared"), "FIRESTEEL_CLAIMS_DIR": str(place)}
        path = {"PYTHONPATH": os.pathsep.join([str(HERE), str(Path(firesteel.__file__).parent.parent)])}
        child = Child(folder, {k: v for k, v in os.environ.items() if k[:9] != "SOFTCUDA_"} | soft | path | more,
                      pause, patience)  # fmt: skip
        started.append(child)
        assert child.heard() == "ready"
        return child

    yield one
    for child in started:
        child.process.kill()
        child.process.communicate()


def uuid(number: int) -> str:
    """As the software driver has it."""
    digits = (b"softcuda device"[:15] + bytes([number])).hex()
    return "-".join(["GPU", digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


def put(place: Path, name: str, process: object = None, **changed: object) -> Path:
    """A record as the module writes it, of this very process; or with something else in it."""
    process = process or look_up(os.getpid()).process
    place.mkdir(exist_ok=True)
    said = {"host": claims._host(), "model": "m", "build": "b", "gpus": {uuid(0): ["cuda:0", 5]}} | changed
    path = place / f"{process}.{name}.claim"
    path.write_text(json.dumps(said))
    return path


# --- who opens when, and what they are told


def test_the_ids_are_the_drivers(on_gpus, tmp_path):
    code = "from firesteel import _core; print(_core.gpu_ids(['cuda']), _core.gpu_ids(['cpu']))"
    shared = {"SOFTCUDA_SHARED": str(tmp_path / "shared")}
    assert on_gpus(code, SOFTCUDA_DEVICES="2", **shared) == f"{[('cuda:0', uuid(0)), ('cuda:1', uuid(1))]} []\n"
    shown = on_gpus(
        "from firesteel import _core; print(_core.gpu_ids(['cuda:1']))", CUDA_VISIBLE_DEVICES="3,1", **shared
    )
    assert shown == f"{[('cuda:1', uuid(1))]}\n"


@pytest.mark.parametrize(("devices", "overlap"), [(("cuda:0", "cuda:0"), False), (("cuda:0", "cuda:1"), True),
                                                  (("cuda", "cuda:1"), False)])  # fmt: skip
@pytest.mark.serial
def test_engines_open_in_turn_on_one_gpu(start, devices, overlap):
    children = [start(pause=1.0) for _ in devices]
    for child, named in zip(children, devices, strict=True):
        child.say(named)
    first, second = sorted(child.opened() for child in children)
    assert (second[0] < first[1]) == overlap


def test_two_that_fit_both_open(start, place):
    children = [start(), start()]
    for child in children:
        child.say("cuda:0")
    for child in children:
        child.opened()
    until(lambda: len(claims.found()) == 2)
    records = claims.found()
    assert {record.process.pid for record in records} == {child.pid for child in children}
    for record in records:
        assert record.model == "small" and record.uid == os.geteuid() and record.build == _core.build
        assert list(record.gpus) == [uuid(0)] and record.gpus[uuid(0)][0] == "cuda:0"
        assert 4_000_000 < record.gpus[uuid(0)][1] < 6_000_000


def until(happens) -> None:
    end = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_of_two_at_once_the_second_is_told_who_holds_the_memory(start, place):
    children = [start(FITS_ONE, pause=0.5), start(FITS_ONE, pause=0.5)]
    for child in children:
        child.say("cuda:0")
    said = {child: child.heard() for child in children}
    (holder,) = [child for child in children if said[child].startswith("opened")]
    (refused,) = [child for child in children if child is not holder]
    assert re.search(
        rf"are missing; .*; on cuda:0 process {holder.pid} \(firesteel, small\) holds 5\.0 MB: end it, release its "
        r"models, or give it a max_memory$",
        said[refused],
    ), said[refused]
    refused.say("cuda:1")
    refused.opened()
    holder.say("close")
    assert holder.heard() == "closed" and [record.process.pid for record in claims.found()] == [refused.pid]
    refused.say("cuda:0")
    refused.opened()


def test_memory_of_a_killed_process_is_free_and_its_record_goes(start, place):
    holder, other = start(FITS_ONE), start(FITS_ONE)
    holder.say("cuda:0")
    holder.opened()
    until(lambda: list(place.glob("*.claim")))
    holder.process.kill()
    holder.process.wait()
    assert claims.found() == [] and len(list(place.glob("*.claim"))) == 1
    other.say("cuda:0")
    other.opened()
    until(lambda: claims.found())
    assert [path.name.partition(":")[0] for path in place.glob("*.claim")] == [str(other.pid)]


def test_an_engine_of_ones_own_and_a_manager_see_each_other(start, place, folder, tmp_path):
    """The manager lets go of its models when it is asked to, and with its end."""
    code = """
import sys, firesteel
with firesteel.connect(sys.argv[1], devices="cuda:0") as engine:
    print(engine._core._client.manager_pid, flush=True)
    for line in sys.stdin:
        print(engine._core.ask({"ask": "release"}), flush=True)
"""
    own = start(FITS_ONE)
    environment = own.environment | {"FIRESTEEL_MANAGER_DIR": str(tmp_path / "m")}
    pipe = subprocess.PIPE
    client = subprocess.Popen([sys.executable, "-c", code, folder], env=environment, stdin=pipe, stdout=pipe, text=True)
    manager = int(client.stdout.readline())
    try:
        own.say("cuda:0")
        assert f"on cuda:0 process {manager} (firesteel, small) holds 5.0 MB" in own.heard()
        client.stdin.write("release\n")
        client.stdin.flush()
        assert client.stdout.readline() == "{'released': 1}\n" and claims.found() == []
        own.say("cuda:0")
        own.opened()
        refused = subprocess.run(
            [sys.executable, "-c", code, folder],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
        )
        assert f"on cuda:0 process {own.pid} (firesteel, small) holds 5.0 MB" in refused.stderr
        assert "OutOfMemory" in refused.stderr
    finally:
        os.kill(manager, signal.SIGKILL)
        client.communicate()


def test_cpus_are_not_claimed(place, folder):
    with firesteel.Engine(folder, devices="cpu"):
        assert not place.exists()


def test_an_engine_that_is_dropped_or_forked_away(place, folder, on_gpus):
    code = """
import os, sys, firesteel
from firesteel.engine import claims
engine = firesteel.Engine(sys.argv[1], devices="cuda:0")
if os.fork() == 0:
    engine._claim.release()
    os._exit(0)
os.wait()
print(len(claims.found()))
del engine
print(len(claims.found()), len(os.listdir(sys.argv[2])))
"""
    assert on_gpus(code, folder, str(place), FIRESTEEL_CLAIMS_DIR=str(place)) == "1\n0 1\n"


def test_the_doctor_lists_them(place):
    assert dict(doctor.report())["claims"] == [("none", "no engine holds a GPU")]
    put(place, "1", gpus={uuid(0): ["cuda:1", 12_340_000_000]}, model="bert")
    ((name, text),) = dict(doctor.report())["claims"]
    assert name == f"process {os.getpid()}"
    assert text == f"user {os.geteuid()}, bert, {uuid(0)} (its cuda:1): 12.3 GB; firesteel b"


# --- what others put there


def test_sentences_are_bounded_and_about_the_gpu_that_is_named():
    process = Process(1, "1")
    gpus = {"a": "cuda:0", "b": "cuda:1"}
    records = [
        claims.Record(process, os.geteuid() + 1, f"m{i}", "", {"ab"[i % 2]: ("x", i * 10**9)}) for i in range(12)
    ]
    named = claims._holders("cuda:1: weights need more", gpus, records)
    assert named.startswith(f"; on cuda:1 process 1 (firesteel, user {os.geteuid() + 1}, m11) holds 11.0 GB, on cuda:1")
    assert "cuda:0" not in named and "m3" not in named and " and 2 more: end it" in named
    assert claims._holders("the weights do not fit", gpus, records[:2]).count("holds") == 2
    assert claims._holders("cuda:2: no", gpus, records) == claims._holders("cuda:0: no", gpus, []) == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"host": "another boot, or another container"},
        {"gpus": [1, 2]},
        {"gpus": {uuid(0): ["cuda:0", -1]}},
        {"gpus": {uuid(0): ["cuda:0", "much"]}},
        {"gpus": {uuid(0): 7}},
        {"model": None},
        {"more": "x" * 20000},
    ],
)
def test_a_record_with_something_else_in_it_is_none(place, changed):
    put(place, "1")
    assert len(claims.found()) == 1
    put(place, "1", **changed)
    assert claims.found() == []


def test_text_of_others_cannot_paint_a_terminal(place):
    put(place, "1", model="\x1b[2J\n" + "x" * 300)
    (record,) = claims.found()
    assert record.model == "?[2J?" + "x" * 75


def test_hostile_files_are_passed_over(start, place):
    mine = look_up(os.getpid()).process
    good = put(place, "1")
    for number, text in enumerate(["", "{", "[" * 9000, "null", '{"host": 1}', "\0\xff", "9" * 9000], 10):
        (place / f"{mine}.{number}.claim").write_text(text)
    (place / f"{mine}.2.claim").symlink_to(good)
    (place / f"{mine}.3.claim").symlink_to("/dev/zero")
    os.mkfifo(place / f"{mine}.4.claim")
    (place / f"{mine}.5.claim").mkdir()
    with open(place / f"{mine}.6.claim", "wb") as file:
        file.truncate(1 << 40)
    (place / "٣:1.1.claim").write_text("{}")
    (place / f"{mine.pid}:{'9' * 20}.1.claim").write_text(good.read_text())  # another process had this number
    assert [record.gpus for record in claims.found()] == [{uuid(0): ("cuda:0", 5)}]
    child = start()
    child.say("cuda:0")
    child.opened()
    until(lambda: len(claims.found()) == 2)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_a_lock_that_is_none_is_done_without(start, place, make):
    place.mkdir()
    make(place / f"{uuid(0)}.lock")
    child = start()
    for _ in range(2):
        child.say("cuda:0")
        child.opened()
    said = child.end()
    assert said.count("cannot be opened") == 1 and f"{uuid(0)}.lock" in said


@pytest.mark.serial
def test_a_lock_that_nobody_lets_go_of_is_waited_for_a_while(start, place):
    """A process that was stopped while it had it."""
    code = """
import os, sys, signal
from firesteel.engine import claims
with claims._locks(claims._directory(), {sys.argv[1]: "cuda:0"}):
    print("locked", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    stopped = subprocess.Popen([sys.executable, "-c", code, uuid(0)], stdout=subprocess.PIPE, text=True)
    try:
        assert stopped.stdout.readline() == "locked\n"
        child = start(patience=0.7)
        began = time.monotonic()
        child.say("cuda:0")
        assert 0.6 < child.opened()[1] - began < 19  # not the 20 s of a patient one
        child.say("cuda:1")
        child.opened()
        said = child.end()
        assert said.count("another process has been opening an engine there for 0.7 s") == 1 and "cuda:0" in said
    finally:
        stopped.kill()
        stopped.communicate()


@pytest.mark.parametrize("path", ["/dev/null/claims", "/no/such/folder/claims", "FILE", "LINK"])
def test_without_a_directory_all_goes_on_with_one_warning(start, tmp_path, path):
    (tmp_path / "FILE").touch()
    (tmp_path / "LINK").symlink_to("/tmp")
    path = path if path[0] == "/" else str(tmp_path / path)
    child = start(FIRESTEEL_CLAIMS_DIR=path)
    for _ in range(2):
        child.say("cuda:0")
        child.opened()
    said = child.end()
    assert said.count(f"{path}: no directory for claims of GPUs") == 1 and said.count("\n") == 1, said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_users_share_a_directory_and_cannot_speak_for_each_other(tmp_path, monkeypatch):
    """Another user locks, writes, and forges a record of this process; then it is the other way round."""
    import tempfile

    code = """
import os, sys
from firesteel.engine import claims
class Engine:
    def stats(self):
        return {"devices": [{"name": "cuda:0", "weights": 1000000, "workspace": 0}]}
os.setgroups([]), os.setgid(65534), os.setuid(65534)
gpus = {sys.argv[1]: "cuda:0"}
directory = claims._directory()
with claims._locks(directory, gpus):
    claim = claims._write(directory, "theirs", gpus, Engine())
    with open(f"{claims._path()}/{sys.argv[2]}.1.claim", "w") as forged, open(claim._path) as own:
        forged.write(own.read())
    print("wrote", flush=True)
    sys.stdin.read()
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        os.chmod(parent, 0o777)
        monkeypatch.setenv("FIRESTEEL_CLAIMS_DIR", f"{parent}/claims")
        monkeypatch.setattr(claims, "LOCK_SECONDS", 0.2)
        command = [sys.executable, "-c", code, uuid(0), str(look_up(os.getpid()).process)]
        for owner in (65534, 0):  # of the lock, which is never removed but here
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
                assert other.stdout.readline() == "wrote\n"
                (record,) = claims.found()
                assert (record.process.pid, record.uid, record.model) == (other.pid, 65534, "theirs")
                directory = claims._directory()
                assert os.stat(f"{parent}/claims/{uuid(0)}.lock").st_uid == owner
                assert claims._lock(directory, f"{uuid(0)}.lock", "cuda:0", 0.0) is None
                other.stdin.close()
                other.wait()
            lock = claims._lock(directory, f"{uuid(0)}.lock", "cuda:0", time.monotonic() + 5)
            os.close(lock)
            for path in Path(parent, "claims").iterdir():
                path.unlink()
            os.close(claims._open_lock(directory, f"{uuid(0)}.lock"))
            os.close(directory)
            assert oct(os.stat(f"{parent}/claims").st_mode) == "0o41777"
