"""A round of most kinds that chaos_spark.py has for one JVM; `make chaos-spark` runs many of all, on a cluster and on
several hosts too, and 200 of the two streams."""

import os
import subprocess
import sys
from pathlib import Path

import firesteel
import pytest

CHAOS = Path(__file__).parent / "chaos_spark.py"


KINDS = ("worker", "again", "manager", "cancel", "streams")


@pytest.mark.spark
@pytest.mark.slow
def test_a_round_of_each():
    environment = os.environ | {"PYTHONPATH": str(Path(firesteel.__file__).parent.parent)}
    command = [sys.executable, str(CHAOS), "--rounds", "1", "--seed", "1", "--on", "local", "--only", ",".join(KINDS)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    for kind in KINDS:
        assert f"1 local {kind}" in ran.stdout
