"""The manager in Spark: one for all tasks of an executor, one copy of the model in it, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import firesteel
import numpy as np
import pytest
import tiny
from firesteel.manager import lifecycle

HERE = Path(__file__).parent

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def teller():
    """A function for tasks (nested, so that it travels by value): what the executor's manager says of itself."""

    def told(_: object) -> tuple[int, dict]:
        from firesteel import _core
        from firesteel.manager.service import build

        client = _core.Client(build(), 20.0)
        with lifecycle.reach() as socket:
            client.connect(socket.fileno())
        time.sleep(0.5)  # so that no worker takes all tasks
        return lifecycle.identity().executor.pid, json.loads(client.ask(b'{"ask": "stats"}'))

    return told


def stats(spark) -> dict:
    return spark.sparkContext.parallelize([0], 1).map(teller()).collect()[0][1]


@pytest.fixture
def folder(tmp_path) -> str:
    """A model that no other test has opened."""
    seed = int.from_bytes(os.urandom(3), "little")
    return str(tiny.write(tmp_path / "model", seed=seed, layers=3, hidden=48, heads=4, inner=100))


def table(spark, rows: int, partitions: int, seed: int = 1):
    random = np.random.RandomState(seed)
    ids = [(i, random.randint(1, 60, random.randint(1, 60)).tolist()) for i in range(rows)]
    return spark.createDataFrame(ids, "id int, ids array<int>").repartition(partitions)


def vectors(df, udf) -> dict[int, list[float]]:
    return {row.id: row.v for row in df.select("id", udf("ids").alias("v")).collect()}


def expected(df, folder: str) -> dict[int, list[float]]:
    rows = df.collect()
    with firesteel.Engine(folder) as engine:
        return {row.id: vector.tolist() for row, vector in zip(rows, engine.embed([r.ids for r in rows]), strict=True)}


def models_of(there: dict, folder: str) -> list[dict]:
    return [model for model in there["models"] if model["name"] == folder]


def test_all_tasks_share_one_copy(spark, folder):
    df = table(spark, 400, 6)
    assert vectors(df, firesteel.embed_udf(folder)) == expected(df, folder)
    there = stats(spark)
    assert len(models_of(there, folder)) == 1 and models_of(there, folder)[0]["stats"]["rows"] <= 400
    assert there["pid"] == stats(spark)["pid"] != os.getpid()


def test_a_worker_may_have_its_own(spark, folder):
    df = table(spark, 50, 2)
    assert vectors(df, firesteel.embed_udf(folder, manager=False)) == expected(df, folder)
    assert models_of(stats(spark), folder) == []


def test_a_filter_on_the_result_computes_nothing_twice(spark, folder):
    df = table(spark, 1000, 4)
    scored = df.withColumn("g", firesteel.embed_udf(folder, details=True)("ids")).where("g.error is null")
    assert scored.selectExpr("sum(size(g.result)) AS n").collect()[0].n == 48 * 1000
    model = models_of(stats(spark), folder)[0]
    assert model["stats"]["rows"] <= 1010


def test_models_are_opened_ahead_and_let_go(spark, folder):
    assert firesteel.warm(spark, folder) == 1
    model = models_of(stats(spark), folder)[0]
    assert model["rows"] == 0 and model["stats"]["rows"] == 0
    assert firesteel.release(spark) >= 1
    assert models_of(stats(spark), folder) == []
    df = table(spark, 40, 2)
    assert vectors(df, firesteel.embed_udf(folder)) == expected(df, folder)
    with pytest.raises(firesteel.ConfigError, match="warm has no option paralel"):
        firesteel.warm(spark, folder, paralel="split")
    with pytest.raises(firesteel.ConfigError, match="warm has no option pooling; its options are devices"):
        firesteel.warm(spark, folder, pooling="cls")


def test_a_limit_computes_hundreds_of_rows(spark, tmp_path):
    """Vectors of the usual width: 64 KB of results, a fraction of the first window, are what Spark hands on at once.
    How soon it then says that it has enough is a race, which the first of three times decides that wins it."""
    computed = []
    for seed in range(3):
        folder = str(tiny.write(tmp_path / str(seed), seed=seed, layers=1, hidden=384, heads=12, inner=384))
        scored = firesteel.score(table(spark, 4000, 1), firesteel.embed_udf(folder), "ids", output="v")
        assert len(scored.limit(5).collect()) == 5
        computed.append(models_of(stats(spark), folder)[0]["stats"]["rows"])
        if computed[-1] <= 512:
            return
    pytest.fail(f"limit(5) computed {computed} rows")


def test_a_manager_killed_under_a_job(spark, folder):
    df = table(spark, 6000, 4, seed=7)
    pid, killed = stats(spark)["pid"], threading.Event()

    def kill() -> None:
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    found = vectors(df, firesteel.embed_udf(folder, threads=1))
    thread.join()
    assert killed.is_set() and found == expected(df, folder)
    assert stats(spark)["pid"] != pid


def test_chained_columns_do_not_wait_for_each_other(spark, folder):
    """Two streams in one worker, the second fed by the first."""
    df = table(spark, 600, 2)
    first = firesteel.embed_udf(folder)
    ids = "transform(v, x -> abs(int(x * 10)) % 60)"
    both = df.select("id", first("ids").alias("v")).selectExpr("id", f"{ids} AS ids")
    found = {row.id: row.w for row in both.select("id", first("ids").alias("w")).collect()}
    assert len(found) == 600 and all(len(vector) == 48 for vector in found.values())
