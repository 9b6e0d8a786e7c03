"""Tests of the CUDA ops with the kernels, and the software driver, under a sanitizer.

    python tests/softcuda/sanitized.py address      accesses outside memory
    python tests/softcuda/sanitized.py thread       two threads of a block, one place, no barrier between
    python tests/softcuda/sanitized.py undefined    misaligned accesses, overflows

Further arguments are pytest's, instead of the op tests. Fails where a test fails or a report names a line of ours:
NumPy, which is not compiled for this, makes ThreadSanitizer speak too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
CXX = os.environ.get("CXX", "g++")
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so", "undefined": "libubsan.so"}
OURS = ("/csrc/", "/tests/softcuda/")


def reports(folder: Path) -> list[str]:
    """What was reported of our own code."""
    texts = [part for path in sorted(folder.glob("report*")) for part in path.read_text().split("=" * 18)]
    return [text.strip() for text in texts if any(place in text for place in OURS)]


def run(sanitizer: str, *arguments: str) -> int:
    # The run time must be there before Python is; its C++ library too, or it is not found later.
    names = (LIBRARIES[sanitizer], "libstdc++.so.6")
    preload = ":".join(subprocess.check_output([CXX, f"-print-file-name={name}"], text=True).strip() for name in names)
    # ThreadSanitizer's shadow memory leaves no room for addresses as random as new kernels make them.
    before = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    with tempfile.TemporaryDirectory() as folder:
        options = f"log_path={folder}/report:detect_leaks=0:print_stacktrace=1"
        names = ("ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS")
        environment = os.environ | dict.fromkeys(names, options) | {"SOFTCUDA_SANITIZE": sanitizer}
        python = ["env", f"LD_PRELOAD={preload}", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        # The library is built here: what builds it must not run under the sanitizer.
        subprocess.run([sys.executable, TESTS / "softcuda/build.py"], env=environment, check=True, capture_output=True)
        ran = subprocess.run([*before, *python, *arguments], cwd=TESTS, env=environment)
        found = reports(Path(folder))
    print(*found, sep="\n\n")
    return ran.returncode or bool(found)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], *(sys.argv[2:] or ["test_ops.py", "-k", "cuda and agrees_with_numpy"])))
