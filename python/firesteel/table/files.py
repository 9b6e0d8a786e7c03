"""What readers and writers of files share: batches of rows with all that is carried along, and how they refuse.

    csv_file, json_lines, parquet_file  -> Rows (the input column as Arrow; the rest as bytes, or as Arrow)
    Rows, results                       -> targets.py

A reader looks through the whole file once before the first row is computed, so that types and damage are known early,
and reads it again piece by piece. What is wrong with one row is a value, (row, code, sentence), as everywhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..host.text import one_line as said
from . import columns
from .columns import RowError

BATCH_ROWS = 4096
BATCH_BYTES = 4 << 20
LONGEST = 64 << 20  # bytes of one row of a text file
MOST_COLUMNS = 10_000  # of a table that is made of JSON lines, whose names the rows bring along
BOM = b"\xef\xbb\xbf"
TWICE = "it is read twice, so write it to one first"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class BadFile(Exception):
    """A file that cannot be read or written: one sentence."""


class Seam(NamedTuple):
    """A row as it came, cut where its result belongs. tail None: nothing can be put in, `head` is the whole row."""

    head: bytes
    tail: bytes | None


@dataclass
class Rows:
    """Some consecutive rows. What has a fault is null in `column`, and in `pair`."""

    column: pa.Array  # the input, readable
    carried: pa.RecordBatch | list[Seam]
    faults: list[RowError] = field(default_factory=list)
    lines: list[int] | None = None  # where each row begins, from 1 on, where the format has lines
    file: str | None = None  # that the rows are from, where it has none
    first: int = 0  # place in that file of the first row, from 0 on
    pair: pa.Array | None = None  # the second texts, readable, where a row is a pair

    @property
    def inputs(self) -> list[pa.Array]:
        return [self.column] if self.pair is None else [self.column, self.pair]

    def __len__(self) -> int:
        return len(self.column)

    @property
    def nbytes(self) -> int:
        """What waits in memory while they are computed."""
        if isinstance(self.carried, pa.RecordBatch):
            return self.carried.nbytes
        return sum(array.nbytes for array in self.inputs) + sum(
            len(seam.head) + len(seam.tail or b"") for seam in self.carried
        )

    def slice(self, begin: int, rows: int) -> Rows:
        end = begin + rows
        batch = isinstance(self.carried, pa.RecordBatch)
        return Rows(
            self.column.slice(begin, rows),
            self.carried.slice(begin, rows) if batch else self.carried[begin:end],
            [(row - begin, code, said) for row, code, said in self.faults if begin <= row < end],
            None if self.lines is None else self.lines[begin:end],
            self.file,
            self.first + begin,
            None if self.pair is None else self.pair.slice(begin, rows),
        )


class FirstFault(NamedTuple):
    """Of a file that was looked through."""

    line: int
    code: str
    sentence: str


@dataclass
class Escaped:
    """Cells that are not UTF-8, and went where only Unicode can go."""

    cells: int = 0
    first: str = ""

    def add(self, where: str) -> None:
        self.first = self.first or where
        self.cells += 1


@dataclass
class Cut:
    """Rows that had more than the output has a place for: a cell without column, a name twice, no JSON at all."""

    rows: int = 0
    first: int = 0  # line

    def add(self, line: int) -> None:
        self.first = self.first or line
        self.rows += 1


@dataclass
class Source:
    """A file that was opened and looked through; iterating reads it once.

    schema: of the columns that are carried as Arrow; None where rows are carried as bytes.
    """

    path: str
    rows: int
    kind: pa.DataType  # of the input column
    batches: Iterator[Rows]
    schema: pa.Schema | None = None
    prologue: bytes = b""  # what a text file begins with when rows are carried as bytes
    close: Callable[[], None] = lambda: None
    fault: FirstFault | None = None
    escaped: Escaped = field(default_factory=Escaped)
    cut: Cut = field(default_factory=Cut)

    def __iter__(self) -> Iterator[Rows]:
        try:
            yield from self.batches
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise BadFile(f"{said(self.path)}: {reason(error)}") from None


class TextFile:
    """A text file that is read twice, in pieces, and has to stay the same meanwhile."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: BinaryIO = open(path, "rb")
        self._state = self._look()
        start = self._file.read(4)
        nulls = [at for at, byte in enumerate(start) if byte == 0]
        if start.startswith(UTF16) or nulls in ([0, 2], [1, 3]):  # two ASCII characters, without a mark too
            raise BadFile(f"{said(path)}: is UTF-16, and UTF-8 is read; save it as UTF-8")
        self.bom = BOM if start.startswith(BOM) else b""

    def _look(self) -> tuple[int, int]:
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns

    def again(self) -> BinaryIO:
        """The file, from behind its byte order mark on."""
        self.check()
        self._file.seek(len(self.bom))
        return self._file

    def close(self) -> None:
        self._file.close()

    def check(self) -> None:
        if self._look() != self._state:
            raise BadFile(f"{said(self.path)}: was changed while it was read")

    def too_long(self, line: int) -> BadFile:
        hint = "; a quote may be missing there" if self.path.lower().endswith(".csv") else ""
        return BadFile(f"{said(self.path)}: the row in line {line} has more than {LONGEST >> 20} MiB{hint}")


def check_source(path: str, known: tuple[str, ...]) -> str:
    """The ending that says how `path` is read."""
    if not path:
        raise BadFile("--input is empty; the name of a file belongs there")
    if path == "-" and not os.path.exists(path):
        raise BadFile(f"--input is -, and standard input can be read only once; {TWICE}")
    if not os.path.exists(path):
        raise BadFile(f"--input is {said(path)}, which does not exist")
    if os.path.isdir(path):
        return ".parquet"
    ending = os.path.splitext(path)[1].lower()
    if ending not in known:
        hint = ""
        if ending in (".gz", ".zst", ".bz2", ".xz", ".zip", ".lz4"):
            hint = "; unpack it first"
        elif ending == ".json":
            hint = "; a file with one object a line is .jsonl"
        elif ending in (".tsv", ".tab"):
            hint = "; one with tabs between its cells can be named .csv, and be read with --delimiter tab"
        elif not stat.S_ISREG(os.stat(path).st_mode):
            hint = f"; this is no regular file: {TWICE}"
        raise BadFile(f"--input is {said(path)}; {', '.join(known)} can be read, by the ending of the name{hint}")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise BadFile(f"--input is {said(path)}, which is no regular file; {TWICE}")
    return ending


def check_pair(column: str, pair: str | None) -> None:
    if pair == column:
        raise BadFile(f"--pair-column is {said(column)!r}, which is --column; a pair is two columns")


def one_column(path: str, names: list[str], column: str, hint: str = "") -> int:
    """Where `column` is among the names."""
    if names.count(column) == 1:
        return names.index(column)
    what = "no column" if column not in names else f"{names.count(column)} columns"
    shown = ", ".join(said(name) for name in names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
    raise BadFile(f"{said(path)}: has {what} {said(column)!r}; its columns are {shown}{hint}")


def new_name(output: str, names: list[str]) -> None:
    if output in names:
        raise BadFile(f"--output-column is {said(output)!r}, which the input already has; choose another")


def unicode(text: str) -> str:
    r"""The text where only Unicode can go: bytes that are no UTF-8 as \xNN, halves of surrogate pairs as \uNNNN."""
    if not surrogates(text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a pair that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def surrogates(text: str) -> bool:
    """Whether the text is no Unicode: half a pair, or bytes that os.fsdecode could not read."""
    try:
        text.encode("utf-8")
        return False
    except UnicodeEncodeError:
        return True


def reason(error: Exception) -> str:
    return said(str(error).strip().replace("\n", " ")).rstrip(".")


def with_faults(details: pa.Array, faults: list[RowError]) -> pa.Array:
    """The `details` of rows whose faults were known before: those rows, null there, get their code and sentence."""
    if not faults:
        return details
    results, codes, sentences, tokens, _, finish = details.flatten()
    nulls = ~columns.valid(details)
    nulls[[row for row, _, _ in faults]] = False
    codes, sentences = codes.to_pylist(), sentences.to_pylist()
    known = [(row, codes[row], sentences[row]) for row in range(len(codes)) if codes[row] is not None]
    full = pc.fill_null(pc.equal(finish, "length"), False).to_numpy(zero_copy_only=False)
    tokens = pc.fill_null(tokens, 0).to_numpy(zero_copy_only=False).astype(np.int32)
    return columns.details(results, nulls, [*known, *faults], tokens, full)
