"""What both examples need besides the engine: model folders of PyTorch's modules, devices, a clock, a comparison.

A folder is config.json and model.safetensors. Tensors have the names of the module's state_dict(): those of a module
where torch is installed, else seeded ones of the same shapes, so the examples run without torch as well.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import firesteel
    from pyspark.sql import DataFrame, SparkSession

TOLERANCE = 1e-5  # of a row's norm

try:
    import torch
except ImportError:
    torch = None


def arguments(about: str) -> argparse.Namespace:
    """The command line: sizes, and the devices as a list."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rows", type=at_least_one, default=32, help="rows of the batch (%(default)s)")
    parser.add_argument("--length", type=at_least_one, default=512, help="positions of a row (%(default)s)")
    parser.add_argument("--devices", default=",".join(devices()), help="comma-separated (%(default)s)")
    given = parser.parse_args()
    given.devices = given.devices.split(",")
    return given


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def states(pending: firesteel.engine.engine.Pending) -> list[np.ndarray]:
    """Waits. Ends the program with the first faulty row's sentence where there is one."""
    found, faults = pending.result()
    if faults:
        raise SystemExit(f"{len(faults)} rows cannot be computed: {faults[0][2]}")
    return found


def devices() -> list[str]:
    """The first two GPUs, or the one there is; without a GPU the cores cut in two."""
    gpus = sum(os.path.basename(path)[6:].isdecimal() for path in glob.glob("/dev/nvidia*"))
    return [f"cuda:{number}" for number in range(min(gpus, 2))] or ["cpu:0", "cpu:1"]


def one_of(devices: list[str]) -> str:
    """What to compare several devices with: the first GPU, or a CPU of all cores."""
    return "cpu" if devices[0].startswith("cpu") else devices[0]


# --- model folders ---------------------------------------------------------------------------------------------------


def save(folder: str | Path, config: Mapping[str, object], weights: Mapping[str, np.ndarray]) -> str:
    """Writes a model folder; weights are float32. The second half is what safetensors' save_file does."""
    header: dict[str, object] = {}
    at = 0
    for name, array in weights.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (at, at + array.nbytes)}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "torch_transformer", **config}, indent=2))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in weights.values():
            file.write(np.ascontiguousarray(array, "<f4").tobytes())
    return str(folder)


def state(module: object, prefix: str = "") -> dict[str, np.ndarray]:
    """A module's weights under their names."""
    return {prefix + name: tensor.numpy() for name, tensor in module.state_dict().items()}


def layer(prefix: str, width: int, inner: int, blocks: tuple[str, ...], seed: int) -> dict[str, np.ndarray]:
    """What state_dict() of an encoder layer (blocks: self_attn) or a decoder layer holds, from a seed."""
    random = np.random.default_rng(seed)

    def linear(name: str, outputs: int, inputs: int, joint: str = ".") -> Iterator[tuple[str, np.ndarray]]:
        most = inputs**-0.5
        yield f"{prefix}{name}{joint}weight", random.uniform(-most, most, (outputs, inputs)).astype(np.float32)
        yield f"{prefix}{name}{joint}bias", random.uniform(-most, most, outputs).astype(np.float32)

    made: dict[str, np.ndarray] = {}
    for block in blocks:
        made |= linear(f"{block}.in_proj", 3 * width, width, "_")
        made |= linear(f"{block}.out_proj", width, width)
    made |= linear("linear1", inner, width)
    made |= linear("linear2", width, inner)
    for number in range(len(blocks) + 1):
        made |= norm(f"{prefix}norm{number + 1}.", width)
    return made


def norm(prefix: str, width: int) -> dict[str, np.ndarray]:
    return {prefix + "weight": np.ones(width, np.float32), prefix + "bias": np.zeros(width, np.float32)}


# --- Spark -----------------------------------------------------------------------------------------------------------


def session() -> SparkSession:
    """A local session of one executor with one task at a time, which has all devices."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return (
        SparkSession.builder.master("local[1]")
        .config("spark.driver.memory", "2g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )


def write_table(folder: str, columns: Mapping[str, np.ndarray]) -> str:
    """A Parquet file of the columns, lists of numbers however deep, and `id`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def nested(array: np.ndarray) -> pa.Array:
        made = pa.array(array.reshape(-1))
        for size in array.shape[:0:-1]:
            made = pa.ListArray.from_arrays(pa.array(np.arange(0, len(made) + 1, size, dtype=np.int32)), made)
        return made

    count = len(next(iter(columns.values())))
    table = pa.table({"id": pa.array(range(count)), **{name: nested(array) for name, array in columns.items()}})
    path = os.path.join(folder, "rows.parquet")
    pq.write_table(table, path)
    return path


def collected(df: DataFrame) -> np.ndarray:
    """float32 [rows, D]: the column `state`, by `id`."""
    return np.array([row.state for row in df.select("id", "state").orderBy("id").collect()], np.float32)


# --- clock and comparison --------------------------------------------------------------------------------------------


def timed(what: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Runs it, and prints the seconds."""
    start = perf_counter()
    found = compute()
    print(f"{what:48}{perf_counter() - start:8.2f} s", flush=True)
    return found


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and np.array_equal(found.view(np.uint32), expected.view(np.uint32))
    print("the same bits on one device")


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Compares with torch by the norm of each vector, the last axis."""
    error = float((np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())
    print(f"largest difference to torch, of a vector's norm: {error:.1e}")
    assert error < TOLERANCE, f"{error} is not below {TOLERANCE}"
