"""Parquet as Arrow, with its own types: one file, or a folder of them as Spark writes it, partition columns included.

Files of a folder may lack columns that others have, which are null there; a column that has two types is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..host.text import one_line as said
from . import files
from .columns import readable
from .files import BadFile, Rows, Source
from .json_values import LARGEST_INT, SMALLEST_INT

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
OTHERS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".avro", ".orc", ".csv.gz", ".json.gz", ".jsonl.gz")
READ_BYTES = 1 << 20  # at a time of a column, so that no row group has to be in memory
SPARKS = b"org.apache.spark."  # Spark's own schema in a file's metadata: it would look for no other column

Partition = tuple[tuple[str, str | None], ...]


def open_parquet(path: str, column: str, output: str, pair: str | None = None) -> Source:
    """Reads the footers. Raises BadFile, or RequestError where the column is of a type that no model takes."""
    parts = _listed(path) if os.path.isdir(path) else [(path, ())]
    schemas, rows = [], 0
    if os.path.isdir(path):
        _all_parquet([file for file, _ in parts])
    unit = _int96_unit([file for file, _ in parts])
    for file, _ in parts:
        opened = _open(file, unit)
        schemas.append((file, opened.schema_arrow))
        rows += opened.metadata.num_rows
    fields = _united(schemas)
    partitions = _partition_fields(parts)
    for field in partitions:
        if field.name in [known.name for known in fields]:
            name = said(field.name)
            raise BadFile(f"{said(path)}: column {name} is in the files and in the names of their folders; rename one")
    metadata = schemas[0][1].metadata or {}
    kept = {key: value for key, value in metadata.items() if not key.startswith(SPARKS)}
    schema = pa.schema([*fields, *partitions], metadata=kept or None)
    wanted = [name for name in (column, pair) if name is not None]
    places = [files.one_column(path, schema.names, name) for name in wanted]
    files.new_name(output, schema.names)
    kind, *_ = [
        readable(pa.nulls(0, schema.field(at).type), f"{said(path)}: column {said(name)}").type
        for at, name in zip(places, wanted, strict=True)
    ]
    batches = _batches(parts, schema, dict(zip(wanted, places, strict=True)), unit)
    return Source(path=path, rows=rows, kind=kind, batches=batches, schema=schema)


def _listed(folder: str) -> list[tuple[str, Partition]]:
    """Files in order of their names, without those that Spark hides too, and their partitions."""
    if os.path.isdir(os.path.join(folder, "_delta_log")):
        raise BadFile(
            f"{said(folder)}: is a Delta table, whose log says which of its files count; "
            f"let Spark write its rows as Parquet, and name that folder"
        )
    found = []
    for place, folders, names in os.walk(folder, onerror=_cannot_list):
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                raise BadFile(f"{said(os.path.join(place, name))}: is a link to a folder; name that folder itself")
        folders[:] = sorted(name for name in folders if not _hidden(name))
        below = os.path.relpath(place, folder)
        partition = tuple(_parted(part) for part in ([] if below == "." else below.split(os.sep)) if "=" in part)
        for name in sorted(names):
            if not _hidden(name):
                file = os.path.join(place, name)
                if not stat.S_ISREG(os.stat(file).st_mode):
                    raise BadFile(f"{said(file)}: is no regular file; take it out of the folder")
                found.append((file, partition))
    if not found:
        raise BadFile(f"{said(folder)}: holds no Parquet file")
    return found


def _all_parquet(paths: list[str]) -> None:
    """Refuses what is plainly another format; Spark's Parquet has names without an ending, too."""
    for path in paths:
        if path.lower().endswith(OTHERS):
            raise BadFile(f"{said(path)}: a folder is read as Parquet; name one file, or take it out of the folder")


def _cannot_list(error: OSError) -> None:
    raise error


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _parted(folder: str) -> tuple[str, str | None]:
    name, _, value = (unquote(part, errors="surrogateescape") for part in folder.partition("="))
    if files.surrogates(name + value):
        raise BadFile(f"folder {said(folder)}: names a partition that is not UTF-8; rename it")
    return name, None if value == NULL_PARTITION else value


def _partition_fields(parts: list[tuple[str, Partition]]) -> list[pa.Field]:
    """int64 where every value comes back from it, else string: 7 is a number, 007 is none."""
    names = [name for name, _ in parts[0][1]]
    for file, partition in parts:
        if [name for name, _ in partition] != names:
            first = said(parts[0][0])
            raise BadFile(f"{said(file)}: its folders name other partition columns than those of {first}")
    fields = []
    for at, name in enumerate(names):
        values = [partition[at][1] for _, partition in parts]
        whole = all(value is None or _is_int(value) for value in values) and any(value is not None for value in values)
        fields.append(pa.field(name, pa.int64() if whole else pa.string()))
    if len(set(names)) < len(names):
        raise BadFile(f"{said(parts[0][0])}: its folders name a partition column twice")
    return fields


def _is_int(text: str) -> bool:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return False
    return str(int(text)) == text and SMALLEST_INT <= int(text) <= LARGEST_INT


def _open(path: str, unit: str = "us") -> pq.ParquetFile:
    """unit: of timestamps of 96 bits."""
    options = {"buffer_size": READ_BYTES, "pre_buffer": False, "coerce_int96_timestamp_unit": unit}
    try:
        try:
            return pq.ParquetFile(path, page_checksum_verification=True, **options)
        except TypeError:  # pyarrow before 13 checks no sums
            return pq.ParquetFile(path, **options)
    except (pa.ArrowException, OSError) as error:
        raise BadFile(f"{said(path)}: {files.reason(error)}") from None


def _int96_unit(paths: list[str]) -> str:
    """What loses nothing: microseconds, which Spark means and in which all years have room, or nanoseconds."""
    far: tuple[str, str] | None = None  # file and column of a year that nanoseconds have no room for
    fine: tuple[str, str] | None = None  # of a time that is no whole microsecond
    for path in paths:
        file = _open(path)
        schema = file.schema
        names = [schema.column(at).path for at in range(len(schema)) if schema.column(at).physical_type == "INT96"]
        if not names:
            continue
        try:
            sizes = {"batch_size": files.BATCH_ROWS, "columns": names}
            for coarse, exact in zip(file.iter_batches(**sizes), _open(path, "ns").iter_batches(**sizes), strict=True):
                for name, some, same in zip(coarse.schema.names, coarse.columns, exact.columns, strict=True):
                    for us, ns in zip(_moments(some), _moments(same), strict=True):
                        far = far or ((path, name) if np.any(ns // 1000 != us) else None)
                        fine = fine or ((path, name) if np.any(us * 1000 != ns) else None)  # both wrap alike
        except (pa.ArrowException, OSError) as error:
            raise BadFile(f"{said(path)}: {files.reason(error)}") from None
        if far and fine:
            raise BadFile(
                f"{said(fine[0])}: column {said(fine[1])} has times finer than microseconds, and column {said(far[1])} "
                f"of {said(far[0])} has years outside of 1678 to 2261, which nanoseconds cannot hold; cast one of them"
            )
    return "ns" if fine else "us"


def _moments(array: pa.Array) -> Iterator[np.ndarray]:
    """The numbers of all timestamps inside."""
    if pa.types.is_timestamp(array.type):
        yield array.drop_null().cast(pa.int64()).to_numpy()
    elif pa.types.is_map(array.type):
        yield from _moments(array.keys)
        yield from _moments(array.items)
    elif pa.types.is_struct(array.type):
        for field in array.flatten():
            yield from _moments(field)
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        yield from _moments(array.flatten())


def _united(schemas: list[tuple[str, pa.Schema]]) -> list[pa.Field]:
    """The columns of all files; several of one name only where all files have just the same."""
    first = schemas[0][1]
    if all(schema.equals(first) for _, schema in schemas):
        return list(first)
    known: dict[str, tuple[str, pa.Field]] = {}
    for path, schema in schemas:
        if len(set(schema.names)) < len(schema.names):
            raise BadFile(f"{said(path)}: has columns of one name, and other files of the folder have other columns")
        for field in schema:
            where, other = known.setdefault(field.name, (path, field))
            if field.type != other.type:
                kinds = f"{field.type} here and {other.type} in {said(where)}"
                raise BadFile(f"{said(path)}: column {said(field.name)} is {kinds}; cast one of them")
    return [field.with_nullable(True) for _, field in known.values()]


def _batches(
    parts: list[tuple[str, Partition]], schema: pa.Schema, wanted: dict[str, int], unit: str
) -> Iterator[Rows]:
    """wanted: name -> place of the input, and of the second texts where a row is a pair."""
    for path, partition in parts:
        file = _open(path, unit)
        values, first = dict(partition), 0
        for batch in file.iter_batches(batch_size=_batch_rows(file)):
            arrays = list(batch.columns)
            if batch.schema.names != schema.names:
                names = batch.schema.names
                if names == schema.names[: len(names)]:  # by place: several may have one name
                    there = dict(enumerate(arrays))
                else:
                    there = {schema.names.index(name): array for name, array in zip(names, arrays, strict=True)}
                arrays = [
                    there[place] if place in there else _constant(values, field, len(batch))
                    for place, field in enumerate(schema)
                ]
            whole = pa.RecordBatch.from_arrays(arrays, schema=schema)
            column, *pair = [readable(whole.column(at), f"column {said(name)}") for name, at in wanted.items()]
            yield Rows(column, whole, file=path, first=first, pair=pair[0] if pair else None)
            first += len(whole)


def _constant(values: dict[str, str | None], field: pa.Field, rows: int) -> pa.Array:
    """Of a partition column, or of one that this file lacks."""
    value = values.get(field.name)
    if value is None:
        return pa.nulls(rows, field.type)
    return pa.array([int(value) if pa.types.is_int64(field.type) else value] * rows, field.type)


def _batch_rows(file: pq.ParquetFile) -> int:
    """Rows that have about BATCH_BYTES, by the sizes of the file's row groups."""
    found = file.metadata
    groups = [found.row_group(group) for group in range(found.num_row_groups)]
    largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(files.BATCH_ROWS, files.BATCH_BYTES // max(1, largest)))
