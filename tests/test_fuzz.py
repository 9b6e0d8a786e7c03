"""A short, seeded run of the Python fuzzer; `make fuzz` runs the C one for ten minutes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))


def test_damaged_folders_are_refused_with_a_sentence():
    from fuzz_safetensors import fuzz

    results = fuzz(seed=0, rounds=300)
    assert results["opened"] > 10, results  # harmless damage: both sides of the checks are reached
    assert results["CheckpointError"] > 100, results
    assert results["ConfigError"] > 10, results
