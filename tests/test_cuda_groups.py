"""Groups of GPUs that share each layer, on the software device and its NCCL: results, bits, and what becomes of a group
when one of its ranks stands still or a call fails.

Every engine runs in a process of its own, whose environment says what the software device is like (softcuda/README.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

HERE = Path(__file__).parent
LENGTHS = (1, 2, 3, 5, 8, 8, 13, 16, 17, 31, 33, 64)
TWO = ("cuda:0", "cuda:1")
FOUR = (*TWO, "cuda:2", "cuda:3")

# name -> (devices, stages); a stage is (first layer, one past the last, indices into devices)
PLANS = {
    "two ranks": (TWO, ((0, 3, (0, 1)),)),
    "two ranks, turned": (TWO, ((0, 3, (1, 0)),)),
    "one block of two ranks": (TWO, ((0, 1, (0,)), (1, 2, (0, 1)), (2, 3, (1,)))),
    "ranks and cuts": (TWO, ((0, 1, (0, 1)), (1, 3, (1, 0)))),
    "four ranks": (FOUR, ((0, 3, (0, 1, 2, 3)),)),
    "two pairs": (FOUR, ((0, 2, (0, 1)), (2, 3, (2, 3)))),
}
CPU = {"cpu": (("cpu",), None)}
MODES = {
    "late": {},
    "again": {},
    "at once": {"SOFTCUDA_DEFER": "0"},
    "poisoned": {"FIRESTEEL_TEST_POISON": "1"},
    "one slot": {"FIRESTEEL_SLOTS": "1"},
    "three slots, small batches": {"FIRESTEEL_SLOTS": "3", "FIRESTEEL_BATCH_TOKENS": "40"},
    "slow to connect": {"SOFTCUDA_CONNECT": "5"},
}
# As in test_cuda.py: half of the plans in modes that are to change nothing, unless all are asked for.
FULL = os.environ.get("FIRESTEEL_TEST_FULL") == "1"
WANTED = {
    mode: [plan for i, plan in enumerate(PLANS) if FULL or mode == "late" or (i + number) % 2 == 0]
    for number, mode in enumerate(MODES)
}


def open_engine(folder: str, devices: tuple[str, ...], plan: tuple | None):
    from firesteel import _core
    from firesteel.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    return _core.Engine(
        config=checkpoint.config, tensors=checkpoint.tensors, files=checkpoint.files, devices=devices, plan=plan
    )


def states(engine, lengths: tuple[int, ...] = LENGTHS) -> np.ndarray:
    ids = np.concatenate(tiny.rows(21, lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    out = np.full((len(ids), engine.settings["width"]), np.nan, dtype=np.float32)
    assert engine.submit(ids, offsets, out, task="hidden_states").wait(120)
    return out


def compute(folder: str, to: str, *plans: str) -> None:
    """In the process of one mode: {plan: float32 array} into the file `to`."""
    results = {}
    for name in plans:
        engine = open_engine(folder, *(PLANS | CPU)[name])
        results[name] = states(engine)
        engine.close()
    np.savez(to, **results)


@pytest.fixture(scope="module")
def run(software_driver):
    """Runs code in a Python whose driver and NCCL are the software device; returns the finished process."""

    def run(code: str, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_"))}
        soft = {"FIRESTEEL_LIBCUDA": software_driver, "FIRESTEEL_LIBNCCL": software_driver, "SOFTCUDA_DEVICES": "4"}
        soft["FIRESTEEL_LIBCUBLASLT"] = "off"
        path = os.pathsep.join([str(HERE), clean.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=clean | soft | {"PYTHONPATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("groups") / "model", seed=5, layers=3, hidden=48, heads=4, inner=100))


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("groups") / "one", seed=6, layers=1, hidden=16, heads=2, inner=16))


@pytest.fixture(scope="module")
def results(tmp_path_factory, run, folder) -> dict[str, dict[str, np.ndarray]]:
    """mode -> plan -> array; mode "cpu" is the CPU backend's."""
    place = tmp_path_factory.mktemp("results")
    made = {}
    for number, (mode, knobs) in enumerate([("cpu", {}), *MODES.items()]):
        to = str(place / f"{number}.npz")
        wanted = WANTED.get(mode, CPU)
        ran = run("import sys, test_cuda_groups as t; t.compute(*sys.argv[1:])", folder, to, *wanted, **knobs)
        assert ran.returncode == 0, f"{mode}: {ran.stderr}"
        with np.load(to) as stored:
            made[mode] = dict(stored)
    return made


@pytest.mark.parametrize("plan", PLANS)
def test_agrees_with_the_cpu(results, plan):
    assert tiny.error_per_row(results["late"][plan], results["cpu"]["cpu"]) < 1e-5


@pytest.mark.parametrize(("mode", "plan"), [(mode, plan) for mode, plans in WANTED.items() for plan in plans])
def test_modes_and_runs_keep_the_bits(results, plan, mode):
    found, expected = results[mode][plan], results["late"][plan]
    different = np.flatnonzero((found.view(np.uint32) != expected.view(np.uint32)).any(axis=-1))
    assert not len(different), f"rows {different[:10].tolist()} have other bits"


def test_which_gpu_has_which_rank_does_not_matter(results):
    assert (results["late"]["two ranks"].view("u4") == results["late"]["two ranks, turned"].view("u4")).all()


HANG = """
import sys, time, firesteel, test_cuda_groups as t
engine = t.open_engine(sys.argv[1], *t.PLANS[sys.argv[2]])
for attempt in range(2):
    start = time.monotonic()
    try:
        t.states(engine, (3, 1, 4))
    except firesteel.Error as error:
        print(type(error).__name__, round(time.monotonic() - start, 2), error, sep="|")
engine.close()
"""


@pytest.mark.parametrize("plan, rank, device", [("two ranks", 1, "cuda:1"), ("four ranks", 2, "cuda:2")])
@pytest.mark.parametrize("defer", ["0", "1"])
def test_a_rank_that_stands_still_is_named(run, folder, plan, rank, device, defer):
    knobs = {"SOFTCUDA_HANG": str(rank), "SOFTCUDA_DEFER": defer, "FIRESTEEL_COLLECTIVE_SECONDS": "1"}
    ran = run(HANG, folder, plan, timeout=600, **knobs)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    first, second = (line.split("|") for line in ran.stdout.splitlines())
    assert first[0] == "DeviceError" and f"rank {rank} ({device}) did not take part" in first[2], first
    # Far from the preset deadline of a minute, so that the setting is what ended it, however busy the machine is.
    assert "given up after 1 s" in first[2] and 1 <= float(first[1]) < 30, first
    assert float(second[1]) < 1, f"the second is told at once, not waited for: {second}"


NO_ROOM = """
import sys, firesteel, test_cuda_groups as t
engine = t.open_engine(sys.argv[1], *t.PLANS["two ranks"])
for _ in range(2):
    try:
        t.states(engine, (3, 1, 4))
    except firesteel.Error as error:
        print(type(error).__name__, error)
"""


def test_a_rank_without_room_breaks_the_group(run, folder):
    """No smaller batch would get through a group that is broken, so no row is blamed for it."""
    for launch in (2, 6, 9):
        ran = run(NO_ROOM, folder, timeout=600, SOFTCUDA_FAIL_NAME=f"cuLaunchKernel:{launch}", SOFTCUDA_FAIL_CODE="2")
        said = ran.stdout.splitlines()  # both times the engine's own failure, not an answer with errors in its rows
        assert len(said) == 2 and all("no memory left" in line for line in said), (launch, ran.stdout, ran.stderr)
        assert all(line.startswith(("DeviceError", "OutOfMemory")) for line in said), (launch, ran.stdout)


FAULTS = """
import sys, test_cuda_groups as t
from softcuda.faults import every_call

def whole():
    engine = t.open_engine(sys.argv[1], t.TWO, ((0, 1, (0, 1)),))
    t.states(engine, (3, 1, 4))
    engine.close()

print(*every_call(whole))
"""


@pytest.mark.parametrize("defer", ["0", "1"])
def test_every_call_may_fail(run, shallow, defer):
    """With the deadline an hour away: nobody waits for a rank that has failed."""
    ran = run(FAULTS, shallow, timeout=600, SOFTCUDA_DEFER=defer, FIRESTEEL_COLLECTIVE_SECONDS="3600")
    assert ran.returncode == 0, ran.stderr + ran.stdout
    failed, calls = map(int, ran.stdout.split())
    assert calls > 100 and failed > calls * 0.6, (failed, calls)


OPEN = """
import sys, firesteel, test_cuda_groups as t
try:
    t.open_engine(sys.argv[1], *t.PLANS["two ranks"])
except firesteel.Error as error:
    print(type(error).__name__, error)
"""


def test_without_nccl_the_sentence_tells_what_to_do(run, folder):
    ran = run(OPEN, folder, FIRESTEEL_LIBNCCL="/no/nccl.so")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("DeviceError"), ran.stdout
    for words in ("NCCL", "tried /no/nccl.so", "nvidia-nccl-cu12", "cut the model by layers"):
        assert words in ran.stdout, ran.stdout
