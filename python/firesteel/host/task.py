"""The task that this worker process runs: what Spark gave it, and what travelled with its job. Elsewhere there is none.

Spark is asked where it is in the process already, and never imported: a worker of Spark's has it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

GPUS = "spark.executor.resource.gpu.amount"


def current() -> Any:
    """Spark's TaskContext; None where there is none."""
    spark = sys.modules.get("pyspark")
    return spark.TaskContext.get() if spark is not None else None


def local_property(name: str) -> str | None:
    """What the thread that began the job, or for SQL the session's conf, said of it."""
    task = current()
    return task.getLocalProperty(name) if task is not None else None


def all_gpus() -> list[str] | None:
    """The addresses of this task's GPUs, where they are as many as its executor has; None: that is not known."""
    task = current()
    given = task.resources().get("gpu") if task is not None else None
    if given is None or not given.addresses or local_property(GPUS) != str(len(given.addresses)):
        return None
    return [str(address) for address in given.addresses]


def files_root() -> str | None:
    """Where Spark puts on this machine what it ships (spark.archives, addArchive, addFile); None where nothing is.

    A driver of Spark Connect has no such place.
    """
    files = getattr(sys.modules.get("pyspark"), "SparkFiles", None)
    try:
        return os.path.abspath(files.getRootDirectory()) if files is not None else None
    except Exception:  # a driver without a session, or one whose JVM is gone
        return None
