"""Model parallelism: an encoder layer on one device, a decoder layer on another.

    cd examples/model_parallelism && python example.py

The model: nn.TransformerEncoderLayer(512, 8, dim_feedforward=2048), and a TransformerDecoderLayer of the same sizes
that attends to its output, which moves from device to device. The batch: 32 rows and 32 targets of 512 positions,
float32 [32, 512, 512] each. What comes out: the decoder's output, float32 [32, 512, 512].
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

WIDTH, HEADS, INNER = 512, 8, 2048
CONFIG = {"part": "transformer", "d_model": WIDTH, "nhead": HEADS, "num_encoder_layers": 1, "num_decoder_layers": 1}
CONFIG |= {"dim_feedforward": INNER}
ENCODER, DECODER = "encoder.layers.0.", "decoder.layers.0."  # their names in a transformer of one layer each


def torch_modules() -> "tuple[torch.nn.Module, torch.nn.Module]":
    torch.manual_seed(0)
    encoder = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, dim_feedforward=INNER, batch_first=True)
    decoder = torch.nn.TransformerDecoderLayer(WIDTH, HEADS, dim_feedforward=INNER, batch_first=True)
    return encoder.eval(), decoder.eval()


def seeded_weights() -> dict[str, np.ndarray]:
    encoder = support.layer(ENCODER, WIDTH, INNER, ("self_attn",), 0)
    return encoder | support.layer(DECODER, WIDTH, INNER, ("self_attn", "multihead_attn"), 1)


def write_model(folder: str) -> str:
    if not torch:
        return support.save(folder, CONFIG, seeded_weights())
    encoder, decoder = torch_modules()
    return support.save(folder, CONFIG, support.state(encoder, ENCODER) | support.state(decoder, DECODER))


def batch(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and targets, float32 [rows, length, 512] each."""
    random = np.random.default_rng(1)
    return tuple(random.standard_normal((rows, length, WIDTH), np.float32) for _ in range(2))


def decoded(engine: firesteel.Engine, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float32 [rows, length, 512]. While the decoder works on some rows, the encoder works on the next."""
    return np.stack(engine.hidden_states(rows, targets))


def torch_compute(rows: np.ndarray, targets: np.ndarray) -> Callable[[], np.ndarray]:
    """The same by torch, on the CPU."""
    encoder, decoder = torch_modules()
    source, target = torch.from_numpy(rows), torch.from_numpy(targets)

    def compute() -> np.ndarray:
        with torch.inference_mode():
            return decoder(target, encoder(source)).numpy()

    return compute


def main() -> None:
    given = support.arguments("Model parallelism: an encoder layer on one device, a decoder layer on another.")
    rows, targets = batch(given.rows, given.length)
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        with firesteel.Engine(folder, devices=given.devices, parallel="split") as engine:
            print(f"{engine.placement}\n")
            decoded(engine, rows[:2, :8], targets[:2, :8])  # warm
            what = f"firesteel on {', '.join(given.devices)}"
            found = support.timed(what, lambda: decoded(engine, rows, targets))
        with firesteel.Engine(folder, devices=(one := support.one_of(given.devices))) as engine:
            decoded(engine, rows[:2, :8], targets[:2, :8])
            alone = support.timed(f"firesteel on {one}", lambda: decoded(engine, rows, targets))
    support.same_bits(found, alone)
    if torch:
        torch_compute(rows[:2, :8], targets[:2, :8])()  # warm
        support.close(found, support.timed("torch on the CPU", torch_compute(rows, targets)))


if __name__ == "__main__":
    main()
