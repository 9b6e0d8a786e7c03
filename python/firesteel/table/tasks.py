"""What a job asks of the engine for a slice of rows, and what it makes of the answer. One class a task:

start   columns of a slice           -> Pending, and the faults known without the engine
wait    Pending, rows that have one  -> what array() takes, faults
array   that, rows to fill           -> Arrow array of results, a row each

cost    bytes of the results of such columns, about; exact once the request is made: held
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from .._core import RequestError
from ..engine.engine import Engine
from ..engine.pending import Pending
from ..model.labels import one_name_each
from . import columns, scores
from .job import Job

Columns = Sequence[pa.Array]
States = tuple[np.ndarray, np.ndarray]  # float32 [T, D], int64 [rows + 1]


class Embed:
    def __init__(self, job: Job, engine: Engine) -> None:
        self._engine = engine
        self._options = dict(job.request)
        self._row_bytes = 4 * engine.dimension(self._options["pooling"], self._options["dimensions"])
        settings = engine.settings
        self._kind, self._width = settings["rows"], settings["width"]
        self.limit: int = self._options["max_length"] or settings["max_length"]  # tokens that fill a row

    def cost(self, given: Columns) -> int:
        return self._row_bytes * len(given[0])

    def held(self, pending: Pending) -> int:
        return self._row_bytes * len(pending.tokens)

    def start(self, given: Columns) -> tuple[Pending, list[columns.RowError]]:
        rows, faults = _side(given[0], self._kind, self._width)
        return self._engine.start_embed(rows, **self._options), faults

    def wait(self, pending: Pending, good: np.ndarray) -> tuple[np.ndarray, list[columns.RowError]]:
        return pending.result()

    def array(self, matrix: np.ndarray, good: np.ndarray) -> pa.Array:
        return columns.vectors(matrix, good)


class Classify:
    """Texts or token ids, and second texts where there are two columns."""

    def __init__(self, job: Job, engine: Engine) -> None:
        self._engine = engine
        self._options = dict(job.request)
        self._top_k, self._scores = self._options.pop("top_k"), self._options.pop("scores")
        settings = engine.settings
        self._names: list[str] = settings["labels"]
        if self._scores is not None:
            one_name_each(self._names, settings["folder"])
        self._kind, self._width = settings["rows"], settings["width"]
        self._row_bytes = sum(8 + len(name.encode()) for name in self._names)  # of a map, the largest of all results
        self.limit: int = self._options["max_length"] or settings["max_length"]

    def cost(self, given: Columns) -> int:
        return self._row_bytes * len(given[0])

    def held(self, pending: Pending) -> int:
        return self._row_bytes * len(pending.tokens)

    def start(self, given: Columns) -> tuple[Pending, list[columns.RowError]]:
        sides, faults = _sides(given, [self._kind] * 2, self._width, "of its pair")
        return self._engine.start_classify(*sides, **self._options), faults

    def wait(self, pending: Pending, good: np.ndarray) -> tuple[np.ndarray, list[columns.RowError]]:
        return pending.result()

    def array(self, found: np.ndarray, good: np.ndarray) -> pa.Array:
        if self._scores is not None:
            return scores.by_name(found, self._names, good)
        if self._top_k is not None:
            return scores.ranked(found, self._names, good, self._top_k)
        return scores.best(found, self._names, good)


class Rerank:
    """Queries and documents."""

    def __init__(self, job: Job, engine: Engine) -> None:
        self._engine = engine
        self._options = dict(job.request)
        settings = engine.settings
        self._kind, self._width = settings["rows"], settings["width"]
        self.limit: int = self._options["max_length"] or settings["max_length"]

    def cost(self, given: Columns) -> int:
        return 4 * len(given[0])

    def held(self, pending: Pending) -> int:
        return 4 * len(pending.tokens)

    def start(self, given: Columns) -> tuple[Pending, list[columns.RowError]]:
        sides, faults = _sides(given, [self._kind] * 2, self._width, "of its document")
        return self._engine.start_rerank(*sides, **self._options), faults

    def wait(self, pending: Pending, good: np.ndarray) -> tuple[np.ndarray, list[columns.RowError]]:
        return pending.result()

    def array(self, found: np.ndarray, good: np.ndarray) -> pa.Array:
        return scores.numbers(found, good)


class HiddenStates:
    """Rows, and targets where there are two columns; the result has the tokens of the last one."""

    def __init__(self, job: Job, engine: Engine) -> None:
        self._engine = engine
        self._options = dict(job.request)
        self._output = self._options.pop("output")
        settings = engine.settings
        self._width: int = settings["width"]
        self._kinds = settings["rows"], settings["targets"]
        self.limit: int = self._options["max_length"] or settings["max_length"]

    def cost(self, given: Columns) -> int:
        return 4 * self._width * columns.tokens_of(given[-1])

    def held(self, pending: Pending) -> int:
        return 4 * self._width * int(pending.tokens.sum())

    def start(self, given: Columns) -> tuple[Pending, list[columns.RowError]]:
        if len(given) > 1 and self._kinds[1] is not None and columns.holds_texts(given[1]):
            raise RequestError(
                "the targets are string; array<int> (token ids) or array<array<float>> (features) belongs there"
            )
        sides, faults = _sides(given, self._kinds, self._width, "of its targets")
        return self._engine.start_hidden_states(*sides, **self._options), faults

    def wait(self, pending: Pending, good: np.ndarray) -> tuple[States, list[columns.RowError]]:
        flat, offsets, errors = pending.flat_result()
        if self._output != "all":
            empty = good & (np.diff(offsets) == 0)
            empty[[row for row, _, _ in errors]] = False
            none = f'the row has no tokens, and so no result for output="{self._output}"'
            errors = errors + [(row, "SCHEMA", none) for row in np.flatnonzero(empty).tolist()]
        return (flat, offsets), errors

    def array(self, states: States, good: np.ndarray) -> pa.Array:
        if self._output == "all":
            return columns.states(*states, good)
        return columns.vectors(_one_a_row(*states, self._output), good)


def _sides(
    given: Columns, kinds: Sequence[object], width: int, second: str
) -> tuple[list[object], list[columns.RowError]]:
    """One or two columns, and the faults of their rows; `second` is how a fault tells of the other one."""
    (rows, faults), *others = [_side(array, kind, width) for array, kind in zip(given, kinds, strict=False)]
    said = {row for row, _, _ in faults}
    for _, more in others:
        faults += [(row, code, f"{second}, {sentence}") for row, code, sentence in more if row not in said]
    return [rows, *(side for side, _ in others)], faults


def _side(array: pa.Array, kind: object, width: int) -> tuple[object, list[columns.RowError]]:
    """The rows, or targets, for a model that takes `kind` there: "ids", "features" or, of targets, None."""
    if not columns.holds_features(array):
        return columns.rows_of(array)
    if kind == "ids":
        raise RequestError(
            "the column holds features, array<array<float>>; the model takes texts, string, or token ids, array<int>"
        )
    return columns.features(array, width)


def _one_a_row(flat: np.ndarray, offsets: np.ndarray, which: str) -> np.ndarray:
    """float32 [rows, D]: the first or last token of each row, or the mean of all, NaN where it has none."""
    made = np.full((len(offsets) - 1, flat.shape[1]), np.nan, np.float32)
    there = np.diff(offsets) > 0
    first, behind = offsets[:-1][there], offsets[1:][there]
    if which == "first":
        made[there] = flat[first]
    elif which == "last":
        made[there] = flat[behind - 1]
    elif len(first):  # one token after the other, in fp64: the same bits whatever else is in the slice
        made[there] = np.add.reduceat(flat, first, axis=0, dtype=np.float64) / (behind - first)[:, None]
    return made


def arrow_type(job: Job) -> pa.DataType:
    """Of what `array` gives."""
    request = dict(job.request)
    if job.task == "rerank":
        return scores.NUMBER
    if job.task == "classify" and request["scores"] is not None:
        return scores.SCORES
    if job.task == "classify":
        return scores.LABEL if request["top_k"] is None else scores.LABELS
    return columns.STATES if request.get("output") == "all" else columns.FLOATS


TASKS: dict[str, type[Embed | Classify | Rerank | HiddenStates]] = {
    "embed": Embed,
    "classify": Classify,
    "rerank": Rerank,
    "hidden_states": HiddenStates,
}
