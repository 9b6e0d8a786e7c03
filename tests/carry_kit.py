"""What tests of carried rows share: a run of all that the command `run` has, but for the engine, so that there are
hundreds of files.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from firesteel.commands import run
from firesteel.table import files
from firesteel.table.columns import FLOATS, details_type
from firesteel.table.job import Job
from firesteel.table.targets import open_target

VECTOR = np.float32([0.1, 1, -0.0, 1e-7, 3.4e38, 16777216])
VECTOR_TEXT = "[0.1,1.0,-0.0,1e-7,3.4e+38,16777216.0]"  # the shortest that gives each float32 back


class StandIn:
    """An engine that gives VECTOR for every row, and works on no null."""

    settings = {"max_length": 64, "width": len(VECTOR), "rows": "ids"}

    def dimension(self, *_: object) -> int:
        return len(VECTOR)

    def start_embed(self, rows: object, **_: object) -> SimpleNamespace:
        matrix = np.tile(VECTOR, (len(rows), 1))
        tokens = np.full(len(rows), 3, np.int32)
        return SimpleNamespace(tokens=tokens, known=(0, 0), result=lambda: (matrix, []), cancel=lambda: None)

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *_: object) -> None: ...


def carry(
    source: Path, ending: str, *, column: str = "text", output: str = "v", delimiter: str = ",", details: bool = False
) -> tuple[run.Report, Path]:
    """(report, target) of a run that makes faulty rows null."""
    options = dict(pooling="auto", normalize="auto", max_length=None, dimensions=None, truncate=True)
    job = Job("embed", None, (("manager", False),), tuple(options.items()), details, "null", 1.0)
    reads = files.check_source(str(source), run.READ)
    opened = run._open(str(source), column, output, reads, ending, delimiter.encode())
    target = source.parent / f"out{ending}"
    field = pa.field(output, details_type(FLOATS) if details else FLOATS)
    work = run.Work(job, StandIn(), opened, open_target(str(target), opened, field, delimiter), str(target))
    return work.run(quiet=True), target


def carried(data: bytes, reads: str, writes: str, **options: object) -> tuple[run.Report, object]:
    """(report, the output: bytes, or a table)."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / f"in{reads}"
        source.write_bytes(data)
        report, target = carry(source, writes, **options)
        assert sorted(os.listdir(folder)) == sorted([source.name, target.name])
        return report, pq.ParquetFile(target).read() if writes == ".parquet" else target.read_bytes()
