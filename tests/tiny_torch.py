"""Tiny folders of PyTorch's nn.Transformer modules, made from a seed with NumPy alone, as tiny.py does; and their rows.

    folder = tiny_torch.write(tmp_path / "model", part="decoder", norm=True, vocab_size=60)
    rows, targets = tiny_torch.rows(config, seed=3, lengths=(1, 7), target_lengths=(4, 2))

Names and order of the tensors are those of the modules' state_dict(); tests/test_reference_torch.py holds them to that.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny

CONFIG = json.loads((tiny.MODELS / "torch_transformer.json").read_text())
DECODES = ("decoder_layer", "decoder", "transformer")

# name -> part, and what `write` is told; what make_golden.py stores and test_torch_transformer.py compares
GOLDEN_LENGTHS, GOLDEN_TARGETS = (1, 2, 17, 33), (5, 33, 1, 16)
GOLDEN = {
    "encoder": ("encoder", {"norm": True}),
    "encoder of ids, norm first, gelu": (
        "encoder",
        {"vocab_size": 60, "norm": True, "norm_first": True, "activation": "gelu"},
    ),
    "decoder, causal": ("decoder", {"causal_targets": True, "norm_first": True}),
    "decoder layer of ids, no bias": ("decoder_layer", {"vocab_size": 60, "bias": False}),
    "transformer": ("transformer", {"d_model": 36, "nhead": 3}),
    "transformer of ids, causal": ("transformer", {"vocab_size": 60, "causal_targets": True, "activation": "gelu"}),
}


def config(part: str, **changes: object) -> dict[str, object]:
    """config.json of a tiny module, from tests/models/tiny/torch_transformer.json."""
    return CONFIG | {"part": part} | changes


def takes(settings: dict[str, object]) -> tuple[str, str | None]:
    """What its rows and its targets are: "ids" or "features"; None: it takes no targets."""
    kind = "ids" if settings["vocab_size"] else "features"
    decoder = settings["part"].startswith("decoder")
    return "features" if decoder else kind, kind if settings["part"] in DECODES else None


def tensors(
    settings: dict[str, object],
    seed: int = 0,
    norm: bool = False,
    prefix: str = "",
    embedding_prefix: str | None = None,
) -> dict[str, np.ndarray]:
    """Seeded weights: name -> float32 array. norm: an encoder or a decoder alone has a last norm."""
    D, F, bias = settings["d_model"], settings["dim_feedforward"], settings["bias"]
    random = np.random.RandomState(seed)
    made: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, scale: float | None = None, around: float = 0.0) -> None:
        scale = 3**0.5 * (shape[-1] ** -0.5 if scale is None else scale)
        made[prefix + name] = (around + scale * (2 * random.random_sample(shape) - 1)).astype(np.float32)

    def linear(name: str, outputs: int, inputs: int, joint: str = ".") -> None:
        add(f"{name}{joint}weight", outputs, inputs)
        if bias:
            add(f"{name}{joint}bias", outputs, scale=0.1)

    def norm_of(name: str) -> None:
        add(name + ".weight", D, scale=0.1, around=1.0)
        if bias:
            add(name + ".bias", D, scale=0.1)

    def layer(at: str, blocks: tuple[str, ...]) -> None:
        for block in blocks:
            linear(f"{at}{block}.in_proj", 3 * D, D, "_")
            linear(f"{at}{block}.out_proj", D, D)
        linear(at + "linear1", F, D)
        linear(at + "linear2", D, F)
        for number in range(len(blocks) + 1):
            norm_of(f"{at}norm{number + 1}")

    def stack(at: str, count: int, blocks: tuple[str, ...], with_norm: bool) -> None:
        for number in range(count):
            layer(f"{at}layers.{number}.", blocks)
        if with_norm:
            norm_of(at + "norm")

    part, encoder, decoder = settings["part"], ("self_attn",), ("self_attn", "multihead_attn")
    if part in ("encoder_layer", "decoder_layer"):
        layer("", decoder if part == "decoder_layer" else encoder)
    elif part == "encoder":
        stack("", settings["num_encoder_layers"], encoder, norm)
    elif part == "decoder":
        stack("", settings["num_decoder_layers"], decoder, norm)
    else:
        stack("encoder.", settings["num_encoder_layers"], encoder, True)
        stack("decoder.", settings["num_decoder_layers"], decoder, True)
    if settings["vocab_size"]:
        name = (prefix if embedding_prefix is None else embedding_prefix) + "embedding.weight"
        scale = 3**0.5 * (2 * random.random_sample((settings["vocab_size"], D)) - 1)
        made = {name: scale.astype(np.float32)} | made
    return made


def write(
    folder: Path | str,
    part: str,
    *,
    seed: int = 0,
    dtype: str = "F32",
    norm: bool = False,
    prefix: str = "",
    embedding_prefix: str | None = None,
    **changes: object,
) -> Path:
    """A model folder; `changes` go to config()."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(part, **changes)
    (folder / "config.json").write_text(json.dumps(settings))
    made = tensors(settings, seed, norm, prefix, embedding_prefix)
    tiny.write_safetensors(folder / "model.safetensors", made, dtype)
    return folder


def side(kind: str | None, settings: dict[str, object], seed: int, lengths: tuple[int, ...]) -> list[np.ndarray] | None:
    if kind is None:
        return None
    if kind == "ids":
        return tiny.rows(seed, lengths, settings["vocab_size"])
    random = np.random.RandomState(seed)
    return [random.standard_normal((length, settings["d_model"])).astype(np.float32) for length in lengths]


def rows(
    settings: dict[str, object], seed: int, lengths: tuple[int, ...], target_lengths: tuple[int, ...] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Rows and targets as the module takes them; by default the targets have the rows' lengths, last first."""
    kind, target_kind = takes(settings)
    target_lengths = lengths[::-1] if target_lengths is None else target_lengths
    return side(kind, settings, seed, lengths), side(target_kind, settings, seed + 1, target_lengths)


def inputs(
    settings: dict[str, object], seed: int, lengths: tuple[int, ...], target_lengths: tuple[int, ...] | None = None
) -> tuple[int, list[np.ndarray], list[np.ndarray] | None]:
    """Layers, rows and targets of one of these modules, or of a BERT of tiny.py."""
    if settings["model_type"] == "bert":
        return settings["num_hidden_layers"], tiny.rows(seed, lengths), None
    layers = settings["num_encoder_layers"] + settings["num_decoder_layers"]  # of a transformer
    return layers, *rows(settings, seed, lengths, target_lengths)
