"""Arrow as text, without a loss: the JSON of every value, and CSV cells.

    null               null, in CSV an empty cell; an empty text is "" in both
    numbers            digits that give the same number back; NaN and infinities as "NaN", "Infinity", "-Infinity"
    date, time         ISO 8601, to the column's unit; timestamps with a zone as UTC, with a Z
    list, struct       JSON arrays and objects, in CSV too
    map                of results, from names to scores: JSON objects
    binary, duration and whatever else there is, and maps of the input: refused, before any work

A text that is no UTF-8, which Spark lets pass, keeps its bytes in CSV; in JSON, that of a CSV cell too, they become
escapes, and are counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc

from ..host.text import one_line as said
from .csv_file import quoted
from .files import BadFile, Escaped, surrogates, unicode

NOT_FINITE = {"nan": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"'}


def check_types(schema: pa.Schema, ending: str) -> None:
    """Raises BadFile for a column that has no text without a loss."""
    for field in schema:
        kind = _without_text(field.type)
        if kind is not None:
            within = "" if kind == field.type else f" in {field.type}"
            raise BadFile(f"column {said(field.name)} is {kind}{within}, which {ending} cannot hold; .parquet can")
    names = [name for name in schema.names if schema.names.count(name) > 1]
    if names and ending != ".csv":
        raise BadFile(
            f"{schema.names.count(names[0])} columns are named {said(names[0])!r}, which {ending} cannot hold"
        )


def _without_text(kind: pa.DataType) -> pa.DataType | None:
    """The first type inside that json_texts does not know."""
    types = pa.types
    if types.is_dictionary(kind) or _is_list(kind):
        return _without_text(kind.value_type)
    if types.is_struct(kind):
        names = [field.name for field in kind]
        inner = [_without_text(field.type) for field in kind]
        return kind if len(set(names)) < len(names) else next((found for found in inner if found is not None), None)
    known = types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal
    return None if any(test(kind) for test in (*known, _is_string, _is_moment)) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"


def _is_moment(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)


def json_texts(array: pa.Array, escaped: Escaped, name: str) -> list[str]:
    """The JSON of each value; `name` is what `escaped` is told of texts that are no UTF-8."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return json_texts(array.dictionary_decode(), escaped, name)
    if _is_string(kind):
        return [_json_string(text, escaped, name) for text in _strings(array)]
    if _is_list(kind):
        return _lists(array, escaped, name)
    if pa.types.is_map(kind):
        return _maps(array, escaped, name)
    if pa.types.is_struct(kind):
        keys = [json.dumps(unicode(field.name), ensure_ascii=False) for field in kind]
        fields = [json_texts(field, escaped, name) for field in array.flatten()]
        texts = ["{" + ",".join(map(":".join, zip(keys, row, strict=True))) + "}" for row in zip(*fields, strict=True)]
        texts = texts if fields else ["{}"] * len(array)
    elif pa.types.is_floating(kind):
        texts = [_float(text) for text in _shortest(array)]
    elif _is_moment(kind):
        texts = [f'"{text}"' for text in _moments(array, name)]
    else:
        texts = _plain(array)
    if array.null_count:
        texts = [text if good else "null" for text, good in zip(texts, array.is_valid().to_pylist(), strict=True)]
    return texts


def csv_cells(array: pa.Array, delimiter: str, escaped: Escaped, name: str) -> list[str]:
    """A cell for each value, quoted where it has to be; bytes that are no UTF-8 as lone surrogates, in JSON as escapes,
    which `escaped` is told."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return csv_cells(array.dictionary_decode(), delimiter, escaped, name)
    if _is_string(kind):
        texts: Sequence[str | None] = _strings(array)
    elif _is_moment(kind):
        texts = _moments(array, name)
    elif pa.types.is_floating(kind):
        texts = [_float(text).strip('"') for text in _shortest(array)]
    elif _is_list(kind) or pa.types.is_struct(kind) or pa.types.is_map(kind):
        texts = json_texts(array, escaped, name)
    else:
        texts = _plain(array)
    there = array.is_valid().to_pylist()
    return [quoted(text, delimiter) if good else "" for text, good in zip(texts, there, strict=True)]


def _plain(array: pa.Array) -> list[str]:
    """Whole numbers, decimals, true and false."""
    if pa.types.is_boolean(array.type):
        return ["true" if value else "false" for value in array.to_pylist()]
    return [str(value) for value in array.to_pylist()]


def _shortest(array: pa.Array) -> list[str]:
    """The shortest digits that give the same float back, of as many bits."""
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    return pc.fill_null(array.cast(pa.string()), "nan").to_pylist()


def _float(text: str) -> str:
    if text in NOT_FINITE:
        return NOT_FINITE[text]
    return text if "." in text or "e" in text else text + ".0"  # -0 would be read as a whole number, 0


def _moments(array: pa.Array, name: str) -> list[str]:
    zone = ""
    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        array, zone = array.cast(pa.int64()).cast(pa.timestamp(array.type.unit)), "Z"
    texts = pc.fill_null(array.cast(pa.string()), "").to_pylist()
    for text in texts:
        if text.startswith("<"):  # how Arrow says that a year has no four digits
            raise BadFile(f"column {said(name)} has a date that text cannot hold; .parquet can")
    if pa.types.is_timestamp(array.type):
        texts = [text.replace(" ", "T", 1) + zone for text in texts]
    return texts


def _strings(array: pa.Array) -> list[str | None]:
    """Bytes that are no UTF-8 as lone surrogates."""
    if str(array.type) == "string_view":
        array = array.cast(pa.large_string())
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
        cells = array.view(binary).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in cells]


def _json_string(text: str | None, escaped: Escaped, name: str) -> str:
    if text is None:
        return "null"
    if surrogates(text):
        escaped.add(f"column {said(name)}")
        text = unicode(text)
    return json.dumps(text, ensure_ascii=False)


def _maps(array: pa.Array, escaped: Escaped, name: str) -> list[str]:
    """Keys are strings."""
    offsets = array.offsets.to_pylist()
    begin, end = offsets[0], offsets[-1]
    sides = [json_texts(side.slice(begin, end - begin), escaped, name) for side in (array.keys, array.items)]
    members = list(map(":".join, zip(*sides, strict=True)))
    spans = zip(offsets, offsets[1:], array.is_valid().to_pylist(), strict=False)
    return ["{" + ",".join(members[a - begin : b - begin]) + "}" if good else "null" for a, b, good in spans]


def _lists(array: pa.Array, escaped: Escaped, name: str) -> list[str]:
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        lengths = [kind.list_size if good else None for good in array.is_valid().to_pylist()]
    else:
        lengths = pc.list_value_length(array).to_pylist()
    ends = [0, *accumulate(length or 0 for length in lengths)]
    # Those of lists that are null are left out; where all are, older pyarrow finds nothing to put together.
    values = array.flatten() if array.null_count < len(array) else pa.nulls(0, kind.value_type)
    if pa.types.is_floating(kind.value_type) and not values.null_count and not pa.types.is_float16(kind.value_type):
        digits = values.cast(pa.string())
        if not pc.any(pc.match_substring_regex(digits, "^(-?[0-9]+|nan|-?inf)$")).as_py():  # vectors, in C
            joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(ends, pa.int32()), digits), ",").to_pylist()
            return ["null" if length is None else f"[{text}]" for text, length in zip(joined, lengths, strict=True)]
    texts = json_texts(values, escaped, name)
    return [
        "null" if length is None else "[" + ",".join(texts[end - length : end]) + "]"
        for length, end in zip(lengths, ends[1:], strict=True)
    ]
