"""A column of a file through a model, without Spark: the same rows, window and results as in a worker.

    Source (Parquet, JSON lines, CSV: pieces of a few thousand rows) -> table.stream -> Target (the same formats)

Only what the window holds is in memory. The output is written beside its place and renamed when it is complete, so that
what bears its name is always whole.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from time import perf_counter

import pyarrow as pa

from ..engine.engine import Engine
from ..host.text import one_line as said
from ..model.checkpoint import Checkpoint
from ..model.locate import find, resolve
from ..table import csv_file, files
from ..table.columns import details_type, valid
from ..table.files import BadFile, Rows, Source, reason, with_faults
from ..table.job import Job, classify_job, embed_job, rerank_job
from ..table.json_lines import open_json_lines
from ..table.parquet_file import open_parquet
from ..table.stream import CHECKED_ROWS, stream
from ..table.targets import Target, open_target
from ..table.tasks import TASKS, arrow_type

JOBS = {"embed": embed_job, "classify": classify_job, "rerank": rerank_job}
READ = (".parquet", ".jsonl", ".ndjson", ".csv")
WRITTEN = READ


class BadRow(Exception):
    """A row, or too many of them, that cannot be computed: one sentence."""


@dataclass
class Report:
    """What became of the rows."""

    target: str
    rows: int = 0
    nulls: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by row code
    escaped: str = ""  # one sentence about cells that are not UTF-8
    cut: str = ""  # one about rows that had more than the output has a place for
    told: bool = False  # whether the output itself says which rows failed, and why
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """3: rows failed, and nothing but this report says so."""
        return 3 if self.failed and not self.told else 0

    def __str__(self) -> str:
        without = ""
        if self.nulls or self.failed:
            codes = ", ".join(f"{code} {rows:,}" for code, rows in sorted(self.failed.items()))
            failed = f"{self.failed.total():,} failed ({codes})" if codes else ""
            parts = ", ".join(filter(None, [f"{self.nulls:,} null" if self.nulls else "", failed]))
            without = f", {self.nulls + self.failed.total():,} of them without a result: {parts}"
        speed = f"{self.rows / max(self.seconds, 1e-9):,.0f} rows/s"
        return f"{said(self.target)}: {self.rows:,} rows{without}; in {self.seconds:.1f} s, {speed}"


@dataclass
class Work:
    """One run, checked, with its engine open. `run` may be called once."""

    job: Job
    engine: Engine
    source: Source
    target: Target
    path: str  # of the target

    def run(self, quiet: bool = False) -> Report:
        """Computes all rows and writes the target. Raises firesteel.Error, BadFile or BadRow."""
        from tqdm import tqdm

        report = Report(self.path)
        tally = _Tally(self.job, self.source.path, report)
        # Faults come with their rows, in any case: what they mean for the run is decided here.
        pieces = stream(
            replace(self.job, details=True, on_error="null", max_errors=1.0),
            self.source,
            lambda *_: nullcontext(self.engine),
            lambda rows: rows.inputs,
            ["the input column", "the pair column"],
        )
        start = perf_counter()
        bar = tqdm(total=self.source.rows, unit=" rows", unit_scale=True, disable=True if quiet else None)
        try:
            with closing(self.source), self.engine, bar, self.target as target:
                for rows, details in pieces:
                    details = with_faults(details, rows.faults)
                    tally.add(rows, details)
                    target.write(rows, details if self.job.details else details.flatten()[0])
                    bar.update(len(rows))
        except (OSError, pa.ArrowException) as error:  # the source's have become BadFile
            raise BadFile(f"{said(self.path)}: cannot be written: {reason(error)}") from None
        report.seconds = perf_counter() - start
        if cells := self.source.escaped.cells:
            what = "1 carried cell is" if cells == 1 else f"{cells:,} carried cells are"
            report.escaped = (
                f"{what} not UTF-8, first in {self.source.escaped.first}; its bytes are written as \\xNN in "
                f"{said(self.path)}; output of the input's own format carries them as they are"
            )
        if rows := self.source.cut.rows:
            ending = os.path.splitext(self.path)[1].lower()
            report.cut = (
                f"{rows:,} {'row' if rows == 1 else 'rows'} had cells that {ending} has no place for, "
                f"first in line {self.source.cut.first}; output of the input's own format keeps them"
            )
        return report


class _Tally:
    """Counts rows and faults, and says when a fault or their share ends the run."""

    def __init__(self, job: Job, source: str, report: Report) -> None:
        self._job, self._source, self._report = job, source, report
        self._computed = 0
        self._example: dict[str, str] = {}
        report.told = job.details

    def add(self, rows: Rows, details: pa.Array) -> None:
        """Raises BadRow."""
        _, codes, sentences, *_ = details.flatten()
        good = valid(details)
        for row, code in enumerate(codes.to_pylist() if codes.null_count < len(codes) else ()):
            if code is None:
                continue
            sentence = sentences[row].as_py()
            where = f"line {rows.lines[row]}" if rows.lines else f"row {rows.first + row}, counted from 0"
            if self._job.on_error == "fail":
                raise faulty(rows.file or self._source, where, code, sentence)
            self._report.failed[code] += 1
            file = f" of {said(rows.file)}" if rows.file and rows.file != self._source else ""
            self._example.setdefault(code, f"{where}{file}: {sentence}")
        self._report.told &= isinstance(rows.carried, pa.RecordBatch) or all(
            seam.tail is not None for seam in rows.carried
        )
        self._report.rows += len(rows)
        self._report.nulls += len(rows) - int(good.sum())
        self._computed += int(good.sum())
        failed = self._report.failed.total()
        if self._computed >= CHECKED_ROWS and failed > self._job.max_errors * self._computed:
            code, times = self._report.failed.most_common(1)[0]
            hint = "; a file in another encoding has to be saved as UTF-8 first" if code == "BAD_UTF8" else ""
            raise BadRow(
                f"{said(self._source)}: {failed:,} of the first {self._computed:,} rows cannot be computed, and "
                f"--max-errors is {self._job.max_errors:g}; {times:,} of them are {code}, as "
                f"{self._example[code]}{hint}"
            )


def faulty(source: str, where: str, code: str, sentence: str) -> BadRow:
    return BadRow(f"{said(source)}: {where} ({code}): {sentence}; --on-error null makes such rows null")


def prepare(
    model: str,
    options: dict[str, object],
    *,
    source: str,
    column: str,
    target: str,
    output: str,
    task: str = "embed",
    pair: str | None = None,
    delimiter: str | None = None,
    force: bool = False,
) -> Work:
    """Checks everything that can be checked before the first row, and looks the source through.

    Raises firesteel.Error or BadFile; BadRow where a row is known to be faulty and one ends the run.
    """
    located = resolve(model)
    Checkpoint.open(find(located))  # a job may leave a folder that is not here to other machines; here there is none
    job = JOBS[task](located, said_by="run", **options)
    files.check_pair(column, pair)
    reads, writes = files.check_source(source, READ), _check_target(source, target, force)
    if not output:
        raise BadFile("--output-column is empty; the name of the new column belongs there")
    if files.surrogates(output):
        raise BadFile(f"--output-column is {said(output)!r}, which is not UTF-8")
    if delimiter is not None and ".csv" not in (reads, writes):
        raise BadFile(f"--delimiter is {said(delimiter)!r}, and neither --input nor --output is .csv")
    sign = csv_file.check_delimiter("," if delimiter is None else delimiter)
    opened = _open(source, column, output, reads, writes, sign, pair)
    kind = details_type(arrow_type(job)) if job.details else arrow_type(job)
    written = open_target(target, opened, pa.field(output, kind), sign.decode())
    if opened.fault and job.on_error == "fail":
        raise faulty(source, f"line {opened.fault.line}", opened.fault.code, opened.fault.sentence)
    engine = Engine(job.model, **job.own_engine())
    try:
        if engine.settings["rows"] == "ids" and str(opened.kind).count("list<") > 1:
            what = f"{said(source)}: column {said(column)} holds features, lists of numbers"
            raise BadFile(f"{what}, and {said(model)} takes text or token ids")
        _try(job, engine, opened.kind, pair is not None)
    except BaseException:
        engine.close()
        raise
    return Work(job, engine, opened, written, target)


def _try(job: Job, engine: Engine, kind: pa.DataType, pairs: bool) -> None:
    """A row of text, so that what only the open model and its tokenizer know about the options is said now."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    given = [pa.array([""] if text else [], kind), *([pa.array([""] if text else [], pa.string())] if pairs else [])]
    task = TASKS[job.task](job, engine)
    pending, _ = task.start(given)
    task.wait(pending, valid(given[0]))


def _open(
    path: str, column: str, output: str, reads: str, writes: str, delimiter: bytes, pair: str | None = None
) -> Source:
    """Rows are carried as bytes where both files are of one format of text."""
    try:
        if reads == ".parquet":
            return open_parquet(path, column, output, pair)
        if reads == ".csv":
            return csv_file.open_csv(path, column, output, delimiter, writes == ".csv", pair)
        kinds = {".csv": "csv", ".parquet": "parquet"}
        return open_json_lines(path, column, output, kinds.get(writes, "json"), pair)
    except (pa.ArrowException, OSError) as error:
        raise BadFile(f"{said(path)}: {reason(error)}") from None


def _files(source: str) -> list[str]:
    """The input, or all files of its folder, which may be links to files elsewhere."""
    if not os.path.isdir(source):
        return [source]
    return [os.path.join(place, name) for place, _, names in os.walk(source) for name in names]


def _check_target(source: str, target: str, force: bool) -> str:
    """The ending that says what is written."""
    ending, shown = os.path.splitext(target)[1].lower(), f"--output is {said(target) or 'empty'}"
    if ending not in WRITTEN:
        raise BadFile(f"{shown}; {', '.join(WRITTEN)} can be written, by the ending of the name")
    real, inputs = os.path.realpath(target), os.path.realpath(source)  # a link is followed, where it leads nowhere too
    folder = os.path.dirname(real)
    if not os.path.isdir(folder):
        raise BadFile(f"{shown}, but there is no folder {said(folder)}")
    if not os.access(folder, os.W_OK):
        raise BadFile(f"{shown}, but {said(folder)} may not be written to")
    if os.path.isdir(target):
        raise BadFile(f"{shown}, which is a folder; give the name of a file")
    if os.path.isdir(inputs) and os.path.commonpath([inputs, real]) == inputs:
        raise BadFile(f"{shown}, which lies in the input folder; give a place outside it")
    if os.path.exists(target):
        same = os.stat(target)
        for part in _files(source):
            if os.path.exists(part) and os.path.samestat(os.stat(part), same):
                what = "the input" if part == source else f"{said(part)} of the input"
                raise BadFile(f"{shown}, which is {what}; give another name")
    if os.path.islink(real):
        raise BadFile(f"{shown}, which is a link that leads back to itself; give another name")
    if os.path.exists(target) and not os.path.isfile(target):
        raise BadFile(f"{shown}, which is no regular file; give another name")
    if os.path.lexists(target) and not force:
        what = f"a link to {said(real)}; --force writes there" if os.path.islink(target) else "--force replaces it"
        raise BadFile(f"{shown}, which {'is ' if os.path.islink(target) else 'exists; '}{what}")
    return ending
