"""Rows on their way to an engine, and what comes of them.

A request is cut into windows of rows; each becomes a job of the C engine, which writes into an array made up front.
What is wrong with a row is a value beside the result; `result_or_error` makes an exception of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from .. import _core
from .._core import RequestError
from ..model.tokenizer import RowError
from .rows import Window

LISTED_ROWS = 20  # bad rows that a RequestError spells out


class Pending:
    """Rows on their way. `tokens` int32 [rows]: what each row costs, 0 where it is null or has a fault.

    Dropping it without asking for the result cancels what has not run.
    """

    def __init__(
        self,
        task: str,
        rows: int,
        width: int,
        empty: Callable[[int, int], np.ndarray],
        finish: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._empty = empty  # [rows, width]: where results are written
        self._finish = finish  # what becomes of them at last
        self.tokens = np.zeros(rows, np.int32)
        self.nulls = np.zeros(rows, bool)
        self._whole = task != "hidden_states"  # one vector a row
        self._width = width
        self._parts: list[_Part] = []
        self._errors: list[RowError] = []
        self._lock = threading.Lock()
        self._collected: tuple[np.ndarray | list[np.ndarray], list[RowError]] | None = None
        # One array for all windows; rows that are not computed are NaN, so that none is taken for a vector.
        self._vectors = empty(rows, width) if self._whole else plain_empty(0, 0)

    def __reduce__(self) -> str:
        raise RequestError(
            "rows on their way live in the process that asked for them, and can be neither pickled nor copied: ask for "
            "their result, or ask inside the function that runs elsewhere"
        )

    def result(self) -> tuple[np.ndarray | list[np.ndarray], list[RowError]]:
        """Waits. (float32 [rows, dimension], [(row, row code, sentence), ...]); null and faulty rows are NaN.
        Of `classify` they are [rows, labels], of `rerank` [rows].

        Raises what failed the whole request: DeviceError, OutOfMemory, RequestError after `cancel`. Ctrl-C cancels.
        """
        self._wait()
        with self._lock:
            if self._collected is None:
                self._collected = self._collect()
            return self._collected

    def flat_result(self) -> tuple[np.ndarray, np.ndarray, list[RowError]]:
        """As `result`, for hidden states, and without an object a row: they lie one after the other.

        (float32 [T, hidden], int64 [rows + 1], where the tokens of each row begin and end, errors). Null and faulty
        rows have no tokens.
        """
        self._wait()
        with self._lock:
            return self._collect_flat()

    @property
    def known(self) -> tuple[int, int]:
        """Rows, once there is a result: (that a manager knew from before, that were copied from an equal row)."""
        jobs = [part.job for part in self._parts]
        return sum(job.hits for job in jobs), sum(job.duplicates for job in jobs)

    def cancel(self) -> None:
        """Takes what has not run out of the queue; afterwards nothing writes to the result any more."""
        for part in reversed(self._parts):  # a job waits for its batches that run; cancelled later, it would start more
            part.job.cancel()

    def _submit(self, core: _core.Engine, begin: int, end: int, window: Window, options: Mapping[str, object]) -> None:
        """Queues rows [begin, end), of which `window` holds those that can be computed."""
        self._errors += [(begin + row, code, sentence) for row, code, sentence in window.errors]
        self.nulls[begin:end] = window.nulls
        count = len(window.offsets) - 1
        rows = np.arange(begin, end) if window.rows is None else begin + window.rows
        self.tokens[rows] = np.diff(window.offsets)
        told = {}
        counted = window.offsets  # whose tokens the result has
        if window.targets is not None:
            counted = window.targets.offsets
            self.tokens[rows] += np.diff(counted).astype(np.int32)
            told = {"targets": window.targets.ids, "target_offsets": counted}
        if not self._whole:
            out = self._empty(int(counted[-1]), self._width)
        elif count == end - begin:
            out = self._vectors[begin:end]
        else:
            self._vectors[begin:end] = np.nan
            out = self._empty(count, self._width)
        if count:
            job = core.submit(window.ids, window.offsets, out, **options, **told)
            self._parts.append(_Part(job, rows, counted, out))

    def _collect(self) -> tuple[np.ndarray | list[np.ndarray], list[RowError]]:
        errors = list(self._errors)
        states = [np.empty((0, self._width), np.float32)] * len(self.tokens)
        for part in self._parts:
            failed = [(int(part.rows[row]), code, sentence) for row, code, sentence in part.job.errors]
            errors += failed
            if not self._whole:
                for row, begin, end in zip(part.rows, part.offsets, part.offsets[1:], strict=False):
                    states[row] = part.out[begin:end]
            elif not np.may_share_memory(part.out, self._vectors):
                self._vectors[part.rows] = part.out
            for row, _, _ in failed:
                self.tokens[row] = 0
                if self._whole:
                    self._vectors[row] = np.nan
        found = self._vectors if self._whole else states
        return found if self._finish is None else self._finish(found), sorted(errors)

    def _wait(self) -> None:
        try:
            for part in self._parts:
                part.job.wait()
        except BaseException:
            self.cancel()
            raise

    def _collect_flat(self) -> tuple[np.ndarray, np.ndarray, list[RowError]]:
        errors = list(self._errors)
        lengths = np.zeros(len(self.tokens), np.int64)
        flat = []
        for part in self._parts:  # in the order of their rows
            sizes, states = np.diff(part.offsets), part.out
            if failed := part.job.errors:
                good = np.ones(len(sizes), bool)
                good[[row for row, _, _ in failed]] = False
                states, sizes = states[np.repeat(good, sizes)], sizes * good
                self.tokens[part.rows[~good]] = 0
                errors += [(int(part.rows[row]), code, sentence) for row, code, sentence in failed]
            lengths[part.rows] = sizes
            flat.append(states)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        if len(flat) == 1:
            return flat[0], offsets, sorted(errors)
        return np.concatenate([np.empty((0, self._width), np.float32), *flat]), offsets, sorted(errors)


class _Part(NamedTuple):
    job: _core.Job
    rows: np.ndarray  # int64, where its rows stand in the request
    offsets: np.ndarray
    out: np.ndarray


def result_or_error(pending: Pending) -> np.ndarray | list[np.ndarray]:
    found, errors = pending.result()
    none = "the row is missing (None, NaN or NA); a text or a list of token ids belongs there"
    errors = sorted(errors + [(row, "SCHEMA", none) for row in np.flatnonzero(pending.nulls).tolist()])
    if not errors:
        return found
    listed = "; ".join(f"row {row} ({code}): {sentence}" for row, code, sentence in errors[:LISTED_ROWS])
    rest = f"; and {len(errors) - LISTED_ROWS} more" if len(errors) > LISTED_ROWS else ""
    failure = RequestError(f"{len(errors)} of {len(pending.tokens)} rows cannot be computed: {listed}{rest}")
    failure.rows = errors
    raise failure


def plain_empty(rows: int, width: int) -> np.ndarray:
    return np.empty((rows, width), np.float32)
