"""What the tasks of a progress have told: their counters, summed so that each partition counts once.

A task that is tried again, or twice at the same time, counts its rows anew: of the attempts at a partition the one
counts that has come furthest. `tried` is the sum of all. A row that passes two models counts twice.

Pure bookkeeping: no clock, no thread, no socket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

COUNTS = ("rows", "done", "nulls", "tokens", "hits", "duplicates")
MOST_PASSES = 1 << 20  # beyond, nothing new is taken in
MOST_NUMBER = 1 << 53
NAME_CHARACTERS = 100
NAMES = 64  # in one of the tables of a message


class _Pass(NamedTuple):
    """One stream of rows in a task."""

    counts: Counter[str]
    errors: Counter[str]
    complete: bool


class _Sum:
    """Of the passes of a partition that count, or of all partitions."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def add(self, passes: Mapping[str, _Pass], sign: int) -> None:
        for one in passes.values():
            for mine, its in ((self.counts, one.counts), (self.errors, one.errors)):
                for name, number in its.items():
                    mine[name] += sign * number


class Totals:
    """`best` counts each partition once, `tried` all attempts; `engines` are those inside of worker processes."""

    def __init__(self) -> None:
        self.best, self.tried = _Sum(), _Sum()
        self.engines: dict[str, dict[str, object]] = {}
        self._tasks: dict[tuple[int, int], dict[int, dict[str, _Pass]]] = {}
        self._stages: dict[int, Counter[str]] = {}
        self._passes = 0

    @property
    def stages(self) -> list[int]:
        return list(self._stages)

    def complete(self) -> int:
        """Partitions whose rows are all done."""
        return sum(stage["complete"] for stage in self._stages.values())

    def expected_rows(self, tasks: Mapping[int, int]) -> float | None:
        """How many rows the stages have, of which `tasks` says how many tasks they have. None: no basis to tell.

        The basis is the mean of the partitions that are complete, one at least of each stage.
        """
        expected = 0.0
        for number, stage in self._stages.items():
            if not stage["complete"] or number not in tasks:
                return None
            expected += max(stage["complete_rows"] / stage["complete"] * tasks[number], stage["done"])
        return expected if self._stages else None

    def take(self, said: object) -> None:
        """One message of a task. Raises ValueError where it is none."""
        if not isinstance(said, dict):
            raise ValueError("a message is a table")
        stage, partition, attempt = (_number(said.get(name)) for name in ("stage", "partition", "attempt"))
        stream = _name(said.get("stream"))
        counts = Counter({name: _number(said.get(name, 0)) for name in COUNTS})
        errors = Counter({name: _number(number) for name, number in _table(said.get("errors", {}))})
        engine = _engine(said["engine"]) if "engine" in said else None
        new = _Pass(counts, errors, said.get("complete") is True)
        attempts = self._tasks.setdefault((stage, partition), {})
        passes = attempts.setdefault(attempt, {})
        old = passes.get(stream)
        if old is not None and (old.complete or old.counts["done"] > counts["done"]):
            return
        if old is None:
            if self._passes >= MOST_PASSES:
                raise ValueError("there are too many passes")
            self._passes += 1
        self._count(stage, attempts, -1)
        self.tried.add({stream: old} if old else {}, -1)
        passes[stream] = new
        self.tried.add({stream: new}, 1)
        self._count(stage, attempts, 1)
        if engine:
            self._take_engine(engine)

    def _count(self, stage: int, attempts: dict[int, dict[str, _Pass]], sign: int) -> None:
        best = max(attempts.values(), key=_progress)
        self.best.add(best, sign)
        complete, done = _progress(best)
        self._stages.setdefault(stage, Counter()).update(
            done=sign * done, complete=sign * complete, complete_rows=sign * done * complete
        )

    def _take_engine(self, new: dict[str, object]) -> None:
        """From the first pass that told of it to the last one."""
        old = self.engines.setdefault(new["name"], new)
        old["busy"] = [min(old["busy"][0], new["busy"][0]), max(old["busy"][1], new["busy"][1])]
        old["load"] = max(old["load"], new["load"])
        old["memory"] = max(old["memory"], new["memory"])
        old["peaks"] = {name: max(peak, old["peaks"].get(name, 0)) for name, peak in new["peaks"].items()}


def _progress(passes: Mapping[str, _Pass]) -> tuple[bool, int]:
    complete = bool(passes) and all(one.complete for one in passes.values())
    return complete, sum(one.counts["done"] for one in passes.values())


def _engine(said: object) -> dict[str, object]:
    if not isinstance(said, dict) or not isinstance(said.get("busy"), list) or len(said["busy"]) != 2:
        raise ValueError("an engine is a table that says how busy it was")
    return {
        "name": _name(said.get("name")),
        "busy": [_seconds(number) for number in said["busy"]],
        "load": _seconds(said.get("load")),
        "memory": _number(said.get("memory")),
        "peaks": {name: _number(number) for name, number in _table(said.get("peaks"))},
    }


def _number(said: object) -> int:
    if type(said) is not int or not 0 <= said < MOST_NUMBER:
        raise ValueError("a count is a whole number")
    return said


def _seconds(said: object) -> float:
    if type(said) not in (int, float) or not 0 <= said < MOST_NUMBER:  # NaN is not
        raise ValueError("a time is a number of seconds")
    return float(said)


def _name(said: object) -> str:
    if not isinstance(said, str) or not 0 < len(said) <= NAME_CHARACTERS or not said.isprintable():
        raise ValueError("a name is a short string")
    return said


def _table(said: object) -> list[tuple[str, object]]:
    if not isinstance(said, dict) or len(said) > NAMES:
        raise ValueError("a table has few names")
    return [(_name(name), value) for name, value in said.items()]
