"""The seams that later work builds on, crossed on the CPU: two devices, a cut after every layer, ops that run late,
memory full of NaN, tensor shards. Cuts and modes give the plain run's bits; shards come within 1e-5 and repeat theirs.

Modes are knobs of the environment, so each runs in a process of its own, which computes all plans and stores them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

LAYERS = 3
LENGTHS = (1, 2, 3, 5, 8, 8, 13, 16, 17, 21, 31, 34, 55, 63, 64, 64)

# name -> (devices, stages); a stage is (first layer, one past the last, indices into devices, layers held at a time)
SPLIT = {
    "one stage": (("cpu",), None),
    "planned by hand": (("cpu",), ((0, 3, (0,)),)),
    "cut after every layer": (("cpu:0", "cpu:1"), ((0, 1, (0,)), (1, 2, (1,)), (2, 3, (0,)))),
    "the other way round": (("cpu:0", "cpu:1"), ((0, 1, (1,)), (1, 2, (0,)), (2, 3, (1,)))),
    "cut on one device": (("cpu",), ((0, 1, (0,)), (1, 2, (0,)), (2, 3, (0,)))),
    "uneven": (("cpu:0", "cpu:1"), ((0, 2, (0,)), (2, 3, (1,)))),
    "streamed, a window of one": (("cpu",), ((0, 3, (0,), 1),)),
    "streamed, a window of two": (("cpu",), ((0, 3, (0,), 2),)),
    "streamed behind a cut": (("cpu:0", "cpu:1"), ((0, 1, (0,)), (1, 3, (1,), 1))),
}
TENSOR = {
    "shards of two": (("cpu:0", "cpu:1"), ((0, 3, (0, 1)),)),
    "one block of two shards": (("cpu:0", "cpu:1"), ((0, 1, (0,)), (1, 2, (0, 1)), (2, 3, (1,)))),
    "shards and cuts": (("cpu:0", "cpu:1"), ((0, 1, (0, 1)), (1, 3, (1, 0)))),
}
# name -> (devices, parallel)
FOUR = ("cpu:0", "cpu:1", "cpu:2", "cpu:3")
PLACED = {
    "two by auto": (FOUR[:2], "auto"),
    "two replicas": (FOUR[:2], "replicate"),
    "four replicas": (FOUR, "replicate"),
    "two stages": (FOUR[:2], "split"),
    "three stages": (FOUR[:3], "split"),
    "two replicas of two stages": (FOUR, "replicate=2,split=2"),
    "two replicas by hand": (FOUR[:2], ((0, 3, (1,)), (0, 1, (0,)), (1, 3, (1,)))),
}
PLACED_TENSOR = {
    "two ranks": (FOUR[:2], "tensor"),
    "four ranks": (FOUR, "tensor"),
    "two replicas of two ranks": (FOUR, "replicate=2,tensor=2"),
    "two stages of two ranks": (FOUR, "split=2,tensor=2"),
}
SPLIT |= PLACED
TENSOR |= PLACED_TENSOR
MODES = {
    "plain": {},
    "delayed": {"FIRESTEEL_TEST_DELAY": "1"},
    "poisoned": {"FIRESTEEL_TEST_POISON": "1"},
    "delayed and poisoned": {"FIRESTEEL_TEST_DELAY": "1", "FIRESTEEL_TEST_POISON": "1"},
    "one slot": {"FIRESTEEL_SLOTS": "1"},
    "three slots, poisoned": {"FIRESTEEL_SLOTS": "3", "FIRESTEEL_TEST_POISON": "1"},
    "small batches, delayed": {"FIRESTEEL_BATCH_TOKENS": "40", "FIRESTEEL_TEST_DELAY": "1"},
    "again": {},
}


def compute(folder: str, to: str) -> None:
    """What the process of one mode does: {plan/task: float32 array} into the file `to`."""
    from firesteel import _core
    from firesteel.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    rows = tiny.rows(21, LENGTHS)
    ids = np.concatenate(rows)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    results = {}
    for name, (devices, plan) in (SPLIT | TENSOR).items():
        how = {"parallel": plan} if isinstance(plan, str) else {"plan": plan}
        engine = _core.Engine(
            config=checkpoint.config, tensors=checkpoint.tensors, files=checkpoint.files, devices=devices, **how
        )
        width = engine.settings["width"]
        states = np.full((len(ids), width), np.nan, dtype=np.float32)
        vectors = np.full((len(rows), 2 * width), np.nan, dtype=np.float32)
        jobs = [
            engine.submit(ids, offsets, states, task="hidden_states"),
            engine.submit(ids, offsets, vectors, task="embed", pooling=("cls", "mean"), normalize=True),
        ]
        assert all(job.wait(120) for job in jobs)
        engine.close()
        results[f"{name}/states"], results[f"{name}/vectors"] = states, vectors
    np.savez(to, **results)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """mode -> plan/task -> array."""
    place = tmp_path_factory.mktemp("seams")
    folder = tiny.write(place / "model", seed=5, layers=LAYERS, hidden=48, heads=4, inner=100)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FIRESTEEL_")}
    path = os.pathsep.join([str(Path(__file__).parent), clean.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    made = {}
    for number, (mode, knobs) in enumerate(MODES.items()):
        to = str(place / f"{number}.npz")
        command = [sys.executable, "-c", "import sys, test_seams; test_seams.compute(*sys.argv[1:])", str(folder), to]
        environment = clean | knobs | {"PYTHONPATH": path}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, f"{mode}: {ran.stderr}"
        with np.load(to) as stored:
            made[mode] = dict(stored)
    return made


def same(found: np.ndarray, expected: np.ndarray) -> None:
    different = np.flatnonzero((found.view(np.uint32) != expected.view(np.uint32)).any(axis=-1))
    assert not len(different), f"rows {different[:10].tolist()} have other bits, {found[different[:1]]}"


@pytest.mark.parametrize("task", ["states", "vectors"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", SPLIT)
def test_cuts_and_modes_keep_the_bits(results, plan, mode, task):
    expected = results["plain"][f"one stage/{task}"]
    assert np.isfinite(expected).all()
    same(results[mode][f"{plan}/{task}"], expected)


@pytest.mark.parametrize("task", ["states", "vectors"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", TENSOR)
def test_shards_repeat_their_bits(results, plan, mode, task):
    found = results[mode][f"{plan}/{task}"]
    same(found, results["plain"][f"{plan}/{task}"])
    assert tiny.error_per_row(found, results["plain"][f"one stage/{task}"]) < 1e-5
