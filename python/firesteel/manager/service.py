"""What a manager does for its workers: opens models, each once, and serves them; says what it has; lets go of it.

Rows and results go past this file, through the thread of `_core.Server`. What comes here is asked in JSON:

    {"ask": "open"}     with a description in the first file that comes along and the weights in the others
                        -> {"model": 1, "settings", "numerics", "placement", "seconds"}
    {"ask": "model", "model": 1}       -> {"stats": ...}, what Engine.stats() says
    {"ask": "stats"}                   -> {"pid", "uptime", "rows", ..., "totals", "models", "clients"}; totals: of its
                                          whole life, models that are closed included; never less than before
    {"ask": "release"}                 -> {"released": 2}: models without rows are closed
    anything that fails                -> {"error": ["ConfigError", "one sentence"]}

Two descriptions are of one model when everything in them is equal and the files are the same: device, inode, size and
time. Opening takes seconds, so each happens in a thread of its own; whoever asks for the same meanwhile waits for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .. import _core
from .._core import Error, OutOfMemory, RequestError
from ..engine.claims import Claim, open_engine
from ..host.settings import number
from ..host.text import one_line

log = logging.getLogger("firesteel.manager")

KEPT_SECONDS = 30.0  # a model used so lately is not closed to make room for another
DESCRIPTION_BYTES = 256 << 20
TAKE_SECONDS = 0.5

OPTIONS = ("devices", "parallel", "dtype", "max_memory", "threads", "cpu_path")


@dataclass
class _Model:
    number: int
    name: str
    files: list[int]  # descriptors; a model that streams layers reads them again and again
    engine: _core.Engine | None = None
    claim: Claim = field(default_factory=Claim)
    error: Error | None = None
    ready: threading.Event = field(default_factory=threading.Event)
    used: float = 0.0  # time.monotonic() of the last open or release of it
    seconds: float = 0.0


class _Description(NamedTuple):
    """A model as a worker has read it, as _core.Engine takes it."""

    config: dict[str, object]
    tensors: list[tuple[object, ...]]
    chain: list[tuple[object, ...]]
    options: dict[str, object]
    knobs: dict[str, str]


class Service:
    """The serving half of a manager; lifecycle and log are process.py's."""

    def __init__(self) -> None:
        self._store_bytes = int(number("MANAGER_STORE_MB", "megabytes") * 1e6)
        self._lock = threading.Lock()  # over the tables
        self._opening = threading.Lock()  # one model opens at a time: they share the devices, and the environment
        self._models: dict[str, _Model] = {}  # by key
        self._numbers: dict[str, int] = {}  # kept for ever: results in the store are known by them
        self._past = {"device_seconds": 0.0, "load_seconds": 0.0}  # of models that were closed
        self._device_peaks: dict[str, int] = {}
        self._started = time.monotonic()
        self._stopping = False

    def start(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._server = _core.Server(listening.fileno(), build(), self._store_bytes)
        self._thread = threading.Thread(target=self._answer_all, name="asks", daemon=True)
        self._thread.start()

    def clients(self) -> list[dict[str, int]]:
        return self._server.clients()

    def idle_seconds(self) -> float:
        return self._server.stats()["idle_seconds"]

    def unload(self) -> int:
        """Closes the models that have no rows; they open again when rows come. How many there were."""
        return self._close_idle(0.0)

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        with self._lock:
            models = list(self._models.values())
            self._models.clear()
        for model in models:
            model.ready.wait()
            self._close(model)
        self._server.close()

    # --- asks

    def _answer_all(self) -> None:
        while not self._stopping:
            asked = self._server.take(TAKE_SECONDS)
            if asked is not None:
                connection, serial, body, files = asked
                self._answer(connection, serial, body, files)

    def _answer(self, connection: int, serial: int, body: bytes, files: list[int]) -> None:
        def finish() -> None:
            try:
                answer = self._answer_to(body, files)
            except Error as error:
                answer = {"error": [type(error).__name__, str(error)]}
            except Exception as error:
                log.exception("an ask failed")
                answer = {"error": ["ManagerError", f"the manager failed to answer: {error!r}; see its log"]}
            finally:
                for file in files:
                    os.close(file)
            self._send(connection, serial, answer)

        threading.Thread(target=finish, name="ask", daemon=True).start()

    def _send(self, connection: int, serial: int, answer: dict[str, object]) -> None:
        try:
            self._server.answer(connection, serial, json.dumps(answer).encode())
        except RequestError as error:
            self._server.answer(connection, serial, json.dumps({"error": ["ManagerError", str(error)]}).encode())

    def _answer_to(self, body: bytes, files: list[int]) -> dict[str, object]:
        try:
            asked = json.loads(body)
            kind = asked["ask"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise RequestError('an ask is no JSON object with a key "ask"') from None
        if kind == "open":
            return self._open(files)
        if kind == "model":
            return self._model_stats(asked.get("model"))
        if kind == "stats":
            return self._stats()
        if kind == "release":
            return {"released": self.unload()}
        raise RequestError(f'ask {kind!r} is not known; "open", "model", "stats" and "release" are')

    # --- models

    def _open(self, files: list[int]) -> dict[str, object]:
        if not files:
            raise RequestError("an open came without its description")
        text = _contents(files[0])
        try:
            said = json.loads(text)
            name = one_line(said["name"])
            described = _Description(
                config=dict(said["config"]),
                tensors=[_tensor(tensor) for tensor in said["tensors"]],
                chain=[tuple(step) for step in said["chain"]],
                options={option: said["options"][option] for option in OPTIONS},
                knobs={str(knob): str(value) for knob, value in said["knobs"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise RequestError("the description of a model is not one that a worker makes") from None
        key = _key(text, files[1:])
        while True:
            model, first = self._claim(key, name, files)
            if first:
                self._open_first(model, key, described)
            model.ready.wait()
            if model.error:
                raise model.error
            with self._lock:
                if self._models.get(key) is model:  # else it was closed between the two
                    model.used = time.monotonic()
                    return self._described(model)

    def _claim(self, key: str, name: str, files: list[int]) -> tuple[_Model, bool]:
        with self._lock:
            model = self._models.get(key)
            if model:
                return model, False
            number = self._numbers.setdefault(key, len(self._numbers) + 1)
            model = self._models[key] = _Model(number, name, [os.dup(file) for file in files[1:]])
            return model, True

    def _open_first(self, model: _Model, key: str, described: _Description) -> None:
        try:
            with self._opening:
                started = time.monotonic()
                try:
                    model.engine, model.claim = self._engine(model, described)
                except OutOfMemory:
                    if not self._close_idle(KEPT_SECONDS):
                        raise
                    model.engine, model.claim = self._engine(model, described)
                model.seconds = time.monotonic() - started
            self._server.serve(model.number, model.engine)
            log.info("opened %s in %.2f s: %s", model.name, model.seconds, model.engine.numerics)
        except Error as error:
            log.warning("%s cannot be opened: %s", model.name, error)
            model.error = error
        except Exception as error:
            log.exception("%s cannot be opened", model.name)
            model.error = RequestError(f"{model.name}: its description cannot be used: {error}")
        finally:
            if model.error:
                with self._lock:
                    del self._models[key]
                self._close(model)
            model.ready.set()

    def _engine(self, model: _Model, described: _Description) -> tuple[_core.Engine, Claim]:
        known = knobs_of_engines()
        for name in known:  # as the worker has them; ours were those of the first worker
            os.environ.pop(f"FIRESTEEL_{name}", None)
        os.environ.update({f"FIRESTEEL_{name}": value for name, value in described.knobs.items() if name in known})
        options = described.options
        return open_engine(
            config=described.config,
            tensors=described.tensors,
            chain=described.chain,
            files=[f"/proc/self/fd/{file}" for file in model.files],
            name=model.name,
            devices=tuple(options["devices"]),
            parallel=options["parallel"],
            dtype=options["dtype"],
            max_memory=options["max_memory"],
            threads=options["threads"],
            cpu_path=options["cpu_path"],
        )

    def _described(self, model: _Model) -> dict[str, object]:
        engine = model.engine
        return {
            "model": model.number,
            "settings": engine.settings,
            "numerics": engine.numerics,
            "placement": engine.placement,
            "seconds": model.seconds,
        }

    def _close_idle(self, seconds: float) -> int:
        """Those without rows that have had none, and that nobody has opened, for that long."""
        with self._lock:
            idle = [key for key, model in self._models.items() if model.ready.is_set() and self._idle(model, seconds)]
            models = [self._models.pop(key) for key in idle]
        for model in models:
            self._close(model)
            log.info("closed %s", model.name)
        return len(models)

    def _idle(self, model: _Model, seconds: float) -> bool:
        rows, since_row = self._server.use(model.number)
        return rows == 0 and min(since_row, time.monotonic() - model.used) >= seconds

    def _close(self, model: _Model) -> None:
        self._server.retire(model.number)
        if model.engine:
            with self._lock:
                self._count(model, self._past)
            model.engine.close()
            model.claim.release()
        for file in model.files:
            os.close(file)
        model.files = []

    # --- what there is

    def _count(self, model: _Model, totals: dict[str, object]) -> dict[str, object]:
        """Adds what the model has done, under the lock. Its engine's stats."""
        stats = model.engine.stats()
        totals["load_seconds"] += model.seconds
        for device in stats["devices"]:
            totals["device_seconds"] += device["busy_seconds"]
            name = device["name"]
            self._device_peaks[name] = max(device["peak"], self._device_peaks.get(name, 0))
        return stats

    def _told_of(self, model: _Model, totals: dict[str, object]) -> dict[str, object]:
        stats = self._count(model, totals)
        room = stats["batches"] * stats["batch_tokens"]
        return {
            "name": model.name,
            "numerics": model.engine.numerics,
            "seconds": model.seconds,
            "rows": self._server.use(model.number)[0],
            "batch_fill": stats["tokens"] / room if room else None,  # the mean share of their room
            "stats": stats,
        }

    def _model_stats(self, number: object) -> dict[str, object]:
        with self._lock:
            for model in self._models.values():
                if model.number == number and model.ready.is_set():
                    return {"stats": model.engine.stats()}
        raise RequestError(
            f"model {number!r} is not open in the manager; it was released, and opens again with the next rows"
        )

    def _stats(self) -> dict[str, object]:
        with self._lock:
            totals: dict[str, object] = dict(self._past)
            models = [self._told_of(model, totals) for model in self._models.values() if model.ready.is_set()]
            totals["device_peaks"] = dict(self._device_peaks)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        clients = self._server.clients()
        return {
            "pid": os.getpid(),
            "uptime": time.monotonic() - self._started,
            "peak_memory": peak,
            **self._server.stats(),
            "totals": totals,
            "models": models,
            "clients": clients[:100],
            "client_count": len(clients),
        }


def build() -> str:
    """Of this firesteel: what the two ends of a connection must have in common."""
    return _core.build[:60]


def knobs_of_engines() -> set[str]:
    """All but the manager's own, and those that say where workers copy models to."""
    return {row["name"] for row in _core.knobs() if not row["name"].startswith(("MANAGER_", "CACHE"))}


def _contents(file: int) -> bytes:
    size = os.fstat(file).st_size
    if size > DESCRIPTION_BYTES:
        raise RequestError(f"a description has {size} bytes; the limit is {DESCRIPTION_BYTES}")
    text = b""
    while len(text) < size and (more := os.pread(file, size - len(text), len(text))):
        text += more
    return text


def _tensor(listed: Sequence[object]) -> tuple[object, ...]:
    name, dtype, shape, *where = listed
    return (name, dtype, tuple(shape), *where)


def _key(text: bytes, files: list[int]) -> str:
    looks = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in map(os.fstat, files)]
    return hashlib.sha256(text + repr(looks).encode()).hexdigest()
