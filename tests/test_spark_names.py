"""Models by names that only executors know: folders that Spark ships as archives or files, and such as are nowhere.

A driver that does not see a folder says so in one line; a task says where it has looked.
"""

import os
import tarfile
import warnings
from pathlib import Path

import firesteel
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
