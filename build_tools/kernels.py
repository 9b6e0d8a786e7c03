"""Compiles the CUDA kernels for every generation of GPU, by NVRTC: it needs no toolkit, no driver and no host compiler.

    python build_tools/kernels.py --out FOLDER --arch 80 --arch 90a        # all targets without --arch

setup.py calls `for_build`, which says in one line what kind of build this becomes. NVRTC is a wheel and stays at 12.9:
what it makes loads on every driver from 525 on, what 13 makes on none of those for CUDA 12, and what came before 12.9
does not know all of our generations.

all.cu includes the other kernel files, so that a target is one translation unit; targets are compiled at the same
time, each in a process of its own. Results lie in build/kernels/<digest of sources, options and NVRTC> and are not
compiled again. Other sources are another folder, so another command line for images.c, and setup.py embeds the new
ones.
"""

import argparse
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "csrc" / "backends" / "cuda" / "kernels"
CACHE = ROOT / "build" / "kernels"
KEPT = 8  # folders of the cache; an edit of a kernel makes another

WHEEL = "nvidia-cuda-nvrtc-cu12"
VERSION = "12.9"
REQUIREMENT = f"{WHEEL}=={VERSION}.*"

# Cubins for the generations that there are, and PTX, which the driver compiles itself, for those to come. images.c has
# the same list. The slowest first: they are started in this order.
TARGETS = ("sm_90a", "sm_100", "sm_120", "sm_89", "sm_86", "sm_80", "sm_75", "compute_80")

# No contraction, no fast division, no flushing to zero: a kernel's bits are those of its source, on every generation
# and where the same file runs in software. Kernels ask for fused multiply-adds by name.
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--no-source-include", "--fmad=false")

# Includes start at csrc/, as they do everywhere; NVRTC is given the files by these names and reads none itself.
PREFIX = "backends/cuda/kernels/"
KINDS = (".cu", ".cuh", ".h", ".def")


class BuildError(Exception):
    """Why there are no kernels, in a sentence to print."""


class Missing(BuildError):
    """There is no NVRTC to compile with; the sentence says what there is instead."""


class CompileError(BuildError):
    """A kernel does not compile; what the compiler said names file and line."""


def find() -> tuple[Path, str]:
    """The NVRTC library of the installed wheel, and the wheel's version."""
    try:
        wheel = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        raise Missing(f"{WHEEL} is not installed") from None
    if not wheel.version.startswith(VERSION + "."):
        raise Missing(f"{WHEEL} is installed as {wheel.version}, and kernels are compiled by {VERSION}")
    library = Path(str(wheel.locate_file("nvidia/cuda_nvrtc/lib/libnvrtc.so.12")))
    if not library.is_file():
        raise Missing(f"{WHEEL} {wheel.version} is installed without {library}")
    return library, wheel.version


def read_sources(folder: Path) -> dict[str, str]:
    """Name, as included, to text of everything in the kernels' folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in KINDS)
    return {PREFIX + path.name: path.read_text("utf-8") for path in files}


def file_of(target: str) -> str:
    return target + (".ptx" if target.startswith("compute_") else ".cubin")


def digest(sources: Mapping[str, str], nvrtc: str) -> str:
    parts = [nvrtc, *OPTIONS]
    for name, text in sorted(sources.items()):
        parts += [name, text]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# -- one target, in a process of its own -------------------------------------------------------------------------------


def compile_one(library: str, folder: Path, target: str, out: Path) -> str:
    """Compiles all.cu for one target into `out`, which appears whole or not at all; gives the compiler's log."""
    nvrtc = ctypes.CDLL(library)
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(name: str, *arguments: object) -> None:
        status = getattr(nvrtc, name)(*arguments)
        if status:
            raise CompileError(f"{name}: {nvrtc.nvrtcGetErrorString(status).decode()}")

    def text(kind: str) -> bytes:
        size = ctypes.c_size_t()
        call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{kind}", program, data)
        return data.raw

    def strings(values: Sequence[str]) -> ctypes.Array:
        return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))

    sources = read_sources(folder)
    main = PREFIX + "all.cu"
    if main not in sources:
        raise CompileError(f"{folder / 'all.cu'} is missing")
    program = ctypes.c_void_p()
    headers = strings(list(sources.values())), strings(list(sources))
    options = [f"--gpu-architecture={target}", *OPTIONS]
    call("nvrtcCreateProgram", ctypes.byref(program), sources[main].encode(), main.encode(), len(sources), *headers)
    try:
        call("nvrtcCompileProgram", program, len(options), strings(options))
    except CompileError as error:
        raise CompileError(f"{error}\n{text('ProgramLog').rstrip(bytes(1)).decode()}") from None
    image = text("PTX").rstrip(bytes(1)) if target.startswith("compute_") else text("CUBIN")
    half = out.with_suffix(f".{os.getpid()}")
    half.write_bytes(image)
    half.replace(out)
    return text("ProgramLog").rstrip(bytes(1)).decode()


def as_paths(log: str, folder: Path) -> str:
    """The log with names that an editor can open, instead of those that the files are included by."""
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return re.sub(rf"(?<![\w/]){PREFIX}", f"{shown}/", log).strip()


# -- all targets -------------------------------------------------------------------------------------------------------


def build(targets: Sequence[str] = TARGETS, *, folder: Path = FOLDER, cache: Path = CACHE) -> Path:
    """The folder with an image for each target, compiled now or before. Warnings of those compiled now go to stderr."""
    library, version = find()
    into = cache / digest(read_sources(folder), version)
    into.mkdir(parents=True, exist_ok=True)
    missing = [target for target in targets if not (into / file_of(target)).exists()]

    def compile_apart(target: str) -> str:
        arguments = ["--library", str(library), "--folder", str(folder), "--one", target, "--out", str(into)]
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
        if done.returncode < 0:
            raise CompileError(f"NVRTC {version} died of signal {-done.returncode} at {target}\n{done.stderr}")
        if done.returncode:
            raise CompileError(f"kernels for {target}: {done.stderr.strip()}")
        return done.stdout.strip()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        logs = list(pool.map(compile_apart, missing))
    for log in dict.fromkeys(filter(None, logs)):
        print(log, file=sys.stderr)
    os.utime(into)
    forget_old(cache)
    return into


def forget_old(cache: Path) -> None:
    newest_first = sorted((entry for entry in cache.iterdir()), key=lambda entry: -entry.stat().st_mtime)
    for entry in newest_first[KEPT:]:
        shutil.rmtree(entry, ignore_errors=True)


def for_build(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of images to build in, or None for a CPU-only build, which is said in one line.

    FIRESTEEL_CUDA=1 asks for kernels and makes their absence an error, 0 builds without them on purpose; unset, they
    are compiled where NVRTC is installed. A kernel that does not compile is an error in any case.
    """
    asked = environment.get("FIRESTEEL_CUDA", "")
    if asked not in ("", "0", "1"):
        raise BuildError(f"FIRESTEEL_CUDA is {asked!r}: it can be 1 (with CUDA kernels), 0 (CPU-only) or unset")
    if asked == "0":
        print("firesteel: this build is CPU-only, as FIRESTEEL_CUDA=0 asks", file=sys.stderr)
        return None
    try:
        return build()
    except Missing as why:
        if asked == "1":
            raise BuildError(
                f"FIRESTEEL_CUDA=1 asks for CUDA kernels, but {why}: pip install '{REQUIREMENT}', "
                "or let pip build in isolation, which installs it for the build"
            ) from None
        print(
            f"firesteel: this build is CPU-only: {why}. For GPUs: FIRESTEEL_CUDA=1 pip install ..., "
            f"or pip install '{REQUIREMENT}' before a build without isolation",
            file=sys.stderr,
        )
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Compiles the CUDA kernels.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the images go")
    parser.add_argument("--arch", action="append", metavar="80", help="only this target: 80, 90a, compute_80, ...")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the kernels lie")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.one:
            log = compile_one(given.library, given.folder, given.one, given.out / file_of(given.one))
            print(as_paths(log, given.folder))
            return
        targets = [arch if "_" in arch else f"sm_{arch}" for arch in given.arch or TARGETS]
        made = build(targets, folder=given.folder.resolve())
    except BuildError as error:
        sys.exit(as_paths(str(error), given.folder))
    given.out.mkdir(parents=True, exist_ok=True)
    for target in targets:
        print(shutil.copyfile(made / file_of(target), given.out / file_of(target)))


if __name__ == "__main__":
    main()
