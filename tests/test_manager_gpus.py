"""Which GPUs a manager sees: the executor's, whatever the worker that starts it was shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from firesteel import gpus
from firesteel.lifecycle import look_up

GPUS = [{"id": {"componentName": "spark.executor", "resourceName": "gpu"}, "addresses": ["2", "5"]}]
FPGAS = [{"id": {"componentName": "spark.executor", "resourceName": "fpga"}, "addresses": ["0"]}]


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


def test_spark_lists_the_executors_gpus(executor, tmp_path):
    (tmp_path / "resources.json").write_text(json.dumps(FPGAS + GPUS))
    for path in ("resources.json", str(tmp_path / "resources.json")):
        assert gpus.visible(executor("--resourcesFile", path, visible="7")) == "2,5"


@pytest.mark.parametrize("visible", ["1,3", "", None])
def test_without_a_list_the_jvm_decides(executor, visible):
    assert gpus.visible(executor(visible=visible)) == visible


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '[{"id": 4}]', json.dumps(FPGAS), '[{"id": {"resourceName": "gpu"}}]']
)
def test_a_list_that_is_none_is_passed_over(executor, tmp_path, content):
    (tmp_path / "resources.json").write_text(content)
    assert gpus.visible(executor("--resourcesFile", "resources.json", visible="4")) == "4"
    assert gpus.visible(executor("--resourcesFile", "gone.json", visible="4")) == "4"
    assert gpus.visible(executor("--resourcesFile", visible="4")) == "4"


def test_outside_of_spark_it_is_as_this_process_has_it(monkeypatch):
    assert gpus.visible(None) == "0"
    monkeypatch.delenv(gpus.VARIABLE)
    assert gpus.visible(None) is None


def test_where_the_jvm_is_hidden_it_is_as_this_process_has_it(executor, monkeypatch):
    jvm = executor(visible="6")
    monkeypatch.setattr(gpus, "_strings", lambda path: None)
    assert gpus.visible(jvm) == "0"
