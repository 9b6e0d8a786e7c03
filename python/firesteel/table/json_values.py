"""Values of JSON, and the Arrow types that hold them: a type is taken where every value of a column comes back from it.

true, false                                     bool
whole numbers of 64 bits                        int64
numbers that a double's shortest text equals    double (1.50 and 1.5 are one number; 1e400 is none that it holds)
strings of valid Unicode                        string
arrays, objects with always the same names      list, struct, of such types
all else, and what is mixed                     string: the text of the JSON, as it stands in the file
"""

from __future__ import annotations

import json
from decimal import Decimal
from math import isinf

import pyarrow as pa

from .files import surrogates

TEXT, BOOL, SMALL, INT, DOUBLE, JSON = "text", "bool", "small", "int", "double", "json"
DEEPEST = 32  # of typed columns; what is nested deeper stays JSON
SMALLEST_INT, LARGEST_INT = -(2**63), 2**63 - 1
EXACT = 2**53  # whole numbers up to here are doubles, too

# A name from above; None, of nothing but nulls; ("list", Kind); ("struct", ((name, Kind), ...))
Kind = str | tuple | None


class Number(str):
    """A number's text, and NaN, Infinity, -Infinity, which Python writes and reads."""


class Object(list):
    """(name, value) of an object, in order, names that come twice as well."""


_decoder = json.JSONDecoder(object_pairs_hook=Object, parse_int=Number, parse_float=Number, parse_constant=Number)
parse = _decoder.raw_decode  # text, place -> value, place behind it; ValueError, RecursionError


def kind_of(value: object, depth: int = 0) -> Kind:
    if value is None:
        return None
    if type(value) is str:
        return TEXT if value.isascii() or not surrogates(value) else JSON
    if isinstance(value, Number):
        return _number(value)
    if isinstance(value, bool):
        return BOOL
    if depth == DEEPEST:
        return JSON
    if isinstance(value, Object):
        names = [name for name, _ in value]
        kinds = [kind_of(item, depth + 1) for _, item in value]
        if not names or len(set(names)) < len(names) or JSON in kinds or any(map(surrogates, names)):
            return JSON
        return "struct", tuple(zip(names, kinds, strict=True))
    kind: Kind = None
    for item in value:
        kind = merge(kind, kind_of(item, depth + 1))
        if kind == JSON:
            return JSON
    return "list", kind


def merge(one: Kind, other: Kind) -> Kind:
    """What holds the values of both; JSON where nothing else does."""
    if one == other or other is None:
        return one
    if one is None:
        return other
    if isinstance(one, str) and isinstance(other, str):
        return {frozenset((SMALL, INT)): INT, frozenset((SMALL, DOUBLE)): DOUBLE}.get(frozenset((one, other)), JSON)
    if isinstance(one, str) or isinstance(other, str) or one[0] != other[0]:
        return JSON
    if one[0] == "list":
        kind = merge(one[1], other[1])
        return JSON if kind == JSON else ("list", kind)
    names = [name for name, _ in one[1]]
    if names != [name for name, _ in other[1]]:
        return JSON
    kinds = [merge(mine, its) for (_, mine), (_, its) in zip(one[1], other[1], strict=True)]
    return JSON if JSON in kinds else ("struct", tuple(zip(names, kinds, strict=True)))


def _number(text: Number) -> Kind:
    digits = text[1:] if text.startswith("-") else text
    if not digits.isdigit():
        return DOUBLE if digits in ("NaN", "Infinity") or _is_double(text) else JSON
    if text == "-0":
        return DOUBLE
    if len(digits) > 19 or not SMALLEST_INT <= int(text) <= LARGEST_INT:
        return JSON
    return SMALL if -EXACT <= int(text) <= EXACT else INT


def _is_double(text: str) -> bool:
    number = float(text)
    if repr(number) == text:
        return True
    if isinf(number):
        return False
    if number == 0:
        return not any(digit in text.lower().partition("e")[0] for digit in "123456789")
    return Decimal(text) == Decimal(repr(number))


def arrow_type(kind: Kind) -> pa.DataType:
    if isinstance(kind, tuple) and kind[0] == "list":
        return pa.list_(arrow_type(kind[1]))
    if isinstance(kind, tuple):
        return pa.struct([pa.field(name, arrow_type(inner)) for name, inner in kind[1]])
    return {BOOL: pa.bool_(), SMALL: pa.int64(), INT: pa.int64(), DOUBLE: pa.float64()}.get(kind, pa.string())


def typed(value: object, kind: Kind) -> object:
    """The value as pyarrow takes it for arrow_type(kind)."""
    if value is None:
        return None
    if isinstance(value, Number):
        return float(value) if kind == DOUBLE else int(value)
    if isinstance(value, Object):
        return {name: typed(item, inner) for (name, item), (_, inner) in zip(value, kind[1], strict=True)}
    if isinstance(value, list):
        return [typed(item, kind[1]) for item in value]
    return value
