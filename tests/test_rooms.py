"""The rooms of csrc/ and of python/firesteel/ stay apart: each includes only rooms to its right, and one knows Spark.

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


# --- python/firesteel -------------------------------------------------------------------------------------------------

HOUSE = ["commands", "spark", "table", "manager", "engine", "model", "host"]  # each imports only rooms to its right
MODULES = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
REFERENCES = ("torch", "transformers", "sentence_transformers")


def imports(name: str, source: str) -> list[tuple[str, bool]]:
    """(module, whether at import time) of every import statement of a file below firesteel/, relative ones resolved;
    what is imported from a package counts as a module of it. Those inside functions run later, or for type checkers."""
    found = []
    package = ["firesteel", *name.split("/")[:-1]]

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found.extend((f"{module}.{alias.name}", top) for alias in node.names)
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        later |= isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            visit(child, top and not later)

    visit(ast.parse(source), True)
    return found


def room_of(module: str) -> str | None:
    """The room "firesteel.engine.rows" is in: engine. None: somebody else's module, or _core, which all rooms share."""
    parts = module.split(".")
    return parts[1] if parts[0] == "firesteel" and len(parts) > 1 and parts[1] in HOUSE else None


def house_faults(name: str, source: str) -> list[str]:
    """One sentence for every import in a file below firesteel/ that breaks a rule."""
    found = []
    room = name.split("/")[0] if "/" in name else None
    for module, at_import in imports(name, source):
        top, target = module.split(".")[0], room_of(module)
        if room and top == "firesteel" and module.split(".")[1:2] not in ([r] for r in [*HOUSE, "_core"]):
            found.append(f"{name} imports {module}: what it needs is in a room or in _core")
        elif room and target and HOUSE.index(target) < HOUSE.index(room):
            found.append(f"{name} imports {module}: {target} is to the left of {room}")
        elif top in REFERENCES:
            found.append(f"{name} imports {module}, which the product runs without")
        elif top in ("pyspark", "py4j") and not (room == "spark" or (name == "commands/demo.py" and not at_import)):
            found.append(f"{name} imports {module}: only firesteel/spark does, and functions of commands/demo.py")
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Files that import each other, by whatever way; imports inside functions too."""
    reached = {name: set(targets) for name, targets in graph.items()}
    for _ in graph:
        for targets in reached.values():
            targets |= {behind for target in targets for behind in reached.get(target, ())}
    return sorted(name for name, targets in reached.items() if name in targets)


def files_of(module: str) -> list[str]:
    """The file of a module of ours, of a name in one, or of a package."""
    parts = module.split(".")[1:]
    for count in (len(parts), len(parts) - 1):
        for path in ("/".join(parts[:count]) + ".py", "/".join([*parts[:count], "__init__.py"])):
            if path in MODULES:
                return [path]
    return []


def test_every_file_has_a_room():
    outside = {name for name in MODULES if name.split("/")[0] not in HOUSE}
    assert outside == {"__init__.py", "__main__.py"}
    assert {name.split("/")[0] for name in MODULES} - outside == set(HOUSE)


@pytest.mark.parametrize("name", MODULES)
def test_python_rooms_import_only_to_the_right(name):
    assert not house_faults(name, MODULES[name]), "\n".join(house_faults(name, MODULES[name]))


@pytest.mark.parametrize(
    ("name", "line", "word"),
    [
        ("host/locks.py", "from ..model.locate import find", "to the left"),
        ("host/locks.py", "def f():\n    from ..manager import lifecycle", "to the left"),
        ("model/tokenizer.py", "from .. import engine", "to the left"),
        ("model/tokenizer.py", "import firesteel.engine.rows", "to the left"),
        ("engine/rows.py", "from firesteel.manager.remote import connect", "to the left"),
        ("manager/gpus.py", "from ..table import job", "to the left"),
        ("table/stream.py", "from ..spark import _worker", "to the left"),
        ("spark/_progress/watch.py", "from ...commands import doctor", "to the left"),
        ("spark/_udf.py", "from ..commands.run import Work", "to the left"),
        ("engine/rows.py", "from .. import Engine", "in a room"),
        ("engine/rows.py", "from firesteel import connect", "in a room"),
        ("table/job.py", "from pyspark.sql import SparkSession", "only firesteel/spark"),
        ("host/task.py", "def f():\n    import pyspark", "only firesteel/spark"),
        ("commands/demo.py", "import pyspark", "only firesteel/spark"),
        ("commands/cli.py", "def f():\n    import pyspark", "only firesteel/spark"),
        ("model/tokenizer.py", "def f():\n    from transformers import AutoTokenizer", "runs without"),
        ("__init__.py", "import torch", "runs without"),
    ],
)
def test_a_broken_rule_of_the_house_is_seen(name, line, word):
    """Also where the line is added to the file as it is."""
    assert [word in sentence for sentence in house_faults(name, line)] == [True]
    assert any(word in sentence for sentence in house_faults(name, MODULES[name] + "\n" + line))


def test_no_files_import_each_other():
    def graph(modules):
        found = {}
        for name, source in modules.items():
            targets = {path for module, _ in imports(name, source) for path in files_of(module)}
            found[name] = {path for path in targets if path != name and not path.endswith("__init__.py")}
        return found

    assert not circles(graph(MODULES))
    mutated = MODULES | {"engine/rows.py": MODULES["engine/rows.py"] + "\nfrom .engine import Engine\n"}
    assert circles(graph(mutated)) == ["engine/engine.py", "engine/given.py", "engine/pending.py", "engine/rows.py"]


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
