"""The CUDA backend on the software device: the engine's whole path over one GPU and two, against the CPU backend, and
what a failing driver does to it.

Every engine runs in a process of its own, whose environment says what the software device is like
(softcuda/README.md). Where the machine has a GPU, FIRESTEEL_TEST_GPU=1 runs the same on the real driver, as far as its
number of devices goes.
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
LAYERS = 3
LENGTHS = (1, 2, 3, 5, 8, 8, 13, 16, 17, 31, 33, 64)
REAL = os.environ.get("FIRESTEEL_TEST_GPU") == "1"

# name -> (devices, stages); a stage is (first layer, one past the last, indices into devices, layers held at a time)
PLANS = {
    "one GPU": (("cuda:0",), None),
    "cut on one GPU": (("cuda:0",), ((0, 1, (0,)), (1, 2, (0,)), (2, 3, (0,)))),
    "two GPUs": (("cuda:0", "cuda:1"), ((0, 2, (0,)), (2, 3, (1,)))),
    "streamed, a window of one": (("cuda:0",), ((0, 3, (0,), 1),)),
    "streamed, a window of two": (("cuda:0",), ((0, 3, (0,), 2),)),
    "streamed behind a cut": (("cuda:0", "cuda:1"), ((0, 1, (0,)), (1, 3, (1,), 1))),
    "there and back": (("cuda:0", "cuda:1"), ((0, 1, (1,)), (1, 2, (0,)), (2, 3, (1,)))),
    "all GPUs": (("cuda",), None),
    "two replicas": (("cuda:0", "cuda:1"), "replicate"),
    "two stages": (("cuda:1", "cuda:0"), "split"),
}
CPU = {"cpu": (("cpu",), None)}
MODES = {
    "late": {"SOFTCUDA_DEFER": "1"},
    "at once": {"SOFTCUDA_DEFER": "0"},
    "poisoned": {"FIRESTEEL_TEST_POISON": "1"},
    "one slot": {"FIRESTEEL_SLOTS": "1"},
    "three slots, small batches": {"FIRESTEEL_SLOTS": "3", "FIRESTEEL_BATCH_TOKENS": "40"},
}

OWN = "own kernels"
# `make softcuda-full` and real GPUs compute every plan in every mode; `make test` half of the plans in the modes that
# are to change nothing, each another half.
FULL = REAL or os.environ.get("FIRESTEEL_TEST_FULL") == "1"
WANTED = {
    mode: [plan for i, plan in enumerate(PLANS) if FULL or mode in ("late", OWN) or (i + number) % 2 == 0]
    for number, mode in enumerate([OWN, *MODES])
}


def compute(folder: str, to: str, *plans: str) -> None:
    """In the process of one mode: {plan/task: float32 array} into the file `to`."""
    from firesteel import _core
    from firesteel.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    ids = np.concatenate(tiny.rows(21, LENGTHS))
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    results = {}
    for name in plans:
        devices, plan = (PLANS | CPU)[name]
        how = {"parallel": plan} if isinstance(plan, str) else {"plan": plan}
        engine = _core.Engine(
            config=checkpoint.config, tensors=checkpoint.tensors, files=checkpoint.files, devices=devices, **how
        )
        width = engine.settings["width"]
        states = np.full((len(ids), width), np.nan, dtype=np.float32)
        vectors = np.full((len(LENGTHS), 2 * width), np.nan, dtype=np.float32)
        jobs = [
            engine.submit(ids, offsets, states, task="hidden_states"),
            engine.submit(ids, offsets, vectors, task="embed", pooling=("cls", "mean"), normalize=True),
        ]
        assert all(job.wait(120) for job in jobs)
        engine.close()
        results[f"{name}/states"], results[f"{name}/vectors"] = states, vectors
    np.savez(to, **results)


@pytest.fixture(scope="module")
def library(request) -> str:
    return "" if REAL else request.getfixturevalue("software_driver")


@pytest.fixture(scope="module")
def run(library):
    """Runs code in a Python whose driver is the software device; returns the finished process.

    products: by "own" kernels or by the "library"."""

    def run(code: str, *arguments: str, products: str = "own", **environment: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_"))}
        named = {"FIRESTEEL_LIBCUDA": library, "FIRESTEEL_LIBCUBLASLT": library} if library else {}
        if products == "own":
            named["FIRESTEEL_LIBCUBLASLT"] = "off"
        path = os.pathsep.join([str(HERE), clean.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=clean | named | {"PYTHONPATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(
        tiny.write(tmp_path_factory.mktemp("cuda") / "model", seed=5, layers=LAYERS, hidden=48, heads=4, inner=100)
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory, run, folder) -> dict[str, dict[str, np.ndarray]]:
    """mode -> plan/task -> array; mode "cpu" is the CPU backend's. All modes but one have cuBLASLt."""
    place = tmp_path_factory.mktemp("results")
    made = {}
    for number, (mode, knobs) in enumerate([("cpu", {}), (OWN, {}), *MODES.items()]):
        to = str(place / f"{number}.npz")
        wanted, products = WANTED.get(mode, CPU), "own" if mode == OWN else "library"
        wanted = [plan for plan in wanted if not (REAL and len((PLANS | CPU)[plan][0]) > gpus())]
        code = "import sys, test_cuda; test_cuda.compute(*sys.argv[1:])"
        ran = run(code, folder, to, *wanted, products=products, **knobs)
        assert ran.returncode == 0, f"{mode}: {ran.stderr}"
        with np.load(to) as stored:
            made[mode] = dict(stored)
    return made


def gpus() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


@pytest.mark.parametrize("task", ["states", "vectors"])
@pytest.mark.parametrize("plan", PLANS)
def test_agrees_with_the_cpu(results, plan, task):
    if f"{plan}/{task}" not in results["late"]:
        pytest.skip("this machine has fewer GPUs")  # real GPUs only: the software driver has two
    for mode in ("late", OWN):
        assert tiny.error_per_row(results[mode][f"{plan}/{task}"], results["cpu"][f"cpu/{task}"]) < 1e-5, mode


@pytest.mark.parametrize("task", ["states", "vectors"])
@pytest.mark.parametrize(("mode", "plan"), [(mode, plan) for mode, plans in WANTED.items() for plan in plans])
def test_cuts_and_modes_keep_the_bits(results, plan, mode, task):
    """Own kernels have bits of their own, and keep those."""
    if f"{plan}/{task}" not in results[mode]:
        pytest.skip("this machine has fewer GPUs")  # real GPUs only: the software driver has two
    found, expected = results[mode][f"{plan}/{task}"], results[OWN if mode == OWN else "late"][f"one GPU/{task}"]
    different = np.flatnonzero((found.view(np.uint32) != expected.view(np.uint32)).any(axis=-1))
    assert not len(different), f"rows {different[:10].tolist()} have other bits"


ALONE = """
import sys, numpy as np, firesteel, tiny
rows = tiny.rows(7, tuple(range(1, 65)) * 2)
engine = firesteel.Engine(sys.argv[1], devices="cuda")
whole = engine.embed(rows)
for i in (0, 1, 15, 16, 17, 31, 32, 63, 64, 100, 127):
    assert (engine.embed(rows[i : i + 1])[0].view("u4") == whole[i].view("u4")).all(), f"row {i} alone"
turned = engine.embed(rows[::-1])[::-1]
assert (turned.view("u4") == whole.view("u4")).all(), "order"
assert "cuda sm_" in engine.numerics, engine.numerics
assert len(engine.embed([])) == 0
"""


@pytest.mark.parametrize("products", ["own", "library"])
def test_a_row_gets_the_same_bits_alone_and_in_any_batch(run, folder, products):
    ran = run(ALONE, folder, products=products)
    assert ran.returncode == 0, ran.stderr


AUTO = """
import sys, firesteel
engine = firesteel.Engine(sys.argv[1])
print(engine.numerics, *(device.name for device in engine.placement.devices), sep=",")
"""


def test_auto_takes_all_gpus(run, folder):
    ran = run(AUTO, folder)
    numerics, *names = ran.stdout.strip().split(",")
    assert ran.returncode == 0 and numerics.startswith("cuda sm_"), (ran.stdout, ran.stderr)
    assert names == [f"cuda:{i}" for i in range(gpus() if REAL else 2)]


TYPES = """
import sys, numpy as np, firesteel, tiny
rows = tiny.rows(3, (1, 2, 7, 16, 33, 64, 64))
exact = firesteel.Engine(sys.argv[1], devices="cpu").embed(rows, normalize=True)
engine = firesteel.Engine(sys.argv[1], devices="cuda:0", dtype=sys.argv[2])
found = engine.embed(rows, normalize=True)
alone = np.concatenate([engine.embed(rows[i : i + 1], normalize=True) for i in range(len(rows))])
assert (alone.view("u4") == found.view("u4")).all(), "a row alone has other bits"
print(engine.numerics, np.linalg.norm(found - exact, axis=1).max(), (found * exact).sum(1).min())
"""


@pytest.mark.parametrize(
    "saved, wanted, generation, computed",
    [
        ("F32", "auto", "80", "fp32"),
        ("F32", "fp16", "75", "fp16"),
        ("F32", "bf16", "90", "bf16"),
        ("F16", "auto", "75", "fp16"),
        ("BF16", "auto", "86", "bf16"),
        ("BF16", "auto", "75", "fp16"),  # its tensor cores know no bf16
        ("BF16", "fp32", "80", "fp32"),
    ],
)
def test_types(run, tmp_path, saved, wanted, generation, computed):
    """Row vectors of length 1 against fp32 on the CPU: fp16 within 5e-3, bf16 by cosine."""
    model = str(tiny.write(tmp_path / "model", seed=5, layers=LAYERS, hidden=48, heads=4, inner=100, dtype=saved))
    ran = run(TYPES, model, wanted, SOFTCUDA_CC=generation)
    assert ran.returncode == 0, ran.stderr
    *numerics, worst, cosine = ran.stdout.split()
    if not REAL:
        assert numerics == ["cuda", f"sm_{generation}", computed]
    assert float(worst) < {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}[computed]
    assert float(cosine) > 0.9995


OPEN = """
import sys, firesteel
try:
    engine = firesteel.Engine(sys.argv[1], devices=sys.argv[2].split(",")[0], **eval(sys.argv[3]))
    engine.embed([[1, 2, 3]])
except firesteel.Error as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "devices, options, environment, kind, words",
    [
        ("cuda", "{}", {"FIRESTEEL_LIBCUDA": "/no/lib.so"}, "DeviceError", ["tried /no/lib.so", 'devices="cpu"']),
        ("cuda:7", "{}", {}, "DeviceError", ["cuda:7", "no such GPU", "shows 2"]),
        ("cuda", "dict(cpu_path='avx2')", {}, "ConfigError", ["cpu_path='avx2'", "CPU devices"]),
        ("cuda", "{}", {"SOFTCUDA_CC": "70"}, "DeviceError", ["compute capability 7.0", "older than the 7.5"]),
        ("cuda", "{}", {"SOFTCUDA_MEMORY": "80000000"}, "OutOfMemory", ["cuda:0", "are missing"]),
        (
            "cuda",
            "{}",
            {"SOFTCUDA_MEMORY": str(1 << 30), "SOFTCUDA_USED": str(990 << 20)},
            "OutOfMemory",
            ["1.0 of 1.0 GiB are used by other processes"],
        ),
        ("cuda", "dict(dtype='bf16')", {"SOFTCUDA_CC": "75"}, "ConfigError", ["bf16 is not computed on cuda:0"]),
        ("cuda", "dict(dtype='int8')", {}, "ConfigError", ["int8", "fp32, fp16 and bf16"]),
        ("cuda", "dict(max_memory=100000)", {}, "OutOfMemory", ["cuda:0", "max_memory"]),
    ],
)
@pytest.mark.skipif(REAL, reason="asks the software device to be broken")
def test_what_cannot_be_opened_says_why(run, folder, devices, options, environment, kind, words):
    ran = run(OPEN, folder, devices, options, **environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(kind), ran.stdout
    assert all(word in ran.stdout for word in words), ran.stdout


ROOM = """
import sys, firesteel, tiny
rows = tiny.rows(7, tuple(range(1, 33)))
engine = firesteel.Engine(sys.argv[1], devices="cuda:0")
print(engine.embed(rows).tobytes().hex())
"""


@pytest.mark.skipif(REAL, reason="asks the software device to be broken")
def test_a_step_without_room_goes_again_in_halves(run, folder):
    plain = run(ROOM, folder)
    assert plain.returncode == 0, plain.stderr
    for launch in (1, 2, 9, 20):
        tight = run(ROOM, folder, SOFTCUDA_FAIL_NAME=f"cuLaunchKernel:{launch}", SOFTCUDA_FAIL_CODE="2")
        assert tight.returncode == 0, tight.stderr
        assert tight.stdout == plain.stdout, f"launch {launch}"


BESIDE = """
import ctypes, os, sys, test_cuda
test_cuda.compute(*sys.argv[1:])
print(ctypes.CDLL(os.environ["FIRESTEEL_LIBCUDA"]).softcuda_copies_behind_kernels())
"""


@pytest.mark.skipif(REAL, reason="asks the software device what was enqueued where")
@pytest.mark.parametrize("plan", [name for name in PLANS if "streamed" not in name])
def test_copies_have_streams_of_their_own(run, folder, tmp_path, plan):
    """So that on a GPU they run beside the steps of other batches; a streamed pass shares its scratch, so there not."""
    ran = run(BESIDE, folder, str(tmp_path / "results"), plan, FIRESTEEL_BATCH_TOKENS="40")
    assert ran.stdout.strip() == "0", (ran.stdout, ran.stderr)


FORK = """
import os, sys, firesteel
engine = firesteel.Engine(sys.argv[1], devices="cuda")
child = os.fork()
if child == 0:
    try:
        firesteel.Engine(sys.argv[1], devices="cuda")
    except firesteel.DeviceError as error:
        os._exit(0 if "forked" in str(error) else 3)
    os._exit(4)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_is_told(run, folder):
    ran = run(FORK, folder)
    assert ran.returncode == 0, ran.stderr


FAULTS = """
import sys, firesteel
from softcuda.faults import every_call
rows = [[1, 2, 3], [4], [5, 6, 7, 8]]

def whole():
    engine = firesteel.Engine(sys.argv[1], devices="cuda:0")
    engine.embed(rows)
    engine.close()

print(*every_call(whole))
"""


@pytest.mark.skipif(REAL, reason="asks the software device to be broken")
def test_every_call_may_fail(run, folder):
    """Errors in clean-up calls have nobody to be told to; all others come out as a sentence, and nothing is left."""
    ran = run(FAULTS, folder)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    failed, calls = map(int, ran.stdout.split())
    assert calls > 100 and failed > calls * 0.7, (failed, calls)
