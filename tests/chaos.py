"""Workers and managers that are killed at any moment: every row comes out once, in order, with the bits it always has.

    python tests/chaos.py --rounds 200       of each: ten minutes, `make chaos`; tests/test_chaos.py runs a few

Three worker processes connect, embed rows that a number stands for, and say the number and the hash of the results,
over and over. Each round does one of these at a random moment:

    worker      SIGKILL to a worker in the middle of whatever it does; another takes its place
    manager     SIGKILL to the manager
    both        to a worker and the manager at once
    cancel      a worker takes back what it has sent, and sends the next
    stale       SIGKILL to the manager, and garbage where its files are
    full        SIGKILL to a worker, and another, in whose place /dev/shm is full; only where a process may mount

Hashes are compared with those of an engine of this process. In the end nothing may be left: no process, no socket, no
lock.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lifecycle_kit import managers_in

HERE = Path(__file__).resolve().parent
ACTIONS = ("worker", "manager", "both", "cancel", "stale", "full")
FULL = "mount -t tmpfs -o size=64k none /dev/shm && head -c 65536 /dev/zero >/dev/shm/full"
WORKERS = 3
SEEDS = 12  # different tables
PAUSE = (0.02, 0.35)  # seconds between two actions
ANSWER_SECONDS = 60.0


def rows_of(seed: int) -> list[np.ndarray]:
    drawn = np.random.RandomState(seed)
    return [drawn.randint(0, 60, drawn.randint(1, 60)).astype(np.int32) for _ in range(150)]


def hash_of(vectors: np.ndarray) -> str:
    return hashlib.sha256(vectors.tobytes()).hexdigest()


def with_full_shm(command: list[str]) -> list[str]:
    """Of the command alone: mounts are its own."""
    return ["unshare", "--mount", "sh", "-c", f'{FULL} && exec "$@"', "sh", *command]


def may_mount() -> bool:
    try:
        return subprocess.run(with_full_shm(["true"]), stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def worker(model: str) -> None:
    """Until it is killed, or its standard input ends. SIGUSR1 makes it take back what it has sent."""
    import firesteel

    waiting = False  # the signal counts only then: an exception anywhere else would end this worker
    drawn = random.Random(os.getpid())

    def cancel(*_: object) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            raise InterruptedError

    signal.signal(signal.SIGUSR1, cancel)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    engine = firesteel.connect(model)
    while True:
        seed = drawn.randrange(SEEDS)
        try:
            pending = engine.start_embed(rows_of(seed))
            waiting = True
            vectors, errors = pending.result()
            waiting = False
        except InterruptedError:
            pending.cancel()
            continue
        except firesteel.RequestError as error:  # what was taken back says so
            waiting = False
            if "cancelled" not in str(error):
                raise
            continue
        print(seed, hash_of(vectors), len(errors), flush=True)


class Chaos:
    def __init__(self, model: str, place: Path, seed: int) -> None:
        import firesteel

        self.model, self.place = model, place
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.answers = 0
        self.heard: set[int] = set()  # pids of workers that have answered
        self.wrong: list[str] = []
        self.said = time.monotonic()
        with firesteel.Engine(model) as engine:
            self.expected = {str(seed): hash_of(engine.embed(rows_of(seed))) for seed in range(SEEDS)}
        self.actions = ACTIONS if may_mount() else ACTIONS[:-1]
        self.workers = [self.start() for _ in range(WORKERS)]

    def start(self, full: bool = False) -> subprocess.Popen:
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", self.model]
        process = subprocess.Popen(
            with_full_shm(command) if full else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self.listen, args=(process,), daemon=True).start()
        return process

    def listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # killed while it spoke
            seed, found, errors = line.split()
            self.answers += 1
            self.heard.add(process.pid)
            self.said = time.monotonic()
            if found != self.expected[seed] or errors != "0":
                self.wrong.append(f"rows {seed} came out as others, {errors} errors")
        said = process.stderr.read()
        if process.wait() not in (0, -signal.SIGKILL):
            self.wrong.append(f"a worker ended with {process.returncode}: {said[-2000:]}")

    def act(self, action: str) -> int:
        """The process of the worker that it was about."""
        victim = self.random.randrange(WORKERS)
        if action in ("worker", "both", "full"):
            self.workers[victim].kill()
        if action in ("manager", "both", "stale"):
            for pid in managers_in(self.place):
                os.kill(pid, signal.SIGKILL)
        if action == "stale":
            for path in self.place.glob("*.sock"):
                path.unlink(missing_ok=True)
                path.write_text("garbage")
        if action == "cancel" and self.workers[victim].pid in self.heard:  # else it does not know the signal yet
            self.workers[victim].send_signal(signal.SIGUSR1)
        if action in ("worker", "both", "full"):
            self.workers[victim] = self.start(full=action == "full")
        self.done[action] += 1
        return self.workers[victim].pid

    def wait_for_answers(self, count: int) -> None:
        wanted = self.answers + count
        self.wait_until(lambda: self.answers >= wanted)

    def wait_until(self, enough: Callable[[], bool]) -> None:
        self.said = time.monotonic()
        while not enough() and not self.wrong:
            if time.monotonic() - self.said > ANSWER_SECONDS:
                self.wrong.append(f"no answer for {ANSWER_SECONDS:g} s")
            time.sleep(0.01)

    def run(self, rounds: int) -> None:
        self.wait_for_answers(WORKERS)
        for action in self.actions * rounds:
            if self.wrong:
                return
            time.sleep(self.random.uniform(*PAUSE))
            pid = self.act(action)
            if action == "worker":
                self.wait_for_answers(1)
            if action == "full":
                self.wait_until(lambda pid=pid: pid in self.heard)
        self.wait_for_answers(2 * WORKERS)

    def end(self) -> None:
        """Ends everybody; what is left then is wrong."""
        for process in self.workers:
            process.stdin.close()
            process.wait()
        for pid in managers_in(self.place):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while managers_in(self.place) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [str(path.name) for kind in ("sock", "lock") for path in self.place.glob(f"*.{kind}")]
        if managers_in(self.place) or left:
            self.wrong.append(f"left behind: managers {managers_in(self.place)}, files {left}")


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    sys.path.insert(0, str(HERE))
    import tiny

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "m"
        place.mkdir(mode=0o700)
        os.environ["FIRESTEEL_MANAGER_DIR"] = str(place)
        model = str(tiny.write(Path(folder) / "model", seed=3, layers=3, hidden=48, heads=4, inner=100))
        chaos = Chaos(model, place, given.seed)
        try:
            chaos.run(given.rounds)
        finally:
            chaos.end()
    done = ", ".join(f"{count} {action}" for action, count in chaos.done.items())
    print(
        f"seed {given.seed}: {done}; {chaos.answers} tables, each with its bits" if not chaos.wrong else chaos.wrong[0]
    )
    return 1 if chaos.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
