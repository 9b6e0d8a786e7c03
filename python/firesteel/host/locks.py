"""Locked files: a process has its lock as long as it lives; when it is killed the lock is free, whatever it left."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from .processes import look_up


def try_lock(path: str) -> int | None:
    """The descriptor of a locked file, made if need be; None while another has the lock. Raises OSError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):  # or whoever had it has removed the file, and this lock is worth nothing
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def write_process(fd: int, pid: int) -> None:
    """Notes in a locked file which process it is about; 0: none."""
    found = look_up(pid)
    text = str(found.process).encode() if found else b""
    with suppress(OSError):  # a full disk: those who wait see less
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))


def unlock(fd: int) -> None:
    """Lets go of the lock even where a process forked meanwhile has the descriptor too."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
