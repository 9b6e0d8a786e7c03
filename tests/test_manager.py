"""The manager as workers see it: the bits, sentences and row faults of an engine of their own, from one copy that all
share; and what becomes of rows when it dies, lets go of the model, or is asked nonsense.

Each test has a manager of its own, a real process in a folder of its own (lifecycle.py starts it).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import firesteel
import numpy as np
import pytest
import tiny
import tiny_torch
from firesteel import _core
from firesteel.host.processes import look_up
from firesteel.manager import lifecycle, process, remote
from firesteel.manager.service import Service, build
from lifecycle_kit import managers_in

HERE = Path(__file__).parent
LENGTHS = (1, 2, 3, 5, 8, 8, 13, 21, 34, 55, 64, 64, 40, 7)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder for this test's manager, which is ended with the test."""
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", str(tmp_path / "m"))
    yield tmp_path / "m"
    for pid in managers_in(tmp_path / "m"):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("models") / "bert", seed=5, layers=3, hidden=48, heads=4, inner=100))


@pytest.fixture(scope="module")
def own(folder):
    """An engine in this process, to compare with."""
    with firesteel.Engine(folder) as engine:
        yield engine


def same(found, expected) -> bool:
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found.shape == expected.shape and bool((found.view(np.uint32) == expected.view(np.uint32)).all())


def stats_of(engine) -> dict:
    return engine._core.ask({"ask": "stats"})


def pid_of(engine) -> int:
    return engine._core._client.manager_pid


# --- bits and sentences


def test_rows_have_the_bits_of_an_engine_of_ones_own(folder, own):
    rows = tiny.rows(21, LENGTHS)
    with firesteel.connect(folder) as engine:
        assert same(engine.embed(rows), own.embed(rows))
        assert same(engine.embed(rows, pooling=["cls", "mean"], normalize=True, dimensions=40),
                    own.embed(rows, pooling=["cls", "mean"], normalize=True, dimensions=40))  # fmt: skip
        assert same(engine.hidden_states(rows), own.hidden_states(rows))
        assert engine.embed([]).shape == (0, 48) and engine.hidden_states([]) == []
        assert engine.numerics == own.numerics and engine.settings == own.settings
        assert engine.placement.replicas == own.placement.replicas
        assert engine.stats()["rows"] > 0 and repr(engine) == f"connect({folder!r})"


def test_a_model_with_a_decoder(tmp_path):
    settings = tiny_torch.config("transformer")
    made = str(tiny_torch.write(tmp_path / "model", part="transformer"))
    rows, targets = tiny_torch.rows(settings, seed=3, lengths=(1, 7, 20), target_lengths=(4, 2, 9))
    with firesteel.Engine(made) as alone, firesteel.connect(made) as engine:
        expected = alone.hidden_states(rows, targets)
        assert same(engine.hidden_states(rows, targets), expected)
        assert same(engine.hidden_states(rows[::-1], targets[::-1])[::-1], expected)
        assert engine._core.ask({"ask": "stats"})["hits"] == 3


def test_all_who_connect_share_one_copy(folder, own):
    rows = tiny.rows(3, LENGTHS)
    with firesteel.connect(folder) as first, firesteel.connect(folder) as second:
        assert pid_of(first) == pid_of(second) != os.getpid()
        assert same(first.embed(rows), second.embed(rows))
        there = stats_of(first)
        assert len(there["models"]) == 1 and there["client_count"] == 2
        with firesteel.connect(folder, threads=1) as other:
            assert same(other.embed(rows), own.embed(rows))
            assert len(stats_of(first)["models"]) == 2


def test_processes_share_it_too(folder, own):
    code = """
import sys, firesteel, tiny
with firesteel.connect(sys.argv[1]) as engine:
    print(engine._core._client.manager_pid, engine.embed(tiny.rows(3, (5, 6))).tobytes().hex())
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(Path(firesteel.__file__).parent.parent)])}
    ran = [
        subprocess.Popen([sys.executable, "-c", code, folder], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {process.communicate(timeout=600)[0] for process in ran}
    assert len(said) == 1
    assert said.pop().split()[1] == own.embed(tiny.rows(3, (5, 6))).tobytes().hex()


def test_what_was_computed_lately_is_not_computed_again(folder, own):
    rows = tiny.rows(4, LENGTHS)
    with firesteel.connect(folder) as engine, firesteel.connect(folder) as retry:
        engine.embed(rows[:10])
        assert same(retry.embed(rows), own.embed(rows))
        there = stats_of(engine)
        assert there["hits"] == 10 and there["rows"] == 24
        assert there["models"][0]["stats"]["rows"] == 14


def test_what_a_manager_tells_of_itself(folder):
    """Rows that wait, how full batches are, what each client had, and what there was of models that are closed."""
    rows = [[7] * 60] * 10 + tiny.rows(4, [30] * 6000)
    with firesteel.connect(folder, threads=1) as engine, firesteel.connect(folder, threads=1) as other:
        pending = engine.start_embed(rows)
        busy = stats_of(other)
        pending.result()
        assert pending.known == (0, 9)
        other.embed(rows[:20])
        there = stats_of(other)
        assert busy["running_rows"] > 0 and busy["waiting_rows"] > 0
        assert busy["waiting_rows"] == sum(client["waiting_rows"] for client in busy["clients"])
        assert there["running_rows"] == there["waiting_rows"] == 0 and there["duplicates"] == 9
        first, second = sorted(there["clients"], key=lambda client: client["connection"])
        assert (first["done_rows"], first["hits"], first["duplicates"]) == (6010, 0, 9)
        assert (second["done_rows"], second["hits"], second["duplicates"]) == (20, 20, 0)
        (model,) = there["models"]
        assert 0.5 < model["batch_fill"] <= 1 and model["stats"]["batch_tokens"] == 2048
        totals = there["totals"]
        assert totals["device_seconds"] > 0 and totals["load_seconds"] == model["seconds"]
        assert engine._core.ask({"ask": "release"}) == {"released": 1}
        assert stats_of(engine)["totals"] == totals


def test_the_store_has_a_size(folder, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_MANAGER_STORE_MB", "0")
    with firesteel.connect(folder) as engine:
        for _ in range(2):
            engine.embed([[1, 2, 3]])
        assert stats_of(engine)["hits"] == 0 and stats_of(engine)["store_bytes"] == 0
    monkeypatch.setenv("FIRESTEEL_MANAGER_DIR", os.environ["FIRESTEEL_MANAGER_DIR"] + "2")
    monkeypatch.setenv("FIRESTEEL_MANAGER_STORE_MB", "much")
    with pytest.raises(firesteel.ConfigError, match="MANAGER_STORE_MB is 'much'; it takes a number of megabytes"):
        firesteel.connect(folder)


def test_a_model_saved_anew_is_another(tmp_path):
    made = tmp_path / "model"
    rows = tiny.rows(5, (3, 9))
    tiny.write(made, seed=1)
    with firesteel.connect(str(made)) as before:
        tiny.write(made, seed=2)
        with firesteel.connect(str(made)) as after, firesteel.Engine(str(made)) as alone:
            assert same(after.embed(rows), alone.embed(rows))
            assert not same(before.embed(rows), alone.embed(rows))


def test_faulty_rows_are_told_as_ever(folder, own):
    rows = [*tiny.rows(6, (4, 5)), [999], [], [3] * 4000]
    told = []
    for engine in (own, firesteel.connect(folder)):
        with pytest.raises(firesteel.RequestError) as caught:
            engine.embed(rows)
        told.append(caught.value.rows)
        vectors, errors = engine.start_embed(rows).result()
        assert [row for row, _, _ in errors] == [2, 3, 4]
        assert np.isnan(vectors[2:]).all() and not np.isnan(vectors[:2]).any()
    assert told[0] == told[1]
    assert len(told[0]) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"devices": "cpu:3"},
        {"devices": ["cpu:0", "cpu:0"]},
        {"devices": "tpu"},
        {"parallel": "sideways"},
        {"dtype": "fp12"},
        {"threads": 0},
        {"max_memory": "100KB"},
        {"max_memory": "much"},
        {"cpu_path": "sse"},
    ],
    ids=str,
)
def test_what_cannot_be_opened_says_the_same(folder, options):
    with pytest.raises(firesteel.Error) as alone:
        firesteel.Engine(folder, **options)
    with pytest.raises(firesteel.Error) as shared:
        firesteel.connect(folder, **options)
    assert type(alone.value) is type(shared.value)
    digits = str.maketrans("", "", "0123456789.")  # free memory is never twice the same
    assert str(alone.value).translate(digits) == str(shared.value).translate(digits)


@pytest.mark.parametrize("timeout", [0, -1, "soon", True, float("nan")])
def test_a_wrong_timeout_is_told(folder, timeout):
    with pytest.raises(firesteel.ConfigError, match="timeout is"):
        firesteel.connect(folder, timeout=timeout)


@pytest.mark.parametrize("idle_ttl", [-1, "soon", float("inf")])
def test_a_wrong_idle_ttl_is_told(folder, idle_ttl):
    with pytest.raises(firesteel.ConfigError, match="idle_ttl is"):
        firesteel.connect(folder, idle_ttl=idle_ttl)


def test_idle_ttl_is_told_to_the_manager(folder, place):
    with firesteel.connect(folder, idle_ttl=0.1) as engine:
        pid = pid_of(engine)
        time.sleep(3 * process.TICK)  # the manager looks now and then
    deadline = time.monotonic() + 60
    while look_up(pid) is not None and managers_in(place):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("rows, floats", [(5, 1 << 26), (1 << 16, 48 * 20), (1 << 16, 1)])
def test_large_jobs_go_in_parts(folder, own, monkeypatch, rows, floats):
    monkeypatch.setattr(remote, "PART_ROWS", rows)
    monkeypatch.setattr(remote, "PART_FLOATS", floats)
    given = tiny.rows(11, LENGTHS)
    given[9] = [999]
    with firesteel.connect(folder) as engine:
        pending = engine.start_embed(given)
        vectors, errors = pending.result()
        states, _ = engine.start_hidden_states(given).result()
    assert [(row, code) for row, code, _ in errors] == [(9, "SCHEMA")]
    expected, _ = own.start_embed(given).result()
    assert same(np.delete(vectors, 9, axis=0), np.delete(expected, 9, axis=0))
    expected, _ = own.start_hidden_states(given).result()
    assert all(same(states[i], expected[i]) for i in range(len(given)) if i != 9)


def test_descriptions_travel_where_python_has_no_memfd(folder, own, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with firesteel.connect(folder) as engine:
        assert same(engine.embed([[1, 2]]), own.embed([[1, 2]]))


def test_a_closed_connection_says_so(folder):
    engine = firesteel.connect(folder)
    engine.close()
    engine.close()
    with pytest.raises(firesteel.RequestError, match="closed; connect again"):
        engine.embed([[1, 2]])


def test_a_forked_child_is_told(folder):
    code = """
import os, sys, firesteel
engine = firesteel.connect(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        engine.embed([[1, 2]])
    except firesteel.DeviceError as error:
        engine.close()  # of the copy alone
        os._exit(0 if "forked" in str(error) else 3)
    os._exit(4)
pid = engine._core._client.manager_pid
assert os.waitpid(child, 0)[1] == 0
assert len(engine.embed([[1, 2]])) == 1
assert engine._core._client.manager_pid == pid and engine._core.opened == 1
"""
    environment = os.environ | {"PYTHONPATH": str(Path(firesteel.__file__).parent.parent)}
    ran = subprocess.run(
        [sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr


# --- ends


def test_a_killed_manager_takes_no_row_along(folder, own):
    rows = [row for seed in range(300) for row in tiny.rows(seed, (13, 34, 64, 64))]
    with firesteel.connect(folder, threads=1) as engine:
        first = pid_of(engine)
        pending = [engine.start_embed(rows[i : i + 100]) for i in range(0, len(rows), 100)]
        os.kill(first, signal.SIGKILL)
        found = np.concatenate([one.result()[0] for one in pending])
        assert pid_of(engine) not in (0, first)
    assert same(found, own.embed(rows))


def test_a_row_that_managers_die_of_fails_alone(folder, own, monkeypatch):
    """Whatever it was sent with; the rows beside it get their bits."""
    monkeypatch.setenv("FIRESTEEL_TEST_CRASH", "59")
    rows = [(row % 59).tolist() for seed in range(3) for row in tiny.rows(seed, LENGTHS)]
    deadly = [*rows[:17], [5, 59, 7], *rows[17:]]
    with firesteel.connect(folder) as engine, firesteel.connect(folder) as other:
        vectors, errors = engine.start_embed(deadly).result()
        assert [(row, code) for row, code, _ in errors] == [(17, "CRASHED")] and "died of this row alone" in errors[0][
            2
        ]
        assert np.isnan(vectors[17]).all()
        assert same(np.delete(vectors, 17, axis=0), own.embed(rows))
        states, _ = engine.start_hidden_states(deadly[15:20]).result()
        assert same([*states[:2], *states[3:]], own.hidden_states([*rows[15:17], *rows[17:19]]))
        assert same(other.embed(rows), own.embed(rows))


def test_a_stopped_manager_is_given_up(folder):
    with firesteel.connect(folder, timeout=1) as engine:
        pid = pid_of(engine)
        os.kill(pid, signal.SIGSTOP)
        try:
            while look_up(pid).state != "T":  # each of its threads stops when it comes to it
                time.sleep(0.01)
            with pytest.raises(firesteel.ManagerError):
                engine.embed([[1, 2]])
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_model_that_was_let_go_opens_again(folder, own):
    rows = tiny.rows(8, LENGTHS)
    with firesteel.connect(folder) as engine:
        assert engine._core.ask({"ask": "release"}) == {"released": 1}
        assert stats_of(engine)["models"] == []
        assert same(engine.embed(rows), own.embed(rows))
        assert len(stats_of(engine)["models"]) == 1


@pytest.fixture
def service(tmp_path):
    """One in this process, and how to reach it."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen()
        made = Service()
        made.start(listening)

        def connect() -> socket.socket:
            reached = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            reached.connect(path)
            return reached

        yield made, connect
        made.close()


def test_idle_models_make_room_and_others_never(folder, own, service, monkeypatch):
    """Where there is room for one: a model that has rows, or had some a moment ago, stays."""
    made, reach = service
    open_engine = Service._engine

    def scarce(self, *given):
        if any(model.engine for model in self._models.values()):
            raise firesteel.OutOfMemory("there is room for one")
        return open_engine(self, *given)

    monkeypatch.setattr(Service, "_engine", scarce)
    monkeypatch.setattr("firesteel.manager.service.KEPT_SECONDS", 600.0)
    rows = [row for seed in range(400) for row in tiny.rows(seed, (64, 64, 64, 64))]
    with remote.Connected(folder, reach, 30.0, threads=1) as first:
        pending = first.start_embed(rows)
        with pytest.raises(firesteel.OutOfMemory, match="room for one"):
            remote.Connected(folder, reach, 30.0, threads=2)
        found, _ = pending.result()
        with pytest.raises(firesteel.OutOfMemory, match="room for one"):  # its last row was a moment ago
            remote.Connected(folder, reach, 30.0, threads=2)
        monkeypatch.setattr("firesteel.manager.service.KEPT_SECONDS", 0.0)  # that moment is over
        with remote.Connected(folder, reach, 30.0, threads=2) as second:
            assert same(second.embed(rows[:5]), own.embed(rows[:5]))
            assert len(stats_of(first)["models"]) == 1
            assert same(first.embed(rows[7:9]), own.embed(rows[7:9]))  # it opens again, and the second has gone
            assert len(stats_of(first)["models"]) == 1
    assert same(found[:50], own.embed(rows[:50]))


def test_rows_that_nobody_waits_for_leave_the_queue(folder):
    rows = [row for seed in range(500) for row in tiny.rows(seed, (64, 64, 64, 64))]
    with firesteel.connect(folder, threads=1) as engine:
        engine.start_embed(rows).cancel()
        deadline = time.monotonic() + 60
        while stats_of(engine)["models"][0]["rows"] and time.monotonic() < deadline:
            time.sleep(0.01)
        there = stats_of(engine)
        assert there["models"][0]["rows"] == 0 and there["models"][0]["stats"]["rows"] < len(rows)


def test_results_outlive_the_connection(folder, own):
    rows = tiny.rows(9, LENGTHS)
    engine = firesteel.connect(folder)
    found = engine.embed(rows)
    engine.close()
    del engine
    assert same(found, own.embed(rows))


def test_many_threads_share_a_connection(folder, own):
    expected = {seed: own.embed(tiny.rows(seed, LENGTHS)) for seed in range(6)}
    wrong = []
    with firesteel.connect(folder) as engine:

        def work(seed: int) -> None:
            for _ in range(10):
                if not same(engine.embed(tiny.rows(seed, LENGTHS)), expected[seed]):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_doctor_lists_managers(folder, place):
    from firesteel.commands import doctor

    assert doctor._managers()[0][0] == "none" and "none has run" in doctor._managers()[0][1]
    with firesteel.connect(folder) as engine:
        engine.embed([[1, 2]])
        (name, text), *others = doctor._managers()
        assert name == f"process {pid_of(engine)}" and others == []
        assert "2 workers, 1 rows" in text and folder in text  # the doctor is one of them
        os.kill(pid_of(engine), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while "no manager listens" not in doctor._managers()[0][1]:  # its last thread may still be at its end
        assert time.monotonic() < deadline, doctor._managers()
        time.sleep(0.01)
    (place / "old.sock").touch()
    assert "no manager listens" in doctor._managers()[0][1]


# --- nonsense


@pytest.mark.parametrize(
    "body, files, words",
    [
        (b"{", [], "no JSON object"),
        (b"[]", [], "no JSON object"),
        (b"\xff", [], "no JSON object"),
        (b'{"ask": "dance"}', [], "'dance' is not known"),
        (b'{"ask": "model", "model": 77}', [], "model 77 is not open"),
        (b'{"ask": "open"}', [], "without its description"),
        (b'{"ask": "open"}', [b""], "not one that a worker makes"),
        (b'{"ask": "open"}', [b"{}"], "not one that a worker makes"),
        (b'{"ask": "open"}', [b'{"config": 3}'], "not one that a worker makes"),
    ],
)
def test_asks_that_make_no_sense_are_told(folder, body, files, words):
    with firesteel.connect(folder) as engine:
        fds = [os.memfd_create("x") for _ in files]
        for fd, text in zip(fds, files, strict=True):
            os.write(fd, text)
        kind, sentence = json.loads(engine._core._client.ask(body, fds))["error"]
        assert kind == "RequestError" and words in sentence
        assert len(engine.embed([[1, 2]])) == 1
        for fd in fds:
            os.close(fd)


def test_a_description_that_lies_about_files_opens_nothing(folder):
    with firesteel.connect(folder) as engine:
        checkpoint = engine._checkpoint
        tensors = [(*tensor[:3], 5, *tensor[4:]) for tensor in checkpoint.tensors]
        said = {
            "config": checkpoint.config,
            "tensors": tensors,
            "chain": checkpoint.chain.steps,
            "name": "x",
            "options": engine._core._options,
            "knobs": {},
        }
        fd = os.memfd_create("x")
        os.write(fd, json.dumps(said).encode())
        kind, sentence = json.loads(engine._core._client.ask(b'{"ask": "open"}', [fd]))["error"]
        os.close(fd)
        assert kind in ("RequestError", "CheckpointError", "ConfigError") and sentence
        assert len(engine.embed([[1, 2]])) == 1


def test_another_build_is_refused(folder):
    with firesteel.connect(folder):
        client = _core.Client("another build", 10.0)
        with lifecycle.reach() as socket, pytest.raises(firesteel.ManagerError, match="is of firesteel"):
            client.connect(socket.fileno())


def test_a_client_that_was_never_made_crashes_nothing():
    client = _core.Client.__new__(_core.Client)
    for call in (lambda: client.ask(b"{}"), lambda: client.empty(1, 1), client.disconnect, lambda: client.connect(0)):
        with pytest.raises(ValueError, match="never made"):
            call()
    server = _core.Server.__new__(_core.Server)
    with pytest.raises(firesteel.RequestError, match="closed"):
        server.stats()


def test_an_engine_is_not_closed_while_it_is_served(folder, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        server = _core.Server(listening.fileno(), build())
        engine = firesteel.Engine(folder)
        server.serve(1, engine._core)
        with pytest.raises(firesteel.RequestError, match="retire"):
            engine.close()
        with pytest.raises(firesteel.RequestError, match="served already"):
            server.serve(1, engine._core)
        server.retire(1)
        engine.close()
        server.close()
        assert Service().unload  # it is made without arguments


# --- a model that moves while it is used


def killed(engine) -> None:
    os.kill(pid_of(engine), signal.SIGKILL)


@pytest.mark.parametrize("gone", [lambda model: model.rename(model.parent / "moved"), shutil.rmtree])
def test_a_model_that_was_moved_is_still_served_by_the_next_manager(tmp_path, gone):
    model = tiny.write(tmp_path / "model", shards=2)
    rows = tiny.rows(9, LENGTHS)
    with firesteel.connect(model) as engine:
        expected = engine.embed(rows)
        gone(model)
        killed(engine)
        assert same(engine.embed(rows), expected)


def test_a_model_that_was_replaced_is_still_the_one_that_was_opened(tmp_path):
    model, rows = tiny.write(tmp_path / "model"), tiny.rows(9, LENGTHS)
    with firesteel.connect(model) as engine:
        expected = engine.embed(rows)
        tiny.write(tmp_path / "other", seed=1)
        os.replace(tmp_path / "other" / "model.safetensors", model / "model.safetensors")
        killed(engine)
        assert same(engine.embed(rows), expected)


def test_a_model_that_was_written_over_is_not_taken_for_the_same(tmp_path):
    model, rows = tiny.write(tmp_path / "model"), tiny.rows(9, LENGTHS)
    with firesteel.connect(model) as engine:
        engine.embed(rows)
        tiny.write(model, seed=1)  # the same file, other bytes
        killed(engine)
        with pytest.raises(firesteel.CheckpointError, match="was written to while jobs use the model"):
            engine.embed(tiny.rows(10, LENGTHS))


def test_a_closed_connection_keeps_no_file_open(tmp_path):
    model = tiny.write(tmp_path / "model")

    def held() -> list[str]:
        links = [f"/proc/self/fd/{file}" for file in os.listdir("/proc/self/fd")]
        return [path for path in map(os.path.realpath, links) if path.startswith(str(model))]

    with firesteel.connect(model) as engine:
        assert held() == [str(model / "model.safetensors")]
    assert held() == [], engine
