"""Damages a small model folder in every way that fits, and opens it: nothing but `firesteel.Error` may come out.

    python tests/fuzz/fuzz_safetensors.py --seconds 60 --seed 1

Each round copies one of a few folders, damages one to three of its files (config.json, the safetensors header, the
index, the pooling and tokenizer files; text, structure or single bytes), and opens it through `Checkpoint` and
`_core.Engine`; what opens must also embed a row. The number of a round that fails is printed, and
`--seed NUMBER --rounds 1` repeats it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import chain_kit
import tiny
from firesteel import Error, _core
from firesteel.model.checkpoint import Checkpoint

ODD_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, 1e300, 1e-300)
ODD_VALUES = (None, True, False, "", "bert", "BF16", "F64", "\x00", "é" * 300, "\udcff", [], {}, [1], [[]], {"a": 1})
ODD_TEXTS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"[" * 3000,
    b'{"a":' * 2000,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"",
    b"null",
    b"{}",
)


def odd(rng: random.Random) -> object:
    return rng.choice(ODD_NUMBERS) if rng.random() < 0.6 else rng.choice(ODD_VALUES)


def places(value: object) -> list[tuple[object, object]]:
    """Every (container, key) below `value`."""
    if isinstance(value, dict):
        keys: list[object] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def damage_structure(rng: random.Random, value: object) -> object:
    """Changes, drops, renames, copies or adds entries of parsed JSON."""
    for _ in range(rng.randint(1, 3)):
        found = places(value)
        if not found:
            return odd(rng)
        box, key = rng.choice(found)
        other, other_key = rng.choice(found)
        what = rng.randrange(6)
        try:
            if what == 0:
                box[key] = odd(rng)
            elif what == 1:
                del box[key]
            elif what == 2:
                box[key] = json.loads(json.dumps(other[other_key]))
            elif what == 3 and isinstance(box, dict):
                box[str(odd(rng))] = box.pop(key)
            elif what == 4 and isinstance(box[key], int):
                box[key] += rng.choice((-8, -4, -1, 1, 4, 8))
            elif what == 5 and isinstance(box, dict):
                box[rng.choice(("is_decoder", "position_embedding_type", "quantization_config", "x", ""))] = odd(rng)
        except (KeyError, IndexError, TypeError, ValueError):
            pass  # an earlier change took the place away
    return value


def damage_text(rng: random.Random, text: bytes) -> bytes:
    at = rng.randrange(len(text) + 1)
    what = rng.randrange(4)
    if what == 0:
        return text[:at]
    if what == 1:
        return text[:at] + rng.choice(ODD_TEXTS) + text[at + rng.randrange(6) :]
    if what == 2:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    return rng.choice(ODD_TEXTS)


def damage_json(rng: random.Random, path: Path) -> None:
    text = path.read_bytes()
    if rng.random() < 0.75:
        try:
            text = json.dumps(damage_structure(rng, json.loads(text))).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            pass  # damaged before
    else:
        text = damage_text(rng, text)
    path.write_bytes(text)


def damage_safetensors(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    what = rng.randrange(6)
    if what == 0:
        data = data[: rng.randrange(len(data) + 1)]
    elif what == 1:
        size = rng.choice((0, 1, size - 1, size + 1, len(data), 2**32, 2**63 - 1, 2**64 - 1)) % 2**64
        data = size.to_bytes(8, "little") + data[8:]
    elif what == 2:
        data = data + bytes(rng.randrange(1, 9))
    else:
        try:
            header = json.dumps(damage_structure(rng, json.loads(header))).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            header = damage_text(rng, header)
        if what == 5:
            header = damage_text(rng, header)
        data = len(header).to_bytes(8, "little") + header + rest
    path.write_bytes(data)


def damage(rng: random.Random, folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "tokenizer.json")
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(files)
        if not path.is_file():
            continue
        if rng.random() < 0.03:
            path.unlink()
        elif path.suffix == ".safetensors":
            damage_safetensors(rng, path)
        else:
            damage_json(rng, path)


def open_and_embed(folder: Path) -> str:
    """ "opened", or the name of the firesteel.Error that refused the folder. Anything else is raised."""
    try:
        checkpoint = Checkpoint.open(folder)
        engine = _core.Engine(
            config=checkpoint.config,
            tensors=checkpoint.tensors,
            files=checkpoint.files,
            chain=checkpoint.chain.steps,
            name=checkpoint.folder,
            threads=1,
        )
    except Error as error:
        if not str(error).strip():
            raise AssertionError(f"{type(error).__name__} without a sentence") from error
        return type(error).__name__
    settings = engine.settings
    poolings = checkpoint.sentence.pooling if checkpoint.chain.steps else ("mean",)
    width = settings["vector_width"] or settings["width"] * len(poolings)
    tasks = [(width, {"task": "embed", "pooling": poolings, "normalize": True})]
    tasks += [(settings["labels"], {"task": "classify"})] * (settings["labels"] > 0)
    try:
        for width, task in tasks:
            out = np.full((1, width), np.nan, np.float32)
            job = engine.submit(np.zeros(1, np.int32), np.array([0, 1], np.int64), out, **task)
            if not job.wait(60):
                raise AssertionError(f"one token took more than a minute: {task}")
    except Error as error:  # of a chain that takes another width
        return type(error).__name__
    finally:
        engine.close()
    return "opened"


def originals(folder: Path) -> list[Path]:
    """Valid folders to start from."""
    shape = {"hidden": 8, "heads": 2, "layers": 1, "inner": 12, "positions": 8}
    return [
        tiny.write(folder / "plain", **shape),
        tiny.write(folder / "bf16", dtype="BF16", prefix="bert.", **shape),
        tiny.write(folder / "sharded", shards=3, dtype="F16", **shape),
        tiny.write(folder / "sentence", sentence={}, **shape),
        chain_kit.write(folder / "chain", chain_kit.CHAINS["unit, dense, norm, dropout"]),
        *(
            tiny.write_architecture(folder / kind, kind, labels=2)
            for kind in sorted(path.stem for path in tiny.MODELS.glob("*.json") if path.stem != "torch_transformer")
        ),
    ]


def fuzz(seed: int, rounds: int | None = None, seconds: float | None = None) -> Counter[str]:
    """Opens damaged folders until `rounds` or `seconds` are over; returns how often what came out."""
    results: Counter[str] = Counter()
    end = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="firesteel-fuzz-") as folder:
        sources = originals(Path(folder))
        for source in sources:
            if open_and_embed(source) != "opened":
                raise AssertionError(f"{source.name} does not open undamaged")
        number = seed
        while (rounds is None or number < seed + rounds) and (end is None or time.monotonic() < end):
            rng = random.Random(number)
            target = Path(folder) / "damaged"
            shutil.copytree(rng.choice(sources), target)
            try:
                damage(rng, target)
                results[open_and_embed(target)] += 1
            except BaseException:
                print(f"failed in round {number}", file=sys.stderr)
                raise
            shutil.rmtree(target)
            number += 1
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.seconds is None and args.rounds is None:
        args.seconds = 60.0
    results = fuzz(args.seed, args.rounds, args.seconds)
    print(f"{sum(results.values())} damaged folders:", ", ".join(f"{n} {name}" for name, n in results.most_common()))


if __name__ == "__main__":
    main()
