"""Builds `firesteel._core`, one C extension for every Python from 3.10 on (limited API, so one wheel a platform).

All of csrc/**/*.c goes in, sorted, with one set of flags. Kernels for AVX2, AVX-512 and so on choose their instruction
set by target pragmas inside their own files and are picked at run time: nothing here depends on the building machine.
What distinguishes this build from any other is told to the C code once, in FS_BUILD.

Switches, all from the environment:

    FIRESTEEL_DEBUG=1                          -O0 -g, assertions on
    FIRESTEEL_SANITIZE=address,undefined       also `thread`; the test process must preload the sanitizer's run time
    FIRESTEEL_WERROR=1                         warnings are errors
    FIRESTEEL_CUDA=1                           with CUDA kernels, or fail; 0: without; unset: if NVRTC is installed

Objects are kept in build/objects/<variant> and compiled again only when their command line, their source or any header
has changed, so `pip install -e .` after an edit costs one file. CUDA kernels are compiled by build_tools/kernels.py and
embedded by csrc/backends/cuda/images.c. CC and LDSHARED name another compiler, as for any extension.
"""

import functools
import hashlib
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))
import kernels  # noqa: E402 - build_tools/ is no package: found by the path above

SOURCES = sorted(glob("csrc/**/*.c", root_dir=ROOT, recursive=True))
HEADERS = sorted(name for x in ("h", "def", "inc") for name in glob(f"csrc/**/*.{x}", root_dir=ROOT, recursive=True))
DEBUG = os.environ.get("FIRESTEEL_DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("FIRESTEEL_SANITIZE", "")
WERROR = os.environ.get("FIRESTEEL_WERROR", "") not in ("", "0")

# Contraction is off so that the compiler never turns a*b+c into one rounding on its own: where kernels want a fused
# multiply-add they ask for it, and the same source gives the same bits at every optimisation level.
CFLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
LDFLAGS = ["-pthread"]
if DEBUG or SANITIZE:
    CFLAGS += ["-O0" if DEBUG else "-O1", "-g", "-UNDEBUG"]
else:
    CFLAGS += ["-O3", "-g0"]
    LDFLAGS += ["-s"]
if SANITIZE:
    CFLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
    LDFLAGS += [f"-fsanitize={SANITIZE}"]
if WERROR:
    CFLAGS += ["-Werror"]
VARIANT = "-".join(filter(None, ["debug" if DEBUG else "release", *SANITIZE.split(","), "werror" if WERROR else ""]))
# Another compiler has objects of its own: a wheel by zig and a build by gcc would take turns to compile everything.
COMPILER = "\n".join(os.environ.get(name, "") for name in ("CC", "LDSHARED")).strip()
if COMPILER:
    VARIANT += "-" + hashlib.sha256(COMPILER.encode()).hexdigest()[:8]


@functools.cache
def build_identity(version: str) -> str:
    """`0.1.0+1a2b3c4d5e6f` in a checkout (`-dirty` where edited), plain `0.1.0` from an sdist."""
    if not (ROOT / ".git").exists():
        return version
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{found.stdout.strip()}"


def flags_of(source: str, version: str, images: Path | None) -> list[str]:
    """Flags for one file: only csrc/py sees NumPy's headers and the build's name, so nothing else depends on them, and
    only images.c sees where the CUDA images lie, in a folder named after all that they were made of."""
    if source.startswith("csrc/py/"):
        return [f"-I{numpy.get_include()}", f'-DFS_BUILD="{build_identity(version)}"']
    if source == "csrc/backends/cuda/images.c" and images is not None:
        return [f'-DFS_CUDA_IMAGES="{images}"']
    return []


class BuildExt(build_ext):
    """setuptools' command, with flags for single files, several compilers at a time, and objects that are kept."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # One place for wheels, editable installs and in-place builds, so that none repeats another's work; and always
        # link, because distutils looks at dates only and would keep a module that other switches had built.
        self.force = True
        self.build_temp = os.path.join("build", "objects", f"{VARIANT}-{platform.machine()}")

    def build_extension(self, ext: Extension) -> None:
        try:
            images = kernels.for_build()
        except kernels.BuildError as error:
            sys.exit(f"firesteel: {error}")
        version = self.distribution.get_version()
        newest_header = max(os.stat(name).st_mtime for name in [*HEADERS, "setup.py"])
        cc = self.compiler

        def compile_one(job: tuple[str, list[str]]) -> None:
            obj, command = job
            record = Path(obj + ".cmd")
            line = "\n".join(command)
            if os.path.exists(obj) and record.exists() and record.read_text() == line:
                if os.stat(obj).st_mtime > max(newest_header, os.stat(command[-3]).st_mtime):
                    return
            record.unlink(missing_ok=True)
            self.spawn(command)
            record.write_text(line)

        def compile_all(sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None, **rest):
            _, objects, extra, pp_opts, build = cc._setup_compile(
                output_dir, macros, include_dirs, sources, rest.get("depends"), rest.get("extra_postargs")
            )
            base = [*cc.compiler_so, *cc._get_cc_args(pp_opts, debug, extra_preargs), *extra]
            jobs = [
                (obj, [*base, *flags_of(build[obj][0], version, images), build[obj][0], "-o", obj]) for obj in objects
            ]
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                list(pool.map(compile_one, jobs))
            return objects

        cc.compile = compile_all
        super().build_extension(ext)


setup(
    ext_modules=[
        Extension(
            "firesteel._core",
            sources=SOURCES,
            depends=HEADERS,
            include_dirs=["csrc"],
            define_macros=[("Py_LIMITED_API", "0x030A0000")],
            libraries=["m", "dl"],
            extra_compile_args=CFLAGS,
            extra_link_args=LDFLAGS,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
