"""JSON lines: one object a line. Only the input column is interpreted; every other value keeps its very text.

    lines -> members (name, value, where its text is) -> Rows

As bytes, a line is cut behind its last member, where the result goes. As Arrow, columns have the types that hold every
value of the file, see json_values.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from ..host.text import one_line as said
from . import files
from .files import BadFile, Cut, Escaped, FirstFault, Rows, Seam, Source, TextFile, surrogates
from .json_values import (
    JSON,
    LARGEST_INT,
    SMALLEST_INT,
    TEXT,
    Kind,
    Number,
    Object,
    arrow_type,
    kind_of,
    merge,
    parse,
    typed,
)

BATCH_CELLS = 1 << 20  # of as many rows and columns, whether they are there or not

_space = re.compile(r"[ \t\r\n]*").match
_byte = re.compile("[\udc80-\udcff]")  # one that was no UTF-8, as surrogateescape decodes it


class Line(NamedTuple):
    number: int  # from 1 on
    text: str  # bytes that are no UTF-8 as lone surrogates
    members: Object  # (name, value)
    seam: int  # where in the text another member can be put
    bad_bytes: bool
    fault: str | None  # why it is no row


def open_json_lines(path: str, column: str, output: str, target: str, pair: str | None = None) -> Source:
    """Looks the file through. target: "json" carries rows as bytes, "parquet" and "csv" as Arrow, of which CSV has no
    type but string. pair: of second texts."""
    return _JsonLines(path, column, output, target, pair).source()


class _JsonLines:
    def __init__(self, path: str, column: str, output: str, target: str, pair: str | None) -> None:
        self._file = TextFile(path)
        self._column, self._output, self._target, self._pair = column, output, target, pair
        self._as_text = target == "json"
        self._kinds: dict[str, Kind] = {}  # of all columns, in the order they came
        self._input: str | None = None  # text, ids or features
        self._escaped, self._cut = Escaped(), Cut()

    def source(self) -> Source:
        rows, fault = self._look_through()
        schema = None
        if not self._as_text:
            if self._target == "csv":
                self._kinds = {name: TEXT if kind in (TEXT, None) else JSON for name, kind in self._kinds.items()}
            schema = pa.schema([pa.field(name, arrow_type(kind)) for name, kind in self._kinds.items()])
        return Source(
            path=self._file.path,
            rows=rows,
            kind=self._input_type(),
            batches=self._batches(),
            schema=schema,
            prologue=self._file.bom,
            close=self._file.close,
            fault=fault,
            escaped=self._escaped,
            cut=self._cut,
        )

    # --- the first time

    def _look_through(self) -> tuple[int, FirstFault | None]:
        rows, fault, broken = 0, None, None
        undecided: dict[tuple[type, bool], Line] = {}  # first lines whose value says nothing of the column's kind
        for line in self._lines():
            rows += 1
            self._learn(line)
            if line.fault and broken is None:
                broken = FirstFault(line.number, "SCHEMA", line.fault)
            value = self._value(line)
            if value is not None and self._input is None:
                undecided.setdefault((type(value), bool(value)), line)
            elif fault is None and (found := self._judged(line)[1]):
                fault = FirstFault(line.number, *found)
            if fault is None and (found := self._second(line)[1]):
                fault = FirstFault(line.number, *found)
        where = said(self._file.path)
        if rows == 0:
            raise BadFile(f"{where}: is empty; lines with one JSON object each belong there")
        if not self._kinds and broken:
            raise BadFile(f"{where}: has no line with a JSON object; line {broken.line}: {broken.sentence}")
        for name in filter(None, (self._column, self._pair)):
            files.one_column(self._file.path, list(self._kinds), name)
        if self._input is None and any(kind is list for kind, _ in undecided):
            self._input = "ids"
        if self._input is None and undecided:
            odd = next(iter(undecided.values()))
            what = f"column {said(self._column)} is {_called(self._value(odd))} in line {odd.number}"
            raise BadFile(f"{where}: {what}; text (a string) or token ids (an array of whole numbers) belongs there")
        for line in undecided.values():
            if (fault is None or line.number < fault.line) and (found := self._judged(line)[1]):
                fault = FirstFault(line.number, *found)
        return rows, fault

    def _learn(self, line: Line) -> None:
        members = line.members
        if line.bad_bytes and not self._as_text:
            members = [(name, value) for name, value, _ in self._cleaned(line)]
        for name, value in members:
            if name not in self._kinds:
                self._new_column(line, name)
            if not self._as_text and self._kinds[name] != JSON:
                self._kinds[name] = merge(self._kinds[name], kind_of(value))
            if self._input is None and name == self._column:
                self._input = _input_of(value)

    def _new_column(self, line: Line, name: str) -> None:
        files.new_name(self._output, [name])
        where = f"{said(self._file.path)}: line {line.number}"
        if not self._as_text:
            if len(self._kinds) == files.MOST_COLUMNS:
                raise BadFile(f"{where} has a name beyond {files.MOST_COLUMNS:,} others; only .jsonl carries so many")
            if surrogates(name):
                raise BadFile(f"{where} has a name that is no Unicode, {said(name)!r}; only .jsonl output carries it")
        if len(self._kinds) < files.MOST_COLUMNS or name in (self._column, self._pair):
            self._kinds[name] = None

    def _input_type(self) -> pa.DataType:
        ids = pa.list_(pa.int64())
        return {"ids": ids, "features": pa.list_(pa.list_(pa.float64()))}.get(self._input, pa.string())

    # --- bytes -> lines -> members

    def _lines(self) -> Iterator[Line]:
        """All but blank ones."""
        file, number = self._file.again(), 0
        while raw := file.readline(files.LONGEST + 1):
            number += 1
            if len(raw) > files.LONGEST:
                raise self._file.too_long(number)
            if not raw.strip():
                continue
            try:
                text, bad = raw.decode("utf-8"), False
            except UnicodeDecodeError:
                text, bad = raw.decode("utf-8", "surrogateescape"), True
            yield self._line(number, text, bad)
        self._file.check()

    def _line(self, number: int, text: str, bad: bool) -> Line:
        nothing, begin = Object(), _space(text, 0).end()
        if not text.startswith("{", begin):
            sentence = "the line is no JSON object: it does not begin with {"
            if text.startswith("[", begin):
                sentence += "; an array has to be written with one object a line"
            return Line(number, text, nothing, 0, bad, sentence)
        try:
            members, end = parse(text, begin)
        except RecursionError:
            return Line(number, text, nothing, 0, bad, "the line is nested too deeply")
        except json.JSONDecodeError as error:
            sentence = f"the line is no JSON object: {error.msg.removesuffix(' at')} at character {error.pos}"
            return Line(number, text, nothing, 0, bad, sentence)
        if _space(text, end).end() != len(text):
            sentence = f"something follows the JSON object at character {end}"
            if "\r" in text[end : _space(text, end).end()]:
                sentence += "; lines end with \\n or \\r\\n, not with \\r alone"
            return Line(number, text, nothing, 0, bad, sentence)
        if bad and any(_byte.search(name) for name, _ in members):
            return Line(number, text, nothing, 0, bad, "a name in the line is not UTF-8")
        return Line(number, text, members, len(text[: end - 1].rstrip(" \t\r\n")), bad, None)

    def _value(self, line: Line, column: str | None = None) -> object:
        wanted = self._column if column is None else column
        return next((value for name, value in line.members if name == wanted), None)

    # --- lines -> Rows

    def _batches(self) -> Iterator[Rows]:
        batch, size = [], 0
        most = max(1, min(files.BATCH_ROWS, BATCH_CELLS // len(self._kinds)))
        for line in self._lines():
            batch.append(line)
            size += len(line.text)
            if len(batch) == most or size >= files.BATCH_BYTES:
                yield self._rows(batch)
                batch, size = [], 0
        if batch:
            yield self._rows(batch)

    def _rows(self, lines: list[Line]) -> Rows:
        values, seconds, faults = [], [], []
        for row, line in enumerate(lines):
            (value, fault), (second, other) = self._judged(line), self._second(line)
            if fault := fault or other:
                faults.append((row, *fault))
                value = second = None
            values.append(value)
            seconds.append(second)
        pair = None if self._pair is None else pa.array(seconds, pa.string())
        carried = [self._seam(line) for line in lines] if self._as_text else self._table(lines)
        numbers = [line.number for line in lines]
        return Rows(pa.array(values, self._input_type()), carried, faults, numbers, pair=pair)

    def _judged(self, line: Line) -> tuple[object, tuple[str, str] | None]:
        """(the input, null where there is none; code and sentence of the row's fault)."""
        if line.fault:
            return None, ("SCHEMA", line.fault)
        names = [name for name, _ in line.members]
        if len(set(names)) < len(names):
            matters = [self._column, self._pair] if self._as_text else names
            twice = next((name for name in matters if names.count(name) > 1), None)
            if twice is not None:
                return None, ("SCHEMA", f"the line has {said(twice)!r} more than once")
        value = self._value(line)
        if value is None:
            return None, None
        if self._input in (None, "text"):
            return _text(value, self._column)
        return (_ids if self._input == "ids" else _features)(value, self._column)

    def _second(self, line: Line) -> Judged:
        """As _judged, of the second text of a pair; what is wrong with the whole line _judged says."""
        value = None if self._pair is None or line.fault else self._value(line, self._pair)
        return (None, None) if value is None else _text(value, self._pair)

    def _seam(self, line: Line) -> Seam:
        if line.fault:
            return Seam(_bytes(line.text), None)
        comma = "," if line.members else ""
        head = f"{line.text[: line.seam]}{comma}{json.dumps(self._output, ensure_ascii=False)}:"
        return Seam(_bytes(head), _bytes(line.text[line.seam :]))

    def _table(self, lines: list[Line]) -> pa.RecordBatch:
        cells: dict[str, list[object]] = {name: [None] * len(lines) for name in self._kinds}
        as_json = {name for name, kind in self._kinds.items() if kind == JSON}
        for row, line in enumerate(lines):
            members = line.members
            if line.fault or len({name for name, _ in members}) < len(members):
                self._cut.add(line.number)
            if line.bad_bytes or any(name in as_json for name, _ in members):
                cleaned = self._cleaned(line, count=True)
                members = [(name, text if name in as_json else value) for name, value, text in cleaned]
            for name, value in members:
                cells[name][row] = value if name in as_json else typed(value, self._kinds[name])
        arrays = [pa.array(cells[name], arrow_type(kind)) for name, kind in self._kinds.items()]
        return pa.RecordBatch.from_arrays(arrays, names=list(cells))

    def _cleaned(self, line: Line, count: bool = False) -> list[tuple[str, object, str | None]]:
        """(name, value, the value's text, None of a null), with bytes that are no UTF-8 as escapes."""
        found = []
        for (name, value), (begin, end) in zip(line.members, _spans(line.text, len(line.members)), strict=True):
            text = line.text[begin:end]
            if line.bad_bytes and _byte.search(text):
                if count:
                    self._escaped.add(f"column {said(name)}, line {line.number}")
                text = _byte.sub(lambda byte: f"\\\\x{ord(byte[0]) - 0xDC00:02x}", text)
                value = parse(text, 0)[0]
            found.append((name, value, None if value is None else text))
        return found


def _spans(text: str, members: int) -> list[tuple[int, int]]:
    """Where the values of an object's members stand in its text, which is known to be good."""
    spans, at = [], text.find("{")
    for _ in range(members):
        _, at = parse(text, _space(text, at + 1).end())
        begin = _space(text, text.index(":", at) + 1).end()
        _, end = parse(text, begin)
        spans.append((begin, end))
        at = _space(text, end).end()
    return spans


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# --- the input column ------------------------------------------------------------------------------------------------

Judged = tuple[object, "tuple[str, str] | None"]


def _input_of(value: object) -> str | None:
    """What the first text or array says of the column; an array that holds nothing says nothing."""
    if isinstance(value, str) and not isinstance(value, Number):
        return "text"
    if isinstance(value, list) and not isinstance(value, Object):
        there = [item for item in value if item is not None]
        return ("features" if any(isinstance(item, list) for item in there) else "ids") if there else None
    return None


def _called(value: object) -> str:
    names = {Number: "a number", bool: "true or false", str: "a string", Object: "an object", list: "an array"}
    return names[type(value)]


def _text(value: object, column: str) -> Judged:
    if isinstance(value, Number) or not isinstance(value, str):
        return None, ("SCHEMA", f"column {said(column)} is {_called(value)}; a string belongs there")
    if surrogates(value):
        return None, ("BAD_UTF8", "the text holds half a surrogate pair or bytes that are not UTF-8")
    return value, None


def _ids(value: object, column: str) -> Judged:
    if isinstance(value, Object) or not isinstance(value, list):
        return None, ("SCHEMA", f"column {said(column)} is {_called(value)}; an array of token ids belongs there")
    ids = [_whole(item) if isinstance(item, Number) else item for item in value]
    for place, item in enumerate(ids):
        if item is not None and type(item) is not int:
            return None, ("SCHEMA", f"place {place} of the array is no whole number of 64 bits, which a token id is")
    return ids, None


def _whole(text: Number) -> int | Number:
    digits = text.lstrip("-")
    if digits.isdigit() and len(digits) < 20 and SMALLEST_INT <= int(text) <= LARGEST_INT:
        return int(text)
    return text


def _features(value: object, column: str) -> Judged:
    good = isinstance(value, list) and not isinstance(value, Object)
    for token in value if good else ():
        good = good and isinstance(token, list) and all(item is None or isinstance(item, Number) for item in token)
    if not good:
        return None, (
            "SCHEMA",
            f"column {said(column)} is {_called(value)}; an array of arrays of numbers belongs there",
        )
    return [[None if item is None else float(item) for item in token] for token in value], None
