"""Products by cuBLASLt, in software (softcuda/cublaslt.cc): which algorithm is chosen, what it computes, and what
becomes of engines where the library has nothing to offer, is missing or fails.

The software library offers six algorithms; the first four must never be chosen: their bits depend on the batch, they
split K, or they refuse some batches.
"""

from __future__ import annotations

import ctypes as C
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import ops_kit as ops
import pytest
import tiny
from ops_kit import BF16, F16, F32, MATRIX, VECTOR, i64, voidp

HERE = Path(__file__).parent
ALGORITHMS = 6
GOOD = 4
OWN = ("fs_product_f32_kernel", "fs_product_16_kernel")


class Counts:
    """Products since the last look: {algorithm: n}, and those of own kernels under "own"."""

    def __init__(self, library: str):
        self.soft = C.CDLL(library)
        self.soft.softcuda_products.restype = self.soft.softcuda_launches.restype = C.c_longlong
        self.before = dict.fromkeys([*range(ALGORITHMS), "own"], 0)
        self()

    def __call__(self) -> dict[int | str, int]:
        now = {i: self.soft.softcuda_products(i) for i in range(ALGORITHMS)}
        now["own"] = sum(self.soft.softcuda_launches(k.encode(), C.byref(C.c_longlong())) for k in OWN)
        since = {name: n - self.before[name] for name, n in now.items() if n != self.before[name]}
        self.before = now
        return since


# -- ops: in this process ----------------------------------------------------------------------------------------------


@pytest.fixture
def counts(software_driver) -> Counts:
    return Counts(software_driver)


@pytest.fixture
def device(shim, software_driver, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_LIBCUDA", software_driver)
    monkeypatch.setenv("FIRESTEEL_LIBCUBLASLT", software_driver)
    monkeypatch.setenv("FIRESTEEL_TEST_POISON", "1")
    dev = Prepared(shim, "cuda")
    yield dev
    dev.close()


class Prepared(ops.Device):
    """Makes the plan of a product before the first of its form, as an engine does."""

    def call(self, name: str, *args, bare: bool = False) -> None:
        if name == "matmul" and self.preparing:
            y, x, w, e = args
            scratch = [ops.View(self.alloc(4 * v.rows * v.stride), v.dtype, v.rows, v.cols, v.stride) for v in (y, x)]
            for v, given in zip(scratch, (y, x), strict=True):
                v.at += given.at % 16  # as it will be
            super().call("prepare_matmul", *scratch, w, e)
        super().call(name, *args, bare=bare)

    preparing = True


random = ops.random


@pytest.mark.parametrize("residual", [None, "apart", "inside"])
@pytest.mark.parametrize("act", ["none", "relu", "gelu", "tanh"])
@pytest.mark.parametrize("biased", [False, True])
def test_every_epilogue_agrees_with_numpy(device, counts, biased, act, residual):
    x, w = random(70, 52), random(36, 52, seed=1)
    bias, r = (random(36, seed=2) if biased else None), (random(70, 36, seed=3) if residual else None)
    found = device.matmul(x, w, bias, act, r, inside=residual == "inside")
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
    ops.check(found, ops.np_epilogue(ops.d(x) @ ops.d(w).T, bias, act, r), 1 + size, 1e-6)
    counts()
    device.preparing = False
    device.matmul(x, w, bias, act, r, inside=residual == "inside")
    # A residual in y that must wait for the activation would be gone.
    assert counts() == ({"own": 1} if residual == "inside" and act != "none" else {GOOD: 1})


def test_a_row_has_the_same_bits_in_batches_of_1_to_512(device, counts):
    x, w, bias, r = random(512, 48), random(20, 48, seed=1), random(20, seed=2), random(512, 20, seed=3)
    held = device.weight(w, MATRIX)
    whole = device.matmul(x, held, bias, "none", r)
    device.preparing = False
    counts()
    for T in range(1, 513):
        first = (T * 37) % (513 - T)
        rows = slice(first, first + T)
        ops.same(device.matmul(x[rows], held, bias, "none", r[rows]), whole[rows], f"{T} rows")
        if T % 16 == 0:
            del device.kept[2:]
    ops.same(device.matmul(x, held, bias, "none", r, strides=(60, 32)), whole, "strides")
    assert counts() == {GOOD: 513}


@pytest.mark.parametrize(
    "K, N, strides, offset",
    [(50, 20, (0, 0), 0), (48, 21, (0, 0), 0), (48, 20, (50, 20), 0), (48, 20, (48, 21), 0), (48, 20, (52, 24), 1)],
)
def test_what_is_not_aligned_goes_through_own_kernels(device, counts, K, N, strides, offset):
    x, w = random(9, K), random(N, K, seed=1)
    found = device.matmul(x, w, strides=strides, offset=offset)
    ops.check(found, ops.d(x) @ ops.d(w).T, 10, 1e-6)
    assert counts() == {"own": 1}
    assert device.lib.shim_numerics(device.handle) == b"cuda sm_80"


def test_a_form_that_was_not_prepared_goes_through_own_kernels(device, counts):
    device.preparing = False
    device.matmul(random(9, 48), random(20, 48, seed=1))
    assert counts() == {"own": 1}


class Form(C.Structure):
    _fields_ = [("N", i64), ("K", i64)] + [(n, C.c_int) for n in ("w_type", "y_type", "epilogue", "adds")]


class Operands(C.Structure):
    _fields_ = [("y", ops.View), ("x", ops.View), ("w", voidp), ("bias", voidp), ("residual", C.POINTER(ops.View))]


def in_type(a: np.ndarray, dtype: int) -> np.ndarray:
    """The bytes of `a` in fp32, fp16 or bf16."""
    if dtype == BF16:
        return (ops.rounded(a, BF16).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return a.astype(np.float16 if dtype == F16 else np.float32)


@pytest.mark.parametrize("adds", [0, 1])
@pytest.mark.parametrize("biased", [0, 1])
@pytest.mark.parametrize("w_type, y_type", [(F16, F16), (F16, F32), (BF16, BF16), (BF16, F32)])
def test_forms_in_16_bits(device, counts, w_type, y_type, biased, adds):
    """A 16-bit y has no plan with a bias: ours are fp32, and the library's would have to be of y's type."""
    T, N, K = 33, 24, 64
    x, w, bias, r = random(T, K), random(N, K, seed=1), random(N, seed=2), random(T, N, seed=3)
    held = device.weight(w, MATRIX, held_in=w_type)
    b = device.weight(bias, VECTOR)
    views = [
        ops.View(device.array(in_type(np.tile(a, (1, 1)), t)), t, len(a), a.shape[1], a.shape[1])
        for a, t in ((np.zeros((T, N), np.float32), y_type), (x, w_type), (r, y_type))
    ]
    form = Form(N, K, w_type, y_type, 4 if biased else 1, adds)
    given = Operands(views[0], views[1], held.at, b.at, C.pointer(views[2]))
    usable = C.c_int()
    scratch = Operands(*[ops.View(device.alloc(4 * T * K), v.dtype, T, v.cols, v.stride) for v in views[:2]])
    scratch.w, scratch.bias = held.at, b.at
    device.call("plan_make", C.byref(form), C.byref(scratch), C.byref(usable))
    assert usable.value == (not biased or y_type == F32)
    if not usable.value:
        return
    counts()
    device.call("plan_run", C.byref(form), C.byref(given))
    assert counts() == {GOOD: 1}, "rounding to 16 bits has hidden what the order of adding up does"
    raw = np.zeros((T, N), in_type(r, y_type).dtype)
    device.call("download", voidp(raw.ctypes.data), voidp(views[0].at), C.c_size_t(raw.nbytes))
    found = (raw.astype(np.uint32) << 16).view(np.float32) if y_type == BF16 else raw.astype(np.float32)
    expected = ops.rounded(x, w_type) @ ops.rounded(w, w_type).T
    expected = expected + (ops.d(bias) if biased else 0) + (ops.rounded(r, y_type) if adds and y_type != F32 else 0)
    expected = expected + (ops.d(r) if adds and y_type == F32 else 0)
    ops.check(found, expected, 20, {F32: 1e-6, F16: 1e-3, BF16: 8e-3}[y_type])


# -- engines: each in a process of its own -----------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["none", "relu", "gelu"])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("w_type, y_type", [(F16, F16), (F16, F32), (BF16, BF16), (BF16, F32)])
def test_products_of_narrow_rows(device, counts, w_type, y_type, biased, added, act):
    """x of w's type, y of that or fp32: by the library, whatever stands behind the product."""
    T, N, K = 33, 24, 64
    x, w, bias, r = random(T, K), random(N, K, seed=1), random(N, seed=2), random(T, N, seed=3)
    held = device.weight(w, MATRIX, held_in=w_type)
    y, views = device.view(np.zeros((T, N)), dtype=y_type), device.view(x, dtype=w_type)
    e = device.epilogue(bias if biased else None, act, device.view(r) if added else None)
    device.call("matmul", y, views, C.byref(held), C.byref(e))
    device.preparing = False
    counts()
    device.call("matmul", y, views, C.byref(held), C.byref(e))
    assert counts() == {GOOD: 1}
    exact = ops.rounded(x, w_type) @ ops.rounded(w, w_type).T
    expected = ops.np_epilogue(exact, bias if biased else None, act, r if added else None)
    ops.check(device.read(y), expected, 20, {F32: 1e-6, F16: 2e-3, BF16: 1.6e-2}[y_type])


@pytest.fixture(scope="module")
def run(software_driver):
    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_"))}
        path = os.pathsep.join([str(HERE), clean.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        named = {f"FIRESTEEL_LIB{name}": software_driver for name in ("CUDA", "CUBLASLT", "NCCL")}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=clean | named | {"PYTHONPATH": path, "FIRESTEEL_BATCH_TOKENS": "256"} | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("lt") / "model", seed=5, layers=2, hidden=48, heads=4, inner=104))


CHOICE = """
import os, sys, firesteel, tiny
from test_cuda_products import Counts
counts = Counts(os.environ["FIRESTEEL_LIBCUDA"])
engine = firesteel.Engine(sys.argv[1], devices="cuda")
counts()
rows = tiny.rows(3, (1, 2, 7, 16, 33, 64, 64))
whole = engine.embed(rows)
for i in range(len(rows)):
    assert (engine.embed(rows[i : i + 1])[0].view("u4") == whole[i].view("u4")).all(), f"row {i} alone"
exact = firesteel.Engine(sys.argv[1], devices="cpu").embed(rows)
assert tiny.error_per_row(whole, exact) < 1e-5
print(*counts(), engine.numerics, sep="|")
"""


@pytest.mark.parametrize(
    "offered, chosen",
    [("012345", "4"), ("01235", "5"), ("54", "5"), ("4", "4"), ("0123", "own"), ("1", "own"), ("", "own")],
)
def test_the_first_good_algorithm_is_taken_or_none(run, folder, offered, chosen):
    ran = run(CHOICE, folder, SOFTCUDA_ALGORITHMS=offered)
    assert ran.returncode == 0, ran.stderr
    by, numerics = ran.stdout.strip().split("|")
    assert by == chosen, ran.stdout
    if chosen == "own":
        assert numerics == "cuda sm_80 fp32"
    else:
        assert numerics.startswith("cuda sm_80 cublasLt 12.9.1 ") and len(numerics.split()) == 6


def test_off_means_own_kernels(run, folder):
    ran = run(CHOICE, folder, FIRESTEEL_LIBCUBLASLT="off")
    assert ran.stdout.strip() == "own|cuda sm_80 fp32", ran.stdout + ran.stderr


def test_the_first_algorithm_whatever_its_bits(run, folder):
    """The knob that benchmarks measure the price of pinning with: here the first one's bits depend on the batch."""
    ran = run(CHOICE, folder, FIRESTEEL_TEST_FIRST_ALGORITHM="1")
    assert ran.returncode == 1 and "alone" in ran.stderr, ran.stdout + ran.stderr


NUMERICS = """
import sys, test_cuda_groups as t
print(t.open_engine(sys.argv[1], *eval(sys.argv[2])).numerics)
"""


def test_the_numerics_id_tells_the_choice_and_nothing_else(run, folder):
    one = '(("cuda:0",), None)'
    two = '(("cuda:0", "cuda:1"), ((0, 1, (1,)), (1, 2, (0,))))'

    def numerics(plan: str, **environment: str) -> str:
        ran = run(NUMERICS, folder, plan, **environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    plain = numerics(one)
    assert plain == numerics(two) == numerics(one, FIRESTEEL_BATCH_TOKENS="16", FIRESTEEL_SLOTS="1")
    assert plain == numerics(one, SOFTCUDA_ALGORITHMS="4") != numerics(one, SOFTCUDA_ALGORITHMS="5")


OPEN = """
import sys, firesteel
try:
    engine = firesteel.Engine(sys.argv[1], devices="cuda:0")
    engine.embed([[1, 2, 3]])
except firesteel.Error as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"FIRESTEEL_LIBCUBLASLT": "/no/lt.so"}, ["tried /no/lt.so", "firesteel[cuda12]", "FIRESTEEL_LIBCUBLASLT=off"]),
        ({"FIRESTEEL_LIBCUBLASLT": "libm.so.6"}, ["has no cublasLtCreate", "CUDA 12 or 13"]),
        ({"SOFTCUDA_FAIL_NAME": "cublasLtCreate"}, ["cuda:0: opening cuBLASLt failed", "EXECUTION_FAILED (13", "=off"]),
        (
            {"SOFTCUDA_FAIL_NAME": "cublasLtMatmul:9"},
            ["cuda:0: trying a product failed: CUBLAS_STATUS_EXECUTION_FAILED"],
        ),
    ],
)
def test_a_library_that_fails_is_told(run, folder, environment, words):
    ran = run(OPEN, folder, **environment)
    assert ran.returncode == 0 and ran.stdout.startswith("DeviceError"), ran.stdout + ran.stderr
    assert all(word in ran.stdout for word in words), ran.stdout


FAILS_LATER = """
import os, sys, ctypes, firesteel
engine = firesteel.Engine(sys.argv[1], devices="cuda:0")
soft = ctypes.CDLL(os.environ["FIRESTEEL_LIBCUDA"])
for n in range(1, 200):
    soft.softcuda_fail_at(n, 999)
    try:
        engine.embed([[1, 2, 3]])
    except firesteel.Error as error:
        if "a product failed" in str(error):
            print(type(error).__name__, error)
            break
        engine = firesteel.Engine(sys.argv[1], devices="cuda:0")
"""


def test_a_product_that_fails_in_a_step_is_told(run, folder):
    ran = run(FAILS_LATER, folder)
    assert ran.stdout.startswith("DeviceError cuda:0: a product failed: CUBLAS_STATUS_EXECUTION_FAILED (13"), ran


FAULTS = """
import sys, test_cuda_groups as t
from softcuda.faults import every_call

def whole():
    engine = t.open_engine(sys.argv[1], ("cuda:0",), None)
    t.states(engine, (3, 1, 4))
    engine.close()

print(*every_call(whole, 3))
"""


def test_every_call_may_fail(run, tmp_path):
    """Those of the library too: every third, for a candidate takes hundreds."""
    shallow = str(tiny.write(tmp_path / "one", seed=6, layers=1, hidden=16, heads=2, inner=16))
    ran = run(FAULTS, shallow, SOFTCUDA_ALGORITHMS="5", FIRESTEEL_BATCH_TOKENS="16")
    assert ran.returncode == 0, ran.stderr + ran.stdout
    failed, calls = map(int, ran.stdout.split())
    assert calls > 300 and failed > calls / 3 * 0.7, (failed, calls)


GROUP = """
import os, sys, numpy as np, test_cuda_groups as t
from test_cuda_products import Counts
counts = Counts(os.environ["FIRESTEEL_LIBCUDA"])
engine = t.open_engine(sys.argv[1], t.TWO, ((0, 1, (0, 1)), (1, 2, (1, 0))))
counts()
whole = t.states(engine)
assert list(counts()) == [4]
assert (t.states(engine, t.LENGTHS[:3]).view("u4") == whole[: sum(t.LENGTHS[:3])].view("u4")).all()
assert t.tiny.error_per_row(whole, t.states(t.open_engine(sys.argv[1], ("cpu",), None))) < 1e-5
print(engine.numerics)
"""


def test_groups_of_gpus_have_plans_too(run, folder):
    ran = run(GROUP, folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("cuda sm_80 cublasLt 12.9.1 ") and ran.stdout.endswith(" fp32 tensor 2\n"), ran.stdout
