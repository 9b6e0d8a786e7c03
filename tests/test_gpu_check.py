"""What of scripts/gpu-check and benchmarks/gpu_encoder.py can be tried without a GPU: the refusals of the one, the
small parts of the other, and a tiny run of it on the software driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_encoder  # noqa: E402 - benchmarks/ is no package: found by the path above


def clean(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_", "GPU_"))}
    return kept | more


def check(**environment: str) -> subprocess.CompletedProcess:
    command = [str(ROOT / "scripts" / "gpu-check")]
    return subprocess.run(command, env=clean(**environment), capture_output=True, text=True, timeout=600)


def test_without_a_gpu_there_is_nothing_to_check(tmp_path):
    ran = check(GPU_FILES=f"{tmp_path}/nvidia[0-9]*", OUT=str(tmp_path / "out"))
    assert ran.returncode == 0 and ran.stdout.startswith("no GPU: nothing to check")
    assert not (tmp_path / "out").exists()


def test_without_what_it_installs_the_way_to_get_it_is_told(tmp_path):
    script = tmp_path / "scripts" / "gpu-check"
    script.parent.mkdir()
    script.write_text((ROOT / "scripts" / "gpu-check").read_text())
    ran = subprocess.run(["sh", script], env=clean(GPU_FILES="/dev/null"), capture_output=True, text=True, timeout=600)
    assert ran.returncode == 1 and "make gpu-check-pack" in ran.stderr


@pytest.mark.parametrize("shape", gpu_encoder.SHAPES)
def test_workloads_are_the_same_each_time_and_fit(shape):
    most = gpu_encoder.SHAPES[shape]["positions"]
    for workload in gpu_encoder.WORKLOADS:
        found = gpu_encoder.lengths(workload, 500, shape)
        assert found == gpu_encoder.lengths(workload, 500, shape) and len(found) == 500
        assert 1 <= min(found) and max(found) <= most
    assert set(gpu_encoder.lengths("equal", 9, shape)) == {min(128, most)}
    rows = gpu_encoder.token_rows("lognormal", 500, shape)
    assert [len(row) for row in rows] == gpu_encoder.lengths("lognormal", 500, shape)
    assert max(row.max() for row in rows) < gpu_encoder.SHAPES[shape]["vocab"]


@pytest.mark.parametrize("tokens", [1, 64, 1000, 100_000])
def test_padded_batches_hold_every_row_once_and_no_more_than_they_may(tokens):
    rows = [np.zeros(n, np.int32) for n in gpu_encoder.lengths("lognormal", 300, "base")]
    batches = gpu_encoder.padded_batches(rows, tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(300))
    for batch in batches:
        longest = max(len(rows[row]) for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= tokens
        assert len(rows[batch[-1]]) == longest


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT / "python"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_encoder.py"), *arguments]
    environment = clean(PYTHONPATH=path, **environment)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_benchmark_without_a_driver_measures_nothing():
    ran = run(FIRESTEEL_LIBCUDA="/no/lib.so")
    assert ran.returncode == 0 and ran.stdout.startswith("no GPU: nothing to measure"), ran.stderr


def test_a_tiny_run_on_the_software_driver(software_driver):
    """Its lines say what they are of, and cannot be kept as if they were a GPU's."""
    arguments = ["--shape", "tiny", "--rows", "4", "--repeats", "2", "--peer", "firesteel fp32"]
    knobs = {"FIRESTEEL_LIBCUDA": software_driver, "FIRESTEEL_BATCH_TOKENS": "256", "GPU_CHECK_COMMIT": "abc"}
    knobs["FIRESTEEL_LIBCUBLASLT"] = "off"
    ran = run(*arguments, **knobs)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["workload"] for line in lines] == ["first row, cold", *gpu_encoder.WORKLOADS]
    for line in lines:
        assert line["gpu"].startswith("Software GPU") and line["commit"] == "abc" and line["peer"] == "firesteel fp32"
        assert line["median_s"] > 0 and line["date"] and line["precision"] == "fp32"
    for line in lines[1:]:
        tokens = sum(gpu_encoder.lengths(line["workload"], 4, "tiny"))
        assert line["tokens"] == tokens and line["tokens_per_s"] == pytest.approx(tokens / line["median_s"], rel=0.01)
    refused = run(*arguments, "--save", **knobs)
    assert refused.returncode == 2 and "are not kept" in refused.stderr
