"""The wheel that is given away: one for every Python from 3.10 and every Linux from glibc 2.17 on, CUDA kernels inside.

    make wheel          FIRESTEEL_CUDA=0 make wheel: CPU-only

Compiled by `zig cc`, which brings the headers and symbol versions of an old glibc along. Then the wheel is held to what
its name says (auditwheel, abi3audit), to its size, and to working: in an empty environment, with what pip brings along
and nothing of this checkout in sight, it embeds rows with a tiny model. What passes all of that is moved to dist/.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import kernels

ROOT = kernels.ROOT
GLIBC = (2, 17)
LARGEST = 25_000_000

TRIAL = """
import pathlib, sys
import firesteel, numpy, tiny
assert pathlib.Path(firesteel.__file__).is_relative_to(sys.prefix), firesteel.__file__
with firesteel.Engine(tiny.write("model", sentence={})) as engine:
    vectors = engine.embed(["a steel that strikes fire", ""])
assert numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-5), vectors
print(f"in an empty environment: firesteel {firesteel.__version__} embeds, NumPy is {numpy.__version__}")
"""


def run(*command: object, **more: object) -> str:
    """The command's output; a failing one ends everything with what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def pip(*arguments: object, python: object = sys.executable, **more: object) -> str:
    return run(python, "-m", "pip", "--disable-pip-version-check", *arguments, **more)


def python_headers() -> list[str]:
    """Where Python is Debian's, half of its pyconfig.h is found through /usr/include, which zig leaves out. It goes
    last, so that the glibc headers there are not seen."""
    return ["-idirafter", "/usr/include"] if sysconfig.get_path("include").startswith("/usr/include/") else []


def build(into: Path) -> Path:
    target = f"{platform.machine()}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    zig = shlex.join([sys.executable, "-m", "ziglang", "cc", "-target", target])
    compiler = {"CC": shlex.join([*shlex.split(zig), *python_headers()]), "LDSHARED": f"{zig} -shared"}
    environment = {"FIRESTEEL_CUDA": "1", **os.environ, **compiler}
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", into, ROOT, env=environment)
    (made,) = into.glob("*.whl")
    tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{platform.machine()}"
    name = run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, made).split()[-1]
    return into / name


def check_promises(wheel: Path) -> None:
    """auditwheel tells the oldest glibc that the symbols ask for, abi3audit what is used beyond the limited API."""
    found = json.loads(run(sys.executable, "-m", "auditwheel", "show", "--json", wheel))
    oldest = re.fullmatch(r"manylinux_(\d+)_(\d+)_\w+", found["overall_tag"])
    if not oldest or (int(oldest[1]), int(oldest[2])) > GLIBC or found["external_libs"]:
        sys.exit(f"{wheel.name} promises more than it keeps:\n{json.dumps(found, indent=2)}")
    run(sys.executable, "-m", "abi3audit", "--strict", wheel)
    print(f"auditwheel: {found['overall_tag']}; abi3audit: nothing beyond the limited API")


def check_contents(wheel: Path) -> None:
    size = wheel.stat().st_size
    if size > LARGEST:
        sys.exit(f"{wheel.name} has {size:,} bytes, and {LARGEST:,} is the most that it should")
    with zipfile.ZipFile(wheel) as archive:
        module = archive.read("firesteel/_core.abi3.so")
    print(f"{wheel.name}: {size:,} bytes, its module {len(module):,}")
    if os.environ.get("FIRESTEEL_CUDA") == "0":
        return
    images = [path.read_bytes() for path in kernels.build().iterdir()]
    if not all(image in module for image in images):
        sys.exit(f"{wheel.name} lacks some of the CUDA kernels")
    print(f"{len(images)} images of the CUDA kernels are in it: {sum(map(len, images)):,} bytes")


def try_out(wheel: Path, folder: Path) -> None:
    run(sys.executable, "-m", "venv", folder / "empty")
    python = folder / "empty" / "bin" / "python"
    pip("install", "--quiet", wheel, python=python)
    shutil.copy(ROOT / "tests" / "tiny.py", folder)
    shutil.copytree(ROOT / "tests" / "models", folder / "models")
    print(run(python, "-c", TRIAL, cwd=folder).strip())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        check_promises(wheel)
        check_contents(wheel)
        try_out(wheel, folder)
        (ROOT / "dist").mkdir(exist_ok=True)
        print(shutil.move(wheel, ROOT / "dist" / wheel.name))


if __name__ == "__main__":
    main()
