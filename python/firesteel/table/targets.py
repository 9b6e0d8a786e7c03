"""Files that rows and their results are written to. Each appears under its name when it is complete, or not at all.

Rows carried as Arrow  -> Parquet, or texts.py -> CSV, JSON lines
Rows carried as bytes  -> the same format, byte for byte, with the result put in
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from . import texts
from .csv_file import quoted
from .files import Rows, Source

GROUP_ROWS = 8192  # rows of a Parquet row group
GROUP_BYTES = 64 << 20


class Target:
    """A file that appears under its name when the block ends without an error, and not at all otherwise."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)  # a link stays, and what it leads to is written
        folder, name = os.path.split(self._path)
        self._beside = os.path.join(folder, f".{name}.{os.getpid()}.tmp")

    def write(self, rows: Rows, results: pa.Array) -> None:
        raise NotImplementedError

    def _open(self) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        """Writes what is left, and closes."""
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Target:
        try:  # Ctrl-C may come while the file is made, and then nobody calls __exit__
            self._open()
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(self._beside)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
                os.replace(self._beside, self._path)
        finally:
            with suppress(OSError):  # after an error the file need not be complete, only closed and gone
                self._close()
            with suppress(FileNotFoundError):
                os.unlink(self._beside)


class ParquetTarget(Target):
    def __init__(self, path: str, source: Source, result: pa.Field) -> None:
        super().__init__(path)
        self._schema = source.schema.append(result)
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def _open(self) -> None:
        # Vectors repeat nothing: a dictionary of their numbers would only cost time. Version 2.6 has nanoseconds.
        named = list(dict.fromkeys(self._schema.names[:-1]))
        self._writer = pq.ParquetWriter(self._beside, self._schema, version="2.6", use_dictionary=named)

    def write(self, rows: Rows, results: pa.Array) -> None:
        inner = results.flatten()[0] if pa.types.is_struct(results.type) else results
        if inner.null_count:  # they still span their numbers in the engine's memory, which no older pyarrow writes
            results = results.take(pa.array(range(len(results))))
        batch = pa.RecordBatch.from_arrays([*rows.carried.columns, results], schema=self._schema)
        self._waiting.append(batch)
        self._rows += len(rows)
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting, self._rows, self._bytes = [], 0, 0

    def _finish(self) -> None:
        self._flush()
        self._writer.close()

    def _close(self) -> None:
        self._writer.close()


class TextTarget(Target):
    """CSV or JSON lines."""

    def __init__(self, path: str, source: Source, result: pa.Field, delimiter: str | None) -> None:
        """delimiter: of CSV; None: JSON lines."""
        super().__init__(path)
        self._source, self._result, self._delimiter = source, result, delimiter

    def _open(self) -> None:
        self._file: BinaryIO = open(self._beside, "wb")
        prologue = self._source.prologue
        if self._source.schema is not None:
            prologue = b""
            if self._delimiter is not None:
                names = [*self._source.schema.names, self._result.name]
                prologue = self._joined([quoted(name, self._delimiter) for name in names]) + b"\n"
        self._file.write(prologue)

    def _finish(self) -> None:
        self._file.close()

    def _close(self) -> None:
        self._file.close()

    def write(self, rows: Rows, results: pa.Array) -> None:
        if isinstance(rows.carried, pa.RecordBatch):
            self._file.writelines(self._lines(rows.carried, results))
            return
        for seam, cell in zip(rows.carried, self._cells(results, self._result.name), strict=True):
            self._file.write(seam.head)
            if seam.tail is not None:
                self._file.write(cell.encode("utf-8", "surrogateescape"))
                self._file.write(seam.tail)

    def _cells(self, array: pa.Array, name: str) -> list[str]:
        if self._delimiter is not None:
            return texts.csv_cells(array, self._delimiter, self._source.escaped, name)
        return texts.json_texts(array, self._source.escaped, name)

    def _lines(self, batch: pa.RecordBatch, results: pa.Array) -> Iterator[bytes]:
        names = [*batch.schema.names, self._result.name]
        columns = [self._cells(array, name) for array, name in zip([*batch.columns, results], names, strict=True)]
        if self._delimiter is None:
            keys = [json.dumps(name, ensure_ascii=False) for name in names]
            for row in zip(*columns, strict=True):
                yield b"{%b}\n" % self._joined(map(":".join, zip(keys, row, strict=True)))
        else:
            for row in zip(*columns, strict=True):
                yield self._joined(row) + b"\n"

    def _joined(self, cells: object) -> bytes:
        return (self._delimiter or ",").join(cells).encode("utf-8", "surrogateescape")


def open_target(path: str, source: Source, result: pa.Field, delimiter: str) -> Target:
    """By the name's ending. Raises BadFile where the format cannot hold a column."""
    ending = os.path.splitext(path)[1].lower()
    if ending == ".parquet":
        return ParquetTarget(path, source, result)
    if source.schema is not None:
        texts.check_types(source.schema, ending)
    return TextTarget(path, source, result, delimiter if ending == ".csv" else None)
