"""All conversions between Arrow, pandas and what an engine takes and gives. Nothing here knows Spark.

    Arrow string or array<int>  -> readable -> rows_of   -> list of str | None, or FlatRows (no Python object a row)
    array<array<float>>         -> readable -> features  -> FlatRows
    float32 [rows, D]           -> vectors               -> array<float>: the very buffer, not a copy
    float32 [T, D], offsets     -> states                -> array<array<float>>: the very buffer as well
    either of these             -> details               -> struct<result, error_code, error, prompt_tokens, ...>

Through pandas, which Spark needs before 4.1, a vector becomes an object: some 60 us a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from .._core import RequestError
from ..engine.rows import FlatRows

if TYPE_CHECKING:
    import pandas as pd

RowError = tuple[int, str, str]  # row, row code, sentence

FLOATS = pa.list_(pa.field("element", pa.float32()))  # as Spark names the field, so that nothing is cast on the way
STATES = pa.list_(pa.field("element", FLOATS))
MOST_FLOATS = 2**31 - 1  # in one array of results: its offsets are int32

_SPARK_NAMES = {"int8": "tinyint", "int16": "smallint", "int32": "int", "int64": "bigint", "bool": "boolean"} | {
    "date32[day]": "date"
}


def details_type(result: pa.DataType) -> pa.StructType:
    """What `details` gives for results of this type."""
    return pa.struct(
        [
            ("result", result),
            ("error_code", pa.string()),
            ("error", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("completion_tokens", pa.int32()),
            ("finish_reason", pa.string()),
        ]
    )


# --- in --------------------------------------------------------------------------------------------------------------


def readable(array: pa.Array, column: str = "the column") -> pa.Array:
    """The column as rows_of and features take it: string, large_string, a list of integers, or a list of lists of
    numbers; all null where its type is.

    Raises RequestError for every other type, naming `column`.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return readable(array.dictionary_decode(), column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.string())
    if _is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)):
        return array
    if holds_features(array) and _is_number(kind.value_type.value_type):
        return array
    if str(kind) == "string_view":
        return array.cast(pa.large_string())
    raise RequestError(
        f"{column} is {_type_name(kind)}; string (text) or array<int> (token ids), or for models that take features "
        f"array<array<float>>, belongs there: cast it, or choose another column"
    )


def holds_texts(array: pa.Array) -> bool:
    """Of a readable column: whether its rows are texts. One that is all null has none."""
    return not _is_list(array.type) and array.null_count < len(array)


def holds_features(array: pa.Array) -> bool:
    return _is_list(array.type) and _is_list(array.type.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _type_name(kind: pa.DataType) -> str:
    """An Arrow type in Spark's words, as far as they differ."""
    if _is_list(kind):
        return f"array<{_type_name(kind.value_type)}>"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "binary"
    if pa.types.is_struct(kind):
        fields = (kind.field(place) for place in range(kind.num_fields))
        return f"struct<{', '.join(f'{field.name}:{_type_name(field.type)}' for field in fields)}>"
    if pa.types.is_map(kind):
        return f"map<{_type_name(kind.key_type)},{_type_name(kind.item_type)}>"
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz else "timestamp_ntz"
    if pa.types.is_duration(kind):
        return "interval day to second"
    return _SPARK_NAMES.get(str(kind), str(kind))


def rows_of(array: pa.Array) -> tuple[list[str | None] | FlatRows, list[RowError]]:
    """(rows for Engine.start_embed, faults). Bytes that are no UTF-8, which Spark lets pass, are a row's fault, and so
    is a null among token ids."""
    if _is_list(array.type):
        return _token_ids(array)
    try:
        return array.to_pylist(), []
    except UnicodeDecodeError:
        pass
    texts, faults = [], []
    binary = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
    for row, raw in enumerate(array.view(binary).to_pylist()):
        try:
            texts.append(None if raw is None else raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            texts.append(None)
            faults.append((row, "BAD_UTF8", f"byte {error.start} of the text is not UTF-8"))
    return texts, faults


def _token_ids(array: pa.Array) -> tuple[FlatRows, list[RowError]]:
    """(rows, faults) of array<int>: a null among the ids is a fault of its row."""
    offsets = array.offsets.to_numpy()
    ids = array.values.slice(offsets[0], offsets[-1] - offsets[0])  # `values` are of the whole buffer
    offsets = offsets - offsets[0]
    nulls = ~valid(array)
    if pa.types.is_null(ids.type):
        ids = pa.nulls(len(ids), pa.int32())
    faults: list[RowError] = []
    if ids.null_count:
        at = np.flatnonzero(~valid(ids))
        rows, first = np.unique(np.searchsorted(offsets, at, side="right") - 1, return_index=True)
        faults = [
            (row, "SCHEMA", f"the row has null at place {place}; token ids, whole numbers, belong there")
            for row, place in zip(rows.tolist(), (at[first] - offsets[rows]).tolist(), strict=True)
            if not nulls[row]
        ]
        nulls[rows] = True  # the engine has nothing to do for them
        ids = ids.fill_null(0)
    return FlatRows(ids.to_numpy(zero_copy_only=False), offsets, nulls if nulls.any() else None), faults


def features(array: pa.Array, width: int) -> tuple[FlatRows, list[RowError]]:
    """(rows, faults) of array<array<float>>: `width` numbers a token. Rows without a fault are taken as they lie."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    tokens = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    offsets -= offsets[0]
    edges = tokens.offsets.to_numpy().astype(np.int64)
    numbers = tokens.values.slice(edges[0], edges[-1] - edges[0])
    edges -= edges[0]
    if pa.types.is_null(numbers.type):
        numbers = numbers.cast(pa.float32())
    nulls = ~valid(array)
    sizes = np.diff(edges)
    bad = (sizes != width) | ~valid(tokens)
    if numbers.null_count:
        bad[np.searchsorted(edges, np.flatnonzero(~valid(numbers)), side="right") - 1] = True
    flat = numbers.to_numpy(zero_copy_only=False)
    if not bad.any():
        return FlatRows(flat.reshape(-1, width), offsets, nulls if nulls.any() else None), []
    lengths = np.diff(offsets)
    rows, first = np.unique(np.repeat(np.arange(len(array)), lengths)[bad], return_index=True)
    faults = [
        (row, "SCHEMA", _no_token(at - int(offsets[row]), tokens[at].as_py(), width))
        for row, at in zip(rows.tolist(), np.flatnonzero(bad)[first].tolist(), strict=True)
        if not nulls[row]
    ]
    nulls[rows] = True  # the engine has nothing to do for them
    flat = flat[np.repeat(np.repeat(~nulls, lengths), sizes)].reshape(-1, width)
    return FlatRows(flat, np.concatenate(([0], np.cumsum(lengths * ~nulls))), nulls), faults


def _no_token(place: int, token: list[float | None] | None, width: int) -> str:
    if token is None:
        return f"token {place} of the row is null; {width} numbers belong there"
    if len(token) != width:
        return f"token {place} of the row has {len(token)} numbers; the model takes {width}"
    return f"token {place} of the row has no number at place {token.index(None)}, but null"


def tokens_of(array: pa.Array) -> int:
    """How many tokens a readable column has, about; of a text, where nobody has counted, one for three bytes."""
    return array.nbytes // 3 if not _is_list(array.type) else int(array.offsets[-1].as_py() - array.offsets[0].as_py())


def valid(array: pa.Array) -> np.ndarray:
    """bool [rows]: where there is something to compute."""
    if not array.null_count:
        return np.ones(len(array), bool)
    return array.is_valid().to_numpy(zero_copy_only=False)


# --- out -------------------------------------------------------------------------------------------------------------


def vectors(matrix: np.ndarray, good: np.ndarray) -> pa.Array:
    """array<float> over the matrix' own memory: float32 [rows, D], C-contiguous; rows that are not `good` are null."""
    rows, width = matrix.shape
    values = pa.Array.from_buffers(pa.float32(), rows * width, [None, pa.py_buffer(matrix)])
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(width)
    return pa.Array.from_buffers(FLOATS, rows, [bitmap(good), pa.py_buffer(offsets)], children=[values])


def states(flat: np.ndarray, offsets: np.ndarray, good: np.ndarray) -> pa.Array:
    """array<array<float>> over the memory of `flat`, float32 [T, D], C-contiguous; rows that are not `good` are null.

    offsets: integers [rows + 1], where each row's tokens begin and end. Raises RequestError where Arrow cannot hold it.
    """
    if flat.size > MOST_FLOATS:
        raise RequestError(
            f"the hidden states of {len(good)} rows are {flat.size} floats, and an Arrow array holds {MOST_FLOATS}; "
            f'take output="first", "last" or "mean", or shorter rows'
        )
    tokens = vectors(flat, np.ones(len(flat), bool))
    buffers = [bitmap(good), pa.py_buffer(offsets.astype(np.int32))]
    return pa.Array.from_buffers(STATES, len(good), buffers, children=[tokens])


def details(
    results: pa.Array, nulls: np.ndarray, errors: Sequence[RowError], tokens: np.ndarray, full: np.ndarray
) -> pa.Array:
    """struct a row: the result, or why there is none; null where the row is.

    results: null where there is none. nulls bool [rows], tokens int32 [rows], full bool [rows]: max_length is filled.
    """
    rows = len(results)
    codes: list[str | None] = [None] * rows
    sentences: list[str | None] = [None] * rows
    for row, code, sentence in errors:
        codes[row], sentences[row] = code, sentence
    bad = ~valid(results)
    reasons = pa.DictionaryArray.from_arrays(pa.array(full.astype(np.int8), mask=bad), pa.array(["stop", "length"]))
    children = [
        results,
        pa.array(codes, pa.string()),
        pa.array(sentences, pa.string()),
        pa.array(tokens, pa.int32(), mask=nulls),
        pa.array(np.zeros(rows, np.int32), mask=nulls),
        reasons.dictionary_decode(),
    ]
    return pa.Array.from_buffers(details_type(results.type), rows, [bitmap(~nulls)], children=children)


def bitmap(good: np.ndarray) -> pa.Buffer | None:
    return None if good.all() else pa.py_buffer(np.packbits(good, bitorder="little"))


# --- pandas ----------------------------------------------------------------------------------------------------------


def from_series(series: pd.Series) -> pa.Array:
    """What Spark hands to a pandas UDF: strings as object or str, arrays as NumPy arrays."""
    array = pa.Array.from_pandas(series)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def to_series(array: pa.Array) -> pd.Series:
    """array<float> as one NumPy array a row, array<array<float>> as a list of them; views of one buffer, or None. What
    else there is as Python's objects: maps and structs as dict."""
    import pandas as pd

    if not _is_list(array.type) or pa.types.is_struct(array.type.value_type):
        return _objects(array)
    values, offsets = array.values, array.offsets.to_numpy()
    values = list(to_series(values)) if _is_list(values.type) else values.to_numpy()
    cells = np.empty(len(array), object)
    for row, good in enumerate(valid(array)):
        cells[row] = values[offsets[row] : offsets[row + 1]] if good else None
    return pd.Series(cells)


def in_boxes(array: pa.Array) -> pa.Array:
    """Each value in an array of its own, which is null where the value is."""
    offsets = pa.py_buffer(np.arange(len(array) + 1, dtype=np.int32))
    kind = pa.list_(pa.field("element", array.type))
    return pa.Array.from_buffers(kind, len(array), [bitmap(valid(array)), offsets], children=[array])


def to_frame(array: pa.Array) -> pd.DataFrame:
    """The struct as Spark takes it from pandas, a column a field. A null struct there has only null fields."""
    import pandas as pd

    fields = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
    return pd.DataFrame({name: to_series(field) for name, field in fields.items()})


def _objects(array: pa.Array) -> pd.Series:
    import pandas as pd

    if pa.types.is_integer(array.type):
        return pd.Series(array.to_pylist(), dtype="Int32")
    rows = array.to_pylist()
    if pa.types.is_map(array.type):
        rows = [None if row is None else dict(row) for row in rows]
    return pd.Series(rows, dtype=object)
