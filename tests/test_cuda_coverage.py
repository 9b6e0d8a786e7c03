"""Every kernel is run in every test run: over more than one block, with a ragged tail, and its numbers are looked at.

An engine runs what BERT needs, with heads of three widths. The other kernels are launched here through the driver's own
calls. The software driver counts: a kernel of kernels.def that was not run over more than one block fails.
"""

from __future__ import annotations

import ctypes as C
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

HERE = Path(__file__).parent
KERNELS = re.findall(
    r"^X\((\w+), (\w+), (\d+)\)", (HERE.parent / "csrc/backends/cuda/kernels/kernels.def").read_text(), re.MULTILINE
)
WIDTHS = (12, 48, 72)  # of a head: one for each attention kernel
LENGTHS = (3, 130, 1, 67, 64)
F32, F16, BF16 = 0, 1, 2
wide, address = C.c_longlong, C.c_void_p


# -- the structs of args.h that are filled in here ---------------------------------------------------------------------


def struct(**fields: type) -> type[C.Structure]:
    return type("Arguments", (C.Structure,), {"_fields_": list(fields.items())})


Add = struct(
    y=address,
    x=address,
    residual=address,
    bias=address,
    **dict.fromkeys(("y_stride", "x_stride", "residual_stride", "D"), wide),
    **dict.fromkeys(("rows", "activation", "x_type", "y_type", "residual_type"), C.c_int),
)
Product = struct(
    y=address,
    x=address,
    w=address,
    residual=address,
    bias=address,
    **dict.fromkeys(("y_stride", "x_stride", "residual_stride"), wide),
    **dict.fromkeys(("T", "N", "K", "activation", "x_type", "w_type", "y_type", "residual_type"), C.c_int),
)
Sum = struct(y=address, x=address, count=wide, parts=C.c_int)


class Driver:
    """The calls that a launch needs, each checked."""

    def __init__(self, library: str):
        self.library = C.CDLL(library)
        context, image = address(), C.c_char_p(b"")
        self.module = address()
        self("cuInit", 0)
        self("cuDevicePrimaryCtxRetain", C.byref(context), 0)
        self("cuCtxSetCurrent", context)
        self("cuModuleLoadData", C.byref(self.module), image)

    def __call__(self, name: str, *arguments: object) -> None:
        status = getattr(self.library, name)(*arguments)
        assert status == 0, f"{name} gives {status}"

    def array(self, a: np.ndarray) -> int:
        at = C.c_ulonglong()
        self("cuMemAlloc_v2", C.byref(at), C.c_size_t(a.nbytes))
        self("cuMemcpyHtoDAsync_v2", at, address(a.ctypes.data), C.c_size_t(a.nbytes), None)
        self("cuStreamSynchronize", None)
        return at.value

    def read(self, at: int, like: np.ndarray) -> np.ndarray:
        a = np.empty_like(like)
        self("cuMemcpyDtoHAsync_v2", address(a.ctypes.data), C.c_ulonglong(at), C.c_size_t(a.nbytes), None)
        self("cuStreamSynchronize", None)
        return a

    def launch(self, name: str, blocks: int, arguments: C.Structure) -> None:
        function = address()
        self("cuModuleGetFunction", C.byref(function), self.module, name.encode())
        threads = next(int(threads) for kernel, _, threads in KERNELS if kernel == name)
        parameters = (address * 1)(C.addressof(arguments))
        self("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, 0, None, parameters, None)
        self("cuStreamSynchronize", None)


def random(*shape: int) -> np.ndarray:
    return np.random.RandomState(sum(shape)).standard_normal(shape).astype(np.float32)


def close(found: np.ndarray, expected: np.ndarray, most: float) -> None:
    off = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    assert off.max() <= most, f"off by {off.max():.2e} at {np.unravel_index(off.argmax(), off.shape)}"


# -- what runs in the child --------------------------------------------------------------------------------------------


def engines(folders: list[str]) -> None:
    """Every task on the GPU against the CPU."""
    import firesteel

    rows = tiny.rows(3, LENGTHS)
    for folder in folders:
        with firesteel.Engine(folder, devices="cuda") as gpu, firesteel.Engine(folder, devices="cpu") as cpu:
            assert tiny.error_per_row(gpu.embed(rows), cpu.embed(rows)) < 1e-5
            for found, expected in zip(gpu.hidden_states(rows), cpu.hidden_states(rows), strict=True):
                assert tiny.error_per_row(found, expected) < 1e-5


def add(driver: Driver) -> None:
    x, residual, bias, y = random(9, 133), random(9, 134)[:, :133].copy(), random(133), np.full((9, 140), np.nan, "f4")
    at = driver.array(y)
    driver.launch("fs_add_kernel", math.ceil(9 * 34 / 256), Add(
        y=at, x=driver.array(x), residual=driver.array(residual), bias=driver.array(bias), y_stride=140, x_stride=133,
        residual_stride=133, D=133, rows=9))  # fmt: skip
    found = driver.read(at, y)
    close(found[:, :133], x + bias + residual, 1e-6)
    assert np.isnan(found[:, 133:]).all(), "written past the end of a row"


def product(driver: Driver) -> None:
    T, N, K = 131, 70, 50
    x, w, y = random(T, K), random(N, K).astype(np.float16), np.full((T + 1, N), np.nan, "f4")
    at = driver.array(y)
    driver.launch("fs_product_16_kernel", math.ceil(T / 64) * math.ceil(N / 64), Product(
        y=at, x=driver.array(x), w=driver.array(w), y_stride=N, x_stride=K, T=T, N=N, K=K, w_type=F16))  # fmt: skip
    found = driver.read(at, y)
    close(found[:T], x.astype(np.float16).astype("f8") @ w.astype("f8").T, 2e-5)
    assert np.isnan(found[T:]).all(), "written past the last row"


def sums(driver: Driver) -> None:
    parts, y = random(3, 515), np.full(516, np.nan, "f4")
    at = driver.array(y)
    driver.launch("fs_sum_kernel", math.ceil(515 / 256), Sum(y=at, x=driver.array(parts), count=515, parts=3))
    found = driver.read(at, y)
    assert (found[:515] == parts[0] + parts[1] + parts[2]).all() and np.isnan(found[515])


def cover(library: str, *folders: str) -> None:
    """Prints {kernel: [launches, most blocks]} after everything ran."""
    engines(list(folders))
    driver = Driver(library)
    for launch in (add, product, sums):
        launch(driver)
    driver.library.softcuda_launches.restype = wide
    counts = {}
    for name, _, _ in KERNELS:
        most = wide(0)
        counts[name] = [driver.library.softcuda_launches(name.encode(), C.byref(most)), most.value]
    json.dump(counts, sys.stdout)


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counts(tmp_path_factory, software_driver) -> dict[str, list[int]]:
    place = tmp_path_factory.mktemp("coverage")
    shape = {"layers": 1, "heads": 2, "inner": 70, "positions": max(LENGTHS), "sentence": {}}
    folders = [str(tiny.write(place / f"{width}", hidden=2 * width, **shape)) for width in WIDTHS]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_"))}
    path = os.pathsep.join(filter(None, [str(HERE), clean.get("PYTHONPATH")]))
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, test_cuda_coverage as t; t.cover(*sys.argv[1:])",
            software_driver,
            *folders,
        ],
        env=clean
        | {"PYTHONPATH": path, "FIRESTEEL_LIBCUDA": software_driver, "FIRESTEEL_LIBCUBLASLT": "off"}
        | {"SOFTCUDA_PAGEABLE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("kernel", [name for name, _, _ in KERNELS])
def test_the_kernel_was_run_over_more_than_one_block(counts, kernel):
    launches, blocks = counts[kernel]
    assert launches > 0 and blocks > 1, f"{launches} launches, {blocks} blocks at most"


def test_every_kernel_of_the_sources_is_listed():
    folder = HERE.parent / "csrc/backends/cuda/kernels"
    defined = [name for file in folder.glob("*.cu") for name in re.findall(r"FS_KERNEL\((\w+),", file.read_text())]
    assert sorted(defined) == sorted(name for name, _, _ in KERNELS)
