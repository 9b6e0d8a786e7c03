"""The build of the CUDA kernels: which image a GPU gets, what a build without NVRTC says, what is compiled again, when.

Most of it runs on a small package in a temporary folder: setup.py, build_tools/ and images.c of this checkout around
a C module of one function and a kernel of one line. Where NVRTC is missing the tests that compile are skipped, unless
FIRESTEEL_CUDA=1 says that it must be there.
"""

import ctypes
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_tools"))

import kernels  # noqa: E402 - build_tools/ is no package: found by the path above

IMAGES_C = "csrc/backends/cuda/images.c"
KERNELS = Path("csrc/backends/cuda/kernels")


# -- which image a device gets -----------------------------------------------------------------------------------------


class Image(ctypes.Structure):
    _fields_ = [
        ("arch", ctypes.c_int),
        ("ptx", ctypes.c_int),
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
    ]


def load_images(into: Path, *flags: str) -> ctypes.CDLL:
    """images.c as a shared library, beside a function that hands out its hidden table."""
    shim = into / "shim.c"
    shim.write_text(
        '#include "backends/cuda/images.h"\n'
        "const fs_cuda_image *table(void);\n"
        "const fs_cuda_image *table(void) { return fs_cuda_images; }\n"
    )
    cc = [
        *shlex.split(os.environ.get("CC", "cc")),
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O2",
        "-fPIC",
        "-shared",
    ]
    command = [*cc, "-Wl,-z,text", f"-I{ROOT}/csrc", *flags, str(ROOT / IMAGES_C), str(shim), "-o", str(into / "i.so")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(into / "i.so"))
    for function in (library.table, library.fs_cuda_image_for):
        function.restype = ctypes.POINTER(Image)
    return library


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> ctypes.CDLL:
    """images.c around files that say their names."""
    folder = tmp_path_factory.mktemp("images of nothing")
    for target in kernels.TARGETS:
        (folder / kernels.file_of(target)).write_text(f"image {target}")
    return load_images(tmp_path_factory.mktemp("images"), f'-DFS_CUDA_IMAGES="{folder}"')


@pytest.mark.parametrize(
    ("device", "target"),
    [
        ((7, 0), None),
        ((7, 2), None),
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((9, 1), "compute_80"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((11, 0), "compute_80"),
        ((12, 0), "sm_120"),
        ((12, 1), "sm_120"),
        ((13, 0), "compute_80"),
        ((20, 0), "compute_80"),
    ],
    ids=lambda x: "{}.{}".format(*x) if isinstance(x, tuple) else x,
)
def test_a_device_gets_the_image_that_fits(images, device, target):
    """Its own major's newest cubin that is not newer than itself; sm_90a for 9.0 alone; PTX on whatever comes later."""
    found = images.fs_cuda_image_for(*device)
    if target is None:
        assert not found
        return
    image = found.contents
    assert ctypes.string_at(image.start, image.bytes + 1) == f"image {target}".encode() + b"\0"
    assert image.ptx == target.startswith("compute_")
    assert image.start % 64 == 0


def test_the_table_is_the_list_of_targets(images):
    table, held = images.table(), []
    while table[len(held)].arch:
        image = table[len(held)]
        held.append(ctypes.string_at(image.start, image.bytes).decode())
    assert sorted(held) == sorted(f"image {target}" for target in kernels.TARGETS)


def test_without_images_the_table_is_only_its_end(tmp_path):
    empty = load_images(tmp_path)
    assert empty.table()[0].arch == 0
    assert not any(empty.fs_cuda_image_for(major, minor) for major in range(14) for minor in range(10))


# -- a small package ---------------------------------------------------------------------------------------------------

MODULE = """
#include <Python.h>
#include "backends/cuda/images.h"

static PyObject *arch_for(PyObject *self, PyObject *args) {
    int major, minor;
    (void)self;
    if (!PyArg_ParseTuple(args, "ii", &major, &minor)) return NULL;
    const fs_cuda_image *image = fs_cuda_image_for(major, minor);
    return PyLong_FromLong(image ? image->arch : 0);
}

static PyMethodDef methods[] = { { "arch_for", arch_for, METH_VARARGS, "" }, { NULL, NULL, 0, NULL } };
static PyModuleDef module = { PyModuleDef_HEAD_INIT, "_core", "", -1, methods, NULL, NULL, NULL, NULL };
PyMODINIT_FUNC PyInit__core(void) { return PyModule_Create(&module); }
"""

KERNEL_FILES = {
    "all.cu": '#include "backends/cuda/kernels/twice.cu"\n',
    "args.h": "typedef struct { float *x; int n; } twice;\n",
    "twice.cu": """#include "backends/cuda/kernels/args.h"
extern "C" __global__ void twice_kernel(const twice a) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < a.n) a.x[i] *= 2.0f;
}
""",
}


@pytest.fixture
def package(tmp_path) -> Path:
    tree = tmp_path / "package"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", IMAGES_C, IMAGES_C[:-1] + "h"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "build_tools", tree / "build_tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in KERNEL_FILES.items():
        (tree / KERNELS / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / KERNELS / name).write_text(text)
    for name, text in (("csrc/py/module.c", MODULE), ("python/firesteel/__init__.py", "")):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(text)
    return tree


def build(package: Path, **environment: str) -> subprocess.CompletedProcess:
    """`setup.py build_ext --inplace`, with FIRESTEEL_CUDA as given, not as this process has it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FIRESTEEL_")}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=package, env={**clean, **environment}, capture_output=True, text=True)


def module_of(package: Path) -> Path:
    return package / "python" / "firesteel" / "_core.abi3.so"


def arch_for(package: Path, major: int, minor: int) -> int:
    code = f"import firesteel._core as c; print(c.arch_for({major}, {minor}))"
    path = {**os.environ, "PYTHONPATH": str(package / "python")}
    return int(subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, check=True).stdout)


@pytest.fixture
def other_nvrtc(tmp_path) -> dict[str, str]:
    """An environment whose NVRTC is the wheel of another version, found before any that is installed."""
    info = tmp_path / "site" / f"{kernels.WHEEL.replace('-', '_')}-11.8.89.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {kernels.WHEEL}\nVersion: 11.8.89\n")
    return {"PYTHONPATH": str(info.parent)}


@pytest.fixture
def nvrtc() -> None:
    """Skips a test that compiles kernels where this environment cannot, or is told not to."""
    if os.environ.get("FIRESTEEL_CUDA") == "0":
        pytest.skip("FIRESTEEL_CUDA=0")  # whoever runs this asked for no kernels
    try:
        kernels.find()
    except kernels.Missing as why:
        if os.environ.get("FIRESTEEL_CUDA") == "1":
            raise
        pytest.skip(str(why))  # allowed where kernels are optional; CI sets FIRESTEEL_CUDA=1, which raises


def test_a_build_without_nvrtc_says_that_it_is_cpu_only(package, other_nvrtc):
    done = build(package, **other_nvrtc)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("firesteel: ")]
    assert "CPU-only" in line and "11.8.89" in line and "FIRESTEEL_CUDA=1" in line and kernels.REQUIREMENT in line
    assert arch_for(package, 8, 0) == 0


def test_a_build_that_must_have_kernels_fails_without_nvrtc(package, other_nvrtc):
    done = build(package, FIRESTEEL_CUDA="1", **other_nvrtc)
    assert done.returncode == 1
    assert "FIRESTEEL_CUDA=1 asks for CUDA kernels, but" in done.stderr and kernels.REQUIREMENT in done.stderr
    assert not module_of(package).exists()


def test_a_build_may_refuse_kernels(package):
    done = build(package, FIRESTEEL_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "firesteel: this build is CPU-only, as FIRESTEEL_CUDA=0 asks" in done.stderr.splitlines()
    assert arch_for(package, 8, 0) == 0


def test_a_mistyped_switch_is_an_error(package):
    done = build(package, FIRESTEEL_CUDA="yes")
    assert done.returncode == 1 and "FIRESTEEL_CUDA is 'yes'" in done.stderr


def test_nvrtc_that_is_not_there_is_said_so(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    with pytest.raises(kernels.BuildError, match=f"but {kernels.WHEEL} is not installed"):
        kernels.for_build({"FIRESTEEL_CUDA": "1"})


def held(package: Path) -> dict[str, Path]:
    """Target to file of the newest folder of images, all of which must be in the module."""
    folder = max((package / "build" / "kernels").iterdir(), key=lambda path: path.stat().st_mtime)
    files = {target: folder / kernels.file_of(target) for target in kernels.TARGETS}
    module = module_of(package).read_bytes()
    for target, path in files.items():
        assert path.read_bytes() in module, target
    return files


def test_kernels_are_compiled_once_and_again_after_an_edit(package, nvrtc):
    assert build(package, FIRESTEEL_CUDA="1").returncode == 0
    first = held(package)
    assert arch_for(package, 9, 0) == 90
    made = {target: path.stat().st_mtime_ns for target, path in first.items()}

    assert build(package).returncode == 0
    assert {target: path.stat().st_mtime_ns for target, path in held(package).items()} == made

    kernel = package / KERNELS / "twice.cu"
    kernel.write_text(kernel.read_text().replace("2.0f", "3.0f"))
    assert build(package).returncode == 0
    second = held(package)
    assert all(second[target].read_bytes() != path.read_bytes() for target, path in first.items())


def test_a_kernel_that_does_not_compile_names_file_and_line(package, nvrtc):
    kernel = package / KERNELS / "twice.cu"
    kernel.write_text(kernel.read_text().replace("*= 2.0f;", "*= ;"))
    done = build(package)
    assert done.returncode == 1
    assert f"{KERNELS}/twice.cu(4): error: expected an expression" in done.stderr
    assert not module_of(package).exists()


def test_images_can_be_had_without_a_build(package, nvrtc, tmp_path):
    command = [sys.executable, package / "build_tools" / "kernels.py", "--out", tmp_path / "out"]
    subprocess.run([*command, "--arch", "80", "--arch", "compute_80"], check=True, capture_output=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compute_80.ptx", "sm_80.cubin"]
    assert (tmp_path / "out" / "sm_80.cubin").read_bytes().startswith(b"\x7fELF")
    assert b".visible .entry twice_kernel" in (tmp_path / "out" / "compute_80.ptx").read_bytes()


def test_the_cache_forgets_what_is_old(tmp_path):
    for age in range(2 * kernels.KEPT):
        (tmp_path / str(age)).mkdir()
        os.utime(tmp_path / str(age), (1e9 - age, 1e9 - age))
    kernels.forget_old(tmp_path)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(kernels.KEPT))


@pytest.mark.parametrize("kind", ["wheel", "editable"])
@pytest.mark.parametrize(("asked", "wanted"), [("1", True), ("0", False), ("", False)])
def test_only_a_build_that_asks_downloads_nvrtc(package, kind, asked, wanted):
    """What pip installs into the isolated environment of a build."""
    code = f"import backend; print(backend.get_requires_for_build_{kind}())"
    environment = {**os.environ, "PYTHONPATH": "build_tools", "FIRESTEEL_CUDA": asked}
    done = subprocess.run([sys.executable, "-c", code], cwd=package, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (kernels.REQUIREMENT in done.stdout) == wanted


# -- this checkout -----------------------------------------------------------------------------------------------------


def test_the_kernels_compile_for_every_generation_and_are_in_the_module(nvrtc):
    """Built with NVRTC in place, `_core` holds what the kernels of this checkout compile to, byte for byte."""
    from firesteel import _core

    folder = kernels.build()
    module = Path(_core.__file__).read_bytes()
    missing = [target for target in kernels.TARGETS if (folder / kernels.file_of(target)).read_bytes() not in module]
    assert not missing, f"{_core.__file__} lacks these kernels: `python setup.py build_ext --inplace`"


def test_the_kernels_compile_without_warnings(nvrtc, tmp_path):
    library, _ = kernels.find()
    for target in ("sm_75", "compute_80"):
        one = ["--library", library, "--one", target, "--out", tmp_path]
        done = subprocess.run([sys.executable, kernels.__file__, *one], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not done.stdout.strip(), done.stdout
