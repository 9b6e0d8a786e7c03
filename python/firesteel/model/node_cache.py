"""Models on a node's own disk: what lies on a network mount or in a registry is copied there, once for all processes.

    near("/Volumes/main/models/minilm")     -> the copy's folder, or the folder itself where it is on a local disk
    keep(key, fill, ...)                    -> the folder that `fill` has filled, now or for somebody before

A copy is a folder under the cache's, named by its key, which is made of content. Beside it there may be

    KEY.lock           locked (flock) by the process that fills; in it stands how far that is
    KEY.XXXX.part      being filled, and renamed to KEY when all sizes are right: what bears the name KEY is whole
    KEY/.firesteel     sizes of the files, and by its time the copy's last use; locked, shared, by all who use it

A killed process leaves a part and no lock: whoever fills next sweeps it away. Mounts die, and reading from a dead one
never returns; so they are read in threads, while the caller looks on and gives up when nothing moves any more.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from .._core import CheckpointError, ConfigError
from ..host.locks import try_lock, unlock
from ..host.settings import number
from .checkpoint import files_read
from .files import folder_there, opened, unreadable

PATIENCE = 120.0  # seconds in which nothing may move on a mount or in another process' copy
POLL = 0.05
STREAMS = 4  # ranges that are copied at a time
RANGE_BYTES = 64 << 20
CHUNK_BYTES = 4 << 20
MARK = ".firesteel"

# Databricks' mounts, and types of file systems whose files come over a network. Those of FUSE are, but for these few.
_PREFIXES = ("/dbfs", "/Volumes", "/Workspace")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "gpfs", "beegfs", "glusterfs", "afs", "wekafs")
_LOCAL_FUSE = ("fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.ntfs-3g", "fuse.ntfs", "fuse.mergerfs", "fuse.portal")
_OF_AN_EXECUTOR = re.compile(r"(blockmgr|executor|spark)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Looks = dict[str, tuple[int, int]]  # name in the folder -> size, time in ns
T = TypeVar("T")


class Progress:
    """What a thread has done so far; `stopped` asks it to end, for nobody waits for it any more."""

    def __init__(self) -> None:
        self.done = 0
        self.stopped = False
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        if self.stopped:
            raise _Stopped
        with self._lock:
            self.done += count


class _Stopped(Exception):
    pass


Fill = Callable[[str, Progress], None]  # fills a folder; what it raises, whoever asked for the copy gets


# --- what is copied ---------------------------------------------------------------------------------------------------


def near(folder: str) -> str:
    """A model's folder on a disk of this node: `folder` itself, unless it lies on a network mount: then its copy.

    Raises what checkpoint.files_read raises, and CheckpointError where the mount stands still or the disk is too small.
    """
    mount = network_mount(folder)
    if mount is None or os.environ.get("FIRESTEEL_CACHE") == "off":
        return folder
    looking = Progress()
    looks = watched(lambda: _look(folder, looking), looking, lambda: looking.done, lambda: _stuck(folder, mount))
    listed = json.dumps([_boot(), folder, sorted(looks.items())])
    key = hashlib.sha256(listed.encode()).hexdigest()[:32]
    sizes = sum(size for size, _ in looks.values())
    return keep(key, lambda into, progress: _copy(folder, looks, into, progress), folder, sizes, mount=mount)


def _look(folder: str, progress: Progress) -> Looks:
    """The files that a model is made of."""
    if not folder_there(folder):
        raise CheckpointError(f"{folder}: no such folder; give the folder that holds config.json and *.safetensors")
    progress.add(1)
    looks = {}
    for name in files_read(folder):
        looks[name] = size_and_time(os.path.join(folder, name))
        progress.add(1)
    return looks


def size_and_time(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from None
    return found.st_size, found.st_mtime_ns


def _copy(folder: str, looks: Looks, into: str, progress: Progress) -> None:
    """Copies the files, each in ranges, several at a time."""
    ranges: list[tuple[str, int, int]] = []
    for name, (size, _) in looks.items():
        os.makedirs(os.path.dirname(os.path.join(into, name)), exist_ok=True)
        with open(os.path.join(into, name), "wb"):
            pass
        ranges += [(name, begin, min(begin + RANGE_BYTES, size)) for begin in range(0, size, RANGE_BYTES)]
    ranges.reverse()
    faults: list[BaseException] = []

    def work() -> None:
        with suppress(IndexError):  # none is left
            while not faults:
                name, begin, end = ranges.pop()
                try:
                    _copy_range(os.path.join(folder, name), os.path.join(into, name), begin, end, progress)
                except BaseException as error:
                    faults.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(STREAMS, len(ranges)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    for name, look in looks.items():
        if size_and_time(os.path.join(folder, name)) != look:
            raise CheckpointError(
                f"{os.path.join(folder, name)}: was changed while it was copied; run again when nobody writes to it"
            )


def _copy_range(source: str, target: str, begin: int, end: int, progress: Progress) -> None:
    with opened(source) as file:
        write = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while begin < end:
                data = _read(source, file.fileno(), min(CHUNK_BYTES, end - begin), begin)
                begin += len(data)
                at = begin - len(data)
                while at < begin:
                    at += os.pwrite(write, data[len(data) - (begin - at) :], at)
                progress.add(len(data))
        finally:
            os.close(write)


def _read(source: str, file: int, count: int, at: int) -> bytes:
    try:
        data = os.pread(file, count, at)
    except OSError as error:
        raise CheckpointError(unreadable(source, error)) from None
    if not data:
        raise CheckpointError(f"{source}: ends at byte {at} while it is copied; run again when nobody writes to it")
    return data


# --- one copy a node --------------------------------------------------------------------------------------------------


def keep(
    key: str,
    fill: Fill,
    what: str,
    needs: int = 0,
    *,
    mount: str = "",
    measure: Callable[[str, Progress], int] | None = None,
) -> str:
    """The folder of the copy `key`, filled by this process if by nobody before; it stays as long as this process lives.

    what, mount    as sentences call the source, and the mount that may be dead
    needs          bytes, where they are known before
    measure        of a folder that is being filled: a number that grows; None: what `fill` adds to its progress

    Raises CheckpointError: no room, a full disk, a copy of another process or a mount that stands still for PATIENCE.
    """
    entry = os.path.join(cache_folder(), key)
    before, since = "", time.monotonic()
    while not _use(entry):
        lock = _try_lock(f"{entry}.lock")
        if lock is not None:
            try:
                if not _use(entry):
                    _make(entry, lock, fill, what, needs, mount, measure)
            finally:
                unlock(lock)
            continue
        now = _text(f"{entry}.lock")
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise CheckpointError(
                f"{_stuck(what, mount)} (process {now.partition(' ')[0] or '?'} copies it to {entry}, and waits too)"
            )
        time.sleep(POLL)
    return entry


def kept(key: str) -> str | None:
    """The folder of the copy `key`, if this node has it already."""
    with suppress(ConfigError):  # this machine may have no place for copies, and need none
        entry = os.path.join(cache_folder(), key)
        return entry if _use(entry) else None
    return None


_held: dict[str, int] = {}  # copies that this process uses -> their marks, open and locked
_holding = threading.Lock()


def _use(entry: str) -> bool:
    """Takes hold of a copy; False where there is none, or files of it are missing: others clean temporary folders."""
    with _holding:
        mark = _held.get(entry)
        if mark is None or not _same_file(mark, os.path.join(entry, MARK)):
            if mark is not None:
                os.close(_held.pop(entry))
            mark = _hold(os.path.join(entry, MARK))
            if mark is None:
                return False
        try:
            sizes = json.loads(os.pread(mark, os.fstat(mark).st_size, 0))
            whole = all(os.path.getsize(os.path.join(entry, name)) == size for name, size in sizes.items())
        except (OSError, ValueError):
            whole = False
        if not whole:
            os.close(mark)
            _held.pop(entry, None)
            return False
        _held[entry] = mark
        with suppress(OSError):
            os.utime(mark)
        return True


def _hold(path: str) -> int | None:
    """The mark of a copy, locked for sharing. Who removes a copy has it for himself first."""
    try:
        mark = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    fcntl.flock(mark, fcntl.LOCK_SH)
    if _same_file(mark, path):
        return mark
    os.close(mark)
    return None


def _same_file(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _make(
    entry: str,
    lock: int,
    fill: Fill,
    what: str,
    needs: int,
    mount: str,
    measure: Callable[[str, Progress], int] | None,
) -> None:
    """Fills the copy `entry`, whose lock this process has."""
    folder, key = os.path.split(entry)
    _sweep(folder, key)
    _make_room(folder, needs, what)
    part = tempfile.mkdtemp(prefix=f"{key}.", suffix=".part", dir=folder)
    progress = Progress()

    def moved() -> int:
        now = measure(part, progress) if measure else progress.done
        text = b"%d %d" % (os.getpid(), now)
        with suppress(OSError):  # a full disk: those who wait see less
            os.pwrite(lock, text, 0)
            os.ftruncate(lock, len(text))
        return now

    try:
        watched(lambda: fill(part, progress), progress, moved, lambda: _stuck(what, mount))
        with open(os.path.join(part, MARK), "x", encoding="utf-8") as file:
            json.dump(dict(_sizes(part)), file)
        shutil.rmtree(entry, ignore_errors=True)  # files of it were missing
        os.rename(part, entry)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            done = f" after {_size(progress.done)}" if progress.done else ""
            raise CheckpointError(_no_room(folder, needs, what, f"is full{done}")) from None
        raise CheckpointError(f"{what}: cannot be copied to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sizes(folder: str) -> Iterator[tuple[str, int]]:
    for at, _, names in os.walk(folder):
        for path in (os.path.join(at, name) for name in names if name != MARK):
            yield os.path.relpath(path, folder), os.path.getsize(path)


def _stuck(what: str, mount: str) -> str:
    where = f"{mount}, the mount it lies on, may be dead" if mount else "its source may be unreachable"
    return (
        f"{what}: nothing has come for {PATIENCE:g} s while it was copied to this node's disk; {where}: try ls there, "
        f"or give the model another place"
    )


def watched(function: Callable[[], T], progress: Progress, moved: Callable[[], int], sentence: Callable[[], str]) -> T:
    """function(), in a thread. Raises CheckpointError with `sentence` when `moved` has said the same for PATIENCE."""
    said: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            said.append(function())
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        before, since = moved(), time.monotonic()
        while thread.is_alive():
            thread.join(POLL)
            now = moved()
            if now != before:
                before, since = now, time.monotonic()
            elif thread.is_alive() and time.monotonic() - since > PATIENCE:
                raise CheckpointError(sentence())
    finally:
        progress.stopped = True
    if faults:
        raise faults[0]
    return said[0]


# --- room -------------------------------------------------------------------------------------------------------------


def _sweep(folder: str, key: str) -> None:
    """Removes what killed processes were filling; `key` is the caller's own, locked."""
    for name in _names(folder):
        whose = name.partition(".")[0]
        if name.endswith(".part"):
            with suppress(CheckpointError), _locked(folder, whose, own=whose == key) as mine:
                if mine:
                    shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


@contextmanager
def _locked(folder: str, key: str, own: bool = False) -> Iterator[bool]:
    lock = None if own else _try_lock(os.path.join(folder, f"{key}.lock"))
    try:
        yield own or lock is not None
    finally:
        if lock is not None:
            unlock(lock)


def _make_room(folder: str, needs: int, what: str) -> None:
    """Copies that nobody uses go, the one used longest ago first, until `needs` bytes fit under both limits."""
    most = number("CACHE_GB", "gigabytes") * 1e9
    copies = sorted(_copies(folder))
    held = sum(size for _, _, size in copies)
    for _, entry, size in copies:
        if held + needs <= most and _free(folder) >= needs:
            return
        if _remove(entry):
            held -= size
    free = _free(folder)
    if free < needs:
        raise CheckpointError(_no_room(folder, needs, what, f"has {_size(free)} free"))


def _copies(folder: str) -> Iterator[tuple[int, str, int]]:
    """(time of its last use, path, bytes) of each."""
    for name in _names(folder):
        mark = os.path.join(folder, name, MARK)
        with suppress(OSError, ValueError, AttributeError, TypeError):
            used = os.stat(mark).st_mtime_ns
            with open(mark, encoding="utf-8") as file:
                yield used, os.path.join(folder, name), sum(json.load(file).values())


def _remove(entry: str) -> bool:
    """Unless somebody uses it."""
    folder, key = os.path.split(entry)
    with suppress(CheckpointError, OSError), _locked(folder, key) as mine:
        if not mine:
            return False
        gone = f"{entry}.gone.part"  # at once, so that none is found with files missing
        mark = os.open(os.path.join(entry, MARK), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(entry, gone)
        finally:
            os.close(mark)
        shutil.rmtree(gone, ignore_errors=True)
        os.unlink(f"{entry}.lock")
        return True
    return False


def _free(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _no_room(folder: str, needs: int, what: str, has: str) -> str:
    wanted = f"needs {_size(needs)}" if needs else "needs more room than there is"
    return f"{what}: its copy on this node {wanted}, and {folder} {has}; set FIRESTEEL_CACHE to a larger disk"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"


# --- places -----------------------------------------------------------------------------------------------------------


def cache_folder() -> str:
    """The cache's folder, made and checked: of this user, and nobody else writes to it. Raises ConfigError."""
    path = os.path.join(_cache_parent(), f"firesteel-models-{os.geteuid()}")
    mount = network_mount(path)
    if mount is not None:
        raise ConfigError(f"FIRESTEEL_CACHE is on {mount}, a network mount; give a directory on a disk of the node")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: the folder for copies of models cannot be made ({error.strerror}); set FIRESTEEL_CACHE"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"{path}: must be a directory of user {os.geteuid()} that nobody else may write to; remove it, or set "
            f"FIRESTEEL_CACHE"
        )
    return path


def _cache_parent() -> str:
    said = os.environ.get("FIRESTEEL_CACHE", "")
    if said and said != "off":  # which is about mounts; what comes from a registry must lie somewhere
        return os.path.abspath(os.path.expanduser(said))
    if os.path.isdir("/local_disk0") and os.access("/local_disk0", os.W_OK):
        return "/local_disk0"
    for path in filter(None, os.environ.get("SPARK_LOCAL_DIRS", "").split(",")):
        if os.path.isdir(path):
            return _above_executors(os.path.abspath(path))
    return tempfile.gettempdir()


def _above_executors(path: str) -> str:
    """Of a directory that Spark has made for one executor, the one it is in, on the same disk: the node's."""
    while _OF_AN_EXECUTOR.fullmatch(os.path.basename(path)):
        above = os.path.dirname(path)
        if os.stat(above).st_dev != os.stat(path).st_dev or not os.access(above, os.W_OK):
            break
        path = above
    return path


def network_mount(path: str) -> str | None:
    """The network mount that a path lies on, by its name and the kernel's list; None: a disk of this node."""
    for look in (os.path.abspath, os.path.realpath):  # the second touches the mount
        seen = look(path)
        for prefix in _PREFIXES:
            if seen == prefix or seen.startswith(f"{prefix}/"):
                return prefix
        mounts = [(at, kind) for at, kind in _mounts() if seen == at or seen.startswith(f"{at}/")]
        at, kind = max(mounts, key=lambda mount: len(mount[0]), default=("", ""))
        fuse = kind == "fuse" or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
        if fuse or kind in _NETWORK:
            return at
    return None


def _mounts() -> Iterator[tuple[str, str]]:
    """(mount point, type) of all but the root, which is no mount to whoever lives on it."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        fields, _, rest = line.partition(" - ")
        at = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split()[4])
        if at != "/":
            yield at, rest.split()[0]


def _boot() -> str:
    """A copy is not trusted after the node has started again: what was not on the disk by then is zeros."""
    return _text("/proc/sys/kernel/random/boot_id").strip()


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def _names(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)
    return []


def _try_lock(path: str) -> int | None:
    try:
        return try_lock(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be locked ({error.strerror}); set FIRESTEEL_CACHE to a directory on a local disk"
        ) from None
