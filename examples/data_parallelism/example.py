"""Data parallelism: a language model on two devices, each with a copy of it and half of the batch.

    cd examples/data_parallelism && python example.py

The model: an embedding table (10,000 x 512) and the encoder of nn.Transformer(d_model=512, nhead=8,
num_encoder_layers=6). The batch: 32 rows of 512 token ids, two chunks of 16. What comes out: the last hidden state's
first position, float32 [32, 512].
"""

import os
import sys
import tempfile
from collections.abc import Callable

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import firesteel
import support
from support import torch

WORDS, WIDTH, HEADS, LAYERS, INNER = 10_000, 512, 8, 6, 2048
CONFIG = {"part": "encoder", "vocab_size": WORDS, "d_model": WIDTH, "nhead": HEADS, "num_encoder_layers": LAYERS}
CONFIG |= {"dim_feedforward": INNER}


def torch_module() -> "torch.nn.Module":
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.embedding = torch.nn.Embedding(WORDS, WIDTH)
    module.encoder = torch.nn.Transformer(WIDTH, HEADS, num_encoder_layers=LAYERS, batch_first=True).encoder
    return module.eval()


def seeded_weights() -> dict[str, np.ndarray]:
    table = np.random.default_rng(0).standard_normal((WORDS, WIDTH), np.float32)
    weights = {"embedding.weight": table}
    for number in range(LAYERS):
        weights |= support.layer(f"encoder.layers.{number}.", WIDTH, INNER, ("self_attn",), number)
    return weights | support.norm("encoder.norm.", WIDTH)


def write_model(folder: str) -> str:
    return support.save(folder, CONFIG, support.state(torch_module()) if torch else seeded_weights())


def batch(rows: int, length: int) -> np.ndarray:
    """int32 [rows, length]"""
    return np.random.default_rng(1).integers(0, WORDS, (rows, length), np.int32)


def first_positions(engine: firesteel.Engine, ids: np.ndarray) -> np.ndarray:
    """float32 [rows, 512]. Both chunks are queued at once; a replica takes rows whenever it is free."""
    chunks = [engine.start_hidden_states(chunk) for chunk in np.array_split(ids, 2)]
    return np.stack([states[0] for chunk in chunks for states in support.states(chunk)])


def torch_compute(ids: np.ndarray) -> Callable[[], np.ndarray]:
    """The same by torch, on the CPU."""
    module, tokens = torch_module(), torch.from_numpy(ids).long()

    def compute() -> np.ndarray:
        with torch.inference_mode():
            return module.encoder(module.embedding(tokens))[:, 0].numpy()

    return compute


def main() -> None:
    given = support.arguments("Data parallelism: a language model with a copy on each of two devices.")
    ids = batch(given.rows, given.length)
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        with firesteel.Engine(folder, devices=given.devices, parallel="replicate") as engine:
            print(f"{engine.placement}\n")
            first_positions(engine, ids[:2, :8])  # warm
            found = support.timed(f"firesteel on {', '.join(given.devices)}", lambda: first_positions(engine, ids))
        with firesteel.Engine(folder, devices=(one := support.one_of(given.devices))) as engine:
            first_positions(engine, ids[:2, :8])
            alone = support.timed(f"firesteel on {one}", lambda: first_positions(engine, ids))
    support.same_bits(found, alone)
    if torch:
        torch_compute(ids[:2, :8])()  # warm
        support.close(found, support.timed("torch on the CPU", torch_compute(ids)))


if __name__ == "__main__":
    main()
