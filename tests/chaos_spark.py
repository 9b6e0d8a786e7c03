"""Spark jobs from under which workers, managers and executors are killed: each row comes out once, in order, bit-equal.

    python tests/chaos_spark.py --rounds 5                      minutes: `make chaos-spark`
    python tests/chaos_spark.py --rounds 200 --only streams     one kind

A round is a job of rows that no other has, and one of these at a random moment of it:

    worker       SIGKILL to a Python worker; Spark tries the task again                   (local, cluster)
    again        the same when a partition's rows are computed: at most 5 % are again     (local)
    manager      SIGKILL to a manager                                                     (local, cluster)
    cancel       the job is cancelled, and run once more                                  (local, cluster)
    stream       foreachBatch: the query is stopped in a batch, and started again         (local)
    streams      two UDFs chained, and two side by side, by ones: a row in flight each     (local)
    executor     SIGKILL to an executor's JVM                                             (cluster)
    speculation  an attempt hangs behind its rows, and Spark starts a copy elsewhere: at
                 most 5 % of all rows are computed again, the copy's own partition         (hosts)

`local` is local[2,4], `cluster` local-cluster[2,1,1024]. Spark starts no copy on a host that has the attempt already,
so `hosts` is a standalone cluster with one worker at 127.0.0.2 and one at 127.0.0.3. No job may fail but the one that
is cancelled. In the end nothing may be left: process, socket, lock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from lifecycle_kit import managers_in

HERE = Path(__file__).resolve().parent
KINDS = {
    "local": ("worker", "again", "manager", "cancel", "stream", "streams"),
    "cluster": ("worker", "manager", "cancel", "executor"),
    "hosts": ("speculation",),
}
ROWS = 1200
PARTITIONS = 6
MANY = 40  # partitions, where one of them may be computed twice
EXTRA = 1.05  # rows computed for each that went in, at most
HANGS = 60.0  # seconds that an attempt hangs for which a copy is started
FEW = 24  # rows that go one by one
TOKENS = (
    "transform(sequence(0, 3 + n % 20), x -> CASE WHEN x < 4 THEN 1 + int(n / pow(59, x)) % 59 ELSE int(1 + x) END)"
)
DEADLINE = 180.0  # seconds a job may take
MOMENT = (0.1, 0.7)  # when in a job something happens to it: of the time that one takes undisturbed
TRIES = 20  # of a round, whose job may have been done before anything happened to it


def tokens(n: int) -> list[int]:
    """The row that a number stands for, as TOKENS has it in SQL: no other number gives it."""
    return [1 + n // 59**x % 59 if x < 4 else 1 + x for x in range(4 + n % 20)]


def session(on: str, place: Path, **conf: str):
    """A Spark session whose managers keep their files in `place`; for `hosts`, conf has the master."""
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "FIRESTEEL_MANAGER_DIR": str(place)}
    from pyspark.sql import SparkSession

    master = {"local": "local[2,4]", "cluster": "local-cluster[2,1,1024]"}.get(on, "")
    settings = {
        "spark.master": master,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xss8m",
        "spark.executor.memory": "512m",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "50",
        "spark.sql.warehouse.dir": str(place.parent / "warehouse"),
        **conf,
    }
    builder = SparkSession.builder.appName("firesteel chaos")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    return spark


# -- processes ---------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[tuple[int, str, int]]:
    """(pid, command line, parent) of all processes below."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
    found, look = [], [pid]
    while look:
        parent = look.pop()
        for child in children.get(parent, ()):
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            found.append((child, line, parent))
            look.append(child)
    return found


def workers_of(jvm: int) -> list[int]:
    """Python workers: forked by a daemon, which was not."""
    daemons = {pid: parent for pid, line, parent in descendants(jvm) if "pyspark.daemon" in line}
    return [pid for pid, parent in daemons.items() if parent in daemons]


def executors_of(jvm: int) -> list[int]:
    return [pid for pid, line, _ in descendants(jvm) if "CoarseGrainedExecutorBackend" in line]


# -- rounds ------------------------------------------------------------------------------------------------------------


class Wrong(Exception):
    """What should not be."""


class Missed(Exception):
    """The job was done before anything happened to it."""


class Chaos:
    def __init__(self, spark, model: str, place: Path, seed: int) -> None:
        import firesteel

        self.spark, self.model, self.place = spark, model, place
        self.random = random.Random(seed)
        self.udf = firesteel.embed_udf(model, threads=1)
        self.engine = firesteel.Engine(model)
        self.jvm = spark._jvm.java.lang.ProcessHandle.current().pid()
        self.next = 0
        self.done: Counter[str] = Counter()
        self.compare(self.job(self.scored(*self.rows())), 0, ROWS)  # everything is up
        began = time.monotonic()
        self.job(self.scored(*self.rows()))
        self.usual = time.monotonic() - began

    def moment(self) -> float:
        return self.usual * self.random.uniform(*MOMENT)

    def rows(self) -> tuple[int, int]:
        """Numbers of rows that were in no job before."""
        self.next += ROWS
        return self.next - ROWS, self.next

    def expected(self, first: int, end: int) -> list[list[float]]:
        return self.engine.embed([tokens(n) for n in range(first, end)]).tolist()

    def table(self, first: int, end: int, partitions: int = PARTITIONS):
        numbers = self.spark.range(first, end, 1, partitions).selectExpr("id", "id AS n")
        return numbers.selectExpr("id", f"{TOKENS} AS ids")

    def compare(self, found: list, first: int, end: int) -> None:
        numbers = [row.id for row in found]
        if numbers != list(range(first, end)):
            raise Wrong(f"{len(numbers)} rows came out, {len(set(numbers))} different ones; {end - first} went in")
        different = sum(row.v != vector for row, vector in zip(found, self.expected(first, end), strict=True))
        if different:
            raise Wrong(f"{different} of {end - first} rows have other bits")

    def job(self, df, meanwhile: Callable[[], bool] | None = None, group: str = "chaos") -> list:
        """The job's rows. `meanwhile` happens at a random moment of it; what the job raises is raised here."""
        result: dict[str, object] = {}

        def collect() -> None:
            began = time.monotonic()
            try:
                self.spark.sparkContext.setJobGroup(group, group, True)
                result["rows"] = df.collect()
                self.took = time.monotonic() - began
            except Exception as error:  # the main thread looks at it
                result["error"] = error

        from pyspark import InheritableThread

        thread = InheritableThread(target=collect, daemon=True)
        thread.start()
        if meanwhile is not None:
            time.sleep(self.moment())
            running = thread.is_alive() and meanwhile()
        thread.join(DEADLINE)
        if thread.is_alive():
            raise Wrong(f"a job is not done after {DEADLINE:g} s")
        if "error" in result:
            raise result["error"]
        if meanwhile is not None and not running:
            raise Missed
        return result["rows"]

    def scored(self, first: int, end: int, partitions: int = PARTITIONS):
        return self.table(first, end, partitions).select("id", self.udf("ids").alias("v"))

    def computed(self) -> int:
        """Rows that the managers of all executors have computed with the model."""
        from test_spark_manager import models_of, teller

        managers: dict[int, dict] = {}
        deadline = time.monotonic() + DEADLINE
        while not managers.keys() >= set(managers_in(self.place)):  # an executor that is busy may get none of the tasks
            if time.monotonic() > deadline:
                raise Wrong(f"only the managers {list(managers)} of {managers_in(self.place)} say what they did")
            told = self.spark.sparkContext.parallelize(range(8), 8).map(teller()).collect()
            if faults := [there for _, there in told if "error" in there]:
                raise Wrong(f"a manager says {faults[0]['error']}")
            managers |= {there["pid"]: there for _, there in told}
        return sum(model["stats"]["rows"] for there in managers.values() for model in models_of(there, self.model))

    def counted(self, first: int, end: int, trouble: str, partitions: int) -> None:
        """One attempt of a partition meets `trouble` when its rows are computed, and there is another."""
        folder = Path(tempfile.mkdtemp(dir=self.place.parent))
        before = self.computed()
        df = self.scored(first, end, partitions).mapInArrow(troubled(str(folder), trouble), "id long, v array<float>")
        began = time.monotonic()
        self.compare(self.job(df), first, end)
        seconds = time.monotonic() - began
        attempts = sorted(path.name for path in folder.iterdir())
        if attempts != ["0", "1"]:
            raise Wrong(f"partition 0 had the attempts {attempts}; 0 and 1 were wanted")
        if (share := (self.computed() - before) / (end - first)) > EXTRA:
            raise Wrong(f"{share:.3f} times the rows were computed; {EXTRA} times is the most")
        if seconds > HANGS:
            raise Wrong(f"the job took {seconds:.0f} s: it waited for the attempt that hangs, not for its copy")
        print(f"  {trouble}: {seconds:.1f} s, {share:.3f} times the rows were computed", file=sys.stderr)

    def kill(self, pids: list[int]) -> bool:
        """Whether there was one."""
        try:
            os.kill(self.random.choice(pids), signal.SIGKILL)
        except (IndexError, ProcessLookupError):
            return False
        return True

    def round(self, kind: str) -> None:
        for _ in range(TRIES):
            try:
                getattr(self, kind)(*self.rows())
            except Missed:
                self.usual = min(self.usual, self.took)  # jobs have become faster
                continue
            self.done[kind] += 1
            return
        raise Wrong(f"{TRIES} jobs were done before anything happened to them")

    def worker(self, first: int, end: int) -> None:
        self.compare(self.job(self.scored(first, end), lambda: self.kill(workers_of(self.jvm))), first, end)

    def manager(self, first: int, end: int) -> None:
        self.compare(self.job(self.scored(first, end), lambda: self.kill(managers_in(self.place))), first, end)

    def executor(self, first: int, end: int) -> None:
        self.compare(self.job(self.scored(first, end), lambda: self.kill(executors_of(self.jvm))), first, end)

    def cancel(self, first: int, end: int) -> None:
        group = f"cancel {first}"

        def cancel() -> bool:
            self.spark.sparkContext.cancelJobGroup(group)
            return True

        try:
            self.job(self.scored(first, end), cancel, group)
            raise Missed
        except Exception as error:
            if "cancelled" not in str(error):
                raise
        self.compare(self.job(self.scored(first, end)), first, end)

    def stream(self, first: int, end: int) -> None:
        folder = Path(tempfile.mkdtemp(dir=self.place.parent))
        self.table(first, end).write.parquet(str(folder / "in"))
        stopping = threading.Event()

        def batch(df, number: int) -> None:
            stopping.set()
            df.select("id", self.udf("ids").alias("v")).write.mode("overwrite").parquet(str(folder / f"out/{number}"))

        def start():
            source = self.spark.readStream.schema("id long, ids array<int>").option("maxFilesPerTrigger", 2)
            writer = source.parquet(str(folder / "in")).writeStream.foreachBatch(batch)
            return writer.option("checkpointLocation", str(folder / "check")).trigger(availableNow=True).start()

        query = start()
        stopping.wait(DEADLINE)
        time.sleep(self.moment() / 3)
        if not query.isActive:
            raise Missed
        query.stop()
        query = start()
        if not query.awaitTermination(int(DEADLINE)):
            raise Wrong(f"a stream is not done after {DEADLINE:g} s")
        out = [str(path) for path in (folder / "out").iterdir()]
        self.compare(self.spark.read.parquet(*out).orderBy("id").collect(), first, end)
        shutil.rmtree(folder)

    def again(self, first: int, end: int) -> None:
        self.counted(first, end, "kill", PARTITIONS)

    def speculation(self, first: int, end: int) -> None:
        self.counted(first, end, "hang", MANY)

    def streams(self, first: int, end: int) -> None:
        """A worker with two streams must not wait for itself, nor two workers for each other."""
        from pyspark.sql.functions import reverse

        end = first + FEW
        udf = by_ones(self.udf.job)
        table = self.table(first, end, 2)
        self.spark.conf.set("spark.firesteel.batch_tokens", "1")
        self.spark.conf.set("spark.firesteel.slots", "1")
        try:
            self.compare(
                self.job(table.select("id", udf("ids").alias("v"), udf(reverse("ids")).alias("w"))), first, end
            )
            firsts = table.select("id", udf("ids").alias("v"))
            seconds = firsts.selectExpr("id", "transform(slice(v, 1, 20), x -> int(1 + abs(x) * 10) % 59) AS ids")
            chained = self.job(seconds.select("id", udf("ids").alias("v")))
        finally:
            self.spark.conf.unset("spark.firesteel.batch_tokens")
            self.spark.conf.unset("spark.firesteel.slots")
        rows = [[int(1 + abs(np.float32(x)) * 10) % 59 for x in vector[:20]] for vector in self.expected(first, end)]
        if [row.v for row in chained] != self.engine.embed(rows).tolist():
            raise Wrong("chained, the rows have other bits")


def by_ones(job):
    """The job's column function, with a window of one row that never grows."""
    import pyarrow as pa
    from firesteel.spark._udf import arrow_function, result_type
    from pyspark.sql.functions import arrow_udf

    whole = arrow_function(job)

    def compute(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        from firesteel.table import window

        window.FIRST_ROWS = window.MOST_ROWS = window.SMALLEST_SLICE = window.LARGEST_SLICE = 1
        yield from whole(batches)

    compute.__annotations__ = {"batches": Iterator[pa.Array], "return": Iterator[pa.Array]}
    return arrow_udf(compute, result_type(job))


def troubled(folder: str, trouble: str) -> Callable[[Iterator], Iterator]:
    """Hands on what it gets; the first attempt of partition 0 is killed or hangs then, its rows computed."""

    seconds = HANGS  # by value, as all of this: executors need not have this file

    def through(batches: Iterator) -> Iterator:
        from pyspark import TaskContext

        context = TaskContext.get()
        held = list(batches)
        if context.partitionId() == 0:
            open(f"{folder}/{context.attemptNumber()}", "w").close()
            if context.attemptNumber() == 0 and trouble == "kill":
                os.kill(os.getpid(), 9)
            elif context.attemptNumber() == 0:
                time.sleep(seconds)
        yield from held

    return through


# -- a cluster of two hosts --------------------------------------------------------------------------------------------

SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "100ms",
    "spark.speculation.multiplier": "1.1",
    "spark.speculation.quantile": "0.5",
    "spark.speculation.minTaskRuntime": "5s",
    "spark.executor.cores": "2",
}


class Hosts:
    """A standalone master, and a worker on each of two addresses of this machine's loopback."""

    def __init__(self, folder: Path, place: Path) -> None:
        import pyspark

        java = str(Path(os.environ["JAVA_HOME"]) / "bin" / "java") if os.environ.get("JAVA_HOME") else "java"
        jars = str(Path(pyspark.__file__).parent / "jars" / "*")
        self.environment = os.environ | {
            "FIRESTEEL_MANAGER_DIR": str(place),
            "SPARK_HOME": str(Path(pyspark.__file__).parent),
            "SPARK_SCALA_VERSION": "2.13",
        }
        self.environment.pop("SPARK_LOCAL_IP", None)
        self.command = [java, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", jars]
        self.command += [
            f"--add-opens=java.base/{package}=ALL-UNNAMED"
            for package in ("java.lang", "java.nio", "sun.nio.ch", "java.util", "java.net", "java.util.concurrent")
        ]
        self.folder, self.processes = folder, []
        log = self.start("master.Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
        self.master = "spark://" + self.wait(log, "Starting Spark master at spark://").split("spark://")[1].split()[0]
        for number in (2, 3):
            host = f"127.0.0.{number}"
            options = ["--host", host, "--cores", "2", "--memory", "1g", "--webui-port", "0"]
            log = self.start("worker.Worker", *options, "--work-dir", str(folder / host), self.master)
            self.wait(log, "Successfully registered with master")

    def start(self, name: str, *options: str) -> Path:
        log = self.folder / f"daemon{len(self.processes)}.log"
        with open(log, "w") as file:
            command = [*self.command, f"org.apache.spark.deploy.{name}", *options]
            process = subprocess.Popen(command, stdout=file, stderr=file, env=self.environment, cwd=self.folder)
        self.processes.append(process)
        return log

    def wait(self, log: Path, words: str) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for line in log.read_text().splitlines():
                if words in line:
                    return line
            time.sleep(0.1)
        raise Wrong(f"a Spark daemon does not say {words!r}:\n{log.read_text()[-2000:]}")

    def end(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# -- what is left ------------------------------------------------------------------------------------------------------


def left_behind(place: Path, workers: list[int], seconds: float = 20.0) -> str:
    """What is still there `seconds` after the session's end; empty where nothing is."""
    deadline = time.monotonic() + seconds
    while True:
        managers = managers_in(place)
        files = sorted(path.name for kind in ("sock", "lock") for path in place.glob(f"*.{kind}"))
        alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        if not (managers or files or alive):
            return ""
        if time.monotonic() > deadline:
            return f"left behind: managers {managers}, files {files}, workers {alive}"
        time.sleep(0.1)


def one_session(on: str, kinds: list[str], rounds: int, seed: int) -> Counter[str]:
    """All rounds of one kind of session. Raises where something is wrong."""
    sys.path.insert(0, str(HERE))
    import tiny

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = folder / "m"
        place.mkdir(mode=0o700)
        hosts = Hosts(folder, place) if on == "hosts" else None
        try:
            conf = {"spark.master": hosts.master, **SPECULATION} if hosts else {}
            spark = session(on, place, **conf)
            model = str(tiny.write(folder / "model", seed=3, layers=2, hidden=192, heads=6, inner=384))
            chaos = Chaos(spark, model, place, seed)
            for number in range(rounds * len(kinds)):
                kind = kinds[number % len(kinds)]
                began = time.monotonic()
                try:
                    chaos.round(kind)
                except Exception as error:
                    raise Wrong(f"{on}, {kind}, round {number}, seed {seed}: {error}") from error
                print(f"  {on} {kind}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
            workers = workers_of(chaos.jvm)
            spark.stop()
        finally:
            if hosts:
                hosts.end()
        left = left_behind(place, workers)
        if left:
            raise Wrong(f"{on}, seed {seed}: {left}")
        return chaos.done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", default=",".join(KINDS), help="local, cluster, hosts (default: all)")
    parser.add_argument("--only", default="", help="kinds of rounds (default: all that there are)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (default: 5)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    total: Counter[str] = Counter()
    for on in given.on.split(","):
        if on not in KINDS:
            parser.error(f"--on {on}: {', '.join(KINDS)} belong there")
        kinds = [kind for kind in KINDS[on] if not given.only or kind in given.only.split(",")]
        if not kinds:
            continue
        if given.inside:
            print(json.dumps(one_session(on, kinds, given.rounds, given.seed)))
            return 0
        # A JVM of its own for each; nothing of it may be seen by the next.
        command = [sys.executable, __file__, "--inside", "--on", on, "--only", ",".join(kinds)]
        command += ["--rounds", str(given.rounds), "--seed", str(given.seed)]
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            return 1
        total.update({f"{on} {kind}": count for kind, count in json.loads(ran.stdout.splitlines()[-1]).items()})
    if not total:
        parser.error(f"--only {given.only}: no kind of round that --on {given.on} has")
    done = ", ".join(f"{count} {kind}" for kind, count in total.items())
    print(f"seed {given.seed}: {done}; of each job every row once, in order, with its bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
