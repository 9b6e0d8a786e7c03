"""A few rounds of chaos.py; `make chaos` runs many."""

import os
import subprocess
import sys
from pathlib import Path

import firesteel

CHAOS = Path(__file__).parent / "chaos.py"


def test_some_rounds_of_chaos():
    environment = os.environ | {"PYTHONPATH": str(Path(firesteel.__file__).parent.parent)}
    command = [sys.executable, str(CHAOS), "--rounds", "3", "--seed", "1"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    assert "3 worker, 3 manager, 3 both, 3 cancel, 3 stale" in ran.stdout  # and "3 full" where a process may mount
