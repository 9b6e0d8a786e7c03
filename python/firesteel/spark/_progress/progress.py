"""progress: how far the jobs of a block have come, and a report when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._core import ConfigError
from .watch import Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def progress(spark: SparkSession) -> Run:
    """Shows how far the jobs of a block have come, and prints a report behind it: `with progress(spark) as run:`

    A bar (rows, tasks, tokens a second, time to go) in terminals and notebooks, elsewhere a line every 10 seconds, on
    stderr. The time to go is told once a task has finished. `run.report` is a firesteel.Report, there as soon as the
    block is left, by an exception too.

    Counts what firesteel's column functions and `score` do in jobs that the block's own thread starts. Their tasks push
    counters to a port of the driver; a random token, which travels with the jobs, keeps others out. Where no port can
    be opened, and with Spark Connect, only finished tasks are shown, and the report has what managers know. Blocks of
    one thread cannot be nested; those of several threads do not see each other's rows.

    Entering and leaving ask the managers of all executors, by a Spark job of about a second.

    Raises ConfigError where spark is no session, or the thread is in such a block already.

    Example:

    >>> df = spark.createDataFrame([("a first text",), ("another",), (None,)], "text string")
    >>> with firesteel.progress(spark) as run:  # doctest: +ELLIPSIS
    ...     _ = df.select(firesteel.embed_udf(model)("text")).collect()
    3 rows in ...
    >>> run.report.rows, run.report.nulls, run.report.errors
    (3, 1, {})
    """
    if not hasattr(spark, "createDataFrame"):
        raise ConfigError(f"spark is a {type(spark).__name__}; a SparkSession belongs there")
    return Run(spark)
