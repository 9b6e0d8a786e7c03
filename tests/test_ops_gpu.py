"""The CUDA cases of test_ops.py on the machine's own driver and GPU: scripts/gpu-check runs them, and nobody else.

GPU_CHECK_IMAGES names the folder of compiled kernels (build_tools/kernels.py --out).
"""

from __future__ import annotations

import os

import ops_kit
import pytest

if os.environ.get("FIRESTEEL_TEST_GPU") == "1":
    from test_ops import *  # noqa: F403 - pytest collects by the names of this module

    ops_kit.image_flags = lambda folder: [f'-DFS_CUDA_IMAGES="{os.environ["GPU_CHECK_IMAGES"]}"']

    @pytest.fixture(scope="session")
    def software_gpu() -> None:
        """None: the driver is the machine's."""

    @pytest.fixture
    def pair(shim):
        """One GPU twice."""
        devices = [ops_kit.Device(shim, "cuda") for _ in range(2)]
        yield devices
        for device in devices:
            device.close()
