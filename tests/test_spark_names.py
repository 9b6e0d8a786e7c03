"""Models by names that only executors know: folders that Spark ships as archives or files, and such as are nowhere.

A driver that does not see a folder says so in one line; a task says where it has looked.
"""

import json
import os
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import firesteel
import numpy as np
import pytest
import tiny
from firesteel import hidden_states_udf

TEXTS = ["the first row", "", "parse a date string"]


def packed(archive: Path, folder: Path, inside: str = ".") -> str:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, inside)
    return str(archive)


def engines_vectors(folder) -> list[list[float]]:
    with firesteel.Engine(folder, devices="cpu", threads=1) as engine:
        return engine.embed(TEXTS).tolist()


# --- the driver says that it has not seen it --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [firesteel.embed_udf, hidden_states_udf], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("/no/such/model", ["/no/such/model is not on this machine", "the first task will tell"]),
        ("file:///no/such/a%20model", ["/no/such/a model is not on this machine"]),
        ("dbfs:/no/such/model", ["/dbfs/no/such/model is not on this machine"]),
        ("./model", ["./model is not on this machine", "working directory", "spark.archives"]),
        ("../no/model/", ["../no/model is not on this machine", "working directory"]),
        ("all-MiniLM-L6-v2", ["./all-MiniLM-L6-v2 is not", 'a hub id would be "org/all-MiniLM-L6-v2"']),
        ("/no/such/\udcff", ["/no/such/\\xff is not on this machine"]),
    ],
)
def test_a_folder_that_the_driver_does_not_see_is_told_in_one_line(tmp_path, monkeypatch, make, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning) as told:
        for _ in range(2):  # once for each that is made
            made = make(given)
    said = [str(warning.message) for warning in told]
    assert len(said) == 2 and said[0] == said[1]
    assert said[0].startswith(f"{make.__name__}: ") and "\n" not in said[0] and all(word in said[0] for word in words)
    assert {warning.filename for warning in told} == {__file__}  # the line that made it
    said[0].encode("utf-8")
    assert made.job.model.files == ()


def test_a_folder_that_the_driver_sees_is_not_told(tmp_path, monkeypatch):
    model = tiny.write(tmp_path / "a model")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = [firesteel.embed_udf(given) for given in (model, str(model) + "/", "a model", model.as_uri())]
    assert len(set(made)) == 1 and made[0].job.model.name == str(model)


# --- in a session -----------------------------------------------------------------------------------------------------


@pytest.mark.spark
@pytest.mark.parametrize("name", ["added_folder", "./added_archive", "added_archive_of_a_folder/minilm"])
def test_a_local_session_finds_what_it_ships(spark, tmp_path, name):
    """There the tasks' working directory is the driver's, and what is shipped lies elsewhere, in SparkFiles."""
    kind = Path(name).parts[0]
    model = tiny.write(tmp_path / "added_folder")
    if kind == "added_folder":
        spark.sparkContext.addFile(str(model), recursive=True)
    else:
        inside = "minilm" if "/minilm" in name else "."
        spark.sparkContext.addArchive(f"{packed(tmp_path / f'{kind}.tgz', model, inside)}#{kind}")
    df = spark.createDataFrame(list(enumerate(TEXTS)), "id int, text string")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        vectors = firesteel.embed_udf(name)
    assert vectors.job.model.name == f"./{Path(name)}" and vectors.job.model.with_weights
    rows = df.select("id", vectors("text").alias("v")).orderBy("id").collect()
    assert [row.v for row in rows] == engines_vectors(model)


@pytest.mark.spark
@pytest.mark.parametrize("options", [{}, {"manager": False}], ids=str)
def test_a_task_names_both_places_that_it_has_looked_at(spark, options):
    from pyspark import SparkFiles

    with pytest.warns(UserWarning, match="not on this machine"):
        nowhere = firesteel.embed_udf("./nowhere/at-all", **options)
    with pytest.raises(Exception) as failed:
        spark.range(1).selectExpr("'a row' AS text").select(nowhere("text")).collect()
    said = str(failed.value)
    assert "CheckpointError: ./nowhere/at-all: no such folder in the working directory" in said
    assert os.getcwd() in said and SparkFiles.getRootDirectory() in said
    assert "ship it as spark.archives=FILE.tgz#nowhere, or give a folder that every executor has" in said


JOB = """
import json, os, sys, warnings
import firesteel
from pyspark.sql import SparkSession

warnings.simplefilter("error", UserWarning)
archive, nested, texts = *sys.argv[1:3], json.loads(sys.argv[3])
spark = (SparkSession.builder.master("local-cluster[1,1,1024]").config("spark.ui.enabled", "false")
         .config("spark.executor.memory", "512m").config("spark.sql.shuffle.partitions", "1")
         .config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
         .config("spark.archives", f"{archive}#shipped,{nested}#models").getOrCreate())
spark.sparkContext.setLogLevel("OFF")
df = spark.createDataFrame(list(enumerate(texts)), "id int, text string").coalesce(1)
df.createOrReplaceTempView("t")
said = {}

def vectors(rows):
    return [row.v for row in sorted(rows, key=lambda row: row.id)]

for name in ("./shipped", "shipped/", "models/minilm"):
    udf = firesteel.embed_udf(name)
    said[name] = [udf.job.model.name, vectors(df.select("id", udf("text").alias("v")).collect())]
own = firesteel.embed_udf("shipped", manager=False)
said["own"] = [own.job.model.name, vectors(df.select("id", own("text").alias("v")).collect())]
said["score"] = ["./shipped", vectors(firesteel.score(df, udf, "text", output="v").collect())]
firesteel.register(spark, "embed_shipped", firesteel.embed_udf("./shipped"))
said["sql"] = ["./shipped", vectors(spark.sql("SELECT id, embed_shipped(text) AS v FROM t").collect())]
states = firesteel.hidden_states_udf("./shipped", "first")
said["states"] = ["./shipped", vectors(df.select("id", states("text").alias("v")).collect())]
said["warm"] = firesteel.warm(spark, "./shipped")

def other_files(_):
    with open("shipped/config.json", "a") as file:
        file.write(" ")
    return [os.getcwd()]

said["cwd"] = spark.sparkContext.parallelize([0], 1).mapPartitions(other_files).collect()[0]
try:
    df.select(firesteel.embed_udf("./shipped", threads=1)("text")).collect()
    said["other"] = "nothing"
except Exception as error:
    said["other"] = str(error)
print(json.dumps(said))
spark.stop()
"""


@pytest.mark.slow
def test_executors_find_what_spark_ships(tmp_path):
    """Their working directory is not the driver's. An executor with other files than the driver's says so."""
    model = tiny.write(tmp_path / "model")
    archive, nested = (packed(tmp_path / f"{inside}.tgz", model, inside) for inside in (".", "minilm"))
    (tmp_path / "driver").mkdir()
    environment = os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(tmp_path),
        "SPARK_WORKER_DIR": str(tmp_path),
        "FIRESTEEL_MANAGER_DIR": str(tmp_path / "m"),
        "PYTHONPATH": str(Path(firesteel.__file__).parent.parent),
    }
    command = [sys.executable, "-c", JOB, archive, nested, json.dumps(TEXTS)]
    ran = subprocess.run(command, env=environment, cwd=tmp_path / "driver", capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr[-4000:]
    said = json.loads(ran.stdout.splitlines()[-1])
    expected = engines_vectors(model)
    for name in ("./shipped", "shipped/", "models/minilm", "own", "score", "sql"):
        found, vectors = said[name]
        assert found == f"./{Path(name)}" or name in ("own", "score", "sql")
        assert vectors == expected, name
    with firesteel.Engine(model, devices="cpu", threads=1) as engine:
        states = [states[0] for states in engine.hidden_states(TEXTS)]
    np.testing.assert_array_equal(np.array(said["states"][1], np.float32), np.stack(states))
    assert said["warm"] == 1
    named = f"CheckpointError: {said['cwd']}/shipped/config.json: differs from the file that the driver saw"
    assert named in said["other"]
