"""A column of a file through a model, without Spark: the same rows, window and results as in a worker.

    reader (Parquet, JSON lines, CSV: pieces of a few thousand rows) -> table.stream -> Parquet

Only what the window holds is in memory. The output is written beside its place and renamed when it is complete, so that
what bears its name is always whole.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from time import perf_counter

import pyarrow as pa

from ..engine.engine import Engine
from ..model.checkpoint import Checkpoint
from ..model.locate import find, resolve
from ..table.columns import FLOATS, details_type, readable
from ..table.job import Job, embed_job
from ..table.stream import stream

BLOCK_BYTES = 16 << 20  # text files are read, and types of their columns inferred, in pieces of this size
BATCH_ROWS = 4096
GROUP_ROWS = 8192  # rows of a Parquet row group


class BadFile(Exception):
    """A file that cannot be read or written: one sentence."""


@dataclass
class Work:
    """One run, checked, with its engine open. `run` may be called once."""

    job: Job
    engine: Engine
    reader: Reader
    column: str
    output: str
    target: str

    def run(self, quiet: bool = False) -> str:
        """Computes all rows, writes the target, and says what it did. Raises firesteel.Error or BadFile."""
        from tqdm import tqdm

        at = self.reader.schema.get_field_index(self.column)
        kind = details_type(FLOATS) if self.job.details else FLOATS
        schema = self.reader.schema.append(pa.field(self.output, kind))
        pieces = stream(
            self.job,
            self.reader,
            lambda *_: nullcontext(self.engine),
            lambda batch: [batch.column(at)],
            [f"column {self.column}"],
        )
        start, rows, missing = perf_counter(), 0, 0
        bar = tqdm(total=self.reader.rows, unit=" rows", unit_scale=True, disable=True if quiet else None)
        try:
            with self.engine, bar, _Target(self.target, schema) as target:
                for batch, result in pieces:
                    without = (result.flatten()[0] if self.job.details else result).null_count
                    if without:  # they still span their numbers in the engine's memory, which no older pyarrow writes
                        result = result.take(pa.array(range(len(result))))
                    target.write(pa.RecordBatch.from_arrays([*batch.columns, result], schema=schema))
                    rows += len(result)
                    missing += without
                    bar.update(len(result))
        except (OSError, pa.ArrowException) as error:  # the reader's have become BadFile
            raise BadFile(f"{self.target}: cannot be written: {_said(error)}") from None
        seconds = perf_counter() - start
        null = f", {missing:,} of them without a result" if missing else ""
        return f"{self.target}: {rows:,} rows{null}, in {seconds:.1f} s, {rows / max(seconds, 1e-9):,.0f} rows/s"


def prepare(
    model: str, options: dict[str, object], *, source: str, column: str, target: str, output: str, force: bool = False
) -> Work:
    """Checks everything that can be checked before the first row. Raises firesteel.Error or BadFile."""
    located = resolve(model)
    Checkpoint.open(find(located))  # a job may leave a folder that is not here to other machines; here there is none
    job = embed_job(located, said_by="run", **options)
    reader = open_reader(source, column)
    names = reader.schema.names
    if names.count(column) != 1:
        what = "no column" if column not in names else f"{names.count(column)} columns"
        raise BadFile(f"{source}: has {what} {column!r}; its columns are {', '.join(names)}")
    kind = readable(pa.nulls(0, reader.schema.field(column).type), f"{source}: column {column}").type
    if output in names or not output:
        raise BadFile(f"--output-column is {output!r}, which the input already has; choose another")
    _check_target(source, target, force)
    first = [""] if pa.types.is_string(kind) or pa.types.is_large_string(kind) else []
    engine = Engine(job.model, **job.own_engine())
    try:
        # A row of text, so that what only the open model and its tokenizer know about the options is said now.
        engine.start_embed(first, **dict(job.request)).result()
    except BaseException:
        engine.close()
        raise
    return Work(job, engine, reader, column, output, target)


def _check_target(source: str, target: str, force: bool) -> None:
    if not target.endswith(".parquet"):
        raise BadFile(f"--output is {target}; only .parquet can be written")
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise BadFile(f"--output is {target}, but there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise BadFile(f"--output is {target}, but {folder} may not be written to")
    if os.path.isdir(target):
        raise BadFile(f"--output is {target}, which is a folder; give the name of a file")
    if os.path.exists(target) and not force:
        raise BadFile(f"--output is {target}, which exists; --force replaces it")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise BadFile(f"--output is {target}, which is the input; give another name")


class _Target:
    """A Parquet file that appears under its name when the block ends without an error, and not at all otherwise."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self._path = path
        folder, name = os.path.split(os.path.abspath(path))
        self._beside = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting, self._rows = [], 0

    def __enter__(self) -> _Target:
        import pyarrow.parquet as pq

        try:  # Ctrl-C may come while the file is made, and then nobody calls __exit__
            # Vectors repeat nothing: a dictionary of their numbers would only cost time.
            self._writer = pq.ParquetWriter(self._beside, self._schema, use_dictionary=self._schema.names[:-1])
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(self._beside)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
                os.replace(self._beside, self._path)
        finally:
            with suppress(OSError):  # after an error the file need not be complete, only closed and gone
                self._writer.close()
            with suppress(FileNotFoundError):
                os.unlink(self._beside)


# --- readers ---------------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Record batches of one file, all of `schema`. rows is None where the format does not tell before it is read."""

    path: str
    schema: pa.Schema
    rows: int | None
    batches: Iterator[pa.RecordBatch]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.batches:
                yield pa.RecordBatch.from_arrays(batch.columns, schema=self.schema)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise BadFile(f"{self.path}: {_said(error)}") from None


def open_reader(path: str, column: str) -> Reader:
    """A reader by the name's ending; `column` is read as text where the format has no types."""
    known = {".parquet": _parquet, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv}
    if not os.path.exists(path):
        raise BadFile(f"--input is {path}, which does not exist")
    ending = ".parquet" if os.path.isdir(path) else os.path.splitext(path)[1].lower()
    if ending not in known:
        raise BadFile(f"--input is {path}; {', '.join(known)} can be read, by the ending of the name")
    try:
        schema, rows, batches = known[ending](path, column)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: {_said(error)}") from None
    # Without its metadata: Spark writes its own schema there, and would look for no other column.
    return Reader(path, schema.remove_metadata(), rows, batches)


def _said(error: Exception) -> str:
    return str(error).strip().replace("\n", " ").rstrip(".")


_Opened = tuple[pa.Schema, int | None, Iterator[pa.RecordBatch]]


def _parquet(path: str, column: str) -> _Opened:
    import pyarrow.dataset as ds

    found = ds.dataset(path, format="parquet")
    if not found.files:
        raise BadFile(f"{path}: holds no Parquet file")
    try:
        batches = found.to_batches(batch_size=BATCH_ROWS, batch_readahead=2)
    except TypeError:  # pyarrow before 10 has no such word, and holds more batches
        batches = found.to_batches(batch_size=BATCH_ROWS)
    return found.schema, found.count_rows(), batches


def _csv(path: str, column: str) -> _Opened:
    from pyarrow import csv

    reader = csv.open_csv(
        path,
        read_options=csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types={column: pa.string()}),
    )
    return reader.schema, None, iter(reader)


def _json_lines(path: str, column: str) -> _Opened:
    from pyarrow import json

    def table(block: bytes, schema: pa.Schema | None) -> pa.Table:
        options = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error" if schema else "infer")
        return json.read_json(io.BytesIO(block), json.ReadOptions(block_size=max(1, len(block))), options)

    blocks = _line_blocks(path)
    first = next(blocks, None)
    if first is None:
        raise BadFile(f"{path}: is empty")
    head = table(first, None)

    def batches() -> Iterator[pa.RecordBatch]:
        yield from head.to_batches(BATCH_ROWS)
        for block in blocks:
            yield from table(block, head.schema).to_batches(BATCH_ROWS)

    return head.schema, None, batches()


def _line_blocks(path: str) -> Iterator[bytes]:
    """Whole lines, about BLOCK_BYTES at a time; blank blocks are left out."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            block += file.readline()
            if block.strip():
                yield block
