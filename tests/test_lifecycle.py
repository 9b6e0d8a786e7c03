"""The device manager's life: found, started once whatever races, and ended by itself. Real processes and sockets.

All lie in a directory of the test's; managers that a test leaves are found by it, and are a failure after SIGTERM.
"""

import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from firesteel import ConfigError, ManagerError, _core
from firesteel.host.locks import try_lock, unlock
from firesteel.host.processes import Process, find_jvm, look_up
from firesteel.manager import lifecycle, process
from firesteel.manager.lifecycle import find_place, identity, reach

ROOT = Path(__file__).parent.parent
KIT = Path(__file__).parent / "lifecycle_kit.py"
ECHO = "lifecycle_kit:Echo"
PATIENCE = 60.0  # for what happens at once on a machine that is not busy


def until(happens, seconds: float = PATIENCE):
    """What `happens()` gives once it is true, or at the end."""
    end = time.monotonic() + seconds
    while not (found := happens()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def gone(pid: int) -> bool:
    found = look_up(pid)
    return found is None or found.state in "ZX"


def managers(directory: Path) -> list[int]:
    """The processes that were started as managers of this directory."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                command = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"firesteel.manager" in command and os.fsencode(directory) in command:
                found.append(int(entry.name))
    return [pid for pid in found if not gone(pid)]


def files_of(pid: int) -> dict[str, str]:
    """What its descriptors are open on: a path, or what kind of thing without one."""
    links = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            links[number] = os.readlink(f"/proc/{pid}/fd/{number}")
    return {number: target.partition(":[")[0] for number, target in links.items()}


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    """The managers' directory, with a short path, in an environment that says nothing else."""
    home = tmp_path_factory.mktemp("m")
    home.chmod(0o700)
    for name in [*os.environ]:
        if name.startswith(("FIRESTEEL_", "SPARK_", "PYTHON_WORKER_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(home))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "python"), str(KIT.parent)]))
    monkeypatch.setattr(lifecycle, "_known", {})
    yield home
    left = managers(home)
    for pid in left:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not managers(home), 5)
    stuck = managers(home)
    for pid in stuck:
        os.kill(pid, signal.SIGKILL)
    assert not stuck, "SIGTERM does not end a manager"


@pytest.fixture
def kill():
    """Kills and reaps, at the end, what was handed to it."""
    started = []
    yield lambda process: started.append(process) or process
    for one in started:
        one.kill()
        for stream in filter(None, (one.stdin, one.stdout)):
            stream.close()
        one.wait()


def connect(**options) -> tuple[socket.socket, int]:
    """A connection made in this process, and the pid of the manager at its other end."""
    while True:
        connection = reach(20, **{"service": ECHO, **options})
        connection.settimeout(PATIENCE)
        try:
            return connection, int(connection.recv(100))
        except (ConnectionError, ValueError):  # one that is just ending
            connection.close()


def start_client(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, str(KIT), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def start_server(shell: str | Path, clients: int, service: str) -> subprocess.Popen:
    """A shell that is the parent of clients; they end with the standard input, not with it."""
    script = "exec 3<&0; " + '"$@" <&3 & ' * clients + "wait"  # a process in the background would get /dev/null
    command = [str(shell), "-c", script, "server", sys.executable, str(KIT), service]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says(error: pytest.ExceptionInfo, *words: str) -> None:
    for word in words:
        assert word in str(error.value)


# -- one manager -------------------------------------------------------------------------------------------------------


def test_eight_processes_that_race_find_one_manager(home, kill):
    clients = [kill(start_client("Echo")) for _ in range(8)]
    pids = {client.stdout.readline().split()[0] for client in clients}
    assert len(pids) == 1
    assert [str(pid) for pid in managers(home)] == [*pids]
    (log,) = home.glob("*.log")
    assert log.read_text().count("serves at") == 1


def test_each_key_has_a_manager_of_its_own(home):
    first, one = connect()
    again, same = connect()
    other, two = connect(name="other")
    assert one == same != two
    for connection in (first, again, other):
        connection.close()


def test_a_second_manager_of_one_identity_ends_at_once(home):
    connection, pid = connect()
    command = [sys.executable, "-m", "firesteel.manager", "--service", ECHO]
    second = subprocess.run([*command, "--key", identity().key, "--kind", "user"], timeout=PATIENCE)
    assert second.returncode == 0
    connection.send(b"still there")
    assert connection.recv(100) == b"still there"
    assert connect()[1] == pid
    connection.close()


def test_a_manager_is_nobodys_child_and_has_nothing_of_the_worker(home, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHON_WORKER_FACTORY_SECRET", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with open(tmp_path / "mine", "w") as file:
        os.set_inheritable(file.fileno(), True)
        connection, pid = connect()
    found = look_up(pid)
    assert found.parent != os.getpid()
    assert os.getsid(pid) == pid
    opened = until(lambda: [seen for seen in [files_of(pid)] if [*seen.values()].count("pipe") == 2])
    assert opened, "it keeps another pipe than the one that SIGTERM writes into"
    (opened,) = opened
    assert opened["0"] == "/dev/null"
    assert opened["1"] == opened["2"] == find_place().log
    assert str(tmp_path / "mine") not in opened.values()
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=3" in environment
    assert not [line for line in environment if line.startswith((b"OMP_NUM_THREADS=", b"PYTHON_WORKER_FACTORY"))]
    for number in (signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
    connection.send(b"alive")
    assert connection.recv(100) == b"alive"
    connection.close()


# -- what others left --------------------------------------------------------------------------------------------------


def test_stale_files_do_not_matter(home):
    place = find_place()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(place.socket)
        dead.listen()
    for path in (place.lock, place.start):
        Path(path).write_text(f"{os.getpid()}:1")
    connection, pid = connect()
    assert [pid] == managers(home)
    connection.close()


def test_after_sigkill_another_is_started(home):
    connection, pid = connect()
    os.kill(pid, signal.SIGKILL)
    again, other = connect()
    assert other != pid
    for each in (connection, again):
        each.close()


def test_sigterm_ends_it_and_leaves_only_its_log(home):
    connection, pid = connect()
    os.kill(pid, signal.SIGTERM)
    assert until(lambda: gone(pid))
    assert sorted(path.name for path in home.iterdir()) == [f"{identity().key}.log"]
    connection.close()


def test_a_removed_socket_makes_room_for_a_successor(home):
    connection, pid = connect()
    os.unlink(find_place().socket)
    again, other = connect()
    assert other != pid
    connection.close()
    assert until(lambda: gone(pid))
    assert connect()[1] == other, "the first one's end took nothing of the second's"
    again.close()


def test_old_files_of_dead_managers_are_swept(home):
    old = time.time() - 2 * process.KEPT_SECONDS
    dead, young, alive, foreign = "0" * 16, "1" * 16, "2" * 16, "unloads"
    for name in (f"{dead}.log", f"{dead}.log.1", f"{dead}.lock", f"{young}.log", f"{alive}.log", foreign):
        (home / name).touch()
        os.utime(home / name, None if young in name else (old, old))
    held = try_lock(f"{home}/{alive}.lock")
    os.utime(f"{home}/{alive}.lock", (old, old))
    connect()[0].close()
    assert until(lambda: not (home / f"{dead}.log").exists())
    left = {path.name for path in home.iterdir() if not path.name.startswith(identity().key)}
    assert left == {f"{young}.log", f"{alive}.log", f"{alive}.lock", foreign}
    unlock(held)


# -- its end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["Echo", "Polled", "Stubborn"])
@pytest.mark.serial
def test_it_ends_within_two_seconds_of_the_executor(home, kill, tmp_path, service):
    """A shell by the name of java starts the clients, which outlive it."""
    java = tmp_path / "java"
    shutil.copy(os.path.realpath("/bin/sh"), java)
    executor = kill(start_server(java, 2, service))
    lines = {executor.stdout.readline() for _ in range(2)}
    assert len(lines) == 1, "one manager for all of an executor"
    pid, kind, key = lines.pop().split()
    assert kind == "executor"
    assert key != identity().key
    start = time.monotonic()
    executor.kill()
    assert until(lambda: gone(int(pid)))
    assert time.monotonic() - start < 2.0
    assert "the executor" in (home / f"{key}.log").read_text()
    assert not (home / f"{key}.sock").exists()


def test_it_ends_when_all_fork_servers_are_gone(home, kill):
    """A shell for a fork server. The client outlives it, as workers may that are in user code."""
    server = kill(start_server("/bin/sh", 1, "Echo"))
    pid = int(server.stdout.readline().split()[0])
    time.sleep(2 * process.TICK)
    server.kill()
    server.wait()
    time.sleep(3 * process.TICK)
    assert not gone(pid), "a client is left"
    server.stdin.close()
    assert until(lambda: gone(pid))
    (log,) = home.glob("*.log")
    assert "fork servers are gone" in log.read_text()


def test_a_fork_server_that_lives_keeps_it(home):
    connection, pid = connect()
    time.sleep(2 * process.TICK)
    connection.close()
    time.sleep(3 * process.TICK)
    assert not gone(pid)


def test_it_ends_after_idle_ttl_without_clients(home):
    connection, pid = connect(idle_ttl=0.5)
    time.sleep(0.5 + 3 * process.TICK)
    assert not gone(pid), "a client is connected"
    connection.close()
    assert until(lambda: gone(pid))
    assert "no client for 0.5 s" in Path(find_place().log).read_text()


def test_without_a_jvm_clients_are_its_heartbeat(home, monkeypatch):
    monkeypatch.setenv("SPARK_EXECUTOR_DIRS", "/local/one")
    monkeypatch.setattr(process, "_settle", lambda place: None)
    asked = {}
    monkeypatch.setattr(process, "run", lambda *_, **options: asked.update(options) or 0)
    assert identity().kind == "directories"
    assert process.main([]) == 0
    assert asked["idle_ttl"] == process.HEARTBEAT == 60.0


@pytest.mark.serial
def test_device_memory_is_given_up_once_until_there_are_rows_again(home, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_MANAGER_IDLE_UNLOAD", "0.3")
    connection, _ = connect()
    unloads = home / "unloads"
    assert until(unloads.exists)
    time.sleep(3 * process.TICK)
    assert unloads.read_text() == "unload\n"
    for _ in range(12):  # rows, for longer than two ticks
        connection.send(b"row")
        time.sleep(0.1)
    assert until(lambda: unloads.read_text() == "unload\n" * 2)
    connection.close()


# -- starts that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("Dying", ["a library says: no device", "RuntimeError: this service cannot be made"]),
        ("Killed", ["about to be killed"]),
        ("Missing", ["AttributeError"]),
    ],
)
def test_a_manager_that_dies_at_start_tells_its_last_lines(home, service, words):
    Path(find_place().log).write_text("what an earlier one said\n")
    with pytest.raises(ManagerError) as error:
        connect(service=f"lifecycle_kit:{service}")
    says(error, "ended while it was starting", find_place().log, *words)
    assert "an earlier one" not in str(error.value)
    assert "RLIMIT_AS" not in str(error.value)
    connect()[0].close()  # nothing is locked


def test_waiting_for_the_suspects_of_others_has_an_end(home, monkeypatch):
    monkeypatch.setattr(lifecycle, "ALONE_SECONDS", 0.2)
    with lifecycle.alone():
        with pytest.raises(ManagerError, match=r"\.suspect has been locked for 0.2 s by a worker"):
            with lifecycle.alone():
                pass
    with lifecycle.alone():
        pass


def test_a_limit_on_addresses_is_told(home):
    """spark.executor.pyspark.memory is one. The manager inherits it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    failed = start_client("Dying", preexec_fn=limit, stderr=subprocess.PIPE)
    _, error = failed.communicate(timeout=PATIENCE)
    assert failed.returncode == 1
    assert "RLIMIT_AS leaves it 6.0 GiB of addresses" in error
    assert "spark.executor.pyspark.memory" in error
    fine = start_client("Echo", preexec_fn=limit)
    fine.communicate("", timeout=PATIENCE)
    assert fine.returncode == 0
    assert "WARNING RLIMIT_AS" in Path(find_place().log).read_text()


@pytest.mark.serial
def test_a_start_is_given_up_when_nothing_moves(home, monkeypatch):
    start = time.monotonic()
    with pytest.raises(ManagerError) as error:
        reach(1.5, service="lifecycle_kit:Hanging")
    assert time.monotonic() - start < PATIENCE / 2  # and not the minute that is preset
    (pid,) = managers(home)
    says(error, "no progress for 1.5 s", f"process {pid})", "timeout=", "manager=False")
    os.kill(pid, signal.SIGKILL)


@pytest.mark.serial
def test_a_lock_whose_holder_never_listens_is_not_waited_for_for_ever(home):
    """What is started meanwhile ends at once, and is no progress."""
    held = try_lock(find_place().lock)
    start = time.monotonic()
    with pytest.raises(ManagerError) as error:
        reach(1.5, service=ECHO)
    assert time.monotonic() - start < PATIENCE / 2  # and not the minute that is preset
    says(error, "no progress for 1.5 s")
    unlock(held)
    connect()[0].close()


@pytest.mark.serial
def test_a_start_that_moves_is_waited_for(home):
    start = time.monotonic()
    connection = reach(1.5, service="lifecycle_kit:Slow")
    assert time.monotonic() - start > 3
    connection.close()


def test_another_build_is_refused_by_its_manager(home, monkeypatch):
    before = identity().key
    monkeypatch.setattr(lifecycle, "_known", {})
    built = _core.build
    monkeypatch.setattr(_core, "build", "9.9.9+other")
    assert identity().key != before
    with pytest.raises(ManagerError) as error:
        connect()
    says(error, f"is firesteel {built}", "the worker has 9.9.9+other")


def test_a_python_that_cannot_be_started_is_named(home, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ManagerError) as error:
        connect()
    says(error, "cannot be started by /nowhere/python")


# -- the directory -----------------------------------------------------------------------------------------------------


def link(path: Path) -> None:
    (path.parent / "real").mkdir(mode=0o700)
    path.symlink_to(path.parent / "real")


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("make", "words"),
    [(link, "a symbolic link"), (open_to_all, "mode 0755"), (Path.touch, "no directory")],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_a_directory_that_others_may_enter_is_refused(home, monkeypatch, make, words):
    path = home / "d"
    make(path)
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(path))
    with pytest.raises(ManagerError) as error:
        reach(1)
    says(error, str(path), words, "FIRESTEEL_MANAGER_DIR")


def test_a_directory_of_another_user_is_refused(home, monkeypatch):
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ManagerError) as error:
        reach(1)
    says(error, str(home), f"user {owner}'s")


def test_a_directory_that_cannot_be_made_is_told(home, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(home / "a" / "b"))
    with pytest.raises(ManagerError) as error:
        reach(1)
    says(error, str(home / "a" / "b"), "No such file or directory")


def test_a_path_that_is_too_long_is_told(home, monkeypatch):
    path = home / ("x" * 100)
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(path))
    with pytest.raises(ManagerError) as error:
        reach(1)
    says(error, f"{len(str(path)) + 22} bytes", "fewer than 100", "shorter")


def test_a_directory_is_made_for_its_user_alone(home, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(home / "new"))
    before = os.umask(0)
    try:
        assert lifecycle.directory() == str(home / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((home / "new").stat().st_mode) == 0o700


def test_the_default_is_the_users_runtime_directory(home, monkeypatch):
    monkeypatch.delenv("FIRESTEEL_MANAGER_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    assert lifecycle.directory() == f"{home}/firesteel-{os.geteuid()}"
    for unusable in ("", "relative", str(home / "none")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert lifecycle._runtime_directory() == "/tmp"


def test_a_socket_of_another_user_is_refused(home, monkeypatch):
    place = find_place()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(place.socket)
        server.listen()
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
        with pytest.raises(ManagerError) as error:
            lifecycle.call(place.socket)
    says(error, f"of user {owner} listens", f"this is user {owner + 1}")


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_a_knob_that_is_no_number_is_refused(home, monkeypatch, value):
    monkeypatch.setenv("FIRESTEEL_MANAGER_IDLE_TTL", value)
    with pytest.raises(ConfigError) as error:
        reach(1)
    says(error, "FIRESTEEL_MANAGER_IDLE_TTL", repr(value))
    with pytest.raises(ConfigError, match="idle_ttl is -2"):
        reach(1, idle_ttl=-2)


# -- identity ----------------------------------------------------------------------------------------------------------


def test_a_jvm_is_known_by_its_name_where_its_executable_is_hidden(kill, tmp_path, monkeypatch):
    """The parent's name is asked only where the executable cannot be read: another user's process."""
    java = tmp_path / "java"
    shutil.copy(os.path.realpath("/bin/sh"), java)
    executor = kill(subprocess.Popen([str(java), "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True))
    child = int(executor.stdout.readline())
    wanted = look_up(executor.pid).process
    try:
        assert find_jvm(child) == wanted
        monkeypatch.setattr(os, "readlink", lambda path: (_ for _ in ()).throw(PermissionError()))
        assert find_jvm(child) == wanted
        monkeypatch.setattr(os, "readlink", lambda path: "/usr/bin/other")
        assert find_jvm(child) is None
    finally:
        os.kill(child, signal.SIGKILL)


def test_without_a_jvm_executors_are_told_apart_by_their_directories(home, monkeypatch):
    keys = {identity().key, identity("named").key}
    for folders in ("/local/one", "/local/two"):
        monkeypatch.setenv("SPARK_EXECUTOR_DIRS", folders)
        monkeypatch.setattr(lifecycle, "_known", {})
        assert identity().kind == "directories"
        keys.add(identity().key)
    assert len(keys) == 4


def test_an_identity_is_not_taken_over_a_fork(home, monkeypatch):
    kept = identity()
    assert identity() is kept
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert identity() is not kept


def test_a_process_is_not_another_with_its_number():
    mine = look_up(os.getpid()).process
    assert not mine.gone()
    assert Process(mine.pid, "1").gone()
    assert Process.read(str(mine)) == mine
    assert Process.read("") is Process.read("x:1") is Process.read("12") is None
    dead = subprocess.Popen(["true"])
    assert until(lambda: look_up(dead.pid).state == "Z")
    assert look_up(dead.pid).process.gone(), "nobody has asked for its exit status yet"
    dead.wait()


# -- the log -----------------------------------------------------------------------------------------------------------

CHATTER = """
import logging, os, sys
from firesteel.manager import process
logging.getLogger("x").addHandler(process._Log(sys.argv[1]))
for i in range(30):
    logging.getLogger("x").warning("line %d %s", i, "x" * 50_000)
    os.write(2, b"y" * 50_000 + b"\\n")
print("the last line")
"""


def test_a_log_is_bounded_and_holds_what_libraries_print(home):
    log = home / "log"
    subprocess.run([sys.executable, "-c", CHATTER, str(log)], check=True, timeout=PATIENCE)
    sizes = {path.name: path.stat().st_size for path in home.iterdir()}
    assert sizes.keys() == {"log", "log.1"}
    assert max(sizes.values()) <= process.LOG_BYTES + 100_000
    assert lifecycle.last_lines(str(log)).endswith("the last line")
    assert lifecycle.last_lines(str(log), sizes["log"]).endswith("says nothing of it")
