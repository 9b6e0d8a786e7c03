"""The software CUDA device by itself: tests/softcuda/selftest_*.cu, plain; under sanitizers in `make sanitize`.

AddressSanitizer finds accesses outside memory, ThreadSanitizer what threads of a block do to one place without a
barrier between; tests called dies_... must end in such a report, which names the kernel and the line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from softcuda import build

FLAVOURS = {"plain": ("",), "ucontext": ("", "-DSOFTCUDA_UCONTEXT"), "address": ("address",), "thread": ("thread",)}
KERNELS, DRIVER, NCCL = "selftest_kernels.cu", "selftest_driver.cu", "selftest_nccl.cu"
CUBLASLT = "selftest_cublaslt.cu"
SOURCES = (KERNELS, DRIVER, NCCL, CUBLASLT)
CASES = [(source, "plain") for source in SOURCES]
SANITIZED = [(source, flavour) for flavour in ("address", "thread") for source in SOURCES] + [(KERNELS, "ucontext")]
CASES += [pytest.param(*case, marks=pytest.mark.sanitized) for case in SANITIZED]
DEADLY = {(KERNELS, "address"), (KERNELS, "thread"), (DRIVER, "address")}
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0"}


def run(program: Path, flavour: str, *arguments: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SOFTCUDA_")}
    # ThreadSanitizer's shadow memory leaves no room for addresses as random as new kernels make them.
    before = ["setarch", "-R"] if flavour == "thread" and shutil.which("setarch") else []
    command = [*before, str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=clean | OPTIONS)


def faults(program: Path, flavour: str, test: str) -> list[str]:
    """What is wrong with one test of a program."""
    ran = run(program, flavour, test)
    said = f"{ran.stdout}{ran.stderr}"
    if not test.startswith("dies_"):
        return [] if ran.returncode == 0 and not said else [f"{test} ended with {ran.returncode}:\n{said}"]
    expected = [line.removeprefix("EXPECT ") for line in ran.stdout.splitlines() if line.startswith("EXPECT ")]
    missing = [text for text in expected if text not in ran.stderr]
    if expected and ran.returncode and not missing:
        return []
    return [f"{test} ended with {ran.returncode} and should have said {missing or 'something'}:\n{said}"]


@pytest.mark.parametrize("source, flavour", CASES)
def test_softcuda(source, flavour):
    program = build.program(source, build.FOLDER, *FLAVOURS[flavour])
    tests = run(program, flavour).stdout.split()
    wrong = [text for test in tests for text in faults(program, flavour, test)]
    assert not wrong, "\n".join(wrong)
    found = {test for test in tests if test.startswith("dies_")}
    assert bool(found) == ((source, flavour) in DEADLY), f"no test of what {flavour} finds is in {source}, or {found}"


def test_a_library_is_built_once():
    library = build.build()
    made = library.stat().st_mtime_ns
    assert build.build() == library and library.stat().st_mtime_ns == made
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    assert " cuLaunchKernel" in exported and " softcuda_reset" in exported and "fs_rows_kernel" not in exported
