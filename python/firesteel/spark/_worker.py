"""The engines that this worker process uses. The only place that knows where they are.

    with attach(model, options) as engine: ...

By default they are in the executor's manager, which its workers share; with manager=False the worker has its own.
Either is kept from task to task, as long as the worker lives, under a key made of content: the model with what its
files looked like on the driver, or where it saw none look like here, and where they lie, the options, the knobs of the
session. Running a cell again loads nothing again; a model that was saved anew is loaded anew. Spark may kill a worker
at any time: nothing here needs a goodbye.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..engine.engine import Engine
from ..host import settings, task
from ..manager.remote import connect
from ..model.locate import Located, here
from ..model.tokenizer import set_threads

KEPT = 3  # engines that no task is using; the one that was used longest ago goes first

_lock = threading.Lock()  # held while an engine opens, too: two threads that want the same one load it once
_engines: dict[tuple[object, ...], _Kept] = {}  # in the order of their last use


@dataclass
class _Kept:
    engine: Engine
    users: int = 0


@contextmanager
def attach(model: str | Located, options: tuple[tuple[str, object], ...]) -> Iterator[Engine]:
    """The engine for `model`, opened if this worker has none yet. Raises whatever firesteel.connect raises.

    A worker's own engine has the cores of one task, the manager's those of all; the tokeniser has the task's.
    """
    knobs = settings.of_task()
    wanted = dict(options)
    threads = _threads(wanted["threads"], knobs)
    shared = wanted.pop("manager")
    if not shared:
        wanted["threads"] = threads
    open_engine = connect if shared else Engine
    key = (model, _look(model), shared, tuple(sorted(wanted.items())), tuple(sorted(knobs.items())))
    with _lock:
        kept = _engines.pop(key, None)
        if kept is None:
            _make_room()
            with settings.environment(knobs):
                kept = _Kept(open_engine(model, **wanted))
        if threads:
            set_threads(threads)  # another engine of this worker may have set another number
        _engines[key] = kept
        kept.users += 1
    try:
        yield kept.engine
    finally:
        with _lock:
            kept.users -= 1


def _make_room() -> None:
    idle = [key for key, kept in _engines.items() if kept.users == 0]
    for key in idle[: max(0, len(idle) - KEPT + 1)]:
        _engines.pop(key).engine.close()


def _look(model: str | Located) -> tuple[tuple[str, int, int], ...]:
    """What the files of a model's folder look like from outside; empty where there is no folder to look at."""
    found = []
    if isinstance(model, Located):
        # What the driver saw was compared when it was opened, and may be moved by now.
        folder = None if model.files else here(model)
        if folder is None:
            return ()
        model = folder
    try:
        for folder in (model, *(entry.path for entry in os.scandir(model) if entry.is_dir())):
            files = [(entry.path, entry.stat()) for entry in os.scandir(folder) if entry.is_file()]
            found += [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files]
    except OSError:
        return ()  # Engine says what is wrong
    return tuple(sorted(found))


def _threads(option: int | None, knobs: dict[str, str]) -> int | None:
    """Option over session conf over environment over spark.task.cpus. None: all cores, where there is no task."""
    said = knobs.get("THREADS") or os.environ.get("FIRESTEEL_THREADS")
    if option is not None:
        return option
    if said and said != "0":
        return int(said) if said.isdecimal() else None  # of any other text the engine says what is wrong with it
    running = task.current()
    return max(1, running.cpus()) if running is not None else None
