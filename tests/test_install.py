"""notebooks/init/install.sh: what it installs, that it changes nothing else, and the sentence where it cannot.

The environments are copies of one empty one. Real NumPy is lent to them by links, because firesteel's module needs it;
the other packages are small wheels written here. `make install-check` does the same with real ones, into environments
pinned like Databricks' (install_check.py).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "notebooks" / "init" / "install.sh"
STUBS = {"pyarrow": "8.0.0", "tokenizers": "0.13.3", "tqdm": "4.64.1"}


def small_wheel(folder: Path, name: str, version: str, *, tag: str = "py3-none-any", **files: str) -> Path:
    """A wheel of a package that is its version. `files`: more, or others; `needs` is a Requires-Dist."""
    needs = files.pop("needs", "")
    info = f"{name}-{version}.dist-info"
    held = {
        f"{name}/__init__.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        **files,
    }
    held[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*held, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in held.items():
            archive.writestr(member, text)
    return path


@pytest.fixture(scope="module")
def wheel(copy_checkout, tmp_path_factory) -> Path:
    """firesteel's, from a copy of the checkout, so that nothing of it is disturbed."""
    copy = copy_checkout(tmp_path_factory.mktemp("tree"))
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel"]
    done = subprocess.run(command, cwd=copy, env=os.environ | {"FIRESTEEL_CUDA": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(path, with_pip=True)
    return path


class Cluster:
    """One environment, the script and its log."""

    def __init__(self, folder: Path, empty: Path) -> None:
        self.folder = folder
        self.venv = folder / "venv"
        shutil.copytree(empty, self.venv, symlinks=True)
        self.python = self.venv / "bin" / "python"
        (self.packages,) = self.venv.glob("lib/python3*/site-packages")
        self.log = folder / "init.log"

    def lend(self, name: str) -> None:
        """The test environment's own, by links."""
        one = importlib.metadata.distribution(name)
        top = {file.parts[0] for file in one.files} - {"..", "__pycache__"}
        for entry in top:
            (self.packages / entry).symlink_to(Path(one.locate_file(entry)).resolve())

    def add(self, name: str, version: str) -> None:
        with zipfile.ZipFile(small_wheel(self.folder, name, version)) as archive:
            archive.extractall(self.packages)

    def usual(self, *, without: str = "") -> Cluster:
        self.lend("numpy")
        for name in STUBS.keys() - {without}:
            self.add(name, STUBS[name])
        return self

    def installed(self) -> dict[str, str]:
        found = importlib.metadata.distributions(path=[str(self.packages)])
        return {one.metadata["Name"].lower(): one.version for one in found}

    def files(self) -> dict[str, int]:
        """All that lies there, and when it was written."""
        paths = [p for p in self.packages.rglob("*") if "__pycache__" not in p.parts]
        return {str(p.relative_to(self.packages)): p.lstat().st_mtime_ns for p in paths}

    def run(self, wheel: Path | str, **settings: str) -> subprocess.CompletedProcess:
        """The script, where every package index is out of reach."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "PIP_", "PYTHON"))}
        mine = {"FIRESTEEL_WHEEL": str(wheel), "FIRESTEEL_PYTHON": str(self.python), "FIRESTEEL_LOG": str(self.log)}
        nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
        command = ["bash", str(SCRIPT)]
        environment = plain | nowhere | mine | settings
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=self.folder)

    def succeeds(self, wheel: Path | str, **settings: str) -> str:
        done = self.run(wheel, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    def fails(self, wheel: Path | str, **settings: str) -> str:
        """The sentence, which the log has too; and nothing has changed."""
        before = self.files()
        done = self.run(wheel, **settings)
        assert done.returncode == 1, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        assert line in self.log.read_text()
        assert self.files() == before
        return line.partition(" firesteel: ")[2]


@pytest.fixture
def cluster(tmp_path, empty) -> Cluster:
    return Cluster(tmp_path, empty)


@pytest.fixture
def house(tmp_path, wheel) -> Path:
    """A wheelhouse of firesteel and the small packages."""
    path = tmp_path / "house"
    path.mkdir()
    shutil.copy(wheel, path)
    for name, version in STUBS.items():
        small_wheel(path, name, version)
    return path


# -- what goes well ----------------------------------------------------------------------------------------------------


def numpy_wheel(folder: Path) -> Path:
    """The test environment's NumPy as a wheel again."""
    one = importlib.metadata.distribution("numpy")
    files = [file for file in one.files if ".." not in file.parts and file.suffix != ".pyc"]
    tag = next(line.split()[1] for line in one.read_text("WHEEL").splitlines() if line.startswith("Tag:"))
    path = folder / f"numpy-{one.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(one.locate_file(file), str(file))
    return path


def test_an_empty_environment_from_a_wheelhouse(cluster, house, wheel):
    numpy_wheel(house)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    before = cluster.installed()
    said = cluster.succeeds(house, FIRESTEEL_VERSION="0.1.0", FIRESTEEL_SHA256=digest.upper())
    assert cluster.installed().items() >= (before | STUBS | {"firesteel": "0.1.0"}).items()
    assert "firesteel can compute here" in said and digest in said
    assert "added numpy==" in said and said.rstrip().endswith("changed no other package")
    assert cluster.log.read_text() == said


def test_a_wheel_where_all_else_is_installed_and_once_more(cluster, wheel):
    before = cluster.usual().installed()
    said = cluster.succeeds(wheel)
    assert "; changed no other package" in said
    assert cluster.installed() == before | {"firesteel": "0.1.0"}
    files = cluster.files()
    assert "installed already: nothing to do" in cluster.succeeds(wheel)
    assert cluster.files() == files

    # a file that is not as the wheel has it is mended
    module = cluster.packages / "firesteel" / "commands" / "doctor.py"
    module.write_text(module.read_text() + "# edited\n")
    assert "installed firesteel 0.1.0" in cluster.succeeds(wheel)
    assert not module.read_text().endswith("# edited\n")


def test_another_version_is_replaced(cluster, wheel):
    cluster.usual().add("firesteel", "0.0.9")
    assert "installed firesteel 0.1.0" in cluster.succeeds(wheel)
    assert cluster.installed()["firesteel"] == "0.1.0"


def test_only_what_is_missing_comes_from_the_wheelhouse(cluster, house):
    """The wheelhouse has a newer tqdm, which stays there."""
    before = cluster.usual(without="tokenizers").installed()
    small_wheel(house, "tqdm", "9.9")
    assert "added tokenizers==0.13.3" in cluster.succeeds(house)
    assert cluster.installed() == before | {"firesteel": "0.1.0", "tokenizers": "0.13.3"}


# -- what does not -----------------------------------------------------------------------------------------------------


def test_a_path_that_is_not_there(cluster):
    assert "FIRESTEEL_WHEEL is /Volumes/none.whl, and there is no such file" in cluster.fails("/Volumes/none.whl")
    assert "FIRESTEEL_WHEEL is not set" in cluster.fails("")
    assert "holds no wheel of firesteel" in cluster.fails(cluster.folder)


def test_settings_that_are_wrong(cluster, wheel):
    assert "FIRESTEEL_INDEX is yes; 0" in cluster.fails(wheel, FIRESTEEL_INDEX="yes")
    assert "/no/python, and there is no such program" in cluster.fails(wheel, FIRESTEEL_PYTHON="/no/python")
    assert "is version 0.1.0, and FIRESTEEL_VERSION is 7" in cluster.fails(wheel, FIRESTEEL_VERSION="7")
    done = cluster.run(wheel, FIRESTEEL_LOG="/proc/none/log")
    assert done.returncode == 1 and "FIRESTEEL_LOG is /proc/none/log, which cannot be written" in done.stderr


def test_a_wrong_sha256(cluster, wheel):
    said = cluster.usual().fails(wheel, FIRESTEEL_SHA256="0" * 64)
    assert f"the sha256 of {wheel} is {hashlib.sha256(wheel.read_bytes()).hexdigest()}, and FIRESTEEL_SHA256" in said


def test_a_wheel_of_another_platform(cluster, wheel, tmp_path):
    other = shutil.copy(wheel, tmp_path / "firesteel-0.1.0-cp310-abi3-manylinux_2_17_sparc64.whl")
    assert "is for cp310-abi3-manylinux_2_17_sparc64, and this Python is cp3" in cluster.usual().fails(other)


def test_a_damaged_wheel(cluster, wheel, tmp_path):
    cluster.usual()
    raw = wheel.read_bytes()
    broken = tmp_path / wheel.name
    broken.write_bytes(raw[: len(raw) // 2])  # a copy that was cut off
    assert "is no whole wheel: File is not a zip file; copy it again" in cluster.fails(broken)
    broken.write_bytes(raw[:5000] + bytes(100) + raw[5100:])
    assert "is no whole wheel" in cluster.fails(broken)
    text = tmp_path / "firesteel.whl"
    text.write_text("not a wheel")
    assert "is not named as a wheel is" in cluster.fails(text)
    assert "is a wheel of tqdm" in cluster.fails(small_wheel(tmp_path, "tqdm", "5.0"))


def test_a_single_wheel_where_something_is_missing(cluster, wheel):
    said = cluster.usual(without="tokenizers").fails(wheel)
    assert "lacks tokenizers>=0.13, and FIRESTEEL_WHEEL is a single wheel: give a wheelhouse" in said


def test_a_wheelhouse_that_lacks_something(cluster, house):
    (house / "tokenizers-0.13.3-py3-none-any.whl").unlink()
    said = cluster.usual(without="tokenizers").fails(house)
    assert "pip cannot install what is missing (tokenizers>=0.13) beside what is installed: No matching" in said
    assert "no installed package was changed" in said


def test_an_installed_package_that_is_too_old(cluster, house):
    cluster.usual(without="tqdm").add("tqdm", "4.64.1")
    shutil.rmtree(cluster.packages / "tokenizers-0.13.3.dist-info")
    cluster.add("tokenizers", "0.12.1")
    said = cluster.fails(house)
    assert "tokenizers 0.12.1 is installed and firesteel needs tokenizers>=0.13: this script changes no" in said


def test_what_is_missing_would_change_what_is_installed(cluster, house):
    """A tokenizers that asks for a newer tqdm, which the wheelhouse has too."""
    small_wheel(house, "tokenizers", "0.13.3", needs="Requires-Dist: tqdm>=9\n")
    small_wheel(house, "tqdm", "9.9")
    said = cluster.usual(without="tokenizers").fails(house)
    assert "conflict" in said and "no installed package was changed" in said


def test_a_wheel_that_writes_over_another_package(cluster, house):
    """pip lets it: what is installed is compared afterwards."""
    theirs = "Metadata-Version: 2.1\nName: tqdm\nVersion: 1.0\n"
    small_wheel(
        house, "tokenizers", "0.13.3", **{"tokenizers-0.13.3.data/purelib/tqdm-4.64.1.dist-info/METADATA": theirs}
    )
    done = cluster.usual(without="tokenizers").run(house)
    assert done.returncode == 1
    assert "installing changed other packages: tqdm 4.64.1 became 1.0" in done.stderr


def test_two_versions_in_a_wheelhouse(cluster, house, wheel):
    small_wheel(house, "firesteel", "0.0.9")
    said = cluster.usual().fails(house)
    assert "firesteel-0.0.9-py3-none-any.whl, firesteel-0.1.0" in said and "set FIRESTEEL_VERSION" in said
    assert "firesteel-0.0.9" in cluster.fails(house, FIRESTEEL_VERSION="0.3")
    assert "installed firesteel 0.1.0" in cluster.succeeds(house, FIRESTEEL_VERSION="0.1.0")


def test_a_package_that_cannot_compute(cluster, house):
    """The smoke test: what pip installs well need not work."""
    (next(house.glob("firesteel-*"))).unlink()
    small_wheel(house, "firesteel", "0.2.0")
    done = cluster.usual().run(house)
    assert done.returncode == 1 and "firesteel 0.2.0 is installed and cannot be imported" in done.stderr


# -- Pythons that are not at hand --------------------------------------------------------------------------------------


def test_named_tuples_have_one_base():
    """Before Python 3.11 a NamedTuple with another base, Generic for one, fails where its module is imported."""
    for path in (ROOT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            assert bases == ["NamedTuple"] or "NamedTuple" not in bases, f"{path}: class {node.name}"
