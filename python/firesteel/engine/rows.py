"""Rows, a list or FlatRows, in windows that the C engine takes: flat arrays of token ids or features, and offsets.

The first window is small and each next one twice as large. What is wrong with a row is told as a value, (row, code,
sentence), and the row is left out; nothing here waits or computes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .._core import RequestError
from ..model.tokenizer import TYPE_BITS, RowError, Tokenizer, Truncate

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


def encoded(
    tokenizer: Tokenizer,
    texts: list[object],
    limit: int,
    truncate: Truncate,
    prompt: str,
    pairs: list[object] | None = None,
    typed: bool = True,
) -> Window:
    """pairs: second texts, one a row; a row of which either is None is null. typed: whether the model has more than one
    type of token; one that has not takes both texts alike, whatever its tokenizer says."""
    live = None
    nulls: np.ndarray | bool = False
    sides = [texts] if pairs is None else [texts, pairs]
    if any(type(None) in set(map(type, side)) for side in sides):
        nulls = np.any([[text is None for text in side] for side in sides], axis=0)
        live = np.flatnonzero(~nulls)
        sides = [[side[row] for row in live] for side in sides]
    texts, *seconds = sides
    ids, offsets, errors = tokenizer.encode(texts, limit, truncate, prompt, *seconds)
    if seconds and not typed:
        ids &= (1 << TYPE_BITS) - 1
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
    if kind == "ids" and ids.size and (int(ids.max()) >> TYPE_BITS or ids.dtype != np.int32):
        # What does not fit, or would be a token's type, is in no vocabulary; the engine checks more.
        for at in np.flatnonzero((ids < -(2**31)) | (ids >= 1 << TYPE_BITS)).tolist():
            row = int(np.searchsorted(offsets, at, side="right")) - 1
            if good[row]:
                sentence = f"the row has the token id {ids[at]} at place {at - offsets[row]}, which is in no vocabulary"
                errors.append((row, "SCHEMA", sentence))
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


def is_missing(value: object) -> bool:
    """None, NaN and NaT, and what pandas has for them."""
    if isinstance(value, (float, np.floating, np.datetime64, np.timedelta64)):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _flat_ids(rows: list[object], errors: list[RowError], width: int) -> FlatRows:
    """Lists of token ids, one array a row, laid one after the other. What is no such list gets an error and no ids."""
    nothing = np.empty(0, np.int64)
    flat, nulls = [], np.zeros(len(rows), bool)
    for number, row in enumerate(rows):
        ids = nothing
        if row is None:
            nulls[number] = True
        else:
            found = _numbers_of(row)
            if found is None:
                wanted = "a list of token ids" if isinstance(row, str) else "a text (str) or a list of token ids"
                sentence = f"the row is a {type(row).__name__}; {wanted} belongs there"
                errors.append((number, "SCHEMA", sentence))
            elif found.ndim != 1 or (found.size and (found.dtype.kind not in "iu" or _has_bools(row))):
                errors.append((number, "SCHEMA", _no_ids(row, found)))
            elif found.size:
                # of uint64 NumPy would make floats of the others
                ids = np.minimum(found, 2**62).astype(np.int64) if found.dtype == np.uint64 else found
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
        else:
            found = _numbers_of(row)
            if found is None:
                sentence = f"the row is a {type(row).__name__}; numbers [tokens, {width}] belong there"
                errors.append((number, "SCHEMA", sentence))
            elif found.shape != (0,):
                if found.ndim != 2 or found.shape[1] != width or found.dtype.kind not in "fiu":
                    errors.append((number, "SCHEMA", _no_features(found, width)))
                else:
                    features = found
        flat.append(features.astype(np.float32, copy=False))
    return _laid(flat, nothing, nulls)


def _numbers_of(row: object) -> np.ndarray | None:
    """The row as an array, of objects where it is ragged or mixed; None: it is no list."""
    if isinstance(row, (str, bytes, bytearray, memoryview)) or not hasattr(row, "__len__"):
        return None
    if isinstance(row, np.ma.MaskedArray):
        row = row.tolist()  # what is masked is None there
    try:
        found = np.asarray(row)
        if found.dtype == object and found.ndim == 1:  # of numbers perhaps, as of pandas' Int64
            found = np.asarray(found.tolist())
    except (ValueError, OverflowError, TypeError):
        found = np.empty(len(row), object)
    return found if found.ndim else None


def _has_bools(row: object) -> bool:
    return isinstance(row, (list, tuple)) and bool in set(map(type, row))  # NumPy makes numbers of them beside numbers


def _no_ids(row: object, found: np.ndarray) -> str:
    if found.ndim > 1 and found.dtype.kind in "fiub":
        return f"the row is of shape {list(found.shape)} and type {found.dtype}; the model takes token ids [tokens]"
    items = row.to_pylist() if hasattr(row, "to_pylist") else row.tolist() if isinstance(row, np.ndarray) else row
    for place, item in enumerate(items):
        if is_missing(item):
            return f"the row has null at place {place}; token ids, whole numbers, belong there"
        if isinstance(item, (bool, np.bool_)) or not isinstance(item, (int, np.integer)):
            what = f"the {type(item).__name__} {reprlib.repr(item)}"
            return f"the row has {what} at place {place}; token ids, whole numbers, belong there"
        if not -(2**63) <= item < 2**63:
            return f"the row has the token id {item} at place {place}, which is in no vocabulary"
    return "the row is no flat list of whole numbers that fit into 64 bits"


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
        raise RequestError("the rows are features; the model takes token ids, whole numbers [tokens]")
    if kind == "features" and (flat.ndim != 2 or flat.shape[1] != width):
        what = "are token ids" if flat.ndim == 1 else f"have {flat.shape[1]} numbers a token"
        raise RequestError(f"the rows {what}; the model takes features, numbers [tokens, {width}]")


def windows_of(
    rows: FlatRows | list[object],
    texts: bool,
    features: Sequence[list[object]] = (),
    width: int = 0,
    pairs: list[object] | None = None,
) -> Iterator[tuple[int, int]]:
    """features: of rows and targets those that are lists of features of this width, which will be copied together.
    pairs: second texts, one a row."""
    begin, most = 0, FIRST_WINDOW
    while begin < len(rows):
        end = min(len(rows), begin + most)
        if texts:
            sizes = _characters(rows[begin:end])
            if pairs is not None:
                sizes += _characters(pairs[begin:end])
            end = begin + _fitting(sizes, WINDOW_CHARACTERS)
        for side in features:
            sizes = [width * _length(row) for row in side[begin:end]]
            end = begin + _fitting(sizes, WINDOW_FLOATS)
        yield begin, end
        begin, most = end, min(2 * most, LAST_WINDOW)


def _characters(texts: list[object]) -> np.ndarray:
    return np.array([len(text) if isinstance(text, str) else 0 for text in texts], np.int64)


def _length(row: object) -> int:
    try:
        return len(row)
    except TypeError:  # an array without dimensions has the method, too
        return 0


def _fitting(sizes: Sequence[int] | np.ndarray, most: int) -> int:
    """How many of the first ones fit together, one in any case."""
    return max(1, int(np.searchsorted(np.cumsum(sizes, dtype=np.int64), most, side="right")))
