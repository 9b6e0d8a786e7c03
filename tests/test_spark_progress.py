"""firesteel.progress in Spark: what the report says of real jobs, whatever becomes of them."""

from __future__ import annotations

import os
import threading

import firesteel
import numpy as np
import pytest
import test_spark_manager
import tiny
from driver_kit import Driver
from firesteel.spark._progress import watch
from firesteel.table import counters

pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture
def folder(tmp_path) -> str:
    """A model that no other test has opened."""
    seed = int.from_bytes(os.urandom(3), "little")
    return str(tiny.write(tmp_path / "model", seed=seed, layers=2, hidden=48, heads=4, inner=100))


@pytest.fixture
def table(spark):
    """No two rows are equal; 10 are too long, 5 null."""
    random = np.random.RandomState(3)
    rows = [(i, [1 + i % 60, 1 + i // 60, *random.randint(1, 60, random.randint(1, 50)).tolist()]) for i in range(985)]
    rows += [(i, [1 + i % 60] * 70) for i in range(985, 995)] + [(i, None) for i in range(995, 1000)]
    return spark.createDataFrame(rows, "id int, ids array<int>").repartition(4).cache()


def port_is_closed(spark) -> bool:
    threads = [thread for thread in threading.enumerate() if thread.name == "firesteel progress"]
    return not threads and spark.sparkContext.getLocalProperty(counters.PROPERTY) is None


def test_a_report_of_a_table(spark, table, folder, tmp_path, capsys):
    udf = firesteel.embed_udf(folder, details=True)
    with firesteel.progress(spark) as run:
        assert run.report is None
        firesteel.score(table, udf, "ids", output="e").write.parquet(str(tmp_path / "out"))
    report = run.report
    written = spark.read.parquet(str(tmp_path / "out"))
    tokens = written.selectExpr("sum(e.prompt_tokens) AS n").collect()[0].n
    assert (report.rows, report.nulls, report.errors) == (1000, 5, {"TOO_LONG": 10})
    assert (report.tasks, report.tokens, report.store_hits, report.duplicates) == (4, tokens, 0, 0)
    assert report.rows_computed == 985 and report.executors == 1
    assert 0 < report.device_seconds and 0 < report.busy <= 1 and report.load_seconds > 0
    assert report.peak_memory["process"] > 10 << 20 and len(report.peak_memory) >= 2
    assert str(report) + "\n" == capsys.readouterr().out and "TOO_LONG 10" in str(report)
    assert port_is_closed(spark)


def test_rows_that_come_again_are_told(spark, table, folder):
    udf = firesteel.embed_udf(folder, on_error="null")
    scored = table.select("id", udf("ids").alias("v"))
    with firesteel.progress(spark) as first:
        assert scored.where("v is not null").count() == 985  # which Spark evaluates once or twice
    assert first.report.rows % 1000 == 0 and first.report.rows_computed == 985
    with firesteel.progress(spark) as again:
        scored.selectExpr("sum(size(v))").collect()
    assert (again.report.rows, again.report.store_hits, again.report.rows_computed) == (1000, 985, 0)
    assert again.report.load_seconds == 0


def test_duplicates_are_told(spark, folder):
    df = spark.createDataFrame([([7, 8, 9],)] * 100, "ids array<int>").coalesce(1)
    with firesteel.progress(spark) as run:
        firesteel.score(df, firesteel.embed_udf(folder, manager=False), "ids", output="v").collect()
    report = run.report
    assert report.rows == 100 and report.rows_computed + report.duplicates == 100 and report.duplicates > 50
    assert report.device_seconds > 0 and report.peak_memory["process"] > 10 << 20


def test_a_job_that_fails_leaves_a_report(spark, table, folder, capsys):
    run = firesteel.progress(spark)
    with pytest.raises(Exception, match="TOO_LONG"), run:
        table.select(firesteel.embed_udf(folder)("ids")).collect()
    assert run.report.errors and set(run.report.errors) == {"TOO_LONG"}
    assert "TOO_LONG" in capsys.readouterr().out and port_is_closed(spark)
    with pytest.raises(KeyboardInterrupt), firesteel.progress(spark) as stopped:
        raise KeyboardInterrupt
    assert stopped.report.rows == 0 and port_is_closed(spark)


def test_jobs_that_spark_starts_from_other_threads(spark, table, folder):
    """A broadcast is computed in a thread of Spark's own."""
    udf = firesteel.embed_udf(folder, on_error="null")
    small = firesteel.score(table.where("id < 100"), udf, "ids", output="v").select("id", "v")
    with firesteel.progress(spark) as run:
        assert table.join(small.hint("broadcast"), "id").selectExpr("size(v)").count() == 100
    assert run.report.rows == 100


def test_others_threads_are_not_counted(spark, table, folder):
    udf = firesteel.embed_udf(folder, on_error="null")
    other = threading.Thread(target=lambda: table.select(udf("ids")).collect())
    with firesteel.progress(spark) as run:
        other.start()
        other.join()
        table.where("id < 10").select(udf("ids")).collect()
    assert run.report.rows == 10


def test_blocks_of_a_thread_are_not_nested(spark):
    with firesteel.progress(spark) as run:
        with pytest.raises(firesteel.ConfigError, match="leave that block first"):
            firesteel.progress(spark).__enter__()
    assert run.report is not None
    with pytest.raises(firesteel.ConfigError, match="spark is a str; a SparkSession belongs there"):
        firesteel.progress("spark")


def test_where_no_port_can_be_opened_tasks_are_counted(spark, table, folder, monkeypatch, capsys):
    def refuse(*_):
        raise OSError("no")

    monkeypatch.setattr(watch, "Listener", refuse)
    with pytest.warns(RuntimeWarning, match="no port of 127.0.0.1 can be opened"), firesteel.progress(spark) as run:
        firesteel.score(table, firesteel.embed_udf(folder, on_error="null"), "ids", output="v").collect()
    assert run.report.rows is None and run.report.tasks >= 1 and run.report.device_seconds > 0
    assert "rows not told" in capsys.readouterr().out


def test_a_port_that_nobody_reaches_harms_nobody(spark, table, folder):
    udf = firesteel.embed_udf(folder, on_error="null")
    with firesteel.progress(spark) as run:
        context = spark.sparkContext
        host, port, token = context.getLocalProperty(counters.PROPERTY).rsplit(":", 2)
        context.setLocalProperty(counters.PROPERTY, f"{host}:{port}:{'0' * len(token)}")
        assert len(table.select(udf("ids")).collect()) == 1000
    assert run.report.rows == 0


def of_a_task_that_is_tried_again(spark, folder: str) -> str:
    """The token of the progress block."""
    df = test_spark_manager.table(spark, 2000, 4)

    def dies(batches):  # once, having handed on rows
        from pyspark import TaskContext

        for number, batch in enumerate(batches):
            yield batch
            if number == 2 and TaskContext.get().attemptNumber() == 0 and TaskContext.get().partitionId() == 1:
                raise SystemError("dies")

    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 100)
    with firesteel.progress(spark) as run:
        scored = firesteel.score(df, firesteel.embed_udf(folder), "ids", output="v")
        assert len(scored.mapInArrow(dies, scored.schema).collect()) == 2000
        token = spark.sparkContext.getLocalProperty(counters.PROPERTY).rsplit(":", 1)[1]
    assert run.report.rows == 2000 and run.report.tasks == 4, run.report
    assert run._totals.tried.counts["done"] > 2000, run._totals.tried.counts
    assert run.report.rows_computed <= 2000 + 300, run.report
    return token


@pytest.mark.slow
def test_a_task_that_is_tried_again(folder, tmp_path):
    """Its rows count once; and Spark's log of events, which others may read, has not the token."""
    log = tmp_path / "log"
    log.mkdir()
    settings = {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": log.as_uri(),
        "spark.eventLog.compress": "false",
    }
    with Driver({"spark.master": "local[2,4]"} | settings, tmp_path) as driver:
        token = driver.run(of_a_task_that_is_tried_again, folder)
    written = [path.read_bytes() for path in log.rglob("*") if path.is_file()]
    assert any(b"firesteel.progress" in one for one in written), "nothing is known of the property"
    assert not any(token.encode() in one for one in written), "the event log has the token"
