"""What callers give as rows -> a list or FlatRows: lists, arrays, columns of pandas, Arrow and polars.

A missing value, however its library spells it, becomes None, wherever it stands. What is no sequence of rows is refused
by a sentence that says what to give; what is wrong with a row is rows.py's to say.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .._core import RequestError
from .rows import FlatRows, is_missing

_READY = {str, type(None), list, tuple, np.ndarray}  # rows of these types are as they should be, or wrong


def as_rows(given: object, name: str = "texts") -> FlatRows | list[object]:
    """`given` as windows_of takes it. Raises RequestError, which calls it `name`, for what holds no rows."""
    if isinstance(given, FlatRows):
        return _flat(given)
    _refuse(given, name)
    if isinstance(given, np.ndarray):
        rows = _of_array(given, name)
    elif hasattr(given, "to_pylist"):
        rows = _of_arrow(given)
    else:
        try:
            iterator = iter(given)
        except TypeError:
            raise RequestError(f"{name} is a {type(given).__name__}; a list of rows belongs there") from None
        rows = list(iterator)
    if isinstance(rows, FlatRows) or set(map(type, rows)) <= _READY:
        return rows
    rows = [row.as_py() if hasattr(row, "as_py") else row for row in rows]
    return [None if is_missing(row) else row for row in rows]


def hold_texts(rows: FlatRows | list[object]) -> bool:
    """One call is all texts or all token ids (or features): what most of its rows are."""
    if isinstance(rows, FlatRows):
        return False
    texts = others = 0
    for kind, count in Counter(map(type, rows)).items():
        if issubclass(kind, str):
            texts += count
        elif hasattr(kind, "__len__") and not issubclass(kind, (bytes, bytearray, dict, set)):
            others += count
    return texts > 0 and texts >= others


def as_pairs(rows: FlatRows | list[object], given: object, names: tuple[str, str]) -> list[object]:
    """The second texts, one for each of the rows. Raises RequestError, which calls the two sides by `names`."""
    first, second = names
    pairs = as_rows(given, second)
    for side, name in ((rows, first), (pairs, second)):
        if isinstance(side, FlatRows) or not (hold_texts(side) or all(row is None for row in side)):
            raise RequestError(
                f"{name} has rows of token ids; a pair is two texts, as ids do not tell where the second begins"
            )
    if len(pairs) != len(rows):
        raise RequestError(f"{first} has {len(rows)} rows and {second} has {len(pairs)}; a pair has one of each")
    return pairs


def _flat(given: FlatRows) -> FlatRows:
    parts = (given.ids, given.offsets, given.nulls)
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


def _of_array(given: np.ndarray, name: str) -> FlatRows | list[object]:
    if given.ndim == 0:
        raise RequestError(f"{name} is one value, an array without dimensions; a list of rows belongs there")
    whole = not isinstance(given, np.ma.MaskedArray)  # of one that is masked, tolist() makes what is missing None
    if whole and given.ndim == 2 and given.dtype.kind in "iu":
        return FlatRows(given.reshape(-1), np.arange(given.shape[0] + 1) * given.shape[1])
    if whole and given.ndim == 3 and given.dtype.kind in "fiu":
        count, tokens, width = given.shape
        return FlatRows(given.reshape(count * tokens, width), np.arange(count + 1) * tokens)
    return given.tolist()


def _of_arrow(given: object) -> list[object]:
    """Of an Arrow array. Bytes that are no UTF-8 become what the tokeniser says BAD_UTF8 to."""
    try:
        return given.to_pylist()
    except UnicodeDecodeError:
        import pyarrow as pa

        chunks = given.chunks if isinstance(given, pa.ChunkedArray) else [given]
        raw = [cell for chunk in chunks for cell in chunk.cast(pa.large_binary()).to_pylist()]
        return [cell if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]


def _refuse(given: object, name: str) -> None:
    kind = type(given).__name__
    belongs = "a list of rows belongs there"
    if isinstance(given, (str, bytes, bytearray, memoryview)):
        raise RequestError(f"{name} is one {kind}; {belongs}: [text]")
    if type(given).__module__.startswith("pyspark."):
        raise RequestError(
            f"{name} is a {kind} of Spark; {belongs}: firesteel.embed_udf and its like make functions of "
            f"Spark's columns"
        )
    if isinstance(given, Mapping):
        raise RequestError(f"{name} is a {kind}; {belongs}: list({name}.values())")
    if isinstance(given, (set, frozenset)):
        raise RequestError(f"{name} is a {kind}, which has no order; {belongs}: sorted({name})")
    columns = _columns(given)
    if columns is not None:
        listed = ", ".join(map(_label, columns[:8])) + (", ..." if len(columns) > 8 else "")
        best = "text" if "text" in columns or not columns else columns[0]
        raise RequestError(
            f"{name} is a table, a {kind} with the columns {listed or '(none)'}; one column of it belongs there, such "
            f"as df[{_label(best)}]"
        )


def _columns(given: object) -> list[object] | None:
    """The names of a table's columns: of pandas, Arrow, polars, or an array with fields. None: it is no table."""
    if isinstance(given, np.ndarray):
        return None if given.dtype.names is None else list(given.dtype.names)
    if not hasattr(given, "columns"):
        return None
    schema = getattr(given, "schema", None)  # of Arrow's, whose `columns` are the columns themselves
    names: Sequence[object] = getattr(schema, "names", None) if hasattr(given, "num_columns") else given.columns
    try:
        return list(names)
    except TypeError:
        return None


def _label(name: object) -> str:
    return json.dumps(name, ensure_ascii=False) if isinstance(name, str) else repr(name)
