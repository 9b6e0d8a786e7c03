"""Tasks of stages as Spark tells of them: how many there are, and how many have finished."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from .totals import Totals

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession


class TasksSeen:
    """`totals`: tasks of each stage that was seen."""

    def __init__(self) -> None:
        self.totals: dict[object, int] = {}
        self._finished: dict[object, int] = {}

    @property
    def finished(self) -> int:
        return sum(self._finished.values())

    def note(self, stage: object, tasks: int, finished: int) -> None:
        """A stage that is tried again has fewer tasks; those of before stay finished."""
        self.totals[stage] = max(tasks, self.totals.get(stage, 0))
        self._finished[stage] = max(finished, self._finished.get(stage, 0))

    def look(self) -> None:
        """Asks Spark."""

    def close(self) -> None:
        """Spark is not asked any more."""


class StagesTasks(TasksSeen):
    """Of the stages whose tasks have told something; where none can tell, of all that run meanwhile. Those of the
    thread's job group (or of none) Spark still knows when a look comes too late to see them run."""

    def __init__(self, context: SparkContext, told: Totals | None) -> None:
        super().__init__()
        self._tracker = context.statusTracker()
        self._group = context.getLocalProperty("spark.jobGroup.id")
        self._jobs = set(self._tracker.getJobIdsForGroup(self._group))
        self._told = told
        self._seen: set[int] = set()
        self._others = set(self._tracker.getActiveStageIds())

    def look(self) -> None:
        with suppress(Exception):  # the context may have been stopped, by which nothing is learnt any more
            if self._told is None:
                self._see()
            for stage in self._seen if self._told is None else self._told.stages:
                if stage in self.totals and self._finished[stage] == self.totals[stage]:
                    continue
                info = self._tracker.getStageInfo(stage)
                if info is not None and info.numActiveTasks + info.numCompletedTasks + info.numFailedTasks:
                    self.note(stage, info.numTasks, info.numCompletedTasks)

    def _see(self) -> None:
        self._seen |= set(self._tracker.getActiveStageIds()) - self._others
        jobs = set(self._tracker.getJobIdsForGroup(self._group)) - self._jobs
        self._jobs |= jobs
        for job in filter(None, map(self._tracker.getJobInfo, jobs)):
            self._seen |= set(job.stageIds)  # among them those that are skipped, of which no task ever runs


class ConnectTasks(TasksSeen):
    """Of all operations of the session meanwhile: Spark Connect tells by a call for each that runs."""

    def __init__(self, spark: SparkSession) -> None:
        super().__init__()
        self._spark = spark
        spark.registerProgressHandler(self._told)

    def _told(self, stages: Iterable[object] | None, inflight_tasks: int, operation_id: str | None, done: bool) -> None:
        # What the server tells last may be older than the job's end. An operation that ends well has run all of its
        # tasks; one that fails, or is left early, is told of while its exception is under way.
        whole = done and sys.exc_info()[0] is None
        for stage in stages or ():
            finished = stage.num_tasks if whole else stage.num_completed_tasks
            self.note((operation_id, stage.stage_id), stage.num_tasks, finished)

    def close(self) -> None:
        with suppress(Exception):  # the session may have been stopped
            self._spark.removeProgressHandler(self._told)
