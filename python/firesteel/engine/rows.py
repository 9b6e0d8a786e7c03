"""Rows as callers give them, in windows that the C engine takes: flat arrays of token ids or features, and offsets.

The first window is small and each next one twice as large. What is wrong with a row is told as a value, (row, code,
sentence), and the row is left out; nothing here waits or computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .._core import RequestError
from ..model.tokenizer import RowError, Tokenizer

FIRST_WINDOW = 256  # rows; the next ones double, up to
LAST_WINDOW = 4096
WINDOW_CHARACTERS = 1 << 20  # the tokeniser needs some 50 bytes for each while it works
WINDOW_FLOATS = 1 << 22  # features are copied together


@dataclass(frozen=True)
class FlatRows:
    """Rows of token ids, or features, that already lie one after the other, as an Arrow list column does."""

    ids: np.ndarray  # integers [T], or of a model that takes features: floats [T, width]
    offsets: np.ndarray  # integers [rows + 1], ascending, inside ids
    nulls: np.ndarray | None = None  # bool [rows]

    def __len__(self) -> int:
        return len(self.offsets) - 1


Rows = Sequence[object] | np.ndarray | FlatRows


class Window(NamedTuple):
    """Some consecutive rows, tokenised: those that can be computed, packed, and why the others cannot."""

    ids: np.ndarray  # int32 [T], or features, float32 [T, width]
    offsets: np.ndarray  # int64 [computable rows + 1]
    rows: np.ndarray | None  # int64, which rows of the window these are; None: all
    nulls: np.ndarray | bool  # bool [rows], or one answer for all
    errors: list[RowError]
    targets: FlatRows | None = None  # of the same rows


def encoded(tokenizer: Tokenizer, texts: list[object], limit: int, truncate: bool, prompt: str) -> Window:
    live = None
    nulls: np.ndarray | bool = False
    if None in texts:
        nulls = np.fromiter((text is None for text in texts), bool, len(texts))
        live = np.flatnonzero(~nulls)
        texts = [text for text in texts if text is not None]
    ids, offsets, errors = tokenizer.encode(texts, limit, truncate, prompt)
    if errors:
        good = np.ones(len(texts), bool)
        good[[row for row, _, _ in errors]] = False
        if live is None:
            live = np.arange(len(texts))
        errors = [(int(live[row]), code, sentence) for row, code, sentence in errors]
        live = live[good]
        offsets = np.append(offsets[:-1][good], offsets[-1])  # rows with an error have no tokens
    return Window(ids, offsets, live, nulls, errors)


def window_of(rows: FlatRows | list[object], begin: int, end: int, limit: int | None, kind: str, width: int) -> Window:
    """Rows [begin, end) of `kind`, "ids" or "features" of that width; limit: tokens a row may have."""
    errors: list[RowError] = []
    if isinstance(rows, FlatRows):
        _check_kind(rows.ids, kind, width)
    else:
        flat = _flat_ids if kind == "ids" else _flat_features
        rows, begin, end = flat(rows[begin:end], errors, width), 0, end - begin
    offsets = rows.offsets[begin : end + 1].astype(np.int64)
    ids = rows.ids[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    lengths = np.diff(offsets)
    good = np.ones(end - begin, bool)
    good[[row for row, _, _ in errors]] = False
    nulls = np.zeros(end - begin, bool) if rows.nulls is None else rows.nulls[begin:end]
    good[nulls] = False
    for row in np.flatnonzero(good & (lengths > (limit or np.inf))).tolist():
        errors.append((row, "TOO_LONG", f"the row has {lengths[row]} tokens; the limit is {limit}"))
        good[row] = False
    if kind == "ids" and ids.dtype != np.int32:  # what does not fit cannot be in any vocabulary; the engine checks more
        for at in np.flatnonzero((ids < -(2**31)) | (ids >= 2**31)).tolist():
            row = int(np.searchsorted(offsets, at, side="right")) - 1
            if good[row]:
                errors.append((row, "SCHEMA", f"the row has the token id {ids[at]}, which is in no vocabulary"))
                good[row] = False
    dtype = np.int32 if kind == "ids" else np.float32
    if good.all():
        return Window(np.ascontiguousarray(ids, dtype), offsets, None, nulls, errors)
    ids, offsets = _picked(ids, offsets, good)
    return Window(np.ascontiguousarray(ids, dtype), offsets, np.flatnonzero(good), nulls, errors)


def _picked(ids: np.ndarray, offsets: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ids and offsets of the rows that are `good`."""
    lengths = np.diff(offsets)
    return ids[np.repeat(good, lengths)], np.concatenate(([0], np.cumsum(lengths[good])))


def joined(rows: Window, targets: Window, count: int) -> Window:
    """The rows of which both sides can be computed. A row of which either side is None is null."""
    sides = []
    both = np.ones(count, bool)
    for side in (rows, targets):
        have = np.ones(count, bool)
        if side.rows is not None:
            have[:] = False
            have[side.rows] = True
        sides.append((side, have))
        both &= have
    (ids, offsets), (target_ids, target_offsets) = (
        (side.ids, side.offsets) if have.sum() == both.sum() else _picked(side.ids, side.offsets, both[have])
        for side, have in sides
    )
    nulls = np.zeros(count, bool) | rows.nulls | targets.nulls
    said = {row for row, _, _ in rows.errors}
    errors = rows.errors + [
        (row, code, f"of its targets, {sentence}") for row, code, sentence in targets.errors if row not in said
    ]
    errors = [error for error in errors if not nulls[error[0]]]
    which = None if both.all() else np.flatnonzero(both)
    return Window(ids, offsets, which, nulls, errors, FlatRows(target_ids, target_offsets))


def _flat_ids(rows: list[object], errors: list[RowError], width: int) -> FlatRows:
    """Lists of token ids, one array a row, laid one after the other. What is no such list gets an error and no ids."""
    nothing = np.empty(0, np.int64)
    flat, nulls = [], np.zeros(len(rows), bool)
    for number, row in enumerate(rows):
        ids = nothing
        if row is None:
            nulls[number] = True
        elif isinstance(row, (str, bytes, bytearray)) or not hasattr(row, "__len__"):
            errors.append((number, "SCHEMA", f"the row is a {type(row).__name__}; a list of token ids belongs there"))
        elif len(row):
            try:
                ids = np.asarray(row)
                if ids.dtype == np.uint64:  # would make floats of the others
                    ids = np.minimum(ids, 2**62).astype(np.int64)
            except (ValueError, OverflowError, TypeError):
                ids = np.empty(0)
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                ids = nothing
                errors.append((number, "SCHEMA", "the row is no flat list of whole numbers that fit into 64 bits"))
        flat.append(ids)
    return _laid(flat, nothing, nulls)


def _flat_features(rows: list[object], errors: list[RowError], width: int) -> FlatRows:
    """Arrays of numbers [tokens, width], laid one after the other; what is no such array gets an error."""
    nothing = np.empty((0, width), np.float32)
    flat, nulls = [], np.zeros(len(rows), bool)
    for number, row in enumerate(rows):
        features = nothing
        if row is None:
            nulls[number] = True
        elif isinstance(row, (str, bytes, bytearray)) or not hasattr(row, "__len__"):
            sentence = f"the row is a {type(row).__name__}; numbers [tokens, {width}] belong there"
            errors.append((number, "SCHEMA", sentence))
        elif len(row):
            try:
                features = np.asarray(row)
            except (ValueError, OverflowError, TypeError):
                features = np.empty(0, object)
            if features.ndim != 2 or features.shape[1] != width or features.dtype.kind not in "fiu":
                errors.append((number, "SCHEMA", _no_features(features, width)))
                features = nothing
        flat.append(features.astype(np.float32, copy=False))
    return _laid(flat, nothing, nulls)


def _no_features(found: np.ndarray, width: int) -> str:
    shape = f"of shape {list(found.shape)} and type {found.dtype}" if found.dtype != object else "of no one shape"
    return f"the row is {shape}; the model takes features, numbers [tokens, {width}]"


def _laid(flat: list[np.ndarray], nothing: np.ndarray, nulls: np.ndarray) -> FlatRows:
    offsets = np.zeros(len(flat) + 1, np.int64)
    np.cumsum([len(part) for part in flat], out=offsets[1:])
    return FlatRows(np.concatenate(flat) if flat else nothing, offsets, nulls)


def _check_kind(flat: np.ndarray, kind: str, width: int) -> None:
    """FlatRows are one array, so what is wrong with it is wrong with all rows."""
    if kind == "ids" and flat.ndim != 1:
        raise RequestError("FlatRows holds features; the model takes token ids, whole numbers [tokens]")
    if kind == "features" and (flat.ndim != 2 or flat.shape[1] != width):
        raise RequestError(
            f"FlatRows holds an array of shape {list(flat.shape)}; the model takes features, numbers [tokens, {width}]"
        )


def as_rows(rows: object) -> FlatRows | list[object]:
    if isinstance(rows, FlatRows):
        parts = (rows.ids, rows.offsets, rows.nulls)
        ids, offsets, nulls = (None if part is None else np.asarray(part) for part in parts)
        numbers = (ids.ndim == 1 and ids.dtype.kind in "iu") or (ids.ndim == 2 and ids.dtype.kind in "fiu")
        if not numbers or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
            raise RequestError("FlatRows takes flat arrays of whole numbers, ids and offsets; features are [T, width]")
        ascending = len(offsets) > 0 and offsets[0] >= 0 and not (np.diff(offsets.astype(np.int64)) < 0).any()
        if not ascending or offsets[-1] > len(ids):
            raise RequestError(f"FlatRows' offsets do not ascend from 0 on, to {len(ids)} ids at most")
        if nulls is not None and (nulls.dtype != bool or nulls.shape != (len(offsets) - 1,)):
            raise RequestError(f"FlatRows' nulls must be bool [{len(offsets) - 1}], one a row")
        return FlatRows(ids, offsets, nulls)
    if isinstance(rows, (str, bytes)):
        raise RequestError(f"texts is one {type(rows).__name__}; a list of rows belongs there: [text]")
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind in "iu":
        return FlatRows(rows.reshape(-1), np.arange(rows.shape[0] + 1) * rows.shape[1])
    if isinstance(rows, np.ndarray) and rows.ndim == 3 and rows.dtype.kind in "fiu":
        count, tokens, width = rows.shape
        return FlatRows(rows.reshape(count * tokens, width), np.arange(count + 1) * tokens)
    try:
        return list(rows.tolist() if isinstance(rows, np.ndarray) else rows)
    except TypeError:
        raise RequestError(f"texts is a {type(rows).__name__}; a list of rows belongs there") from None


def hold_texts(rows: FlatRows | list[object]) -> bool:
    """One call is all texts or all token ids; the first row that is not null decides."""
    return not isinstance(rows, FlatRows) and isinstance(next((row for row in rows if row is not None), None), str)


def windows_of(
    rows: FlatRows | list[object], texts: bool, features: Sequence[list[object]] = (), width: int = 0
) -> Iterator[tuple[int, int]]:
    """features: of rows and targets those that are lists of features of this width, which will be copied together."""
    begin, most = 0, FIRST_WINDOW
    while begin < len(rows):
        end = min(len(rows), begin + most)
        if texts:
            sizes = [len(text) if isinstance(text, str) else 0 for text in rows[begin:end]]
            end = begin + _fitting(sizes, WINDOW_CHARACTERS)
        for side in features:
            sizes = [width * len(row) if hasattr(row, "__len__") else 0 for row in side[begin:end]]
            end = begin + _fitting(sizes, WINDOW_FLOATS)
        yield begin, end
        begin, most = end, min(2 * most, LAST_WINDOW)


def _fitting(sizes: Sequence[int], most: int) -> int:
    """How many of the first ones fit together, one in any case."""
    return max(1, int(np.searchsorted(np.cumsum(sizes, dtype=np.int64), most, side="right")))
