"""How a worker reaches the device manager of its executor, and starts one where there is none.

    identity()      whose manager it is: the executor's, known by its JVM; where no JVM is to be seen, by other signs
    find_place()    the files of that manager
    reach()         a connected socket

A manager's files lie in a directory that only its user may enter, and bear the identity's key:

    KEY.sock        where it listens
    KEY.lock        locked (flock) by the manager while it lives: whatever races, an identity has one manager
    KEY.start       locked by the worker that starts one; the others wait instead of starting theirs
    KEY.suspect     locked by the worker that tries rows which managers may die of
    KEY.log         what it had to say, KEY.log.1 what it said before

In KEY.lock stands the process that locked it last, in KEY.start the one that was started last: those who wait look at
what these read and touch, and lose patience only when nothing moves. A killed process leaves files and never a lock, so
files alone mean nothing. Importing this opens and starts nothing.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep

from .. import _core
from ..host.locks import try_lock, unlock, write_process
from ..host.processes import Process, activity, find_jvm, read_text
from ..host.settings import address_limit, number, seconds
from ..host.text import ESCAPES
from .gpus import ORDER, VARIABLE, visible

SERVICE = "firesteel.manager.service:Service"  # what a manager serves with
SOCKET_BYTES = 100  # a path must have fewer; Linux itself has room for 107
TAIL_LINES = 20
LISTENING, SECOND = "listening", "second"  # a manager's only word to whoever started it
WITHOUT = "manager=False keeps the engine in this process"

# Spark sets the first to the cores of one task, libraries follow with theirs; the manager works for all tasks.
_OF_ONE_WORKER = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SECRETS = "PYTHON_WORKER_FACTORY_"  # how a worker talks to its JVM
# The manager's parent ends at once: no worker has a child it does not know of, and nothing is forked beside threads.
_LAUNCHER = """
import os, sys
pid = os.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
os.write(int(sys.argv[-1]), b"%d " % pid)
"""
ALONE_SECONDS = 600.0  # that others may have rows which managers may die of
_STARTS = 3  # managers that listened and were gone before this process could connect


# --- identity ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """Whose manager it is. Processes that find the same key share one manager."""

    kind: str  # "executor": by its JVM; "directories": by SPARK_EXECUTOR_DIRS; "user": no Spark, by user and name
    key: str  # 16 hexadecimal digits
    executor: Process | None = None


_known: dict[tuple[int, str], Identity] = {}


def identity(name: str = "") -> Identity:
    """The identity of this process; found once, and again after a fork.

    `name` tells managers of one user apart outside Spark; in an executor it means nothing.
    """
    here = (os.getpid(), name)
    if here not in _known:
        _known[here] = _identity(name)
    return _known[here]


def _identity(name: str) -> Identity:
    jvm = find_jvm(os.getpid())
    folders = os.environ.get("SPARK_EXECUTOR_DIRS", "")
    if jvm is not None:
        kind, whose = "executor", (str(jvm.pid), jvm.start)
    elif folders:
        kind, whose = "directories", (folders,)
    else:
        kind, whose = "user", (name,)
    host = (read_text("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid"), _link("/proc/self/ns/net"))
    python = (sys.implementation.cache_tag, sys.abiflags)
    parts = (*host, kind, *whose, str(os.geteuid()), *_build(), *python)
    return Identity(kind, hashlib.sha256(os.fsencode("\0".join(map(str, parts)))).hexdigest()[:16], jvm)


def _build() -> tuple[str, ...]:
    """The build; one from changed sources bears the name of others, so there the file itself counts."""
    if not _core.build.endswith("-dirty"):
        return (_core.build,)
    file = os.stat(_core.__file__)
    return (_core.build, _core.__file__, str(file.st_size), str(file.st_mtime_ns))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The files of one manager."""

    directory: str
    key: str

    @property
    def socket(self) -> str:
        return self._file("sock")

    @property
    def lock(self) -> str:
        return self._file("lock")

    @property
    def start(self) -> str:
        return self._file("start")

    @property
    def log(self) -> str:
        return self._file("log")

    @property
    def suspect(self) -> str:
        return self._file("suspect")

    def _file(self, kind: str) -> str:
        return f"{self.directory}/{self.key}.{kind}"


def find_place(name: str = "") -> Place:
    """Where the manager of this process is or would be; its directory is made if need be. Raises ManagerError."""
    place = Place(directory(), identity(name).key)
    size = len(os.fsencode(place.socket))
    if size >= SOCKET_BYTES:
        raise _core.ManagerError(
            f"{place.socket}: a path of {size} bytes, and the manager's socket must have one of fewer than "
            f"{SOCKET_BYTES}; set FIRESTEEL_MANAGER_DIR to a shorter directory"
        )
    return place


def directory() -> str:
    """The directory of this user's managers, made and checked: his own, mode 0700, no link. Raises ManagerError."""
    path = directory_path()
    try:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise _core.ManagerError(
            f"{path}: the manager's directory cannot be made ({error.strerror}); set FIRESTEEL_MANAGER_DIR to a path "
            f"of your own, or {WITHOUT}"
        ) from None
    problem = _problem(found)
    if problem:
        raise _core.ManagerError(
            f"{path}: the manager's directory must be a directory of user {os.geteuid()} with mode 0700, and this is "
            f"{problem}; remove or mend it, or set FIRESTEEL_MANAGER_DIR to another path"
        )
    return path


def directory_path() -> str:
    """Where it is, or would be."""
    said = os.environ.get("FIRESTEEL_MANAGER_DIR", "")
    return os.path.abspath(said) if said else f"{_runtime_directory()}/firesteel-{os.geteuid()}"


def _problem(found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "no directory"
    if found.st_uid != os.geteuid():
        return f"user {found.st_uid}'s"
    mode = stat.S_IMODE(found.st_mode) & 0o777
    return "" if mode == 0o700 else f"one of mode {mode:04o}"


def _runtime_directory() -> str:
    """XDG_RUNTIME_DIR where it is what it should be: su and containers leave it set to another's or to nothing."""
    path = os.environ.get("XDG_RUNTIME_DIR", "")
    try:
        found = os.stat(path)
    except OSError:
        return "/tmp"
    usable = os.path.isabs(path) and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return path if usable and os.access(path, os.W_OK | os.X_OK) else "/tmp"


def _try_lock(path: str) -> int | None:
    try:
        return try_lock(path)
    except OSError as error:
        raise _core.ManagerError(
            f"{path}: cannot be locked ({error.strerror}); set FIRESTEEL_MANAGER_DIR to a directory on a local disk"
        ) from None


@contextmanager
def alone() -> Iterator[None]:
    """One worker of this executor at a time is in here, with rows that managers may die of. Raises ManagerError."""
    path = find_place().suspect
    until = monotonic() + ALONE_SECONDS
    while (fd := _try_lock(path)) is None:
        if monotonic() > until:
            raise _core.ManagerError(
                f"{path} has been locked for {ALONE_SECONDS:g} s by a worker whose rows managers have died of; end "
                "that worker, or have the task tried again"
            )
        sleep(0.01)
    try:
        yield
    finally:
        unlock(fd)


# --- reaching ---------------------------------------------------------------------------------------------------------


def reach(
    timeout: float | None = 60.0, *, name: str = "", idle_ttl: float | None = None, service: str = SERVICE
) -> socket.socket:
    """A blocking SOCK_SEQPACKET socket, connected to the manager of this process, which is started where there is none.

    One that is just ending may still take the connection, and is gone before it answers: reach again.

    `timeout`: seconds without progress of a starting manager, not seconds in all; None: for ever. `idle_ttl`: what a
    manager started here is told (None: the knob). `service`: the class it serves with, `module:Class`. Raises
    ManagerError: no directory, another user's socket, a manager that dies or stands still while it starts; ConfigError:
    a knob that is no number.
    """
    place = find_place(name)
    settings = {
        "MANAGER_IDLE_TTL": seconds("MANAGER_IDLE_TTL", idle_ttl),
        "MANAGER_IDLE_UNLOAD": seconds("MANAGER_IDLE_UNLOAD"),
        "MANAGER_STORE_MB": number("MANAGER_STORE_MB", "megabytes"),
    }
    found = call(place.socket)
    if found is None:
        start = _Start(place, identity(name), timeout, settings, service)
        try:
            found = start.wait()
        finally:
            start.close()
    return found


def call(path: str) -> socket.socket | None:
    """Connects to a manager's socket; None: nobody listens there, or does not take connections. Raises ManagerError."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise _core.ManagerError(f"no unix sockets may be made here ({error.strerror}); {WITHOUT}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))  # connect waits no longer
        sock.connect(path)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BlockingIOError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise _core.ManagerError(f"{path}: cannot be connected to ({error.strerror}); {WITHOUT}") from None
    if uid != os.geteuid():
        sock.close()
        raise _core.ManagerError(
            f"{path}: process {pid} of user {uid} listens there, and this is user {os.geteuid()}; set "
            f"FIRESTEEL_MANAGER_DIR to a directory of your own"
        )
    return sock


class _Start:
    """One process's wait for a manager: for the start lock, for whichever manager starts, for its socket."""

    def __init__(
        self, place: Place, whose: Identity, timeout: float | None, settings: dict[str, float], service: str
    ) -> None:
        self.place, self.whose, self.timeout, self.settings, self.service = place, whose, timeout, settings, service
        self.since = monotonic()  # of the last progress
        self.seen: tuple[object, ...] = ()
        self.lock: int | None = None
        self.birth: int | None = None  # a pipe: from the launcher the manager's pid, from that its word, then the end
        self.said = b""
        self.pid = 0
        self.launcher = None
        self.starts = 0
        self.second = False  # another process had the manager's lock when one was started here
        self.not_before = 0.0
        self.log_from = 0

    def wait(self) -> socket.socket:
        pause = 0.002
        while True:
            found = call(self.place.socket)
            if found is not None:
                return found
            if self.lock is None:
                self.lock = _try_lock(self.place.start)
                if self.lock is not None:  # whoever had it may have started one: look again
                    self.since = monotonic()
                    continue
            elif self.birth is None and monotonic() >= self.not_before:
                self._launch()
            self._look()
            if self.birth is None:
                sleep(pause)
            elif self._heard(pause):
                self._judge()
            pause = min(pause * 1.5, 0.05)

    def close(self) -> None:
        self._close_birth()
        if self.lock is not None:
            unlock(self.lock)

    def _look(self) -> None:
        """Raises once there was no progress for too long."""
        processes = [Process.read(read_text(path)) for path in (self.place.lock, self.place.start)]
        seen = tuple(activity(process) for process in processes)
        if seen != self.seen:
            self.seen, self.since = seen, monotonic()
        elif self.timeout is not None and monotonic() - self.since > self.timeout:
            alive = [str(process.pid) for process, moves in zip(processes, seen, strict=True) if moves]
            which = f"process {' or '.join(dict.fromkeys(alive))}" if alive else "no process of it is to be seen"
            raise self._error(
                f"does not listen and has shown no progress for {self.timeout:g} s ({which}); end it, wait longer "
                f"(timeout=), or {WITHOUT}"
            )

    def _launch(self) -> None:
        import subprocess

        heard, told = os.pipe2(os.O_CLOEXEC)
        try:
            log = os.open(self.place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self.log_from = os.fstat(log).st_size
                self.launcher = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LAUNCHER, *self._command(told)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(told,),  # and no other: a worker's sockets close when the worker is gone
                    cwd="/",
                    env=self._environment(),
                    start_new_session=True,
                )
            finally:
                os.close(log)
        except OSError as error:
            os.close(heard)
            raise self._error(f"cannot be started by {sys.executable or 'a Python without a path'} ({error})") from None
        finally:
            os.close(told)
        os.set_blocking(heard, False)
        self.birth, self.said, self.pid = heard, b"", 0

    def _command(self, told: int) -> list[str]:
        command = [sys.executable, "-m", "firesteel.manager", "--directory", self.place.directory]
        command += ["--key", self.place.key, "--kind", self.whose.kind, "--build", _core.build]
        if self.whose.executor is not None:
            command += ["--executor", str(self.whose.executor)]
        return [*command, "--service", self.service, "--told", str(told)]

    def _environment(self) -> dict[str, str]:
        """This process's, without what concerns one worker, and with the executor's GPUs."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in (*_OF_ONE_WORKER, VARIABLE, ORDER) and not name.startswith(_SECRETS)
        }
        environment |= visible(self.whose.executor)
        environment |= {f"FIRESTEEL_{knob}": str(value) for knob, value in self.settings.items()}
        path = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        here = os.path.dirname(os.path.dirname(os.path.abspath(_core.__file__)))
        if here not in path and here not in _installed():
            path.append(here)  # a folder that this process alone has on its sys.path
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(path)
        return environment

    def _heard(self, pause: float) -> bool:
        """Waits a while for the manager; True once it has said all it will say."""
        poll = select.poll()
        poll.register(self.birth, select.POLLIN)
        if not poll.poll(pause * 1000):
            return False
        said = os.read(self.birth, 100)
        self.said += said
        if self.pid == 0:
            self.pid = next((int(word) for word in self._words() if word.isdecimal()), 0)
            if not self.second:  # or starting one after the other would look like progress
                write_process(self.lock, self.pid)
        return not said

    def _judge(self) -> None:
        """The manager has said its word, or has died before that."""
        self._close_birth()
        if SECOND in self._words():  # it is starting, or about to end: its progress counts, and no other
            self.second = True
            write_process(self.lock, 0)
            self.not_before = monotonic() + 0.2
        elif LISTENING in self._words() and self.starts < _STARTS:
            self.starts += 1
        elif LISTENING in self._words():
            raise self._error(f"was started {self.starts} times, listened, and was gone when it was to be connected to")
        else:
            raise self._error(f"(process {self.pid}) ended while it was starting")

    def _words(self) -> list[str]:
        """What was said to its end, in whatever order."""
        return self.said.decode("ascii", "replace").split(" ")[:-1]

    def _close_birth(self) -> None:
        if self.birth is not None:
            os.close(self.birth)
            self.launcher.wait()
            self.birth = None

    def _error(self, what: str) -> _core.ManagerError:
        limit = address_limit()
        what = f"the device manager {what}" + (f"; {limit}" if limit else "")
        return _core.ManagerError(f"{what}; {last_lines(self.place.log, self.log_from)}")


def _installed() -> list[str]:
    """Where the manager's Python looks in any case; in PYTHONPATH these would come before Python's own library."""
    import site

    return [*site.getsitepackages(), site.getusersitepackages()]


def last_lines(log: str, start: int = 0) -> str:
    """`LOG ends:` and its last lines after byte `start`, as one, or that it says nothing."""
    try:
        with open(log, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(start if start <= size else 0, size - 16384))  # smaller than it was: begun anew
            lines = file.read().decode(errors=ESCAPES).splitlines()[-TAIL_LINES:]
    except OSError as error:
        return f"its log {log} cannot be read ({error.strerror})"
    if not lines:
        return f"its log {log} says nothing of it"
    return f"its log {log} ends: " + " | ".join(line[:300].strip() for line in lines)
