"""The demo: the documentation of every function in pyspark.sql.functions becomes vectors, and answers questions.

docstrings -> sentences -> DataFrame -> embed_udf in a local session -> Parquet -> questions, by cosine similarity
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import tempfile
import threading
import warnings
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ..model.checkpoint import Checkpoint
from ..model.locate import find, resolve
from ..table.job import Job, embed_job

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

QUESTIONS = (
    "which function parses a date string?",
    "how similar are two strings?",
    "how do I turn an array into one row per element?",
    "how many months lie between two dates?",
    "how do I read a value out of a JSON string?",
)
MOST_WORKERS = 8  # each holds the model once; more would only cost memory for so few rows
SHORT_JOBS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # a JVM for those: no optimising, one collecting thread
PARTITIONS = 8  # of each worker: the progress bar moves when one is done


def prepare(model: str) -> Job:
    """Checks the model. Raises CheckpointError or ConfigError."""
    located = resolve(model)
    Checkpoint.open(find(located))  # a job may leave a folder that is not here to other machines; the demo has none
    return embed_job(located, normalize=True, said_by="demo")


def run(job: Job, rows: int | None = None, output: str | None = None) -> int:
    """Runs the demo and prints what it finds. `output`: the folder that functions.parquet goes into."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="pyspark")  # about the newest pandas
    documented = documentation()[:rows]
    folder = os.path.abspath(output) if output else tempfile.mkdtemp(prefix="firesteel-demo-")
    path = os.path.join(folder, "functions.parquet")
    spark = _session()
    try:
        print(f"embedding the documentation of {len(documented)} functions with {job.model}", flush=True)
        _embed(spark, job, documented, path)
    finally:
        spark.stop()
    print(f"stored in {path}")
    _answer(job, path)
    return 0


def documentation() -> list[tuple[str, str]]:
    """(name, what it does) of every function in pyspark.sql.functions, by name."""
    import pyspark.sql.functions as F

    functions = [(name, thing) for name, thing in inspect.getmembers(F, inspect.isfunction) if not name.startswith("_")]
    said = [(name, about(inspect.getdoc(thing) or "")) for name, thing in functions if "pyspark" in thing.__module__]
    return [(name, text) for name, text in said if text]


def about(docstring: str) -> str:
    """The first sentence of a docstring in plain words.

    Nearly all of them speak of "a column", which tells nothing; further down they say what it holds ("A column that
    evaluates to a string, date, or timestamp."), so that is put in its place: "Converts a string into date type ...".
    """
    directives = re.sub(r"(?m)^\.\. .*(\n[ ]+.*)*", "", docstring)
    head, *rest = re.split(r"(?m)^(?:Parameters|Returns|Examples|See Also|Notes)\n-{3,}\n", directives)
    sentence = re.sub(r"^[A-Z][\w ]* [Ff]unction: *", "", _plain(head)).split(". ")[0].rstrip(".") + "."
    holds = re.search(r"A column that evaluates to (an? [a-z]+)", _plain(rest[0])) if rest else None
    if holds:
        thing = holds[1]
        sentence = re.sub(
            r"\b([Aa]n?|[Tt]he)( \w+)? column\b", lambda k: thing if k[1][0].islower() else thing.capitalize(), sentence
        )
    return sentence if len(sentence) > 1 else ""


def _plain(text: str) -> str:
    """reStructuredText without its marks; `DateType` is a date type."""

    def word(role: re.Match[str]) -> str:
        name = role[1].split(".")[-1]
        if name == "Column":
            return "column"
        return f"{name[:-4].lower()} type" if name.endswith("Type") else name

    text = re.sub(r":\w+:`~?([^`<]+)(?: <[^`]*>)?`", word, text)
    return " ".join(text.replace("`_", "").replace("`", "").split())


def _session() -> SparkSession:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers are this Python, with what is installed in it
    workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    session = (
        SparkSession.builder.master(f"local[{workers}]")
        .appName("firesteel demo")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.extraJavaOptions", SHORT_JOBS)
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    return session


def _embed(spark: SparkSession, job: Job, documented: list[tuple[str, str]], path: str) -> None:
    from ..spark._udf import ColumnFunction

    def table(rows: list[tuple[str, str]], parts: int) -> DataFrame:
        df = spark.createDataFrame(spark.sparkContext.parallelize(rows, parts), "name string, text string")
        return df.withColumn("vector", vectors("text"))

    vectors = ColumnFunction(job)
    workers = spark.sparkContext.defaultParallelism
    start = perf_counter()
    table([("", "")] * workers, workers).collect()
    loaded = perf_counter()
    print(f"{workers} workers started and loaded the model in {loaded - start:.1f} s", flush=True)
    parts = max(1, min(len(documented), PARTITIONS * workers))
    _watch(spark, table(documented, parts), path, len(documented), parts)
    seconds = perf_counter() - loaded
    print(f"{len(documented)} rows in {seconds:.1f} s: {len(documented) / seconds:.0f} rows/s")


def _watch(spark: SparkSession, table: DataFrame, path: str, rows: int, parts: int) -> None:
    """Writes the table, and shows how far it is: finished tasks are what Spark tells about that."""
    from tqdm import tqdm

    failures: list[BaseException] = []

    def write() -> None:
        try:
            table.write.mode("overwrite").parquet(path)
        except BaseException as error:
            failures.append(error)

    job = threading.Thread(target=write, daemon=True)
    job.start()
    tracker = spark.sparkContext.statusTracker()
    with tqdm(total=rows, unit=" rows") as bar:
        while job.is_alive():
            job.join(0.1)
            stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
            done = sum(stage.numCompletedTasks for stage in stages if stage is not None and stage.numTasks == parts)
            if (more := rows * done // parts - bar.n) > 0:
                bar.update(more)
        if not failures:
            bar.update(rows - bar.n)
    if failures:
        raise failures[0]


def _answer(job: Job, path: str) -> None:
    """Prints the three best functions for each question. All vectors have length 1, so a product is their cosine."""
    import pyarrow.parquet as pq

    from ..engine.engine import Engine

    table = pq.read_table(path)
    names, texts = table["name"].to_pylist(), table["text"].to_pylist()
    matrix = np.stack(table["vector"].combine_chunks().to_numpy(zero_copy_only=False))  # float32 [rows, D]
    with Engine(job.model, **job.own_engine()) as engine:
        questions = engine.embed(QUESTIONS, **dict(job.request))
    for question, scores in zip(QUESTIONS, questions @ matrix.T, strict=True):
        print(f"\n{question}")
        for row in np.argsort(-scores)[:3]:
            print(f"  {scores[row]:.2f}  {names[row]:<28}{texts[row]}")
