"""GPUs in a standalone cluster: Spark's worker finds them by a script, executors have some, tasks fractions of one. An
executor has one manager, with all GPUs of the executor and no others, and one copy of the model. They are in software.

Master and worker are processes of this test's on the loopback interface.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import firesteel
import pytest
import test_spark_manager
import tiny
from firesteel.host.processes import look_up

HERE = Path(__file__).parent
ADDRESSES = ["1", "3"]  # of four
DRIVER = """
import json, os, sys
import firesteel, numpy as np, test_spark_gpus as t, test_spark_manager as m
from pyspark.sql import SparkSession

master, folder, amount = sys.argv[1:]
builder = SparkSession.builder.master(master)
for name, value in t.settings(int(amount)).items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
spark.sparkContext.setLogLevel("OFF")
df = m.table(spark, 24, 4)
found = m.vectors(df, firesteel.embed_udf(folder, devices="cuda"))
expected = m.expected(df, folder)
assert found.keys() == expected.keys()
worst = max(np.abs(np.subtract(found[i], expected[i])).max() for i in expected)
seen = spark.sparkContext.parallelize(range(8), 8).map(t.teller()).collect()
shares = [json.loads(row.share) for row in df.mapInPandas(t.share_teller(), "share string").collect()]
print(json.dumps({"worst": float(worst), "seen": seen, "shares": shares}), flush=True)
spark.stop()
"""


def settings(amount: int) -> dict[str, str]:
    """Of an application whose executors have `amount` GPUs and two cores for each, and tasks a quarter of one."""
    carried = ("FIRESTEEL_", "SOFTCUDA_", "PYTHONPATH")
    environment = {f"spark.executorEnv.{k}": v for k, v in os.environ.items() if k.startswith(carried)}
    return environment | {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.executor.memory": "512m",
        "spark.executor.cores": str(2 * amount),
        "spark.cores.max": "4",
        "spark.executor.resource.gpu.amount": str(amount),
        "spark.task.resource.gpu.amount": "0.25",
        "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    }


def teller():
    """For tasks, by value: what this task, its executor and the executor's manager see of GPUs."""

    ask = test_spark_manager.teller()

    def told(_: object) -> dict[str, object]:
        from firesteel.engine import claims
        from firesteel.manager import gpus
        from pyspark import TaskContext

        jvm, there = ask(None)
        manager = there["pid"]
        return {
            "jvm": jvm,
            "worker": os.getpid(),
            "task": TaskContext.get().resources()["gpu"].addresses,
            "manager": manager,
            "visible": next(v[21:] for v in gpus._strings(f"/proc/{manager}/environ") if v[:20] == gpus.VARIABLE),
            "models": [[device["name"] for device in model["stats"]["devices"]] for model in there["models"]],
            "claims": [sorted(record.gpus) for record in claims.found() if record.process.pid == manager],
        }

    return told


def share_teller():
    """For tasks of SQL, which have the driver's conf: their GPUs where they are all of the executor's, else null."""

    def told(batches):
        import pandas as pd
        from firesteel.host import task

        for _ in batches:
            yield pd.DataFrame({"share": [json.dumps(task.all_gpus())]})

    return told


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, software_driver):
    """(master's address, environment of drivers, folder of the executors' logs)"""
    place = tmp_path_factory.mktemp("cluster")
    script = place / "find_gpus"
    script.write_text(f"#!/bin/sh\necho '{json.dumps({'name': 'gpu', 'addresses': ADDRESSES})}'\n")
    script.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_", "SPARK_"))}
    gpu = "spark.worker.resource.gpu"
    environment = clean | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(Path(firesteel.__file__).parent.parent)]),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_NO_DAEMONIZE": "1",
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "SPARK_WORKER_OPTS": f"-D{gpu}.amount=2 -D{gpu}.discoveryScript={script}",
        "FIRESTEEL_MANAGER_DIR": str(tmp_path_factory.mktemp("m")),
        "FIRESTEEL_CLAIMS_DIR": str(place / "claims"),
        "FIRESTEEL_LIBCUDA": software_driver,
        "FIRESTEEL_LIBCUBLASLT": "off",
        "SOFTCUDA_DEVICES": "4",
        "SOFTCUDA_SHARED": str(place / "shared"),
    }
    started = []

    def start(kind: str, *arguments: str, until: str) -> str:
        from pyspark.find_spark_home import _find_spark_home

        log = place / f"{kind}.log"
        command = [f"{_find_spark_home()}/bin/spark-class", f"org.apache.spark.deploy.{kind.lower()}.{kind}"]
        command += ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0", *arguments]
        with open(log, "wb") as file:
            started.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=place))
        end = time.monotonic() + 180
        while not (found := re.search(until, log.read_text())):
            assert started[-1].poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.1)
        return found[1]

    try:
        master = start("Master", until=r"Starting Spark master at (spark://\S+)")
        start("Worker", "--cores", "4", "--memory", "4g", "--work-dir", str(place / "work"), master,
              until="(Successfully registered) with master")  # fmt: skip
        yield master, environment, place / "work"
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def run(cluster, folder: str, amount: int) -> tuple[list[dict], list]:
    """What the tasks of an application say, and what those of SQL know of their executor's GPUs."""
    master, environment, _ = cluster
    command = [sys.executable, "-c", DRIVER, master, folder, str(amount)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-4000:]
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["worst"] < 1e-5
    return said["seen"], said["shares"]


def uuid(address: str) -> str:
    """As the software driver makes it of a device's number."""
    digits = (b"softcuda device"[:15] + bytes([int(address)])).hex()
    return "-".join(["GPU", digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


@pytest.mark.spark
@pytest.mark.parametrize(("amount", "executors"), [(1, 2), (2, 1)])
def test_one_manager_an_executor_with_the_executors_gpus(cluster, tmp_path, amount, executors):
    folder = str(tiny.write(tmp_path / "model", seed=amount, layers=2, hidden=48))
    seen, shares = run(cluster, folder, amount)
    assert shares and all(share is None if amount > 1 else share in [[a] for a in ADDRESSES] for share in shares)
    jvms = {told["jvm"] for told in seen}
    assert len(jvms) == executors
    all_shown = []
    for jvm in jvms:
        here = [told for told in seen if told["jvm"] == jvm]
        for what in ("manager", "visible", "models", "claims"):
            assert len({json.dumps(told[what]) for told in here}) == 1, (what, here)
        shown = here[0]["visible"].split(",")
        assert len(shown) == amount and all(set(told["task"]) <= set(shown) and len(told["task"]) == 1 for told in here)
        assert here[0]["models"] == [[f"cuda:{i}" for i in range(amount)]]
        assert here[0]["claims"] == [sorted(map(uuid, shown))]
        assert len({told["worker"] for told in here}) > 1
        all_shown += shown
    assert sorted(all_shown) == ADDRESSES
    assert len({told["manager"] for told in seen}) == executors
    end = time.monotonic() + 60
    while left := [told["manager"] for told in seen if look_up(told["manager"]) is not None]:
        assert time.monotonic() < end, f"managers {left} outlive their executors"
        time.sleep(0.1)
    errors = [path.read_text() for path in cluster[2].glob("*/*/stderr")]
    lines = [re.findall(rf"^firesteel: {folder} on cuda:0.* by manager (\d+)", text, re.MULTILINE) for text in errors]
    assert sorted(map(set, filter(None, lines)), key=str) == sorted(
        ({str(manager)} for manager in {told["manager"] for told in seen}), key=str
    )
