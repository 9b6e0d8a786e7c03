"""The PEP 517 backend: setuptools', which asks for NVRTC as well when FIRESTEEL_CUDA=1 asks for CUDA kernels.

pyproject.toml names no NVRTC, because 90 MB to download is too much for a build that nobody wanted kernels from.
"""

import os

from kernels import REQUIREMENT
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - a backend is a module with all of these names


def _kernels_too() -> list[str]:
    return [REQUIREMENT] if os.environ.get("FIRESTEEL_CUDA") == "1" else []


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_kernels_too()]


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_kernels_too()]
