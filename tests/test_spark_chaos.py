"""A round of each kind of chaos_spark.py; `make chaos-spark` runs many, and 200 of the two streams."""

import os
import subprocess
import sys
from pathlib import Path

import firesteel
import pytest

CHAOS = Path(__file__).parent / "chaos_spark.py"


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "kinds"),
    [
        ("local", "worker,again,manager,cancel,streams"),
        ("cluster", "executor"),
        ("hosts", "speculation"),
    ],
)
def test_a_round_of_each(on, kinds):
    environment = os.environ | {"PYTHONPATH": str(Path(firesteel.__file__).parent.parent)}
    command = [sys.executable, str(CHAOS), "--rounds", "1", "--seed", "1", "--on", on, "--only", kinds]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    for kind in kinds.split(","):
        assert f"1 {on} {kind}" in ran.stdout
