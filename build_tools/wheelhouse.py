"""A folder of wheels that notebooks/init/install.sh takes: firesteel's, and those of what a cluster lacks.

    make wheelhouse CLUSTER_PYTHON=3.11 CLUSTER_PINS=frozen.txt
    python build_tools/wheelhouse.py --python 3.11 --pins frozen.txt --wheel dist/firesteel-X.whl --out wheelhouse

`--pins` is what `pip freeze` says on the cluster: the wheels are chosen to go with exactly that, and those of packages
that are there already are left out. Without it the folder has all that firesteel needs.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# From old to new, as pip does not know that a newer glibc runs what asks for an older one when it is told a platform.
PLATFORMS = ["manylinux1", "manylinux2010", "manylinux2014"] + [f"manylinux_2_{minor}" for minor in (5, 12, 17, 24, 28)]
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][A-Za-z0-9.!+_-]*)")

# `pip download --python-version` goes by the running Python where a package asks for another "on Python < 3.11" only.
DOWNLOAD = """
import sys
from pip._vendor.packaging import markers
plain = markers.default_environment
version = {"python_version": sys.argv[1], "python_full_version": sys.argv[1] + ".0"}
markers.default_environment = lambda: {**plain(), **version}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(path: Path) -> dict[str, str]:
    """name -> version. What is there from a file or by a version that is none (Debian's) binds nobody."""
    found = (PIN.fullmatch(line.strip()) for line in path.read_text().splitlines())
    return {plain(pin[1]): pin[2] for pin in found if pin and plain(pin[1]) != "firesteel"}


def fill(into: Path, wheel: Path, python: str, pins: dict[str, str], machine: str) -> list[Path]:
    """Downloads into a new folder; gives the wheels that stay there. Ends with pip's words where it cannot."""
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "pins.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        command = [sys.executable, "-c", DOWNLOAD, python, "--disable-pip-version-check", "download", "--quiet"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        for platform in [*PLATFORMS, "linux"]:
            command += ["--platform", f"{platform}_{machine}"]
        command += ["--constraint", str(constraints), "--dest", str(into), str(wheel)]
        if subprocess.run(command).returncode:
            sys.exit(f"pip has no set of wheels for Python {python} on {machine} that goes with the pins given")
    for path in into.glob("*.whl"):
        if plain(path.name.split("-")[0]) in pins:
            path.unlink()
    return sorted(into.glob("*.whl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="firesteel's, from make wheel")
    parser.add_argument("--python", required=True, help="the cluster's, as 3.11")
    parser.add_argument("--pins", type=Path, help="what `pip freeze` says on the cluster")
    parser.add_argument("--machine", default="x86_64", help="or aarch64")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    given = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", given.python):
        parser.error(f"--python is {given.python!r}; a version such as 3.11 belongs there")
    for path in filter(None, (given.wheel, given.pins)):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if given.out.exists():
        parser.error(f"{given.out} is there already; name another folder, or remove it")
    pins = pins_of(given.pins) if given.pins else {}
    if given.pins and not pins:
        parser.error(f"{given.pins} has no line such as numpy==1.23.5")
    kept = fill(given.out, given.wheel, given.python, pins, given.machine)
    size = sum(path.stat().st_size for path in kept)
    print(f"{given.out}: {size / 1e6:.1f} MB, {', '.join('-'.join(path.name.split('-')[:2]) for path in kept)}")


if __name__ == "__main__":
    main()
