"""Which GPUs a manager sees: the executor's, whatever the worker that starts it was shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import types

import pytest
from firesteel.host import task
from firesteel.host.processes import look_up
from firesteel.manager import gpus

GPUS = [{"id": {"componentName": "spark.executor", "resourceName": "gpu"}, "addresses": ["2", "5"]}]
FPGAS = [{"id": {"componentName": "spark.executor", "resourceName": "fpga"}, "addresses": ["0"]}]


def listed(addresses: str) -> dict[str, str]:
    return {gpus.VARIABLE: addresses, gpus.ORDER: "PCI_BUS_ID"}


@pytest.fixture
def executor(tmp_path):
    """Starts what looks like an executor's JVM: command line, environment, working directory."""
    java = tmp_path / "java"
    shutil.copy(os.path.realpath("/bin/sh"), java)
    started = []

    def start(*arguments: str, visible: str | None = None):
        environment = {k: v for k, v in os.environ.items() if k != gpus.VARIABLE}
        environment |= {} if visible is None else {gpus.VARIABLE: visible}
        command = [str(java), "-c", "echo; read x", "CoarseGrainedExecutorBackend", "--executor-id", "0", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        started.append(process)
        return look_up(process.pid).process

    yield start
    for process in started:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.fixture(autouse=True)
def of_the_worker(monkeypatch):
    """A platform has shown this worker one GPU."""
    monkeypatch.setenv(gpus.VARIABLE, "0")
    monkeypatch.delenv(gpus.ORDER, raising=False)


def test_spark_lists_the_executors_gpus(executor, tmp_path):
    (tmp_path / "resources.json").write_text(json.dumps(FPGAS + GPUS))
    for path in ("resources.json", str(tmp_path / "resources.json")):
        assert gpus.visible(executor("--resourcesFile", path, visible="7")) == listed("2,5")


@pytest.mark.parametrize("visible", ["1,3", "", None])
def test_without_a_list_the_jvm_decides(executor, visible):
    assert gpus.visible(executor(visible=visible)) == ({} if visible is None else {gpus.VARIABLE: visible})


def test_the_order_goes_with_the_numbers(executor, monkeypatch):
    monkeypatch.setenv(gpus.ORDER, "FASTEST_FIRST")
    assert gpus.visible(executor(visible="1")) == {gpus.VARIABLE: "1", gpus.ORDER: "FASTEST_FIRST"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '[{"id": 4}]', json.dumps(FPGAS), '[{"id": {"resourceName": "gpu"}}]']
)
def test_a_list_that_is_none_is_passed_over(executor, tmp_path, content):
    (tmp_path / "resources.json").write_text(content)
    for arguments in (("--resourcesFile", "resources.json"), ("--resourcesFile", "gone.json"), ("--resourcesFile",)):
        assert gpus.visible(executor(*arguments, visible="4")) == {gpus.VARIABLE: "4"}


class Task:
    """A TaskContext, as far as it is asked."""

    def __init__(self, addresses: list[str], amount: str | None, resource: str = "gpu") -> None:
        self.given, self.amount = {resource: types.SimpleNamespace(addresses=addresses)}, amount

    def resources(self) -> dict[str, object]:
        return self.given

    def getLocalProperty(self, name: str) -> str | None:
        return {task.GPUS: self.amount}.get(name)


@pytest.fixture
def of_task(monkeypatch):
    pyspark = pytest.importorskip("pyspark")
    return lambda task: monkeypatch.setattr(pyspark.TaskContext, "get", lambda: task)


@pytest.mark.parametrize("addresses", [["3"], ["1", "6"], ["GPU-8c1f"]])
def test_where_nothing_else_tells_a_task_that_has_all_does(executor, of_task, addresses):
    of_task(Task(addresses, str(len(addresses))))
    assert gpus.visible(executor()) == listed(",".join(addresses))
    assert gpus.visible(executor(visible="5")) == {gpus.VARIABLE: "5"}
    assert gpus.visible(None) == {gpus.VARIABLE: "0"}


@pytest.mark.parametrize(
    "task",
    [
        None,
        Task(["3"], "2"),  # a fraction, or one of two: the other may be idle
        Task(["3"], None),  # an RDD's job, which has no conf
        Task(["3"], "one"),
        Task([], "0"),
        Task(["3"], "1", resource="fpga"),
    ],
)
def test_a_task_that_has_a_part_does_not(executor, of_task, task):
    of_task(task)
    assert gpus.visible(executor()) == {}


def test_outside_of_spark_it_is_as_this_process_has_it(monkeypatch):
    assert gpus.visible(None) == {gpus.VARIABLE: "0"}
    monkeypatch.delenv(gpus.VARIABLE)
    assert gpus.visible(None) == {}


def test_where_the_jvm_is_hidden_it_is_as_this_process_has_it(executor, monkeypatch):
    jvm = executor(visible="6")
    monkeypatch.setattr(gpus, "_strings", lambda path: None)
    assert gpus.visible(jvm) == {gpus.VARIABLE: "0"}
