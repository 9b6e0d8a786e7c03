"""Executors that are processes of their own, each with its folder and its manager: one session for all tests here."""

from __future__ import annotations

import json
import os
import time
import warnings

import firesteel
import numpy as np
import pytest
import test_spark_embed
import test_spark_manager
import test_spark_names
import tiny
from driver_kit import Driver
from firesteel.host.processes import look_up

pytestmark = [pytest.mark.spark, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def model(place) -> str:
    return str(tiny.write(place / "model"))


@pytest.fixture(scope="module")
def driver(place, model):
    """Two executors of two tasks each. They are shipped the model, once as a folder and once inside of one."""
    archive, nested = (test_spark_names.packed(place / f"{inside}.tgz", model, inside) for inside in (".", "minilm"))
    settings = {
        "spark.master": "local-cluster[2,2,1024]",
        "spark.executor.memory": "512m",
        "spark.archives": f"{archive}#shipped,{nested}#models",
    }
    with Driver(settings, place) as driver:
        yield driver


def test_every_way_gives_the_engines_vectors(driver, model):
    test_spark_embed.check_ways(driver.run(test_spark_embed.every_way, model, test_spark_embed.TEXTS), model)


def of_a_manager_each(spark, folder: str) -> dict[str, list[int]]:
    df = test_spark_manager.table(spark, 400, 8)
    found = test_spark_manager.vectors(df, firesteel.embed_udf(folder))
    assert found == test_spark_manager.expected(df, folder)
    seen = spark.sparkContext.parallelize(range(8), 8).map(test_spark_manager.teller()).collect()
    managers = {jvm: {there["pid"] for other, there in seen if other == jvm} for jvm, _ in seen}
    assert len(managers) == 2 and all(len(pids) == 1 for pids in managers.values()), managers
    assert all(len(test_spark_manager.models_of(there, folder)) == 1 for _, there in seen)
    return {"managers": [pid for one in managers.values() for pid in one], "jvms": list(managers)}


def names_of_what_is_shipped(spark, texts: list[str]) -> dict[str, list]:
    """name of the model, or of another way to it -> [the folder that was found, vectors in the order of the texts]"""

    def vectors(rows):
        return [row.v for row in sorted(rows, key=lambda row: row.id)]

    df = spark.createDataFrame(list(enumerate(texts)), "id int, text string").coalesce(1)
    df.createOrReplaceTempView("names")
    said = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name in ("./shipped", "shipped/", "models/minilm"):
            udf = firesteel.embed_udf(name)
            said[name] = [udf.job.model.name, vectors(df.select("id", udf("text").alias("v")).collect())]
        own = firesteel.embed_udf("shipped", manager=False)
        said["own"] = [own.job.model.name, vectors(df.select("id", own("text").alias("v")).collect())]
        said["score"] = ["./shipped", vectors(firesteel.score(df, udf, "text", output="v").collect())]
        firesteel.register(spark, "embed_shipped", firesteel.embed_udf("./shipped"))
        said["sql"] = ["./shipped", vectors(spark.sql("SELECT id, embed_shipped(text) AS v FROM names").collect())]
        states = firesteel.hidden_states_udf("./shipped", "first")
        said["states"] = ["./shipped", vectors(df.select("id", states("text").alias("v")).collect())]
        said["warm"] = firesteel.warm(spark, "./shipped")
    return said


def test_executors_find_what_spark_ships(driver, model):
    """Their working directories are not the driver's."""
    said = driver.run(names_of_what_is_shipped, test_spark_names.TEXTS)
    expected = test_spark_names.engines_vectors(model)
    for name in ("./shipped", "shipped/", "models/minilm", "own", "score", "sql"):
        found, vectors = said[name]
        assert found == ("./models/minilm" if name == "models/minilm" else "./shipped")
        assert vectors == expected, name
    with firesteel.Engine(model, devices="cpu", threads=1) as engine:
        states = [states[0] for states in engine.hidden_states(test_spark_names.TEXTS)]
    np.testing.assert_array_equal(np.array(said["states"][1], np.float32), np.stack(states))
    assert said["warm"] == 2


def other_files_than_the_drivers(spark) -> tuple[list[str], str]:
    """(working directories of the executors, what the job says)"""

    def change(_: object) -> list[str]:
        time.sleep(0.5)  # so that each executor has some of the tasks
        with open("shipped/config.json", "a") as file:
            file.write(" ")
        return [os.getcwd()]

    folders = spark.sparkContext.parallelize(range(8), 8).mapPartitions(change).collect()
    assert len(set(folders)) == 2
    try:
        df = spark.createDataFrame([("a row",)], "text string")
        df.select(firesteel.embed_udf("./shipped", threads=1)("text")).collect()
    except Exception as error:
        return folders, str(error)
    return folders, "nothing"


def test_an_executor_with_other_files_says_so(driver):
    folders, said = driver.run(other_files_than_the_drivers)
    named = (f"CheckpointError: {at}/shipped/config.json: differs from the file that the driver saw" for at in folders)
    assert any(words in said for words in named), said


def test_one_manager_an_executor_that_ends_with_it(driver, place, tmp_path):
    """The last one: it ends the session."""
    folder = str(tiny.write(tmp_path / "model", seed=7, layers=3, hidden=48, heads=4, inner=100))
    said = driver.run(of_a_manager_each, folder)
    assert list((place / "m").glob("*.sock"))
    driver.stop()
    deadline = time.monotonic() + 60
    while left := [pid for pid in said["managers"] if look_up(pid) is not None]:
        assert time.monotonic() < deadline, f"managers {left} outlive their executors"
        time.sleep(0.1)
    assert not list((place / "m").glob("*.sock")) and not list((place / "m").glob("*.lock")), json.dumps(said)
