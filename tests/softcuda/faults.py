"""Every n-th call of the driver fails: what engines on it must do then, for the tests of the CUDA backend."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import firesteel


def every_call(whole: Callable[[], None], step: int = 1) -> tuple[int, int]:
    """Runs `whole`, which opens, uses and closes an engine, once for each (or each `step`-th) of its calls, which fails
    with 999.

    Each run ends well or with a sentence that names the GPUs, and leaves nothing behind in the driver. Gives (runs that
    failed, calls): errors of clean-up calls have nobody to be told to."""
    soft = ctypes.CDLL(os.environ["FIRESTEEL_LIBCUDA"])
    whole()
    before, live = soft.softcuda_calls(), soft.softcuda_live()
    whole()
    calls = soft.softcuda_calls() - before
    assert soft.softcuda_live() == live, "an engine that worked leaves something behind"
    failed = 0
    for n in range(1, calls + 1, step):
        soft.softcuda_fail_at(n, 999)
        try:
            whole()
        except firesteel.Error as error:
            failed += 1
            assert "cuda" in str(error) and len(str(error)) < 900, str(error)
        soft.softcuda_fail_at(0, 0)
        assert soft.softcuda_live() == live, f"call {n} of {calls} failed and something was left behind"
    return failed, calls
