"""All conversions between Arrow, pandas and what an engine takes and gives. Nothing here knows Spark.

    Arrow string or array<int>  -> readable -> rows_of   -> list of str | None, or FlatRows (no Python object a row)
    float32 [rows, D]           -> vectors               -> array<float>: the very buffer, not a copy
                                -> details               -> struct<result, error_code, error, prompt_tokens, ...>

Through pandas, which Spark needs before 4.1, a vector becomes an object: some 60 us a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from .._core import RequestError
from ..rows import FlatRows

if TYPE_CHECKING:
    import pandas as pd

RowError = tuple[int, str, str]  # row, row code, sentence

FLOATS = pa.list_(pa.field("element", pa.float32()))  # as Spark names the field, so that nothing is cast on the way
DETAILS = pa.struct(
    [
        ("result", FLOATS),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("finish_reason", pa.string()),
    ]
)

_SPARK_NAMES = {"int8": "tinyint", "int16": "smallint", "int32": "int", "int64": "bigint", "bool": "boolean"}


# --- in --------------------------------------------------------------------------------------------------------------


def readable(array: pa.Array, column: str = "the column") -> pa.Array:
    """The column as rows_of takes it: string, large_string, or a list of integers; all null where its type is.

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
    if str(kind) == "string_view":
        return array.cast(pa.large_string())
    raise RequestError(
        f"{column} is {_type_name(kind)}; string (text) or array<int> (token ids) belongs there: "
        f"cast it, or choose another column"
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _type_name(kind: pa.DataType) -> str:
    """An Arrow type in Spark's words, as far as they differ."""
    if _is_list(kind):
        return f"array<{_type_name(kind.value_type)}>"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "binary"
    return _SPARK_NAMES.get(str(kind), str(kind))


def rows_of(array: pa.Array) -> tuple[list[str | None] | FlatRows, list[RowError]]:
    """(rows for Engine.start_embed, faults). Bytes that are no UTF-8, which Spark lets pass, are a row's fault."""
    if _is_list(array.type):
        return _token_ids(array), []
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


def _token_ids(array: pa.Array) -> FlatRows:
    ids = array.values  # of the whole buffer: offsets are relative to it, whatever was sliced
    if pa.types.is_null(ids.type):
        ids = pa.nulls(len(ids), pa.int32())
    if ids.null_count:
        ids = ids.fill_null(-1)  # in no vocabulary, so the engine makes it a fault of the row
    nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    return FlatRows(ids.to_numpy(zero_copy_only=False), array.offsets.to_numpy(), nulls)


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
    return pa.Array.from_buffers(FLOATS, rows, [_bitmap(good), pa.py_buffer(offsets)], children=[values])


def details(
    matrix: np.ndarray, nulls: np.ndarray, errors: Sequence[RowError], tokens: np.ndarray, full: np.ndarray
) -> pa.Array:
    """struct a row: the result, or why there is none; null where the row is.

    matrix float32 [rows, D], nulls bool [rows], tokens int32 [rows], full bool [rows]: rows that fill max_length.
    """
    rows = len(matrix)
    codes: list[str | None] = [None] * rows
    sentences: list[str | None] = [None] * rows
    good = ~nulls
    for row, code, sentence in errors:
        codes[row], sentences[row] = code, sentence
        good[row] = False
    reasons = pa.DictionaryArray.from_arrays(pa.array(full.astype(np.int8), mask=~good), pa.array(["stop", "length"]))
    children = [
        vectors(matrix, good),
        pa.array(codes, pa.string()),
        pa.array(sentences, pa.string()),
        pa.array(tokens, pa.int32(), mask=nulls),
        pa.array(np.zeros(rows, np.int32), mask=nulls),
        reasons.dictionary_decode(),
    ]
    return pa.Array.from_buffers(DETAILS, rows, [_bitmap(~nulls)], children=children)


def _bitmap(good: np.ndarray) -> pa.Buffer | None:
    return None if good.all() else pa.py_buffer(np.packbits(good, bitorder="little"))


# --- pandas ----------------------------------------------------------------------------------------------------------


def from_series(series: pd.Series) -> pa.Array:
    """What Spark hands to a pandas UDF: strings as object or str, arrays as NumPy arrays."""
    array = pa.Array.from_pandas(series)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def to_series(array: pa.Array) -> pd.Series:
    """array<float> as one NumPy array a row, views of one buffer; None where it is null."""
    import pandas as pd

    values, offsets = array.values.to_numpy(), array.offsets.to_numpy()
    cells = np.empty(len(array), object)
    for row, good in enumerate(valid(array)):
        cells[row] = values[offsets[row] : offsets[row + 1]] if good else None
    return pd.Series(cells)


def to_frame(array: pa.Array) -> pd.DataFrame:
    """The struct as Spark takes it from pandas, a column a field. A null struct there has only null fields."""
    import pandas as pd

    fields = dict(zip((field.name for field in DETAILS), array.flatten(), strict=True))
    columns = {name: to_series(field) if field.type == FLOATS else _objects(field) for name, field in fields.items()}
    return pd.DataFrame(columns)


def _objects(array: pa.Array) -> pd.Series:
    import pandas as pd

    if pa.types.is_integer(array.type):
        return pd.Series(array.to_pylist(), dtype="Int32")
    return pd.Series(array.to_pylist(), dtype=object)
