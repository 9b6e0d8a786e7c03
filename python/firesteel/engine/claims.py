"""Who holds what of this host's GPUs: a lock for those who open an engine there, a record for as long as it is open.

    open_engine(...)    _core.Engine(...) under the locks of its GPUs, and its claim; on CPUs nothing of this happens
    found()             the records of living processes, which doctor lists

Without the lock two processes that open at once both see the same memory free. All processes of the host, of whatever
user, meet in one directory that has /tmp's mode:

    UUID.lock           locked (flock) while an engine opens on that GPU; never removed
    PID:START.N.claim   what an engine of that process holds: JSON, see Record. Removed when the engine closes; worth
                        nothing once the process is gone

What others put there is no more than text: bounded, checked, opened without following links or waiting for a writer,
and believed only where the file's owner is the user of the process that it is about. A lock that nobody lets go of is
waited for a while, then done without. Where the directory is of no use there are no claims, and one warning.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep

from .. import _core
from .._core import OutOfMemory
from ..host.locks import unlock
from ..host.processes import Process, look_up
from ..host.text import one_line

DIRECTORY = "/tmp/firesteel-claims"
LOCK_SECONDS = 60.0  # that an engine waits for others that are opening on its GPUs, in all
RECORD_BYTES = 16384
MOST_FILES = 4096  # that are looked at
NAME_CHARACTERS = 80
MOST_HOLDERS = 4  # that a sentence names

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # non-blocking: it may be a pipe
_MAKE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RECORD = re.compile(r"([0-9]{1,10}:[0-9]{1,20})\.[0-9]{1,9}(\.claim)?")  # without: one that is being written

log = logging.getLogger("firesteel.claims")

_numbers = itertools.count(1)
_warned: set[str] = set()


@dataclass(frozen=True)
class Record:
    """What an engine of some process holds."""

    process: Process
    uid: int
    model: str  # name of its folder
    build: str
    gpus: dict[str, tuple[str, int]]  # by UUID: the name that the process has for it, and bytes


class Claim:
    """An engine's record; without a path there is none."""

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._pid = os.getpid()

    def release(self) -> None:
        path, self._path = self._path, ""
        if path and self._pid == os.getpid():  # in a forked child it is still its parent's
            with suppress(OSError):
                os.unlink(path)

    def __del__(self) -> None:
        self.release()


def open_engine(**options: object) -> tuple[_core.Engine, Claim]:
    """_core.Engine(**options) and its claim, to be released after the engine was closed.

    Waits for other processes that open engines on the same GPUs, LOCK_SECONDS at most. Raises what _core.Engine raises;
    OutOfMemory then says who holds memory of these GPUs.
    """
    gpus = _gpus(options["devices"])
    directory = _directory() if gpus else None
    if directory is None:
        return _core.Engine(**options), Claim()
    try:
        with _locks(directory, gpus):
            try:
                engine = _core.Engine(**options)
            except OutOfMemory as error:
                raise OutOfMemory(f"{error}{_holders(str(error), gpus, list(_read(directory)))}") from None
            _sweep(directory)
            return engine, _write(directory, str(options["name"]), gpus, engine)
    finally:
        os.close(directory)


def found() -> list[Record]:
    """The records of living processes. Raises OSError where the directory is not there or cannot be read."""
    directory = os.open(_path(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return list(_read(directory))
    finally:
        os.close(directory)


def _gpus(devices: Sequence[str]) -> dict[str, str]:
    """UUID -> "cuda:0". Empty also where they cannot be had: the engine says why, as it does without claims."""
    try:
        return {uuid: name for name, uuid in _core.gpu_ids(devices)}
    except _core.Error:
        return {}


# --- the directory ----------------------------------------------------------------------------------------------------


def _path() -> str:
    return os.path.abspath(os.environ.get("FIRESTEEL_CLAIMS_DIR") or DIRECTORY)


def _directory() -> int | None:
    """Its descriptor, made if need be; None, with a warning, where it is of no use."""
    path = _path()
    try:
        with suppress(FileExistsError):
            os.mkdir(path)
            os.chmod(path, 0o1777)  # the umask is not asked: it is everybody's
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return _warn(f"{path}: no directory for claims of GPUs ({error.strerror})")


def _warn(what: str) -> None:
    """Once in a process: nothing is wrong with the engine that is being opened."""
    if what not in _warned:
        _warned.add(what)
        log.warning(
            "%s; engines open without, and two that open at once may both count on the same memory "
            "(FIRESTEEL_CLAIMS_DIR names another directory)",
            one_line(what),
        )


# --- locks ------------------------------------------------------------------------------------------------------------


@contextmanager
def _locks(directory: int, gpus: dict[str, str]) -> Iterator[None]:
    """The locks of all these GPUs, in an order that everybody keeps."""
    until = monotonic() + LOCK_SECONDS
    with ExitStack() as held:
        for uuid in sorted(gpus):
            fd = _lock(directory, f"{uuid}.lock", gpus[uuid], until)
            if fd is not None:
                held.callback(unlock, fd)
        yield


def _lock(directory: int, name: str, gpu: str, until: float) -> int | None:
    """None, with a warning: it cannot be had."""
    pause = 0.005
    while True:
        try:
            fd = _open_lock(directory, name)
        except OSError as error:
            return _warn(f"{_path()}/{name}: cannot be opened ({error.strerror})")
        try:
            if _locked(directory, name, fd):
                return fd
        except OSError as error:
            os.close(fd)
            return _warn(f"{_path()}/{name}: cannot be locked ({error.strerror})")
        os.close(fd)
        if monotonic() >= until:
            log.warning(
                "%s: another process has been opening an engine there for %g s (%s/%s); not waiting any longer, so "
                "what is free may be counted twice",
                gpu,
                LOCK_SECONDS,
                one_line(_path()),
                name,
            )
            return None
        sleep(pause)
        pause = min(pause * 1.5, 0.1)


def _open_lock(directory: int, name: str) -> int:
    """Whoever may read a file may lock it; others' files in a directory like /tmp must not be opened with O_CREAT."""
    try:
        fd = os.open(name, _READ, dir_fd=directory)
    except FileNotFoundError:
        try:
            fd = os.open(name, os.O_RDONLY | _MAKE, 0o644, dir_fd=directory)
            os.fchmod(fd, 0o644)
        except FileExistsError:  # somebody was quicker
            fd = os.open(name, _READ, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "no regular file")
    return fd


def _locked(directory: int, name: str, fd: int) -> bool:
    """Locks it, unless another has the lock, or the file was removed meanwhile and others lock a new one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=directory, follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        return False


# --- records ----------------------------------------------------------------------------------------------------------


def _write(directory: int, folder: str, gpus: dict[str, str], engine: _core.Engine) -> Claim:
    used = {device["name"]: device["weights"] + device["workspace"] for device in engine.stats()["devices"]}
    record = {
        "host": _host(),
        "model": os.path.basename(os.path.normpath(folder))[:NAME_CHARACTERS],
        "build": _core.build,
        "gpus": {uuid: [name, used[name]] for uuid, name in gpus.items()},
    }
    name = f"{look_up(os.getpid()).process}.{next(_numbers)}"
    try:
        fd = os.open(name, os.O_WRONLY | _MAKE, 0o644, dir_fd=directory)
        try:
            os.fchmod(fd, 0o644)
            os.write(fd, json.dumps(record).encode())
        finally:
            os.close(fd)
        os.rename(name, f"{name}.claim", src_dir_fd=directory, dst_dir_fd=directory)  # whole, or not there
    except OSError as error:
        _warn(f"{_path()}: a claim cannot be written there ({error.strerror})")
        return Claim()
    return Claim(f"{_path()}/{name}.claim")


def _host() -> str:
    """Processes with another one have pids of their own."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip() + os.readlink("/proc/self/ns/pid")
    return ""


def _names(directory: int) -> list[tuple[str, Process]]:
    with suppress(OSError), os.scandir(directory) as entries:
        matched = [_RECORD.fullmatch(entry.name) for entry in itertools.islice(entries, MOST_FILES)]
        return [(match[0], Process.read(match[1])) for match in matched if match]
    return []


def _read(directory: int) -> Iterator[Record]:
    """Those of living processes, by whom the files are."""
    for name, process in _names(directory):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            uid, said = _contents(directory, name)
            if said["host"] != _host() or process.gone() or _user(process.pid) != uid:
                continue
            gpus = {_word(uuid): (_word(gpu), _count(size)) for uuid, (gpu, size) in said["gpus"].items()}
            yield Record(process, uid, _word(said["model"]), _word(said["build"]), gpus)


def _user(pid: int) -> int:
    """The effective one; who owns /proc/PID is another matter where a process has changed it."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return next(int(line.split()[2]) for line in file if line.startswith("Uid:"))


def _contents(directory: int, name: str) -> tuple[int, dict[str, object]]:
    fd = os.open(name, _READ, dir_fd=directory)
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size > RECORD_BYTES:
            raise ValueError(name)
        return about.st_uid, json.loads(os.read(fd, RECORD_BYTES))
    finally:
        os.close(fd)


def _word(value: object) -> str:
    """Fit to stand in a sentence and on a terminal."""
    if not isinstance(value, str):
        raise TypeError(value)
    return "".join(c if c.isprintable() else "?" for c in value[:NAME_CHARACTERS])


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise ValueError(value)
    return value


def _sweep(directory: int) -> None:
    """Removes what processes left that were killed; other users' stays, where the directory is as it should be."""
    for name, process in _names(directory):
        if process.gone():
            with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                if _contents(directory, name)[1]["host"] == _host():
                    os.unlink(name, dir_fd=directory)


# --- the sentence -----------------------------------------------------------------------------------------------------


def _holders(error: str, gpus: dict[str, str], records: list[Record]) -> str:
    """What belongs behind an OutOfMemory; empty where nobody else is known to hold anything."""
    about = re.match(r"cuda:\d+(?=:)", error)  # else it may be any of them
    there = [
        (gpu, -record.gpus[uuid][1], record)
        for uuid, gpu in gpus.items()
        for record in records
        if uuid in record.gpus and (about is None or about[0] == gpu)
    ]
    if not there:
        return ""
    there.sort(key=lambda held: held[:2])
    parts = [f"on {gpu} {_holder(record)} holds {size_text(-size)}" for gpu, size, record in there[:MOST_HOLDERS]]
    more = f" and {len(there) - MOST_HOLDERS} more" if len(there) > MOST_HOLDERS else ""
    ours = all(record.process.pid == os.getpid() for _, _, record in there)
    way_out = "close that engine" if ours else "end it, release its models"
    return f"; {', '.join(parts)}{more}: {way_out}, or give it a max_memory"


def _holder(record: Record) -> str:
    if record.process.pid == os.getpid():
        return f"this process ({record.model})"
    user = "" if record.uid == os.geteuid() else f", user {record.uid}"
    return f"process {record.process.pid} (firesteel{user}, {record.model})"


def size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
