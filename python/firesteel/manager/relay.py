"""What a worker tells on its own stderr of the manager, which has none: where a model was opened, and its warnings.

    firesteel: /models/bert on cpu:0 (cpu avx2 fp32, 2 threads), opened in 0.19 s by manager 4711 (log: ...)
    firesteel: manager: 2026-01-02 03:04:05,678 4711 WARNING ...

In a Spark worker that is its stderr, which Spark shows as the executor's log; elsewhere Python's logger "firesteel".
Nothing is sent for it: after an ask or a job, at most once a second, the worker looks whether the manager's log has
grown since it first connected. The log holds no text of any row.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from contextlib import suppress
from time import monotonic

from .._core import ManagerError
from ..host.text import ESCAPES, one_line
from . import lifecycle

LOOK_SECONDS = 1.0
MOST_LINES = 20  # in one look
MOST_BYTES = 1 << 16  # that one look reads; of more, the last
LINE_CHARACTERS = 500

_LINE = re.compile(rb"\S+ \S+ \d+ (WARNING|ERROR|CRITICAL) ")  # as process.py writes them

log = logging.getLogger("firesteel")


class Relay:
    """One process's view of one manager's log. Threads may share it."""

    def __init__(self, path: str, spark: bool) -> None:
        self._path = path
        self._spark = spark
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._file, self._at = _look(path)
        self._next = 0.0

    def explained(self, error: ManagerError) -> ManagerError:
        """With the log's last lines, where the sentence has none yet."""
        if self._path in str(error):
            return error
        return ManagerError(f"{error}; {lifecycle.last_lines(self._path)}")

    def opened(self, model: str, said: dict[str, object], manager: int) -> None:
        """Tells where the manager has a model; once for each model of this process."""
        key = (model, said["numerics"])
        with self._lock:
            if key in self._told:
                return
            self._told.add(key)
        devices = said["placement"]["devices"]
        how = said["numerics"]
        if how.startswith("cpu"):
            how += f", {sum(device['threads'] for device in devices)} threads"
        where = ", ".join(device["name"] for device in devices)
        by = f"in {said['seconds']:.2f} s by manager {manager} (log: {self._path})"
        self._say(logging.INFO, f"{model} on {where} ({how}), opened {by}")

    def look(self) -> None:
        """Passes on what the manager has warned of since the last time; hardly anything within a second of that."""
        if monotonic() < self._next or not self._lock.acquire(blocking=False):
            return
        try:
            self._next = monotonic() + LOOK_SECONDS
            lines = self._new_lines()
        finally:
            self._lock.release()
        if len(lines) > MOST_LINES:
            self._say(logging.WARNING, f"manager: {len(lines) - MOST_LINES} more warnings before these: {self._path}")
        for level, line in lines[-MOST_LINES:]:
            self._say(level, f"manager: {line}")

    def _new_lines(self) -> list[tuple[int, str]]:
        file, size = _look(self._path)
        if (file, size) == (self._file, self._at):
            return []
        text = b""
        if file != self._file:  # the manager has begun another, and this is its last but one
            if self._file is not None and _look(f"{self._path}.1")[0] == self._file:
                text = self._read(f"{self._path}.1", self._at)[0]
            self._file, self._at = file, 0
        elif size < self._at:
            self._at = 0
        more, self._at = self._read(self._path, self._at)
        matched = [(_LINE.match(line), line) for line in (text + more).splitlines()]
        return [
            (
                logging.WARNING if found[1] == b"WARNING" else logging.ERROR,
                line[:LINE_CHARACTERS].decode(errors=ESCAPES),
            )
            for found, line in matched
            if found
        ]

    def _read(self, path: str, at: int) -> tuple[bytes, int]:
        """Whole lines from there on, and where they end; a line that is being written comes the next time."""
        with suppress(OSError), open(path, "rb") as file:
            file.seek(max(at, os.fstat(file.fileno()).st_size - MOST_BYTES))
            text = file.read(MOST_BYTES)
            whole = text.rfind(b"\n") + 1
            return text[:whole], file.tell() - len(text) + whole
        return b"", at

    def _say(self, level: int, line: str) -> None:
        line = one_line(line)
        if self._spark:
            with suppress(OSError, ValueError, AttributeError):  # stderr is closed, or there is none
                print(f"firesteel: {line}", file=sys.stderr, flush=True)
        else:
            log.log(level, "%s", line)


def _look(path: str) -> tuple[tuple[int, int] | None, int]:
    """Which file lies there, and its size."""
    try:
        found = os.stat(path)
    except OSError:
        return None, 0
    return (found.st_dev, found.st_ino), found.st_size


_relays: dict[tuple[int, str], Relay] = {}
_making = threading.Lock()


def of_process() -> Relay:
    """The one of this process for the manager that it reaches; makes no file and connects to nothing."""
    identity = lifecycle.identity()
    path = lifecycle.Place(lifecycle.directory_path(), identity.key).log
    with _making:
        key = (os.getpid(), path)
        if key not in _relays:
            _relays[key] = Relay(path, identity.kind != "user")
        return _relays[key]
