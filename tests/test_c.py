"""The C tests: builds every program of tests/c and runs each as one test, showing what it printed when it fails.

`make -C tests/c asan` and `make -C tests/c tsan` run the same programs under sanitizers.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "c"
PROGRAMS = sorted(path.stem for path in HERE.glob("test_*.c"))


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the built programs; objects are kept, so only what has changed is compiled."""
    jobs = len(os.sched_getaffinity(0))
    done = subprocess.run(["make", "-C", HERE, f"-j{jobs}", "all"], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"tests/c does not build:\n{done.stdout[-2000:]}{done.stderr[-6000:]}", pytrace=False)
    return HERE / "build" / "plain"


@pytest.mark.parametrize("program", PROGRAMS)
def test_c(built: Path, program: str, request) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FIRESTEEL_")}
    if program == "test_cuda":
        driver = request.getfixturevalue("software_driver")
        clean |= {"FIRESTEEL_LIBCUDA": driver, "FIRESTEEL_LIBCUBLASLT": driver, "SOFTCUDA_DEVICES": "4"}
    ran = subprocess.run([built / program], capture_output=True, text=True, timeout=600, env=clean)
    if ran.returncode:
        pytest.fail(f"{program} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}", pytrace=False)
