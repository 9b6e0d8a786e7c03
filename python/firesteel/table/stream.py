"""What a worker runs: batches in, results out, in order, with many requests outstanding.

    batches -> slices of at most Window.room() rows -> requests (tasks.py) -> waiting (oldest first) -> result, in order

The consumer pulls, so nothing is read, tokenised or computed that the window does not allow. When the consumer stops
early (`limit`, a cancelled task) or a row fails the task, what is outstanding is cancelled.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from .._core import RequestError
from ..engine.engine import Engine
from ..engine.pending import Pending
from ..model.locate import Located
from . import columns
from .counters import Silent
from .job import Job
from .tasks import TASKS
from .window import Window

SLICE_BYTES = 4 << 20  # of its columns or its results: a slice of long rows has fewer of them
CHECKED_ROWS = 1000  # max_errors speaks from this row of a partition on

Batch = TypeVar("Batch")  # whatever has a length and slice(begin, rows)
Attach = Callable[[Located, tuple[tuple[str, object], ...]], AbstractContextManager[Engine]]


@dataclass(frozen=True)  # no NamedTuple: before Python 3.11 those cannot be generic
class _Piece(Generic[Batch]):
    batch: Batch  # a batch, or a slice of one, as it came
    columns: list[pa.Array]  # readable

    def slice(self, begin: int, rows: int) -> _Piece[Batch]:
        return _Piece(self.batch.slice(begin, rows), [array.slice(begin, rows) for array in self.columns])

    @property
    def rows(self) -> int:
        return len(self.columns[0])

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.columns)


class _Waiting(NamedTuple):
    piece: _Piece
    pending: Pending
    faults: list[columns.RowError]  # known before the engine saw the rows
    size: int  # bytes it holds, in the window's account


def stream(
    job: Job,
    batches: Iterable[Batch],
    attach: Attach,
    given: Callable[[Batch], Sequence[pa.Array]],
    names: Sequence[str],
    counters: Silent | None = None,
) -> Iterator[tuple[Batch, pa.Array]]:
    """(slice of a batch, result array) for every row of `batches`, in order; the slices are smaller than the batches.

    `given` are the input columns of a batch, `names` is how errors call them. Without a row no engine is opened.
    `counters` are told of all rows.
    """
    window = Window()
    waiting: deque[_Waiting] = deque()
    tally = _Tally(job)
    pieces = _read(batches, given, names)
    counters = counters or Silent()
    first = next(pieces, None)
    if first is None:
        counters.end(complete=True)
        return
    complete = False
    with attach(job.model, job.engine) as engine:
        ask = _Ask(job, engine, counters)
        counters.begin(None if job.shared else engine)
        slices = _slices(chain([first], pieces), ask, window)
        try:
            while True:
                while window.room() and (piece := next(slices, None)) is not None:
                    counters.came(piece.rows)
                    waiting.append(ask.start(piece))
                    window.take(piece.rows, waiting[-1].size)
                if not waiting:
                    complete = True
                    return
                result = ask.finish(waiting[0], tally)
                done = waiting.popleft()
                window.give(done.piece.rows, done.size)
                yield done.piece.batch, result
        finally:
            for one in waiting:
                one.pending.cancel()
            counters.end(complete)


def _read(
    batches: Iterable[Batch], given: Callable[[Batch], Sequence[pa.Array]], names: Sequence[str]
) -> Iterator[_Piece[Batch]]:
    """The batches that have rows, with their columns."""
    for batch in batches:
        found = [columns.readable(array, name) for array, name in zip(given(batch), names, strict=False)]
        if len(found[0]):
            yield _Piece(batch, found)


def _slices(pieces: Iterable[_Piece[Batch]], ask: _Ask, window: Window) -> Iterator[_Piece[Batch]]:
    """Small pieces of each. Ask only while the window has room."""
    for piece in pieces:
        begin = 0
        while begin < piece.rows:
            rows = min(window.room(), piece.rows - begin)
            while rows > 1 and ask.cost(piece.slice(begin, rows)) > SLICE_BYTES:
                rows //= 2
            yield piece.slice(begin, rows)
            begin += rows


class _Ask:
    """Turns slices into requests and requests into result arrays."""

    def __init__(self, job: Job, engine: Engine, counters: Silent) -> None:
        self._counters = counters
        self._details = job.details
        self._task = TASKS[job.task](job, engine)

    def cost(self, piece: _Piece) -> int:
        return max(piece.nbytes, self._task.cost(piece.columns))

    def start(self, piece: _Piece) -> _Waiting:
        pending, faults = self._task.start(piece.columns)
        carried = getattr(piece.batch, "nbytes", 0)  # columns that nothing is computed from wait as well
        return _Waiting(piece, pending, faults, max(piece.nbytes, carried) + self._task.held(pending))

    def finish(self, waiting: _Waiting, tally: _Tally) -> pa.Array:
        good = columns.valid(waiting.piece.columns[0])
        for array in waiting.piece.columns[1:]:
            good &= columns.valid(array)
        nulls = ~good
        found, errors = self._task.wait(waiting.pending, good)
        if waiting.faults:  # a row that one of them found null was not computed, whatever stood beside it
            known = {row for row, _, _ in waiting.faults}
            errors = [error for error in errors if error[0] not in known] + waiting.faults
        errors = sorted(error for error in errors if good[error[0]])
        self._counters.done(good, errors, waiting.pending)
        tally.add(good, errors)
        good[[row for row, _, _ in errors]] = False
        results = self._task.array(found, good)
        if self._details:
            tokens = waiting.pending.tokens
            return columns.details(results, nulls, errors, tokens, tokens >= self._task.limit)
        return results


class _Tally:
    """Faulty rows of this partition, and when they are too many."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._seen = 0  # rows, nulls among them: where in the partition a row stands
        self._computed = 0
        self._faulty: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def add(self, good: np.ndarray, errors: list[columns.RowError]) -> None:
        """`good` bool [rows]: those not null. Raises RequestError where the job says that a fault fails the task."""
        if errors and self._job.on_error == "fail":
            row, code, sentence = errors[0]
            raise RequestError(
                f'row {self._seen + row} of the partition ({code}): {sentence}; on_error="null" makes such rows null'
            )
        self._seen += len(good)
        self._computed += int(good.sum())
        for _, code, sentence in errors:
            self._faulty[code] += 1
            self._example.setdefault(code, sentence)
        faulty = self._faulty.total()
        if self._computed >= CHECKED_ROWS and faulty > self._job.max_errors * self._computed:
            code, times = self._faulty.most_common(1)[0]
            raise RequestError(
                f"{faulty} of the first {self._computed} rows of the partition cannot be computed, and max_errors is "
                f"{self._job.max_errors:g}; {times} of them are {code}, as: {self._example[code]}"
            )
