"""A Spark driver in a process of its own, for sessions that this process's own cannot be: executors apart, Connect.

    with Driver({"spark.master": "local-cluster[2,2,1024]"}, place) as driver:
        found = driver.run(job, "an argument")     # job(spark, "an argument"), there

A job is a function of a test module, arguments and results are JSON. One driver serves all jobs of a file: to start it
takes longer than most of them.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import firesteel

HERE = Path(__file__).parent
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


class Driver:
    """Its folder is place/driver, and Spark's and the managers' lie in `place` too."""

    def __init__(self, settings: dict[str, str], place: Path) -> None:
        (place / "driver").mkdir()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE), str(Path(firesteel.__file__).parent.parent)]),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(place),
            "SPARK_WORKER_DIR": str(place),
            "FIRESTEEL_MANAGER_DIR": str(place / "m"),
        }
        self._said = place / "driver.log"
        with open(self._said, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(SETTINGS | settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=place / "driver",
                text=True,
            )

    def run(self, job: Callable[..., object], *arguments: object) -> object:
        """What job(spark, *arguments) returns there; what it raises fails the test."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([job.__module__, job.__qualname__, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the driver ended: {self._said.read_text('utf-8', 'replace')[-4000:]}"
        failed, result = json.loads(answer)
        assert not failed, result
        return result

    def stop(self) -> None:
        """Ends the session, and with it the executors."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        assert self._process.wait(120) == 0, self._said.read_text("utf-8", "replace")[-4000:]

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._process.kill()
            self._process.wait()


def serve(settings: dict[str, str]) -> None:
    from pyspark.sql import SparkSession

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints does not stand among the answers
    builder = SparkSession.builder
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    if "spark.master" in settings:
        spark.sparkContext.setLogLevel("OFF")
    for line in sys.stdin:
        module, name, arguments = json.loads(line)
        try:
            answer = [False, getattr(importlib.import_module(module), name)(spark, *arguments)]
        except BaseException:
            answer = [True, traceback.format_exc()]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    spark.stop()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
