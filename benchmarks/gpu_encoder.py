"""A BERT-base encoder on one GPU, firesteel beside torch: token ids in, normalised mean-pooled embeddings out.

    python benchmarks/gpu_encoder.py --save              # made for scripts/gpu-check: no network, random seeded weights
    python benchmarks/gpu_encoder.py --shape tiny --rows 8 --peer firesteel        # as the tests run it

What the machine can do is measured first, by torch: bytes a second of a large copy, operations a second of a large bf16
product. Then rows of 128 tokens each, and rows of lognormal lengths; every peer is a process of its own and they take
turns. torch's peers get the rows sorted by length, in padded batches as large as was fastest in a trial. Tokens are
those of the rows, never padding. Last, the seconds from the start of a process to its first embedding.

One JSON line a result. Peers must agree with firesteel in fp32 (the smallest cosine of a row is in the line).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

SHAPES = {
    "base": {"layers": 12, "hidden": 768, "heads": 12, "inner": 3072, "positions": 512, "vocab": 30522},
    "tiny": {"layers": 2, "hidden": 48, "heads": 3, "inner": 96, "positions": 64, "vocab": 160},
}
BATCH_TOKENS = 32768  # of firesteel; torch's are tried out
TRIED_TOKENS = (8192, 32768, 131072)
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.998}
WORKLOADS = ("equal", "lognormal")
# name -> (package, precision, what it is)
PEERS = {
    "firesteel fp32": ("firesteel", "fp32", f"batches of {BATCH_TOKENS} tokens, no padding"),
    "firesteel bf16": ("firesteel", "bf16", f"batches of {BATCH_TOKENS} tokens, no padding"),
    "firesteel bf16, own kernels": ("firesteel", "bf16", "no cuBLASLt"),
    "firesteel bf16, first algorithm": ("firesteel", "bf16", "cuBLASLt's own choice, whatever its bits"),
    "torch fp32": ("torch", "fp32", "transformers, sdpa, no TF32, sorted and padded"),
    "torch bf16": ("torch", "bf16", "transformers, sdpa, sorted and padded"),
    "torch.compile bf16": ("torch", "bf16", "transformers, sdpa, torch.compile, sorted and padded"),
}
# What a peer's process has in its environment.
KNOBS = {
    "firesteel bf16, own kernels": {"FIRESTEEL_LIBCUBLASLT": "off"},
    "firesteel bf16, first algorithm": {"FIRESTEEL_TEST_FIRST_ALGORITHM": "1"},
}


# -- what is computed --------------------------------------------------------------------------------------------------


def write_model(folder: Path, shape: str) -> Path:
    """A BERT of random weights from a seed, with a tokenizer, in Hugging Face layout."""
    import tiny

    sizes = dict(SHAPES[shape])
    vocab = sizes.pop("vocab")
    settings = tiny.config(**sizes) | {"vocab_size": vocab}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    tiny.write_safetensors(folder / "model.safetensors", tiny.tensors(settings, seed=0))
    tiny.write_tokenizer(folder, vocab, sizes["positions"])
    tiny.write_sentence(folder, sizes["hidden"])
    return folder


def lengths(workload: str, rows: int, shape: str) -> list[int]:
    """Tokens of each row: 128 each, or lognormal around 64 (a sigma of 0.8), within what the model takes."""
    import numpy as np

    most = SHAPES[shape]["positions"]
    if workload == "equal":
        return [min(128, most)] * rows
    drawn = np.random.RandomState(1).lognormal(np.log(64), 0.8, rows)
    return np.clip(drawn, 4, most).astype(int).tolist()


def token_rows(workload: str, rows: int, shape: str) -> list:
    import numpy as np

    random = np.random.RandomState(2)
    return [random.randint(0, SHAPES[shape]["vocab"], n).astype(np.int32) for n in lengths(workload, rows, shape)]


def padded_batches(rows: list, tokens: int) -> list[list[int]]:
    """Rows by number, sorted by length, in batches of at most `tokens` once padded; a longer row is alone."""
    batches: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        if batches and (len(batches[-1]) + 1) * len(rows[row]) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


# -- the peers, each in its own process --------------------------------------------------------------------------------


class Firesteel:
    def __init__(self, folder: str, precision: str, compiled: bool):
        import firesteel

        self.engine = firesteel.Engine(folder, devices="cuda:0", dtype=precision)

    def prepare(self, rows: list) -> str:
        self.embed(rows)
        return self.engine.numerics

    def embed(self, rows: list):
        return self.engine.embed(rows)


class Torch:
    def __init__(self, folder: str, precision: str, compiled: bool):
        import torch
        import transformers

        torch.backends.cuda.matmul.allow_tf32 = False
        self.torch = torch
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")
        self.model = model.to("cuda", kind).eval()
        if compiled:
            self.model = torch.compile(self.model, dynamic=True)
        self.tokens = TRIED_TOKENS[0]

    def prepare(self, rows: list) -> str:
        """Takes the batch size that is fastest."""
        seconds = {}
        for self.tokens in TRIED_TOKENS:
            self.embed(rows)
            start = time.perf_counter()
            self.embed(rows)
            seconds[self.tokens] = time.perf_counter() - start
        self.tokens = min(seconds, key=seconds.get)
        return f"batches of {self.tokens} tokens with padding"

    def embed(self, rows: list):
        import numpy as np

        torch, parts, order = self.torch, [], []
        with torch.inference_mode():
            for batch in padded_batches(rows, self.tokens):
                longest = len(rows[batch[-1]])
                ids = np.zeros((len(batch), longest), np.int64)
                mask = np.zeros((len(batch), longest), np.int64)
                for i, row in enumerate(batch):
                    ids[i, : len(rows[row])], mask[i, : len(rows[row])] = rows[row], 1
                ids, mask = (torch.from_numpy(a).pin_memory().to("cuda", non_blocking=True) for a in (ids, mask))
                seen = mask if len(rows[batch[0]]) < longest else None  # without a mask torch has a faster kernel
                states = self.model(input_ids=ids, attention_mask=seen).last_hidden_state
                pooled = (states * mask[..., None]).float().sum(1) / mask.sum(1, keepdim=True)
                parts.append(torch.nn.functional.normalize(pooled))
                order += batch
            found = torch.cat(parts).cpu().numpy()
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors


def make(peer: str, folder: str):
    package, precision, _ = PEERS[peer]
    os.environ.update(KNOBS.get(peer, {}))
    return (Firesteel if package == "firesteel" else Torch)(folder, precision, "compile" in peer)


def child(peer: str, folder: str, workload: str, count: int, shape: str) -> None:
    import numpy as np

    replies = common.replies()
    rows = token_rows(workload, count, shape)
    made = make(peer, folder)

    def prepare(save: str) -> dict:
        setting = made.prepare(rows)
        np.save(save, made.embed(rows))
        return {"setting": setting}

    def embed() -> dict:
        start = time.perf_counter()
        made.embed(rows)
        return {"seconds": time.perf_counter() - start}

    common.serve(replies, {"prepare": prepare, "embed": embed})


def first_row(peer: str, folder: str) -> None:
    """A whole life up to the first embedding."""
    import numpy as np

    made = make(peer, folder)
    print(len(made.embed([np.arange(1, 33, dtype=np.int32)])))


# -- what is measured --------------------------------------------------------------------------------------------------


def ceilings() -> list[dict]:
    """The most that this GPU was seen to do, by torch; medians of twenty."""
    import torch

    def median_seconds(work) -> float:
        taken = []
        for _ in range(23):
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[3:])

    size, n = 2 << 30, 8192
    source, to = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    copied = 2 * size / median_seconds(lambda: to.copy_(source))
    a = torch.randn(n, n, dtype=torch.bfloat16, device="cuda")
    computed = 2 * n**3 / median_seconds(lambda: a @ a)
    return [
        {"ceiling": "copy, read and written", "gbytes_per_s": round(copied / 1e9, 1)},
        {"ceiling": f"bf16 product of {n} x {n}", "tflops": round(computed / 1e12, 1)},
    ]


def throughput(peers: list[str], folder: str, workload: str, rows: int, shape: str, repeats: int) -> list[dict]:
    import numpy as np

    tokens = sum(lengths(workload, rows, shape))
    script, cores = os.path.abspath(__file__), len(os.sched_getaffinity(0))
    arguments = [folder, workload, str(rows), shape]
    workers = {peer: common.Child(peer, script, ["--child", peer, *arguments], cores) for peer in peers}
    settings, cosines, reference = {}, {}, None
    with tempfile.TemporaryDirectory() as place:
        for peer, worker in list(workers.items()):
            file = os.path.join(place, "vectors.npy")
            try:
                settings[peer] = worker.ask("prepare", save=file)["setting"]
            except (SystemExit, BrokenPipeError) as why:  # out of memory, a type that cannot be computed: no figure
                print(f"{peer}: left out, {why}", file=sys.stderr)
                del workers[peer]
                continue
            vectors = np.load(file)
            reference = vectors if reference is None else reference
            cosines[peer] = round(common.check(peer, vectors, reference, LEAST_COSINE[PEERS[peer][1]]), 6)
    seconds = common.in_turn(workers, repeats, lambda worker: worker.ask("embed")["seconds"])
    for worker in workers.values():
        worker.close()
    return [
        {
            "peer": peer,
            "version": common.version(PEERS[peer][0]),
            "precision": PEERS[peer][1],
            "setting": f"{PEERS[peer][2]}; {settings[peer]}",
            "workload": workload,
            **common.throughput(seconds[peer], rows, tokens),
            "cosine": cosines[peer],
        }
        for peer in workers
    ]


def cold_start(peers: list[str], folder: str, repeats: int) -> list[dict]:
    lines = []
    for peer in peers:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            done = subprocess.run([sys.executable, __file__, "--first-row", peer, folder], stdout=subprocess.PIPE)
            seconds.append(time.perf_counter() - start)
            if done.returncode:
                print(f"{peer}: no first row, its process ended with {done.returncode}", file=sys.stderr)
                break
        else:
            package, precision, _ = PEERS[peer]
            version = common.version(package)
            line = {"peer": peer, "version": version, "precision": precision, "workload": "first row, cold"}
            lines.append(line | common.spread(seconds))
    return lines


# -- where it ran ------------------------------------------------------------------------------------------------------


def gpu() -> dict[str, object] | None:
    """The first GPU as firesteel sees it; None: there is none, and the reason is printed."""
    import firesteel

    try:
        return firesteel._core.gpus()["gpus"][0]
    except firesteel.Error as why:
        print(f"no GPU: nothing to measure ({why})")
        return None


def origin(device: dict[str, object]) -> dict[str, object]:
    return {
        "gpu": device["name"],
        "capability": "{}.{}".format(*device["capability"]),
        "cpu": common.machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": os.environ.get("GPU_CHECK_COMMIT", "unknown"),
    }


def emit(lines: list[dict], device: dict[str, object], files: list[Path]) -> None:
    text = "".join(json.dumps({"benchmark": "gpu_encoder", **line, **origin(device)}) + "\n" for line in lines)
    sys.stdout.write(text)
    sys.stdout.flush()
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(text)


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:5], int(sys.argv[5]), sys.argv[6])
        return 0
    if sys.argv[1:2] == ["--first-row"]:
        first_row(*sys.argv[2:4])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="repeatable; default: all")
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/gpu_encoder.jsonl and $OUT")
    args = parser.parse_args()
    device = gpu()
    if device is None:
        return 0
    if args.save and os.environ.get("FIRESTEEL_LIBCUDA"):
        parser.error("FIRESTEEL_LIBCUDA names another driver than the machine's: such figures are not kept")
    places = [common.RESULTS, os.environ.get("OUT")] if args.save else []
    files = [Path(place) / "gpu_encoder.jsonl" for place in places if place]
    os.environ.setdefault("FIRESTEEL_BATCH_TOKENS", str(BATCH_TOKENS))
    peers = args.peer or list(PEERS)
    if any(PEERS[peer][0] == "torch" for peer in peers):
        emit(ceilings(), device, files)
    with tempfile.TemporaryDirectory() as place:
        folder = str(write_model(Path(place) / "model", args.shape))
        emit(
            cold_start([peer for peer in peers if "compile" not in peer and peer not in KNOBS], folder, 3),
            device,
            files,
        )
        for workload in WORKLOADS:
            emit(throughput(peers, folder, workload, args.rows, args.shape, args.repeats), device, files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
