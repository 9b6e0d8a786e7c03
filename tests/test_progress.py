"""firesteel.progress without Spark: the driver's port, what it believes, what tasks send, how attempts are summed."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import firesteel
import numpy as np
import pytest
import tiny
from firesteel.spark._progress.bar import Bar, State
from firesteel.spark._progress.listener import LINE_BYTES, Listener
from firesteel.spark._progress.report import make_report
from firesteel.spark._progress.tasks_seen import ConnectTasks, StagesTasks
from firesteel.spark._progress.totals import Totals
from firesteel.table import counters, stream
from firesteel.table.job import embed_job


@pytest.fixture
def totals():
    return Totals()


@pytest.fixture
def listener(totals):
    opened = Listener("127.0.0.1", totals.take)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def no_driver_is_known_to_be_silent(monkeypatch):
    monkeypatch.setattr(counters, "_silent", set())


def message(**more: object) -> dict[str, object]:
    return {"stage": 1, "partition": 0, "attempt": 7, "stream": "a", "rows": 10, "done": 10, **more}


def call(listener: Listener) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", listener.port), timeout=30)
    made.settimeout(30)
    return made


def lines(*said: object) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in said)


def turn(listener: Listener, times: int = 5) -> int:
    return sum(listener.turn(0.02) for _ in range(times))


def cut_off(connection: socket.socket) -> bool:
    """Whether the other end has hung up."""
    connection.settimeout(0.2)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


# --- the port


def test_who_says_the_token_is_heard(listener, totals):
    with call(listener) as task:
        task.sendall(listener.token.encode() + b"\n" + lines(message(), message(partition=1, done=4)))
        assert turn(listener) == 3 and totals.best.counts["done"] == 14
        task.sendall(lines(message(partition=1, done=9))[:-5])
        turn(listener)
        assert totals.best.counts["done"] == 14
        task.sendall(lines(message(partition=1, done=9))[-5:])
        turn(listener)
        assert totals.best.counts["done"] == 19 and not cut_off(task)


STRANGERS = {
    "another token": b"0" * 32 + b"\n" + lines(message()),
    "no token": lines(message()),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(100),
    "no line": b"x" * (LINE_BYTES + 1),
    "not text": b"\xff\xfe\n",
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_cut_off(listener, totals, said, monkeypatch):
    monkeypatch.setattr("firesteel.spark._progress.listener.TOKEN_SECONDS", 0.05)
    with call(listener) as stranger, call(listener) as task:
        stranger.sendall(said)
        task.sendall(listener.token.encode() + b"\n" + lines(message()))
        turn(listener)
        assert cut_off(stranger) and not cut_off(task) and totals.best.counts["done"] == 10


NO_MESSAGES = [
    b"{\n",
    b"[]\n",
    b"null\n",
    b"[" * 5000 + b"\n",
    b"\xff\n",
    b"x" * (LINE_BYTES + 1) + b"\n",
    lines(message(done=-1)),
    lines(message(done=1.5)),
    lines(message(done=True)),
    lines(message(done=1 << 60)),
    lines(message(stage=None)),
    lines(message(stream="")),
    lines(message(stream="\x1b[31m")),
    lines(message(errors=[1])),
    lines(message(errors={str(i): 1 for i in range(100)})),
    lines(message(engine={"name": "e", "busy": [0]})),
    lines(message(engine={"name": "e", "busy": [0, float("nan")], "load": 0, "memory": 0, "peaks": {}})),
]


@pytest.mark.parametrize("said", NO_MESSAGES, ids=[str(said[:50]) for said in NO_MESSAGES])
def test_what_is_no_message_ends_the_connection(listener, totals, said):
    with call(listener) as task:
        task.sendall(listener.token.encode() + b"\n" + said + lines(message()))
        turn(listener)
        assert cut_off(task) and totals.best.counts["done"] == 0 and not totals.stages


def test_slow_ones_do_not_keep_tasks_out(listener, totals, monkeypatch):
    monkeypatch.setattr(listener, "_most", 8)
    monkeypatch.setattr("firesteel.spark._progress.listener.TOKEN_SECONDS", 0.2)
    slow = [call(listener) for _ in range(20)]
    with call(listener) as task:
        task.sendall(listener.token.encode() + b"\n" + lines(message()))
        until = time.monotonic() + 60
        while not totals.stages and time.monotonic() < until:
            listener.turn(0.05)
            assert len(listener._peers) <= 8
            for one in slow:
                try:
                    one.send(b"0")
                except OSError:
                    pass
        assert totals.best.counts["done"] == 10
    for one in slow:
        one.close()


def test_tasks_that_wait_for_room_lose_nothing(listener, totals, monkeypatch):
    monkeypatch.setattr(listener, "_most", 8)
    for partition in range(50):  # gone before they are let in
        with call(listener) as task:
            task.sendall(listener.token.encode() + b"\n" + lines(message(partition=partition)))
    turn(listener, 100)
    assert totals.best.counts["done"] == 500 and not listener._peers


# --- attempts


def test_attempts_at_a_partition_count_once(totals):
    totals.take(message(attempt=1, done=50, tokens=500, errors={"TOO_LONG": 2}))
    totals.take(message(attempt=2, done=20, tokens=200, errors={"TOO_LONG": 1}))  # the first was killed
    assert totals.best.counts["done"] == 50 and totals.tried.counts["done"] == 70
    totals.take(message(attempt=2, done=49, tokens=490, errors={"TOO_LONG": 1}, complete=True))
    assert totals.best.counts["done"] == 49, "a complete attempt is the one that counts"
    assert totals.best.counts["tokens"] == 490 and totals.best.errors["TOO_LONG"] == 1
    assert totals.tried.counts["done"] == 99 and totals.complete() == 1


def test_messages_that_are_lost_repeated_or_late_do_no_harm(totals):
    for done in (10, 30, 30, 20, 40):
        totals.take(message(done=done))
    totals.take(message(done=40, complete=True))
    totals.take(message(done=60))
    assert totals.best.counts["done"] == totals.tried.counts["done"] == 40


def test_passes_of_a_task_are_added(totals):
    totals.take(message(stream="a", complete=True))
    assert totals.complete() == 1
    totals.take(message(stream="b", done=5))
    assert totals.best.counts["done"] == 15 and totals.complete() == 0


def test_rows_to_come_are_told_with_a_basis_only(totals):
    assert totals.expected_rows({1: 4}) is None
    totals.take(message(done=60))
    assert totals.expected_rows({1: 4}) is None
    totals.take(message(partition=1, done=100, complete=True))
    assert totals.expected_rows({1: 4}) == 400 and totals.expected_rows({}) is None
    totals.take(message(stage=2, done=1))
    assert totals.expected_rows({1: 4, 2: 2}) is None
    assert State(10.0, 4, 0, 60, 0, None).left is None and "ETA" not in str(State(10.0, 4, 0, 60, 0, None))
    assert State(10.0, 4, 1, 100, 500, 400.0).left == 30.0
    assert str(State(10.0, 4, 1, 100, 500, 400.0)) == "100 rows, 1/4 tasks, 50 tokens/s, ETA 00:00:30"
    assert str(State(10.0, 4, 1, None, 0, None)) == "1/4 tasks, ETA 00:00:30"


# --- a task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("progress") / "model"))


def score(folder: str, texts: list[str | None], counters: object, **options: object) -> list[object]:
    """As a worker does."""
    from contextlib import nullcontext

    import pyarrow as pa

    job = embed_job(folder, **options)
    with firesteel.Engine(folder, threads=1) as engine:
        given = [pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], ["text"])]

        def attach(model: object, wanted: object) -> nullcontext[firesteel.Engine]:
            return nullcontext(engine)

        found = stream.stream(job, given, attach, lambda batch: [batch.column(0)], ["text"], counters)
        return [vector for _, result in found for vector in result.to_pylist()]


def test_what_a_task_does_is_counted(folder, listener, totals, monkeypatch):
    monkeypatch.setattr(counters, "EVERY_SECONDS", 0.0)
    counted = counters.Counters("127.0.0.1", listener.port, listener.token, (3, 1, 9))
    texts = ["first row", None, "the last " * 100, "\ud800", "the table"] + ["of row"] * 5
    options = {"truncate": "error", "on_error": "null", "manager": False, "max_errors": 1.0}
    score(folder, [text for text in texts if text != "\ud800"], counted, **options)
    turn(listener)
    assert totals.best.counts | {"tokens": 0} == {
        **{"rows": 9, "done": 9, "nulls": 1, "tokens": 0, "hits": 0, "duplicates": 4}
    }
    assert totals.best.errors == {"TOO_LONG": 1} and totals.stages == [3] and totals.complete() == 1
    (engine,) = totals.engines.values()
    assert engine["busy"][1] > engine["busy"][0] == 0 and engine["load"] > 0 and engine["memory"] > 1 << 20
    report = make_report(2.0, 1, totals, {}, {})
    assert (report.rows, report.rows_computed, report.duplicates, report.errors) == (9, 3, 4, {"TOO_LONG": 1})
    assert report.device_seconds == engine["busy"][1] and report.busy == report.device_seconds / 2
    assert "9 rows in 2.0 s, 1 tasks" in str(report) and "TOO_LONG 1" in str(report)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return closed.getsockname()[1]


@pytest.mark.serial
def test_a_driver_that_is_gone_costs_nothing(folder, monkeypatch):
    look_up = socket.getaddrinfo

    def looked_up(host, *more, **named):  # a resolver that asks a network takes its time to say so
        if host == "no.such.host.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return look_up(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    began = time.monotonic()
    for host, port in (("127.0.0.1", free_port()), ("no.such.host.invalid", 1), ("192.0.2.1", 9)):
        for _ in range(3):
            counted = counters.Counters(host, port, "x", (1, 0, 0))
            assert len(score(folder, ["one", "two"], counted)) == 2
        assert counters._silent >= {(host, port)}
    assert time.monotonic() - began < 10


@pytest.mark.serial
def test_a_driver_that_does_not_read_stops_nobody(monkeypatch):
    """Its port takes connections, and what the system keeps for it; then lines are no longer sent."""
    monkeypatch.setattr(counters, "EVERY_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        counted = counters.Counters("127.0.0.1", deaf.getsockname()[1], "x", (1, 0, 0))
        began, slowest, stuck = time.monotonic(), 0.0, 0
        while stuck < 20 and time.monotonic() - began < 60:
            before = time.monotonic()
            counted.came(1)
            slowest = max(slowest, time.monotonic() - before)
            stuck = stuck + 1 if counted._unsent else 0
            time.sleep(0.01 if stuck else 0)
        assert counted._unsent and slowest < 2
        before = time.monotonic()
        counted.end(complete=True)
        assert time.monotonic() - before < 5 and counted._socket is None


@pytest.mark.serial
def test_a_driver_that_takes_no_connection_is_asked_once():
    """A full backlog: later connections are neither made nor refused."""
    with ExitStack() as open_ones:
        full = open_ones.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = full.getsockname()
        for _ in range(8):
            other = open_ones.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(address)
        counted = counters.Counters(*address, "x", (1, 0, 0))
        counted.came(1)
        assert counted._unsent
        before = time.monotonic()
        counted.end(complete=True)
        assert time.monotonic() - before < 5 and counted._socket is None
        assert counters.Counters(*address, "x", (1, 0, 0))._socket is None


def test_a_driver_that_hangs_up_stops_nobody(monkeypatch, listener):
    monkeypatch.setattr(counters, "EVERY_SECONDS", 0.0)
    counted = counters.Counters("127.0.0.1", listener.port, "another token", (1, 0, 0))
    for _ in range(5):
        counted.came(1)
        turn(listener, 1)
    counted.end(complete=True)
    assert counted._socket is None


def test_rows_are_the_same_without(folder):
    assert np.array_equal(score(folder, ["one", None], None)[0], score(folder, ["one"], counters.Silent())[0])


# --- what Spark says of tasks


class FakeConnect:
    """A session that calls handlers as Spark Connect does."""

    def __init__(self):
        self.handlers = []

    def registerProgressHandler(self, handler):
        self.handlers.append(handler)

    def removeProgressHandler(self, handler):
        self.handlers.remove(handler)


class Stage:
    def __init__(self, number, tasks, finished, active=0):
        self.stage_id, self.num_tasks, self.num_completed_tasks = number, tasks, finished
        self.numTasks, self.numCompletedTasks, self.numActiveTasks, self.numFailedTasks = tasks, finished, active, 0


def test_spark_connect_tells_of_finished_tasks():
    spark = FakeConnect()
    seen = ConnectTasks(spark)
    (tell,) = spark.handlers
    tell([Stage(0, 4, 1)], 2, "one", False)
    tell([Stage(0, 4, 3), Stage(1, 2, 0)], 1, "one", False)
    tell([Stage(0, 5, 5)], 0, "two", True)
    tell(None, 0, "two", True)
    assert sum(seen.totals.values()) == 11 and seen.finished == 8
    tell([Stage(0, 4, 3), Stage(1, 2, 1)], 1, "one", True)  # told a moment before the last tasks' ends were known
    assert seen.finished == 4 + 2 + 5
    tell([Stage(0, 6, 3)], 2, "three", False)
    try:
        raise RuntimeError("the operation has failed")
    except RuntimeError:
        tell([Stage(0, 6, 3)], 2, "three", True)
    assert sum(seen.totals.values()) == 17 and seen.finished == 11 + 3
    seen.close()
    assert not spark.handlers


class FakeContext:
    def __init__(self, stages):
        self.stages, self.active = stages, []
        self.jobs = {}  # number -> (group, stages)

    def getLocalProperty(self, name):
        return {"spark.jobGroup.id": "mine"}.get(name)

    def getJobIdsForGroup(self, group):
        return [number for number, (of, _) in self.jobs.items() if of == group]

    def getJobInfo(self, number):
        return SimpleNamespace(stageIds=self.jobs[number][1]) if self.jobs[number][1] else None

    def statusTracker(self):
        return self

    def getActiveStageIds(self):
        return self.active

    def getStageInfo(self, number):
        return self.stages.get(number)


def test_without_counters_all_stages_that_run_meanwhile_are_seen():
    spark = FakeContext({1: Stage(1, 9, 9), 2: Stage(2, 4, 1)})
    spark.active = [1]
    seen = StagesTasks(spark, None)
    spark.active = [1, 2]
    seen.look()
    spark.active, spark.stages[2] = [], Stage(2, 4, 4)
    seen.look()
    assert (seen.totals, seen.finished) == ({2: 4}, 4)


def test_without_counters_short_jobs_are_seen_too():
    spark = FakeContext({n: Stage(n, n, n) for n in range(1, 7)})
    spark.jobs = {0: ("mine", [1])}
    seen = StagesTasks(spark, None)
    spark.jobs |= {1: ("mine", [2, 3]), 2: ("another's", [4]), 3: ("mine", None), 4: ("mine", [5, 6])}
    spark.stages[5] = Stage(5, 5, 0)  # skipped, or not begun
    seen.look()
    assert (seen.totals, seen.finished) == ({2: 2, 3: 3, 6: 6}, 11)
    spark.stages[5] = Stage(5, 5, 0, active=1)
    seen.look()
    assert (seen.totals, seen.finished) == ({2: 2, 3: 3, 5: 5, 6: 6}, 11)


def test_a_stage_that_is_tried_again_keeps_its_tasks(totals):
    totals.take(message())
    spark = FakeContext({1: Stage(1, 8, 7)})
    seen = StagesTasks(spark, totals)
    seen.look()
    spark.stages[1] = Stage(1, 2, 0)  # two of them again
    seen.look()
    assert (seen.totals, seen.finished) == ({1: 8}, 7)


# --- what is shown


def test_elsewhere_than_in_a_terminal_a_line_now_and_then(capsys, monkeypatch):
    bar = Bar()
    bar.show(State(1.0, 4, 1, 100, 500, None))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bar, "_next_line", 0.0)
    bar.show(State(10.0, 4, 1, 100, 500, 400.0))
    bar.close()
    assert capsys.readouterr().err == "firesteel: 100 rows, 1/4 tasks, 50 tokens/s, ETA 00:00:30\n"


def test_a_bar_in_a_terminal(capsys, monkeypatch):
    before = threading.active_count()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = Bar()
    bar.show(State(10.0, 4, 1, 100, 500, 400.0))
    bar.close()
    said = capsys.readouterr().err
    assert " 25%|" in said and "100 rows, 1/4 tasks, 50 tokens/s, ETA 00:00:30" in said
    assert threading.active_count() == before


def test_a_report_of_two_looks_at_managers():
    def told(pid, seconds, load, peak, uptime=500.0):
        said = {"pid": pid, "uptime": uptime, "peak_memory": 1}
        return {**said, "device_seconds": seconds, "load_seconds": load, "device_peaks": peak}

    before = {"a": told(1, 5.0, 1.0, {"cpu": 10}), "b": told(2, 7.0, 2.0, {"cpu": 30}), "c": told(4, 1.0, 1.0, {})}
    after = {"a": told(1, 6.0, 1.0, {"cpu": 20}), "c": before["c"]}
    after["b"] = told(3, 0.5, 0.25, {"cpu": 5, "cuda:0": 7}, uptime=1.0)  # another process
    after["d"] = told(9, 9.0, 9.0, {"cpu": 99})  # which was not asked before
    report = make_report(2.0, 3, None, before, after)
    assert (report.device_seconds, report.load_seconds, report.executors) == (1.5, 0.25, 3)
    assert report.busy == 1.5 / (3 * 2.0) and report.peak_memory == {"process": 1, "cpu": 20, "cuda:0": 7}
    assert report.rows is None and "rows not told in 2.0 s, 3 tasks" in str(report)
    assert make_report(2.0, 3, None, None, after).device_seconds is None
