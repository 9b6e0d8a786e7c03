"""The examples run as they stand, small, each in a process of its own and in its folder, as a reader runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import firesteel
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ["--rows", "5", "--length", "16", "--devices", "cpu:0,cpu:1"]


def start(folder: str, program: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(firesteel.__file__).parent.parent),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    command = [sys.executable, program, *arguments]
    return subprocess.run(command, cwd=EXAMPLES / folder, env=environment, capture_output=True, text=True, timeout=300)


def run(folder: str, program: str) -> str:
    done = start(folder, program, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("folder", ["data_parallelism", "model_parallelism"])
def test_on_two_devices(folder):
    said = run(folder, "example.py")
    assert "cpu:0 " in said and "cpu:1 " in said  # the placement's table
    assert ("replica 1 " in said) == (folder == "data_parallelism")
    assert re.search(r"firesteel on cpu:0, cpu:1 +\d+\.\d\d s\nfiresteel on cpu +\d+\.\d\d s\n", said)
    assert "the same bits on one device" in said


@pytest.mark.parametrize("folder", ["data_parallelism", "model_parallelism"])
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--rows", "0"], "--rows: '0' is not a whole number from 1 on"),
        (["--length", "many"], "--length: 'many' is not a whole number from 1 on"),
        (["--rows", "2", "--length", "2100"], "a batch has room for 2048"),
        (["--devices", "tpu:0"], "'tpu:0' is of no known kind"),
    ],
)
def test_wrong_arguments_are_told(folder, arguments, words):
    done = start(folder, "example.py", *arguments)
    assert done.returncode > 0 and words in done.stderr


@pytest.mark.reference
@pytest.mark.parametrize("folder", ["data_parallelism", "model_parallelism"])
def test_against_torch(folder):
    assert re.search(r"torch on the CPU +\d.*\nlargest difference to torch", run(folder, "example.py"))


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["data_parallelism", "model_parallelism"])
def test_in_spark(folder):
    assert "the same bits as without Spark" in run(folder, "spark_example.py")


def test_the_spark_forms_differ_in_one_option():
    """The model and its columns aside."""
    calls = []
    for folder in ("data_parallelism", "model_parallelism"):
        text = (EXAMPLES / folder / "spark_example.py").read_text("utf-8")
        calls.append(re.search(r"firesteel\.hidden_states_udf\((.*?)\n        \)", text, re.DOTALL)[1])
    assert calls[0] != calls[1]
    assert calls[0] == calls[1].replace('parallel="split"', 'parallel="replicate"')
