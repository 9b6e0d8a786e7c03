"""What a worker runs: batches in, results out, in order, with many requests outstanding.

    batches -> slices of at most Window.room() rows -> Engine.start_embed -> waiting (oldest first) -> result, in order

The consumer pulls, so nothing is read, tokenised or computed that the window does not allow. When the consumer stops
early (`limit`, a cancelled task) or a row fails the task, what is outstanding is cancelled.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from .._core import RequestError
from ..engine import Engine, Pending
from . import _columns as columns
from ._options import Job
from ._window import Window

SLICE_BYTES = 4 << 20  # a slice of long texts has fewer rows
CHECKED_ROWS = 1000  # max_errors speaks from this row of a partition on

Batch = TypeVar("Batch", pa.Array, pa.RecordBatch)
Attach = Callable[[str, tuple[tuple[str, object], ...]], AbstractContextManager[Engine]]


class _Waiting(NamedTuple):
    batch: pa.Array | pa.RecordBatch  # the slice, as it came
    array: pa.Array  # its column
    pending: Pending
    faults: list[columns.RowError]  # known before the engine saw the rows
    size: int  # bytes it holds, in the window's account


def embed(
    job: Job, batches: Iterable[Batch], attach: Attach, column: Callable[[Batch], pa.Array], name: str
) -> Iterator[tuple[Batch, pa.Array]]:
    """(slice of a batch, result array) for every row of `batches`, in order; the slices are smaller than the batches.

    `column` gives the input column of a batch, `name` is how errors call it. No engine is opened where there is no row.
    """
    window = Window()
    waiting: deque[_Waiting] = deque()
    tally = _Tally(job)
    pieces = _slices(batches, column, name, window)
    first = next(pieces, None)
    if first is None:
        return
    pieces = chain([first], pieces)
    with attach(job.model, job.engine) as engine:
        ask = _Ask(job, engine)
        try:
            while True:
                while window.room() and (piece := next(pieces, None)) is not None:
                    waiting.append(ask.start(*piece))
                    window.take(len(piece[1]), waiting[-1].size)
                if not waiting:
                    return
                result = ask.finish(waiting[0], tally)
                done = waiting.popleft()
                window.give(len(done.array), done.size)
                yield done.batch, result
        finally:
            for one in waiting:
                one.pending.cancel()


def _slices(
    batches: Iterable[Batch], column: Callable[[Batch], pa.Array], name: str, window: Window
) -> Iterator[tuple[Batch, pa.Array]]:
    """Small pieces of each batch, and their column. Ask only while the window has room."""
    for batch in batches:
        array = columns.readable(column(batch), name)
        begin = 0
        while begin < len(array):
            rows = min(window.room(), len(array) - begin)
            while rows > 1 and array.slice(begin, rows).nbytes > SLICE_BYTES:
                rows //= 2
            yield batch.slice(begin, rows), array.slice(begin, rows)
            begin += rows


class _Ask:
    """Turns slices into requests and requests into result arrays."""

    def __init__(self, job: Job, engine: Engine) -> None:
        self._job = job
        self._engine = engine
        self._options = dict(job.request)
        self._row_bytes = 4 * engine.dimension(self._options["pooling"], self._options["dimensions"])
        self._limit = self._options["max_length"] or engine.settings["max_length"]

    def start(self, batch: Batch, array: pa.Array) -> _Waiting:
        rows, faults = columns.rows_of(array)
        pending = self._engine.start_embed(rows, **self._options)
        return _Waiting(batch, array, pending, faults, array.nbytes + self._row_bytes * len(array))

    def finish(self, waiting: _Waiting, tally: _Tally) -> pa.Array:
        matrix, errors = waiting.pending.result()
        errors = sorted(waiting.faults + errors) if waiting.faults else errors
        good = columns.valid(waiting.array)
        tally.add(good, errors)
        if self._job.details:
            tokens = waiting.pending.tokens
            return columns.details(matrix, ~good, errors, tokens, tokens >= self._limit)
        good[[row for row, _, _ in errors]] = False
        return columns.vectors(matrix, good)


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
