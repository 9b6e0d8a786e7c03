"""The rooms stay apart: each includes only rooms to its right, and only firesteel.spark knows Spark.

Reads the sources of the checkout; the last tests look at what `import firesteel` does to a fresh process.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "firesteel"
ROOMS = ["py", "manager", "engine", "placement", "models", "backends", "base"]
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include(?:_next)?[ \t]*(["<])([^">]+)[">]', re.MULTILINE)
CUDA = re.compile(r"(^|/)(cuda|cublas|nccl|nvrtc|driver_types|vector_types|device_functions)")

# Kernels compiled for the host: the software device's header, by the path that its build gives.
SHIM = ("backends/cuda/kernels/portable.cuh", "softcuda/shim.h")

KINDS = (".c", ".h", ".def", ".inc", ".cu", ".cuh")
FILES = sorted(p.relative_to(CSRC).as_posix() for p in CSRC.rglob("*") if p.suffix in KINDS)
INCLUDES = [
    (name, kind, included) for name in FILES for kind, included in INCLUDE.findall((CSRC / name).read_text("utf-8"))
]


def faults(includes: list[tuple[str, str, str]]) -> list[str]:
    """One sentence for every include that breaks a rule. "A path" starts at csrc/, a <name> is the system's."""
    found = []
    for name, kind, included in includes:
        room = name.split("/")[0]
        target = included.split("/")[0]
        if kind == '"' and target in ROOMS:
            if room in ROOMS and ROOMS.index(target) < ROOMS.index(room):
                found.append(f"{name} includes {included}: {target} is to the left of {room}")
            elif not (CSRC / included).is_file():
                found.append(f"{name} includes {included}, which is not a file under csrc/")
        elif (name, included) == SHIM:
            continue
        elif kind == '"':
            found.append(f"{name} includes {included}: paths start at csrc/ and name a room first")
        elif included.startswith("Python.h") and room != "py":
            found.append(f"{name} includes Python.h, which stays in py/")
        elif included.startswith("numpy/") and room != "py":
            found.append(f"{name} includes {included}: NumPy stays in one file of py/")
        elif included.endswith("intrin.h") and not name.startswith("backends/cpu/"):
            found.append(f"{name} includes {included}, which stays in backends/cpu/")
        elif CUDA.search(included):
            found.append(f"{name} includes {included}: the C code declares the CUDA calls it makes itself")
    return found


def test_there_is_something_to_read():
    assert {"base", "backends", "models", "engine", "py"} <= {name.split("/")[0] for name in FILES}
    assert len(INCLUDES) > 50, "the pattern for #include finds next to nothing"


def test_every_room_has_a_place_in_the_order():
    assert not {name.split("/")[0] for name in FILES} - set(ROOMS)


def test_rooms_include_only_to_the_right():
    assert not faults(INCLUDES), "\n".join(faults(INCLUDES))


@pytest.mark.parametrize(
    ("include", "word"),
    [
        (("base/a.c", '"', "engine/engine.h"), "to the left"),
        (("engine/a.c", '"', "py/module.h"), "to the left"),
        (("engine/a.c", '"', "base/no_such_file.h"), "not a file"),
        (("engine/a.c", '"', "engine.h"), "start at csrc/"),
        (("engine/a.c", '"', "../base/status.h"), "start at csrc/"),
        (("engine/a.c", "<", "Python.h"), "Python.h"),
        (("models/a.c", "<", "numpy/arrayobject.h"), "NumPy"),
        (("models/a.c", "<", "immintrin.h"), "backends/cpu"),
        (("backends/cuda/a.c", "<", "cuda_runtime.h"), "CUDA"),
        (("backends/cuda/a.c", "<", "cublasLt.h"), "CUDA"),
    ],
    ids=lambda x: x[2] if isinstance(x, tuple) else "",
)
def test_a_broken_rule_is_seen(include, word):
    assert [word in sentence for sentence in faults([include])] == [True]


def test_numpy_headers_are_in_one_file():
    files = {name for name, _, included in INCLUDES if included.startswith("numpy/")}
    assert len(files) == 1, f"NumPy's headers belong in exactly one file of py/: {sorted(files)}"
    assert all(name.startswith("py/") for name in files)


def imports(source: str) -> list[tuple[str, bool]]:
    """(module, whether at import time) of every import statement; imports inside functions run later."""
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module or "", top))
        for child in ast.iter_child_nodes(node):
            visit(child, top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(source), True)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_only_the_spark_room_imports_spark(path):
    name = path.relative_to(PACKAGE).as_posix()
    for module, at_import in imports(path.read_text("utf-8")):
        top = module.split(".")[0]
        assert top not in ("torch", "transformers", "sentence_transformers"), f"{name} imports {module}"
        if top in ("pyspark", "py4j"):
            allowed = name.startswith("spark/") or (name == "cli.py" and not at_import)
            assert allowed, f"{name} imports {module}: only firesteel/spark does, and functions of cli.py"


WATCH = """
import json, os, sys

def state():
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    fds = sorted(os.readlink(path) for path in paths if os.path.exists(path))
    return {"threads": len(os.listdir("/proc/self/task")), "fds": fds}

import numpy  # starts threads of its own (OpenBLAS)
before = state()
import firesteel
print(json.dumps({"before": before, "after": state(), "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def fresh_import():
    """The state of a fresh process before and after `import firesteel`."""
    done = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_starts_no_thread_and_opens_nothing(fresh_import):
    assert fresh_import["after"]["threads"] == fresh_import["before"]["threads"]
    assert fresh_import["after"]["fds"] == fresh_import["before"]["fds"]


@pytest.mark.parametrize("module", ["pyspark", "pandas", "torch", "transformers", "multiprocessing.connection"])
def test_import_brings_nothing_heavy(fresh_import, module):
    assert "firesteel" in fresh_import["modules"]
    assert module not in fresh_import["modules"]
