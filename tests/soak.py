"""A million different rows by four workers through one manager: its memory must not grow.

    python tests/soak.py --rows 1000000      half a minute: `make soak`

Rows are short and the model is tiny, so that what is counted is the manager's own: packets, jobs, segments, the store
of results, which is full after a tenth and lets go of the oldest from then on. The manager's resident memory is looked
at all the time; in the second half it may grow by 2 %.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
WORKERS = 4
CHUNK = 2000  # rows of one call
GROWTH = 0.02
STORE_MB = 16


def rows_from(first: int, count: int) -> list[np.ndarray]:
    """Rows that no other number gives: its digits to the base of 59, and some more tokens."""
    numbers = np.arange(first, first + count)
    digits = np.stack([numbers // 59**power % 59 for power in range(4)], axis=1) + 1
    return [
        np.concatenate([row, row[: number % 5]]).astype(np.int32) for number, row in zip(numbers, digits, strict=True)
    ]


def worker(model: str, first: int, count: int) -> None:
    import firesteel

    with firesteel.connect(model) as engine:
        pid = engine._core._client.manager_pid
        for begin in range(first, first + count, CHUNK):
            rows = rows_from(begin, min(CHUNK, first + count - begin))
            if not np.isfinite(engine.embed(rows)).all():
                sys.exit("a result is no number")
            print(pid, len(rows), flush=True)


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


class Soak:
    def __init__(self, model: str, rows: int) -> None:
        self.rows, self.done = rows, 0
        self.seen: list[tuple[int, int]] = []  # rows that were done, bytes
        self.lock = threading.Lock()
        share = rows // WORKERS
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", model]
        self.workers = [
            subprocess.Popen([*command, str(i * share), str(share)], stdout=subprocess.PIPE, text=True)
            for i in range(WORKERS)
        ]
        self.pid = 0

    def listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            pid, count = map(int, line.split())
            with self.lock:
                self.pid, self.done = pid, self.done + count
                self.seen.append((self.done, resident(pid)))

    def run(self) -> str:
        """What is wrong, or empty."""
        threads = [threading.Thread(target=self.listen, args=(process,)) for process in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if any(process.wait() for process in self.workers):
            return "a worker has failed"
        half = [size for done, size in self.seen if done >= self.rows // 2]
        first, most = half[0], max(half)
        print(f"{self.done} rows; {first / 1e6:.1f} MB in the middle, at most {most / 1e6:.1f} MB from there on")
        return "" if most <= first * (1 + GROWTH) else f"the manager has grown by {most / first - 1:.1%}"


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return 0
    sys.path.insert(0, str(HERE))
    import tiny

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "m"
        place.mkdir(mode=0o700)
        os.environ["FIRESTEEL_MANAGER_DIR"] = str(place)
        os.environ["FIRESTEEL_MANAGER_STORE_MB"] = str(STORE_MB)
        model = str(tiny.write(Path(folder) / "model", seed=3, layers=1, hidden=16, heads=2, inner=16))
        soak = Soak(model, given.rows)
        start = time.monotonic()
        wrong = soak.run()
        print(f"{soak.done / (time.monotonic() - start):.0f} rows/s", wrong)
        if soak.pid:
            os.kill(soak.pid, signal.SIGTERM)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
