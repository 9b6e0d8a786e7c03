"""What the benchmarks share: child processes that work one at a time, and result lines that say where they come from.

    parent  -- {"do": "embed", ...}\n -->  child       one JSON line a request, one a reply
            <-- {"seconds": 1.2, ...}\n --

A child has its threads pinned by environment and affinity, stays alive (and warm) between requests, and is idle unless
asked, so several children can take turns on the same cores within one run.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "results")


def pinned_environment(threads: int) -> dict[str, str]:
    """The environment that keeps every known thread pool to `threads`."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    quiet = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    return {**os.environ, **quiet, **dict.fromkeys(pools, str(threads))}


def cores(threads: int) -> set[int]:
    """The first `threads` cores this process may use: the same ones for every child."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < threads:
        raise SystemExit(f"benchmarks: {threads} threads asked for, this process may use {len(usable)} cores")
    return set(usable[:threads])


class Child:
    """`script arguments` as a process of its own on `threads` cores, answering ask(). Its stderr goes to ours.

    `pools`: threads of each thread pool in it, where several processes will share its cores; else one a core."""

    def __init__(self, name: str, script: str, arguments: list[str], threads: int, pools: int | None = None):
        self.name = name
        keep = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores(threads))  # inherited by the child
        try:
            self.process = subprocess.Popen(
                [sys.executable, script, *arguments],
                stdin=subprocess.PIPE,
                text=True,
                stdout=subprocess.PIPE,
                env=pinned_environment(pools or threads),
            )
        finally:
            os.sched_setaffinity(0, keep)

    def ask(self, do: str, **request):
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"benchmarks: {self.name} ended with status {self.process.wait()} when asked to {do}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def replies():
    """The child's way to its parent; taken first of all, so that whatever libraries print to stdout goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def serve(stream, handlers) -> None:
    """The child's side: answers until the parent closes the pipe."""
    for line in sys.stdin:
        request = json.loads(line)
        stream.write(json.dumps(handlers[request.pop("do")](**request)) + "\n")
        stream.flush()


def in_turn(children: dict, repeats: int, once) -> dict[str, list[float]]:
    """`repeats` rounds of once(child) -> seconds over all children; each round begins with another child."""
    seconds: dict[str, list[float]] = {name: [] for name in children}
    names = list(children)
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(once(children[name]))
            print(f"  round {i + 1}/{repeats}  {name:24} {seconds[name][-1]:8.2f} s", file=sys.stderr, flush=True)
    return seconds


def spread(seconds: list[float]) -> dict:
    """Median, least and most of the repeats."""
    return {
        "repeats": len(seconds),
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
    }


def throughput(seconds: list[float], rows: int, tokens: int) -> dict:
    """The figures of one result line, rates from the median."""
    median = statistics.median(seconds)
    return {
        "rows": rows,
        "tokens": tokens,
        **spread(seconds),
        "rows_per_s": round(rows / median, 1),
        "tokens_per_s": round(tokens / median),
    }


def paired_ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times as fast we are: median over the rounds, so that a machine that drifts does not decide."""
    return statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


def agreement(vectors, reference) -> float:
    """The smallest cosine between rows of two float arrays [rows, dim]; refuses different shapes."""
    import numpy as np

    a, b = np.asarray(vectors, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape:
        raise SystemExit(f"benchmarks: embeddings of shape {a.shape} where the reference has {b.shape}")
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def check(name: str, vectors, reference, least: float = 0.9999) -> float:
    """agreement(), or the end of the run: a peer that computes something else is not a peer."""
    cosine = agreement(vectors, reference)
    if not cosine > least:
        raise SystemExit(f"benchmarks: {name} does not agree with the reference: cosine {cosine:.6f}, not {least}")
    return cosine


def machine() -> str:
    """CPU, cores this process may use, the widest vector extension."""
    with open("/proc/cpuinfo") as f:
        info = f.read()

    def field(name: str) -> str:
        found = re.search(rf"^{name}\s*:\s*(.*)$", info, re.M)
        return found.group(1).strip() if found else "?"

    flags = set(field("flags").split())
    vector = next((flag for flag in ("amx_bf16", "avx512f", "avx2", "asimd") if flag in flags), "no vectors")
    return (
        f"{field('model name')} (family {field('cpu family')} model {field('model')}), "
        f"{len(os.sched_getaffinity(0))} cores, {vector}"
    )


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def provenance() -> dict:
    """Machine, date, commit, and whether the tree differed from it (results themselves do not count)."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", HERE, *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    return {
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": git("rev-parse", "--short=12", "HEAD") or "none",
        "dirty": bool(changed),
    }


def emit(benchmark: str, lines: list[dict], save: bool) -> None:
    """Print one JSON line a result; with `save`, append them to results/<benchmark>.jsonl."""
    origin = provenance()
    text = "".join(json.dumps({"benchmark": benchmark, **line, **origin}) + "\n" for line in lines)
    sys.stdout.write(text)
    if save:
        os.makedirs(RESULTS, exist_ok=True)
        with open(os.path.join(RESULTS, f"{benchmark}.jsonl"), "a") as f:
            f.write(text)
