"""What firesteel.progress leaves behind: a Report, made of what tasks have told and of two looks at the managers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .totals import Totals

GIB = 1 << 30
SLACK_SECONDS = 60.0  # that asking may take, on entering and on leaving
Told = Mapping[str, object]  # by a manager, of what it has done in its life; see service.py


@dataclass(frozen=True)
class Report:
    """What a progress has seen. Print it: it is a small table. None: it could not be told.

    seconds         of the whole block
    tasks           that have finished
    rows            of which a result was made, null and faulty ones among them; each partition counts once, of whose
                    attempts the one that came furthest. A row that passes two models counts twice, and so does a row
                    that Spark evaluates twice. None: tasks could not tell
    nulls, tokens, errors (row code -> rows)    of these rows
    store_hits, duplicates    rows, those of all attempts, whose result a manager knew from before, or that were copied
                    from an equal row beside them
    rows_computed   those of all attempts that an engine had to compute

    Of the executors' managers, what others have computed in them meanwhile included, and of engines with manager=False:

    executors       whose managers answered, both times where they are older than the block
    device_seconds  that devices were busy
    busy            device_seconds as a share of `seconds` on the devices of the executors that worked, from 0 to 1
    load_seconds    spent on opening models
    peak_memory     bytes, the most of any executor since its manager or worker started: "process" (the
                    manager's, or a worker's with its own engine), and by device
    """

    seconds: float
    tasks: int
    rows: int | None = None
    rows_computed: int | None = None
    nulls: int | None = None
    tokens: int | None = None
    errors: dict[str, int] | None = None
    store_hits: int | None = None
    duplicates: int | None = None
    executors: int = 0
    device_seconds: float | None = None
    busy: float | None = None
    load_seconds: float | None = None
    peak_memory: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = "rows not told" if self.rows is None else f"{self.rows:,} rows"
        lines = [f"{rows} in {self.seconds:.1f} s, {self.tasks} tasks"]
        if self.tokens is not None:
            lines.append(f"  tokens       {self.tokens:,}, {self.tokens / max(self.seconds, 1e-9):,.0f} a second")
        if self.rows_computed is not None:
            known = f"{self.store_hits:,} known from before, {self.duplicates:,} duplicates"
            lines.append(f"  computed     {self.rows_computed:,} rows; {known}")
        if self.errors is not None:
            faults = ", ".join(f"{code} {rows:,}" for code, rows in sorted(self.errors.items()))
            lines.append(f"  errors       {faults or 'none'}")
        if self.device_seconds is not None:
            busy = "" if self.busy is None else f", busy {self.busy:.0%}"
            loading = f", {self.load_seconds:.2f} s of loading"
            lines.append(f"  devices      {self.device_seconds:.2f} s of work{busy}{loading}")
            peaks = ", ".join(f"{name} {bytes / GIB:.2f} GiB" for name, bytes in sorted(self.peak_memory.items()))
            lines.append(f"  peak memory  {peaks}")
        return "\n".join(lines)


def make_report(
    seconds: float,
    tasks: int,
    totals: Totals | None,
    before: Mapping[str, Told] | None,
    after: Mapping[str, Told] | None,
) -> Report:
    """`totals` None: tasks could not tell. before, after: {executor: what its manager said}; None: nobody was asked."""
    said: dict[str, object] = {}
    if totals is not None:
        best, tried = totals.best, totals.tried
        said |= {name: best.counts[name] for name in ("nulls", "tokens")} | {"rows": best.counts["done"]}
        said["errors"] = {code: rows for code, rows in best.errors.items() if rows}
        said |= {"store_hits": tried.counts["hits"], "duplicates": tried.counts["duplicates"]}
        spared = sum(tried.counts[name] for name in ("nulls", "hits", "duplicates")) + sum(tried.errors.values())
        said["rows_computed"] = tried.counts["done"] - spared
    if after is not None and before is not None:
        said |= _devices(seconds, totals, before, after)
    return Report(seconds, tasks, **said)


def _devices(
    seconds: float, totals: Totals | None, before: Mapping[str, Told], after: Mapping[str, Told]
) -> dict[str, object]:
    work = load = 0.0
    devices = executors = 0
    peaks: dict[str, int] = {}

    def note(found: Mapping[str, int]) -> None:
        for name, peak in found.items():
            peaks[name] = max(peak, peaks.get(name, 0))

    for executor, told in after.items():
        began = before.get(executor)
        if began is None or began["pid"] != told["pid"]:
            if told["uptime"] > seconds + SLACK_SECONDS:  # it was passed over then: what it has done since is not known
                continue
            began = {"device_seconds": 0.0, "load_seconds": 0.0}
        executors += 1
        worked = told["device_seconds"] - began["device_seconds"]
        work += worked
        load += told["load_seconds"] - began["load_seconds"]
        devices += len(told["device_peaks"]) if worked > 0 else 0
        note({"process": told["peak_memory"], **told["device_peaks"]})
    for engine in totals.engines.values() if totals is not None else ():
        work += engine["busy"][1] - engine["busy"][0]
        load += engine["load"]
        devices += len(engine["peaks"])
        note({"process": engine["memory"], **engine["peaks"]})
    busy = min(1.0, work / (devices * seconds)) if devices and seconds else None  # two models may share a device
    return {
        "executors": executors,
        "device_seconds": work,
        "busy": busy,
        "load_seconds": load,
        "peak_memory": peaks,
    }
