"""What `firesteel doctor` says of GPUs: none, the software driver's, drivers that fail, hang or die; NCCL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from firesteel import _core
from firesteel.commands import doctor

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No knob set, and no GPU by device files, whatever this machine has."""
    for name in ("FIRESTEEL_LIBCUDA", "FIRESTEEL_LIBCUBLASLT", "FIRESTEEL_LIBNCCL", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "GPU_FILES", tmp_path)


@pytest.fixture
def driver(monkeypatch, software_driver):
    """Sets what the software driver is like."""
    monkeypatch.setenv("FIRESTEEL_LIBCUDA", software_driver)

    def like(**settings: object) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"SOFTCUDA_{name}", str(value))

    return like


def lines() -> dict[str, str]:
    """The section as printed: name to text."""
    return dict(dict(doctor.report())["cuda"])


def test_a_machine_without_gpu_gets_one_line(monkeypatch):
    monkeypatch.setattr(doctor, "ask_driver", lambda: pytest.fail("nobody is to be asked"))
    assert lines() == {"devices": doctor.NO_GPU}


def test_gpus_are_told_with_memory_and_kernels(driver):
    driver(DEVICES=3, CC=90, MEMORY=2 << 30, USED=1 << 30, VERSION=12040)
    said = lines()
    assert said["driver"].endswith("CUDA 12.4")
    assert said["cuda:2"].startswith(
        "Software GPU 9.0, compute capability 9.0, 2.0 GiB, 1.0 GiB of it free, kernels sm_90"
    )
    assert "cannot be used" not in said["cuda:2"] and "cuda:3" not in said


def test_a_gpu_newer_than_the_cubins_gets_the_ptx(driver):
    driver(DEVICES=1, CC=130)
    assert lines()["cuda:0"].endswith("kernels PTX of compute_80")


def test_a_gpu_that_is_too_old_is_told_with_the_way_out(driver):
    driver(DEVICES=1, CC=70)
    said = lines()["cuda:0"]
    assert (
        "no kernels for it in this build; cannot be used: cuda:0: compute capability 7.0 is older than the 7.5" in said
    )


def test_a_gpu_that_does_not_open_is_told_and_the_others_too(driver):
    driver(DEVICES=2, FAIL_NAME="cuModuleLoadData:1", FAIL_CODE=999)
    said = lines()
    assert "cannot be used: cuda:0: loading kernels failed" in said["cuda:0"] and "cannot" not in said["cuda:1"]


def test_a_driver_without_gpus_says_so(driver):
    driver(DEVICES=0)
    assert "starting the driver (cuInit) failed" in lines()["driver"]


def test_no_driver_library(monkeypatch):
    monkeypatch.setenv("FIRESTEEL_LIBCUDA", "/no/lib.so")
    assert "tried /no/lib.so" in lines()["driver"]


def test_device_files_are_listed_in_order(monkeypatch, tmp_path, driver):
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    said = lines()
    assert said["devices"] == f"{tmp_path}/nvidia2 {tmp_path}/nvidia10"
    assert "'2'" in said["visible"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "dies of signal 11"),
        ("import time; time.sleep(60)", "does not answer within 0.5 s"),
        ("raise SystemExit('no such thing')", "cannot be asked: no such thing"),
    ],
)
def test_a_driver_that_kills_or_hangs_harms_nobody(monkeypatch, driver, code, words):
    monkeypatch.setattr(doctor, "ASK_DRIVER", code)
    monkeypatch.setattr(doctor, "DRIVER_SECONDS", 0.5 if "sleep" in code else 60)
    assert words in lines()["driver"]


def test_the_doctor_opens_no_driver_itself(software_driver):
    maps = "sys.stderr.write(open('/proc/self/maps').read())"
    code = f"import sys; from firesteel.commands import doctor; doctor.main(); {maps}"
    environment = {"FIRESTEEL_LIBCUDA": software_driver, "PYTHONPATH": str(Path(_core.__file__).parent.parent)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and "Software GPU" in ran.stdout, ran.stdout
    assert "_core" in ran.stderr and "libcuda_soft" not in ran.stderr


@pytest.fixture(scope="module")
def nccl(tmp_path_factory) -> str:
    """A library with the functions that are looked up, of which only the version's is called."""
    folder = tmp_path_factory.mktemp("nccl")
    names = re.findall(r", (nccl\w+),", (ROOT / "csrc/backends/cuda/nccl_api.def").read_text())
    assert "ncclGetVersion" in names
    others = [
        f"int {name}(void) {{ return 1; }}\n" for name in [*names, "ncclGetErrorString"] if name != "ncclGetVersion"
    ]
    (folder / "nccl.c").write_text("int ncclGetVersion(int *v) { *v = 22705; return 0; }\n" + "".join(others))
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", folder / "nccl.c", "-o", folder / "nccl.so"]
    subprocess.run(command, check=True)
    return str(folder / "nccl.so")


def test_nccl_is_found_or_told_how_to_get(driver, monkeypatch, nccl):
    monkeypatch.setattr(doctor, "_of_wheel", lambda package, library: None)
    monkeypatch.setenv("FIRESTEEL_LIBNCCL", "/no/nccl.so")
    driver(VERSION=12090)
    assert lines()["nccl"] == "not found: pip install 'firesteel[cuda12]' (only tensor groups need it)"
    driver(VERSION=13000)
    assert "'firesteel[cuda13]'" in lines()["nccl"]
    monkeypatch.setenv("FIRESTEEL_LIBNCCL", nccl)
    assert lines()["nccl"] == "2.27.5"


def test_nccl_of_an_installed_wheel_is_named(monkeypatch, tmp_path):
    library = tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    library.parent.mkdir(parents=True)
    library.touch()
    for package in ("nvidia", "nvidia/nccl"):
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    assert f"FIRESTEEL_LIBNCCL={library} makes it known" in doctor._nccl("was not found", 12)


def test_cublaslt_is_found_or_told_how_to_get(driver, monkeypatch, software_driver):
    monkeypatch.setattr(doctor, "_of_wheel", lambda package, library: None)
    driver(VERSION=12090)
    monkeypatch.setenv("FIRESTEEL_LIBCUBLASLT", software_driver)
    assert lines()["cublaslt"] == f"12.9.1, {software_driver}"
    monkeypatch.setenv("FIRESTEEL_LIBCUBLASLT", "off")
    assert lines()["cublaslt"] == "kept out by FIRESTEEL_LIBCUBLASLT=off: own kernels compute products"
    monkeypatch.setenv("FIRESTEEL_LIBCUBLASLT", "/no/lt.so")
    assert "was not found, tried /no/lt.so" in lines()["cublaslt"]
    monkeypatch.delenv("FIRESTEEL_LIBCUBLASLT")
    told = doctor._cublaslt("was not found", 13)
    assert told == "not found: pip install 'firesteel[cuda13]' (without it, own kernels compute products)"


def test_cublaslt_of_an_installed_wheel_is_named(monkeypatch, tmp_path):
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libcublasLt.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    for package in ("nvidia", "nvidia/cu13"):
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    assert f"FIRESTEEL_LIBCUBLASLT={library} makes it known" in doctor._cublaslt("was not found", 13)


def test_what_the_core_raises_without_nccl(monkeypatch):
    """In a child: whoever opens it keeps it."""
    code = "from firesteel import _core; _core.nccl()"
    environment = {"FIRESTEEL_LIBNCCL": "/no/nccl.so", "PYTHONPATH": str(Path(_core.__file__).parent.parent)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert "DeviceError: cuda: the NCCL library" in ran.stderr and "tried /no/nccl.so" in ran.stderr
