"""The two programs of examples/ beside torch: two halves of the CPU, one whole CPU, torch on the same cores.

    python benchmarks/examples.py                                        # 32 rows of 512 positions, 2 threads
    python benchmarks/examples.py --rows 4 --length 64 --repeats 1       # a quick look
    python benchmarks/examples.py --repeats 5 --save

Each way has a process of its own; they take turns (common.py). "against_torch" is the median over the rounds of how
many times as fast as torch a way was. What a way computes must be within 1e-5 of torch, of each vector's norm, and both
of ours must have the same bits. One JSON line a way goes to stdout.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time

import common

HERE = os.path.dirname(os.path.abspath(__file__))
# program -> parallel=
PROGRAMS = {"data_parallelism": "replicate", "model_parallelism": "split"}
# way -> devices; None: torch
WAYS = {"two devices": ["cpu:0", "cpu:1"], "one device": ["cpu"], "torch": None}


def program(name: str):
    sys.path.insert(0, os.path.join(HERE, "..", "examples", name))
    return importlib.import_module("example")


def child(name: str, way: str, folder: str, threads: int, rows: int, length: int) -> None:
    """One way of one program, waiting for requests."""
    replies = common.replies()
    import numpy as np

    module = program(name)
    given = module.batch(rows, length)
    given = given if isinstance(given, tuple) else (given,)
    if WAYS[way] is None:
        compute = module.torch_compute(*given)
    else:
        import firesteel

        engine = firesteel.Engine(folder, devices=WAYS[way], parallel=PROGRAMS[name], threads=threads)
        ours = module.first_positions if name == "data_parallelism" else module.decoded

        def compute():
            return ours(engine, *given)

    def run(save: str = "") -> dict:
        start = time.perf_counter()
        found = compute()
        seconds = time.perf_counter() - start
        if save:
            np.save(save, found)
        return {"seconds": seconds}

    common.serve(replies, {"run": run})


def check(place: str) -> float:
    """The largest difference to torch, of a vector's norm; ends the run where the ways do not agree."""
    import numpy as np

    found = {way: np.load(os.path.join(place, f"{way}.npy")) for way in WAYS}
    torch = found["torch"]
    if not np.array_equal(found["two devices"].view(np.uint32), found["one device"].view(np.uint32)):
        raise SystemExit("examples: two devices give other bits than one")
    error = np.linalg.norm(found["one device"] - torch, axis=-1) / np.linalg.norm(torch, axis=-1)
    if not error.max() < 1e-5:
        raise SystemExit(f"examples: {error.max()} from torch, not below 1e-5")
    return float(error.max())


def measure(name: str, threads: int, rows: int, length: int, repeats: int) -> list[dict]:
    """Result lines, in the order of WAYS."""
    with tempfile.TemporaryDirectory() as place:
        folder = os.path.join(place, "model")
        writer = [sys.executable, os.path.abspath(__file__), "--write", name, folder]
        if os.spawnv(os.P_WAIT, sys.executable, writer):
            raise SystemExit(f"examples: the model of {name} was not written")
        given = [folder, str(threads), str(rows), str(length)]
        workers = {
            way: common.Child(way, os.path.abspath(__file__), ["--child", name, way, *given], threads) for way in WAYS
        }
        for way, worker in workers.items():  # warms up, too
            worker.ask("run", save=os.path.join(place, f"{way}.npy"))
        error = check(place)
        seconds = common.in_turn(workers, repeats, lambda worker: worker.ask("run")["seconds"])
        for worker in workers.values():
            worker.close()
    lines = []
    for way, devices in WAYS.items():
        line = {
            "program": name,
            "way": way,
            "version": common.version("torch" if devices is None else "firesteel"),
            "parallel": PROGRAMS[name] if devices and len(devices) > 1 else None,
            "precision": "fp32",
            "threads": threads,
            "length": length,
            **common.throughput(seconds[way], rows, rows * length),
            "against_torch": round(common.paired_ratio(seconds[way], seconds["torch"]), 3),
            "error": error,
        }
        lines.append(line)
        print(
            f"{name:18} {way:12} {line['tokens_per_s']:7} tokens/s  {line['against_torch']} of torch", file=sys.stderr
        )
    return lines


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:5], *map(int, sys.argv[5:8]))
    if sys.argv[1:2] == ["--write"]:
        program(sys.argv[2]).write_model(sys.argv[3])
        return None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="cores in all; an even number")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/examples.jsonl")
    args = parser.parse_args()
    for name in PROGRAMS:
        common.emit("examples", measure(name, args.threads, args.rows, args.length, args.repeats), args.save)


if __name__ == "__main__":
    main()
