"""Folders with modules behind Pooling, as sentence-transformers lays them out, and what those compute, in NumPy.

    folder = chain_kit.write(tmp_path / "model", [("Dense", 16, 8, "Tanh"), ("Normalize",), ("LayerNorm", 8)])
    vectors = chain_kit.behind(folder, pooled)

A Dense is (inputs, outputs, activation or None for no key, bias=True); a LayerNorm is its width.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import tiny

TORCH = {"Identity": "torch.nn.modules.linear."}  # its package; of the others it is this one
ACTIVATION = "torch.nn.modules.activation."
PACKAGES = {"Dense": "sentence_transformers.base.modules.dense.", "LayerNorm": "sentence_transformers.models."}

CHAINS = {
    "dense": [("Dense", 16, 8, "Tanh")],
    "dense, unit": [("Dense", 16, 24, None), ("Normalize",)],
    "unit, dense, norm, dropout": [("Normalize",), ("Dense", 16, 12, "GELU"), ("LayerNorm", 12), ("Dropout",)],
    "two of dense": [("Dense", 16, 20, "Identity", False), ("Dense", 20, 7, "ReLU")],
    "dense, units, dense, unit": [
        ("Dense", 16, 40, "SiLU"),
        ("Normalize",),
        ("Normalize",),
        ("Dropout",),
        ("Dense", 40, 5, "Identity"),
        ("Normalize",),
    ],
    "norm, unit": [("LayerNorm", 16), ("Normalize",), ("Dropout",)],
}


def write(
    folder: Path | str, listed: list[tuple], *, pooling: dict | None = None, seed: int = 0, dtype: str = "F32", **model
) -> Path:
    """A tiny BERT of width 16 with these modules behind its Pooling."""
    shape = {"hidden": 16, "heads": 2, "inner": 24, "layers": 2} | model
    sentence = {"normalize": False, "pooling": pooling}
    folder = tiny.write(folder, seed=seed, dtype=dtype, sentence=sentence, **shape)
    add(folder, listed, seed, dtype)
    return folder


def add(folder: Path, listed: list[tuple], seed: int = 0, dtype: str = "F32") -> None:
    """Modules behind those that modules.json has; their weights are seeded."""
    random = np.random.RandomState(seed + 100)
    modules = json.loads((folder / "modules.json").read_text())
    for kind, *rest in listed:
        place = len(modules)
        path = f"{place}_{kind}"
        package = PACKAGES.get(kind, "sentence_transformers.models.")
        modules.append({"idx": place, "name": str(place), "path": path, "type": package + kind})
        config, weights = _made(random, kind, *rest)
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
        if weights:
            tiny.write_safetensors(folder / path / "model.safetensors", weights, dtype)
    (folder / "modules.json").write_text(json.dumps(modules))


def _made(random: np.random.RandomState, kind: str, *rest) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    def uniform(*shape: int) -> np.ndarray:
        return (2 * random.random_sample(shape) - 1).astype(np.float32)

    if kind == "Dense":
        inputs, outputs, activation, *bias = rest
        has_bias = bias != [False]
        config = {"in_features": inputs, "out_features": outputs, "bias": has_bias}
        if activation:
            config["activation_function"] = TORCH.get(activation, ACTIVATION) + activation
        weights = {"linear.weight": uniform(outputs, inputs)}
        return config, weights | ({"linear.bias": uniform(outputs)} if has_bias else {})
    if kind == "LayerNorm":
        return {"dimension": rest[0]}, {"norm.weight": 1 + uniform(*rest) / 4, "norm.bias": uniform(*rest) / 4}
    return ({"dropout": 0.5} if kind == "Dropout" else {}), {}


_FUNCTIONS = {
    "Tanh": np.tanh,
    "Identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    from firesteel.model.safetensors import read_header

    made = {}
    data = (folder / "model.safetensors").read_bytes()
    for name, dtype, shape, _, offset, size in read_header(str(folder / "model.safetensors")):
        assert dtype == "F32"
        made[name] = np.frombuffer(data[offset : offset + size], np.float32).reshape(shape).astype(np.float64)
    return made


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def behind(folder: Path, pooled: np.ndarray) -> np.ndarray:
    """What the modules behind Pooling make of pooled vectors, in float64."""
    x = pooled.astype(np.float64)
    for module in json.loads((folder / "modules.json").read_text())[2:]:
        at = folder / module["path"]
        config = json.loads((at / "config.json").read_text())
        kind = module["type"].rpartition(".")[2]
        if kind == "Dense":
            weights = weights_of(at)
            x = x @ weights["linear.weight"].T + weights.get("linear.bias", 0)
            x = _FUNCTIONS[config.get("activation_function", "Tanh").rpartition(".")[2]](x)
        elif kind == "LayerNorm":
            weights = weights_of(at)
            centred = x - x.mean(axis=-1, keepdims=True)
            x = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
            x = x * weights["norm.weight"] + weights["norm.bias"]
        elif kind == "Normalize":
            x = unit(x)
    return x
