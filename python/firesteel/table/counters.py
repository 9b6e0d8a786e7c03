"""What a task tells the driver of its rows while firesteel.progress is on: counters, pushed and never waited for.

    Counters.came, Counters.done ... --a line of JSON, a few times a second--> _listener, on the driver

A line has all that was counted so far, so a lost or repeated one does no harm. A driver that cannot be reached, does
not listen or does not read is left alone from then on: it slows no task down, and fails none.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from weakref import WeakKeyDictionary

import numpy as np

from .._core import Error
from ..engine.engine import Engine
from ..engine.pending import Pending
from ..host import task

PROPERTY = "firesteel.progress.token"  # HOST:PORT:TOKEN, of the job; its name has it hidden, see _watch
EVERY_SECONDS = 0.3
LAST_SECONDS = 0.25  # that the last line may take, once in this process' life: see _silent

_serial = count(1)
_engines: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()  # numbers for those of this process
_silent: set[tuple[str, int]] = set()  # drivers that did not listen


class Silent:
    """Counters where nobody asks for them."""

    def begin(self, engine: Engine | None) -> None: ...

    def came(self, rows: int) -> None: ...

    def done(self, good: np.ndarray, errors: Sequence[tuple[int, str, str]], pending: Pending) -> None: ...

    def end(self, complete: bool) -> None: ...


class Counters(Silent):
    """Those of one pass over a partition. A task has several where it computes several columns."""

    def __init__(self, host: str, port: int, token: str, task: tuple[int, int, int]) -> None:
        self._stage, self._partition, self._attempt = task
        self._stream = f"{os.getpid()}.{next(_serial)}"
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._engine: Engine | None = None
        self._began: dict[str, object] = {}
        self._address = (host, port)
        self._unsent = f"{token}\n".encode()
        self._next = 0.0
        self._socket = None if self._address in _silent else self._connect()

    def begin(self, engine: Engine | None) -> None:
        """`engine`: where it is in this process, for nobody else can tell the driver of it."""
        self._engine = engine
        if engine is not None and self._socket is not None:
            self._began = engine.stats()

    def came(self, rows: int) -> None:
        self._counts["rows"] += rows
        self._push()

    def done(self, good: np.ndarray, errors: Sequence[tuple[int, str, str]], pending: Pending) -> None:
        """Rows whose results are there; `good` bool [rows]: those that are not null. Errors: (row, code, sentence)."""
        hits, duplicates = pending.known
        nulls = len(good) - int(good.sum())
        tokens = int(pending.tokens.sum())
        self._counts.update(done=len(good), nulls=nulls, tokens=tokens, hits=hits, duplicates=duplicates)
        self._errors.update(code for _, code, _ in errors)
        self._push()

    def end(self, complete: bool) -> None:
        """`complete`: there were no more rows; else nobody wanted more, or the task has failed."""
        if self._socket is None:
            return
        self._unsent += self._line(complete=complete, **self._own())
        until = time.monotonic() + LAST_SECONDS
        while self._flush() and (left := until - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            poll.poll(1000 * left)
        if self._unsent:
            self._give_up()
        elif self._socket is not None:
            self._socket.close()
            self._socket = None

    def _own(self) -> dict[str, object]:
        """Of an engine of this process, since the pass began."""
        if self._engine is None or not self._began:
            return {}
        number = _engines.setdefault(self._engine, len(_engines) + 1)
        try:
            after = self._engine.stats()
        except Error:  # it is broken; the task says so
            return {}
        busy = [sum(device["busy_seconds"] for device in stats["devices"]) for stats in (self._began, after)]
        told = {
            "name": f"{socket.gethostname()[:64]}.{os.getpid()}.{number}",
            "busy": busy,
            "load": 0 if self._began["rows"] else after["open_seconds"],
            "peaks": {device["name"]: device["peak"] for device in after["devices"]},
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        return {"engine": told}

    # --- the socket

    def _connect(self) -> socket.socket | None:
        try:
            family, kind, _, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)[0]
            made = socket.socket(family, kind)
            made.setblocking(False)
            made.connect_ex(address)
            return made
        except OSError:
            _silent.add(self._address)
            return None

    def _push(self) -> None:
        if self._socket is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_SECONDS
        if not self._flush() and self._socket is not None:
            self._unsent = self._line()
            self._flush()

    def _line(self, **more: object) -> bytes:
        said = {"stage": self._stage, "partition": self._partition, "attempt": self._attempt, "stream": self._stream}
        return json.dumps({**said, **self._counts, "errors": self._errors, **more}).encode() + b"\n"

    def _flush(self) -> bool:
        """Sends what can be sent without waiting. Whether something is left."""
        if self._socket is None:
            return False
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:  # also while the connection is being made
            return True
        except OSError:
            self._give_up()
        return False

    def _give_up(self) -> None:
        _silent.add(self._address)
        if self._socket is not None:
            self._socket.close()
        self._socket, self._unsent = None, b""


def of_task() -> Silent:
    """The counters of a new pass of this task, silent where no progress is on."""
    said = task.local_property(PROPERTY)
    if not said:
        return Silent()
    running = task.current()
    host, port, token = said.rsplit(":", 2)
    return Counters(host, int(port), token, (running.stageId(), running.partitionId(), running.taskAttemptId()))
