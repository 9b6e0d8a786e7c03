"""CSV (RFC 4180) as bytes: every cell keeps its very bytes, and only the input column becomes text.

    lines -> records (a quoted cell may hold line ends) -> cells -> Rows

What Python's csv module takes is taken, with the same result: quotes inside a cell that does not begin with one, text
behind a closing quote, \\n, \\r\\n and \\r. Blank lines are no rows. An empty cell is an empty text, quoted or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa

from ..host.text import one_line as said
from . import files
from .files import BadFile, Cut, Escaped, FirstFault, Rows, Seam, Source, TextFile, surrogates

CHUNK_BYTES = 1 << 20
CLOSING = re.compile(rb'[^"]*(?:""[^"]*)*"(?!")')

Record = tuple[bytes, bytes, int]  # without its line end, that, the line it begins in


def check_delimiter(delimiter: str) -> bytes:
    """Of --delimiter."""
    delimiter = "\t" if delimiter in ("tab", "\\t") else delimiter
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter.isalnum() or delimiter in '"\r\n\0':
        raise BadFile(f"--delimiter is {said(delimiter)!r}; one sign belongs there, as ';' or tab")
    return delimiter.encode()


def open_csv(path: str, column: str, output: str, delimiter: bytes, as_text: bool, pair: str | None = None) -> Source:
    """Looks the file through. as_text: rows are carried as bytes, else as Arrow strings. pair: of second texts."""
    return _Csv(path, column, output, delimiter, as_text, pair).source()


class _Csv:
    def __init__(self, path: str, column: str, output: str, delimiter: bytes, as_text: bool, pair: str | None) -> None:
        self._file = TextFile(path)
        self._delimiter, self._opening = delimiter, delimiter + b'"'
        header = next(self._records(), None)
        if header is None:
            raise BadFile(f"{said(path)}: is empty; a line with the names of the columns belongs there")
        self._header, self._end, _ = header
        names = [name.decode("utf-8", "surrogateescape") for name in self._cells(self._header)]
        self._width = len(names)
        wanted = [name for name in (column, pair) if name is not None]
        self._at = [files.one_column(path, names, name, self._hint()) for name in wanted]
        files.new_name(output, names)
        self._column, self._output = column, output
        self._names = [said(name) for name in names]
        self._schema = None
        self._escaped, self._cut = Escaped(), Cut()
        if not as_text:
            for number, name in enumerate(names, 1):
                if surrogates(name):
                    sentence = f"the name of column {number}, {said(name)!r}, is not UTF-8"
                    raise BadFile(f"{said(path)}: {sentence}; only .csv output carries it")
            self._schema = pa.schema([pa.field(name, pa.string()) for name in names])

    def _hint(self) -> str:
        """Where the file looks as if other delimiters were meant."""
        if self._width > 1:
            return ""
        for word, other in (("';'", b";"), ("tab", b"\t"), ("'|'", b"|"), ("','", b",")):
            if other in self._header:
                return f"; perhaps --delimiter {word}"
        return ""

    def source(self) -> Source:
        rows, fault = 0, None
        for batch in self._batches():
            if fault is None and batch.faults:
                row, code, sentence = batch.faults[0]
                fault = FirstFault(batch.lines[row], code, sentence)
            rows += len(batch)
        self._escaped, self._cut = Escaped(), Cut()  # counted when they are written
        name = quoted(self._output, self._delimiter.decode()).encode()
        return Source(
            path=self._file.path,
            rows=rows,
            kind=pa.string(),
            batches=self._batches(),
            schema=self._schema,
            prologue=self._file.bom + self._header + self._delimiter + name + (self._end or b"\n"),
            close=self._file.close,
            fault=fault,
            escaped=self._escaped,
            cut=self._cut,
        )

    # --- bytes -> records -> cells

    def _lines(self) -> Iterator[bytes]:
        """With their ends: \\n, \\r\\n or \\r."""
        file, line, size = self._file.again(), 0, 0
        rest: list[bytes] = []  # of a line; put together once, however long it is
        while chunk := file.read(CHUNK_BYTES):
            ends = b"\n" in chunk or b"\r" in chunk or (rest and rest[-1].endswith(b"\r"))
            rest.append(chunk)
            size += len(chunk)
            if ends:
                lines = b"".join(rest).splitlines(keepends=True)
                rest = [] if lines[-1].endswith(b"\n") else [lines.pop()]  # \r may be followed by \n
                line, size = line + len(lines), sum(map(len, rest))
                yield from lines
            if size > files.LONGEST:
                raise self._file.too_long(line + 1)
        yield from b"".join(rest).splitlines(keepends=True)

    def _records(self) -> Iterator[Record]:
        """All but blank ones, the header too."""
        parts: list[bytes] = []
        began, opened, size = 0, 0, 0
        for line, text in enumerate(self._lines(), 1):
            if not parts:
                if b'"' not in text:
                    if body := text.rstrip(b"\r\n"):
                        yield body, text[len(body) :], line
                    continue
                began, size = line, 0
            inside, here = self._quote(text, bool(parts))
            opened = line if here else opened
            parts.append(text)
            size += len(text)
            if size > files.LONGEST:
                raise self._file.too_long(began)
            if not inside:
                record = b"".join(parts)
                body = record.rstrip(b"\r\n")
                yield body, record[len(body) :], began
                parts = []
        if parts:
            raise BadFile(f"{said(self._file.path)}: the quote that opens a cell in line {opened} is not closed")

    def _quote(self, text: bytes, inside: bool) -> tuple[bool, bool]:
        """(whether a quoted cell is open behind this line, whether it opened in it); `inside`: before it."""
        at, opened = 0, False
        if not inside and text.startswith(b'"'):
            at, inside, opened = 1, True, True
        while True:
            if inside:
                closing = CLOSING.match(text, at)
                if closing is None:
                    return True, opened
                at = closing.end()
            found = text.find(self._opening, at)
            if found < 0:
                return False, False
            at, inside, opened = found + 2, True, True

    def _cells(self, record: bytes) -> list[bytes]:
        """Their texts: without the quotes around them, and with one for two inside."""
        if b'"' not in record:
            return record.split(self._delimiter)
        cells, at = [], 0
        while True:
            cell, begin = b"", at
            if record.startswith(b'"', at):
                closing = CLOSING.match(record, at + 1)
                begin = closing.end()
                cell = record[at + 1 : begin - 1].replace(b'""', b'"')
            end = record.find(self._delimiter, begin)
            if end < 0:
                cells.append(cell + record[begin:])
                return cells
            cells.append(cell + record[begin:end])
            at = end + 1

    # --- records -> Rows

    def _batches(self) -> Iterator[Rows]:
        records = self._records()
        next(records)  # the header
        batch, size = [], 0
        for record in records:
            batch.append(record)
            size += len(record[0])
            if len(batch) == files.BATCH_ROWS or size >= files.BATCH_BYTES:
                yield self._rows(batch)
                batch, size = [], 0
        if batch:
            yield self._rows(batch)
        self._file.check()

    def _rows(self, records: list[Record]) -> Rows:
        cells = [self._cells(body) for body, _, _ in records]
        texts, faults = [], []
        for row, found in enumerate(cells):
            given, fault = [None] * len(self._at), None
            if len(found) != self._width:
                fault = "SCHEMA", f"the row has {len(found)} cells; the header has {self._width}"
            else:
                try:
                    given = [found[at].decode("utf-8") for at in self._at]
                except UnicodeDecodeError as error:
                    fault = "BAD_UTF8", f"byte {error.start} of the text is not UTF-8"
            if fault:
                faults.append((row, *fault))
            texts.append(given)
        sides = [pa.array([given[at] for given in texts], pa.string()) for at in range(len(self._at))]
        lines = [line for _, _, line in records]
        carried = self._seams(records, cells) if self._schema is None else self._strings(cells, lines)
        return Rows(sides[0], carried, faults, lines, pair=sides[1] if len(sides) > 1 else None)

    def _seams(self, records: list[Record], cells: list[list[bytes]]) -> list[Seam]:
        """Rows with too few cells are filled up, so that the result stands in its column."""
        seams = []
        for (body, end, _), found in zip(records, cells, strict=True):
            missing = max(0, self._width - len(found))
            seams.append(Seam(body + self._delimiter * (missing + 1), end))
        return seams

    def _strings(self, cells: list[list[bytes]], lines: list[int]) -> pa.RecordBatch:
        """A missing cell is null, and one too many finds no room: both are faults of their rows."""
        for found, line in zip(cells, lines, strict=True):
            if len(found) > self._width:
                self._cut.add(line)
        arrays = []
        for at, name in enumerate(self._names):
            column = [found[at] if at < len(found) else None for found in cells]
            try:
                array = pa.array(column, pa.binary()).cast(pa.string())
            except pa.ArrowInvalid:
                array = pa.array([self._escape(*cell, name) for cell in zip(column, lines, strict=True)], pa.string())
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _escape(self, cell: bytes | None, line: int, name: str) -> str | None:
        if cell is None:
            return None
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError:
            self._escaped.add(f"column {name}, line {line}")
            return cell.decode("utf-8", "backslashreplace")


def quoted(text: str, delimiter: str) -> str:
    """A cell that holds this text; an empty text is quoted, because an empty cell is a null here."""
    if text and not any(sign in text for sign in ('"', "\n", "\r", delimiter)):
        return text
    return '"' + text.replace('"', '""') + '"'
