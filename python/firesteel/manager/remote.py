"""A model in the executor's manager, as if it were in this process: firesteel.connect.

    Engine.embed ... -> Connected._core, which has the methods of _core.Engine -> _core.Client -> manager

A manager that dies takes nothing along: whoever waits starts another one, opens the model there and sends its rows
again; they come out the same, bit for bit. A row that managers die of is found by halving, and fails alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .. import _core
from .._core import CheckpointError, ConfigError, Error, ManagerError, RequestError
from ..engine.engine import Engine
from ..engine.options import engine_options
from ..host.values import plain
from ..model.checkpoint import Checkpoint
from ..model.locate import find
from . import lifecycle, relay
from .service import build, knobs_of_engines

PATIENCE = 30.0  # seconds that a manager may say nothing
TRIES = 4  # managers that may die one after the other while a model opens or rows are sent
SUSPECT = 2  # managers that died over the same rows
PART_ROWS, PART_FLOATS = 1 << 16, 1 << 26  # rows and results that go together; a manager takes four times as much
MOST_RELEASES = 20  # of the model while the same rows waited: others need the room

Connect = Callable[[], object]  # -> a connected socket of packets


class RemoteCore:
    """What _core.Engine is for a model of this process, for one of the manager's. Threads may share it."""

    def __init__(self, checkpoint: Checkpoint, options: dict[str, object], connect: Connect, patience: float) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._connect = connect
        self._knobs = knobs_set()  # as they are now: a session's are set while an engine opens, and only then
        self._files = [_open_file(path) for path in checkpoint.files]  # and kept: folders move while jobs run
        self._looks = [_look(file) for file in self._files]
        self._let_go = weakref.finalize(self, _close_all, self._files)
        self._client = _core.Client(build(), patience)
        self._relay = relay.of_process()
        self._lock = threading.Lock()
        self._opened = 0  # times; a job that failed before the last of them need not open again
        self._closed = False
        self._open()

    # --- what _core.Engine has

    @property
    def settings(self) -> dict[str, object]:
        return self._said["settings"]

    @property
    def placement(self) -> dict[str, object]:
        return self._said["placement"]

    @property
    def numerics(self) -> str:
        return self._said["numerics"]

    def submit(self, *arrays: np.ndarray, **options: object) -> RemoteJob:
        return RemoteJob(self, arrays, options)

    def empty(self, rows: int, width: int) -> np.ndarray:
        return self._client.empty(rows, width)

    def stats(self) -> dict[str, object]:
        answer = self.ask({"ask": "model", "model": self._said["model"]})
        return answer["stats"]

    def close(self) -> None:
        self._closed = True
        self._client.disconnect()
        with self._lock:  # nobody sends them any more
            self._let_go()

    # --- how it is reached

    @property
    def opened(self) -> int:
        return self._opened

    def ask(self, asked: dict[str, object], files: Sequence[int] = ()) -> dict[str, object]:
        answer = self._client.ask(json.dumps(asked).encode(), files)
        self._relay.look()
        return _answer(answer)

    def look(self) -> None:
        """After each wait: passes on what the manager has warned of."""
        self._relay.look()

    def send(self, arrays: Sequence[np.ndarray], options: dict[str, object]) -> _core.Job:
        return self._client.submit(self._said["model"], *arrays, **options)

    @property
    def closed(self) -> bool:
        return self._closed

    def died_since(self, opened: int) -> bool:
        """Whether the manager that was reached then has died; else it has let go of the model."""
        return self._opened != opened or not self._client.manager_pid

    def open_again(self, opened: int) -> None:
        """Unless somebody has since `opened`. Raises what keeps a manager or the model from opening."""
        if self._closed:
            raise RequestError("this engine was closed; connect again")
        with self._lock:
            if self._opened == opened:
                self._open()

    def _open(self) -> None:
        for left in reversed(range(TRIES)):
            try:
                if not self._client.manager_pid:
                    with self._connect() as socket:
                        self._client.connect(socket.fileno())
                self._said = self._describe()
                self._opened += 1
                self._relay.opened(self._checkpoint.folder, self._said, self._client.manager_pid)
                return
            except ManagerError as error:
                if not left:
                    raise self._relay.explained(error) from None
                self._client.disconnect()

    def _describe(self) -> dict[str, object]:
        """Opens the model over there: its description, and its files, which the manager need not be able to find."""
        described = {
            "config": self._checkpoint.config,
            "tensors": self._checkpoint.tensors,
            "chain": self._checkpoint.chain.steps,
            "name": self._checkpoint.folder,
            "options": self._options,
            "knobs": self._knobs,
        }
        for path, file, look in zip(self._checkpoint.files, self._files, self._looks, strict=True):
            if _look(file) != look:
                raise CheckpointError(
                    f"{path}: was written to while jobs use the model; run them again with it complete"
                )
        description = _memory(json.dumps(described, sort_keys=True).encode())
        try:
            return self.ask({"ask": "open"}, [description, *self._files])
        finally:
            os.close(description)


class RemoteJob:
    """What _core.Job is: its rows, in parts, sent again where the manager that had them is gone.

    Two managers that died over a part make it a suspect. Suspects are halved and tried one at a time, on this executor
    as a whole, so that a death has one cause; a row that two managers died of alone is a fault of that row.
    """

    def __init__(self, core: RemoteCore, arrays: Sequence[np.ndarray], options: dict[str, object]) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._cancelled = False
        self._faults: list[tuple[int, str, str]] = []
        self._parts = _Part(0, arrays, options).cut()
        for part in self._parts:
            part.send(core)

    def wait(self, timeout: float = -1.0) -> bool:
        until = time.monotonic() + timeout
        with self._lock:
            while part := next((part for part in self._parts if not part.done), None):
                left = -1.0 if timeout < 0 else until - time.monotonic()
                if timeout >= 0 > left:
                    return False
                self._wait_for(part, left)
                self._core.look()
                if timeout == 0 and not part.done:
                    return False
        return True

    def cancel(self) -> None:
        self._cancelled = True
        for part in list(self._parts):
            if part.job is not None:
                part.job.cancel()

    @property
    def errors(self) -> list[tuple[int, str, str]]:
        found = list(self._faults)
        for part in self._parts:
            if part.job is not None:
                found += [(part.begin + row, code, sentence) for row, code, sentence in part.job.errors]
        return sorted(found)

    @property
    def hits(self) -> int:
        return sum(part.job.hits for part in self._parts if part.job is not None)

    @property
    def duplicates(self) -> int:
        return sum(part.job.duplicates for part in self._parts if part.job is not None)

    def _wait_for(self, part: _Part, timeout: float) -> None:
        try:
            if part.suspect:
                with lifecycle.alone():
                    part.send(self._core)
                    part.done = part.job.wait()
            else:
                part.done = part.job.wait(timeout)
        except ManagerError as error:
            if self._cancelled or self._core.closed:
                raise
            self._lost(part, error)

    def _lost(self, part: _Part, error: ManagerError) -> None:
        """Its manager has died, or has let go of the model. Suspects are sent when it is their turn."""
        died = self._core.died_since(part.opened)
        part.deaths += died
        if not died:
            part.releases += 1
            if part.releases > MOST_RELEASES:
                raise error
            self._core.open_again(part.opened)
        if part.suspect and part.deaths and part.rows == 1:
            if part.deaths >= SUSPECT:
                sentence = (
                    f"{part.deaths} managers have died of this row alone; {lifecycle.find_place().log} may say why"
                )
                part.job, part.done = None, True
                self._faults.append((part.begin, "CRASHED", sentence))
        elif part.deaths >= (1 if part.suspect else SUSPECT):
            place = self._parts.index(part)
            self._parts[place : place + 1] = part.suspects()
        elif not part.suspect:
            part.send(self._core)


class _Part:
    """Rows of a job that go together."""

    def __init__(
        self, begin: int, arrays: Sequence[np.ndarray], options: dict[str, object], suspect: bool = False
    ) -> None:
        self.begin = begin  # its first row, in the job
        self.arrays = arrays
        self.options = options
        self.suspect = suspect
        self.done = False
        self.deaths = self.releases = 0
        self.opened = 0
        self.job: _core.Job | None = None

    @property
    def rows(self) -> int:
        return len(self.arrays[1]) - 1

    def send(self, core: RemoteCore) -> None:
        """Opens the model again where that is needed."""
        for left in reversed(range(TRIES)):
            self.opened = core.opened
            try:
                self.job = core.send(self.arrays, self.options)
                return
            except ManagerError:
                if not left:
                    raise
                core.open_again(self.opened)

    def suspects(self) -> list[_Part]:
        """Its halves, or the one row that it is."""
        middle = self.rows // 2
        return [self._slice(begin, end, True) for begin, end in ((0, middle), (middle, self.rows)) if begin < end]

    def cut(self) -> list[_Part]:
        """Parts that are small enough; one row may have any size."""
        floats = self._results() * self.arrays[2].shape[1]
        parts, begin = [], 0
        while begin < self.rows:
            end = int(np.searchsorted(floats, floats[begin] + PART_FLOATS, side="right")) - 1
            end = min(max(end, begin + 1), begin + PART_ROWS, self.rows)
            parts.append(self._slice(begin, end, False))
            begin = end
        return parts if len(parts) > 1 else [self]

    def _results(self) -> np.ndarray:
        """int64 [rows + 1]: which rows of `out` are a row's."""
        if self.options["task"] != "hidden_states":
            return np.arange(self.rows + 1, dtype=np.int64)
        return self.options.get("target_offsets", self.arrays[1])

    def _slice(self, begin: int, end: int, suspect: bool) -> _Part:
        rows, offsets, out = self.arrays
        options = dict(self.options)
        counted = self._results()
        if "targets" in options:
            options["targets"], options["target_offsets"] = _cut(options["targets"], counted, begin, end)
        arrays = (*_cut(rows, offsets, begin, end), out[int(counted[begin]) : int(counted[end])])
        return _Part(self.begin + begin, arrays, options, suspect)


def _cut(rows: np.ndarray, offsets: np.ndarray, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    cut = offsets[begin : end + 1]
    return rows[cut[0] : cut[-1]], cut - cut[0]


class Connected(Engine):
    """A model in the executor's manager, shared with everybody who connects to it. Made by firesteel.connect."""

    def __init__(self, model: str | os.PathLike[str], connect: Connect, patience: float, **options: object) -> None:
        described = engine_options(**options)
        checkpoint = Checkpoint.open(find(model))
        self._open(checkpoint, lambda: RemoteCore(checkpoint, described, connect, patience))

    def __repr__(self) -> str:
        return f"connect({self._checkpoint.folder!r})"


def connect(
    model: str | os.PathLike[str],
    devices: str | Sequence[str] = "auto",
    parallel: str = "auto",
    dtype: str = "auto",
    max_memory: int | str | None = None,
    threads: int | None = None,
    cpu_path: str | None = None,
    idle_ttl: float | None = None,
    timeout: float | None = None,
) -> Connected:
    """A model in the manager of this executor, outside of Spark of this user: one copy for all who connect.

    model ... cpu_path    as in firesteel.Engine. Calls with equal ones share what is loaded; threads=None is all the
                          cores that this container may use
    idle_ttl    seconds without anybody connected after which a manager that is started here ends; None: 600, or what
                FIRESTEEL_MANAGER_IDLE_TTL says
    timeout     seconds a manager may take to start without making progress, and to answer; None: 30

    The manager is started where there is none, and ends by itself. If it dies, what waits is computed by a new one.
    Raises what Engine raises, and ManagerError where no manager can be started or reached.

    Example::

        with firesteel.connect("models/all-MiniLM-L6-v2") as engine:
            vectors = engine.embed(["a sentence", "and another"])      # float32 [2, 384]
    """
    timeout = plain(timeout)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0):
        raise ConfigError(f"timeout is {timeout!r}; seconds, more than 0, or None belongs there")
    patience = float(timeout or PATIENCE)
    options = dict(devices=devices, parallel=parallel, dtype=dtype, max_memory=max_memory, threads=threads)
    ttl = lifecycle.seconds("MANAGER_IDLE_TTL", idle_ttl)
    reach = partial(lifecycle.reach, patience, idle_ttl=ttl)
    return Connected(model, reach, patience, cpu_path=cpu_path, **options)


def knobs_set() -> dict[str, str]:
    """The knobs of this process' environment, which the manager opens the model with."""
    there = {name: os.environ.get(f"FIRESTEEL_{name}") for name in knobs_of_engines()}
    return {name: value for name, value in there.items() if value is not None}


def _answer(body: bytes) -> dict[str, object]:
    answer = json.loads(body)
    if "error" not in answer:
        return answer
    kind, sentence = answer["error"]
    raised = getattr(_core, kind, Error)
    raise (raised if isinstance(raised, type) and issubclass(raised, Error) else Error)(sentence)


def _open_file(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _look(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns


def _close_all(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _memory(text: bytes) -> int:
    """A file without a name; a Python that was built for an old libc has no memfd_create."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("firesteel", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as made:
            file = os.dup(made.fileno())
    with open(file, "wb", closefd=False) as whole:
        whole.write(text)
    return file
