"""A question to every executor: a task for each of its slots, each of which asks the manager of its executor."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.utils import is_remote

from .. import _core
from ..manager import lifecycle
from ..manager.service import build

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("firesteel.spark")

SLOTS = 16  # where Spark Connect does not say how many there are
STAY_SECONDS = 0.3  # a task keeps its slot so long that no other task is given to it
PATIENCE = 30.0
ASK_SECONDS = 30.0  # a cluster that starts its first workers takes some


def everywhere(spark: "SparkSession", function: Callable[[], dict[str, object]]) -> dict[str, list[dict[str, object]]]:
    """{an executor's key: what `function` gave in its tasks}. One that is busy with other jobs may be passed over."""
    slots = SLOTS if is_remote() else spark.sparkContext.defaultParallelism

    def compute(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            pass
        said = json.dumps(function())
        time.sleep(STAY_SECONDS)
        yield pa.RecordBatch.from_arrays([pa.array([lifecycle.identity().key]), pa.array([said])], ["key", "said"])

    found: dict[str, list[dict[str, object]]] = {}
    for row in spark.range(0, slots, 1, slots).mapInArrow(compute, "key string, said string").collect():
        found.setdefault(row.key, []).append(json.loads(row.said))
    return found


def ask_manager(asked: dict[str, object]) -> dict[str, object]:
    """In a task: what the executor's manager answers; {} where there is none, for none is started."""
    with_socket = lifecycle.call(lifecycle.find_place().socket)
    if with_socket is None:
        return {}
    client = _core.Client(build(), PATIENCE)
    with with_socket:
        client.connect(with_socket.fileno())
    return json.loads(client.ask(json.dumps(asked).encode()))


def ask_managers(spark: "SparkSession") -> dict[str, dict[str, object]] | None:
    """{an executor's key: what its manager has done in its life}. None where Spark does not run it in ASK_SECONDS."""
    found: list[dict[str, dict[str, object]]] = []
    name = f"firesteel {uuid.uuid4().hex}"

    def ask() -> dict[str, object]:
        said = ask_manager({"ask": "stats"})
        if "totals" not in said:  # there is none
            return {}
        return {name: said[name] for name in ("pid", "uptime", "peak_memory")} | said["totals"]

    def run() -> None:
        try:
            if is_remote():
                spark.addTag(name.replace(" ", "-"))
            else:
                spark.sparkContext.setJobGroup(name, "firesteel asks its managers", True)
            told = everywhere(spark, ask)
            found.append({key: answers[-1] for key, answers in told.items() if answers[-1]})
        except Exception as error:  # Spark was stopped, a session expired
            log.debug("managers were not asked: %s", error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ASK_SECONDS)
    if thread.is_alive():
        with suppress(Exception):
            spark.interruptTag(name.replace(" ", "-")) if is_remote() else spark.sparkContext.cancelJobGroup(name)
    return found[0] if found else None
