"""Builds the software CUDA driver, once per content: its sources here, and the kernels of csrc compiled for the host.

From Python:

    build()                         -> libcuda_soft.so in build/softcuda, for the knob FIRESTEEL_LIBCUDA
    build(folder, "address")        elsewhere, under a sanitizer; the process that loads it must have its run time
    program("selftest_kernels.cu")  a program of the driver and of kernels of its own

From a shell, to have the library's path printed:

    python tests/softcuda/build.py [FOLDER [SANITIZER]]
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDER = ROOT / "build/softcuda"
KERNELS = ROOT / "csrc/backends/cuda/kernels"
CXX = os.environ.get("CXX", "g++")
# Contraction is off, as everywhere: a fused multiply-add is asked for by name.
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
FLAGS += ["-Wall", "-Wextra", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]


def build(folder: str | Path = FOLDER, sanitize: str | None = None, *flags: str) -> Path:
    """The library with the kernels of csrc. Left out, the sanitizer is what SOFTCUDA_SANITIZE says, or none."""
    sanitize = os.environ.get("SOFTCUDA_SANITIZE", "") if sanitize is None else sanitize
    more = ["-shared", "-Wl,-z,nodelete", "-Wl,-z,defs"]
    return _link(Path(folder), "libcuda_soft.so", KERNELS / "all.cu", more, _variant(sanitize, flags))


def program(source: str, folder: str | Path = FOLDER, sanitize: str = "", *flags: str) -> Path:
    """`source` has main() and kernels, and calls the driver as if linked with it."""
    return _link(Path(folder), Path(source).stem, HERE / source, [], _variant(sanitize, flags))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process is in here for this folder meanwhile: what two want is made by one, and found by the other."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _variant(sanitize: str, flags: tuple[str, ...]) -> list[str]:
    if not sanitize:
        return ["-O2", *flags]
    return ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", f"-fsanitize={sanitize}", *flags]


def _digest(*parts: object) -> str:
    sha = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else repr(part).encode()
        sha.update(len(content).to_bytes(8, "little") + content)
    return sha.hexdigest()[:16]


def _made(place: Path, name: str, command: list[str | Path], *contents: object) -> Path:
    """place/<digest>/name, made by `command -o` if it is not there; several processes may want it at once.

    What was made of other contents is removed when it is hours old: nobody needs it any more."""
    path = place / _digest(list(map(str, command)), *contents) / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{name}.{os.getpid()}")
    done = subprocess.run([*command, "-o", fresh], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    fresh.rename(path)
    for old in place.iterdir():
        if old != path.parent and time.time() - old.stat().st_mtime > 2 * 3600:
            shutil.rmtree(old, ignore_errors=True)
    return path


def _object(folder: Path, source: Path, headers: list[Path], flags: list[str]) -> Path:
    if source.name in ("fibers.cc", "warp.cc"):  # see the head of fibers.cc
        flags = ["-DSOFTCUDA_RACES" if flag == "-fsanitize=thread" else flag for flag in flags]
    command = [CXX, *FLAGS, *flags, "-x", "c++", "-c", source]
    return _made(folder / source.stem, f"{source.stem}.o", command, source, *headers)


def _link(folder: Path, name: str, kernels: Path, more: list[str], flags: list[str]) -> Path:
    folder = folder / _digest(CXX, flags)
    headers = sorted(HERE.glob("*.h"))
    sources = [(path, headers) for path in sorted(HERE.glob("*.cc"))]
    sources.append((kernels, [*headers, *sorted(path for path in KERNELS.iterdir() if path.is_file())]))
    with alone(folder), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda item: _object(folder, *item, flags), sources))
        return _made(folder / name, name, [CXX, *FLAGS, *flags, *objects, *more, "-lm"])


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
