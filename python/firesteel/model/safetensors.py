"""The weights of a folder: which files hold them, and where every tensor lies. A safetensors file is

    bytes 0-7         length H of the header, little endian
    bytes 8 .. 8+H    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, blanks at the end
    bytes 8+H ..      data, which the tensors cover from first to last byte without a gap or an overlap

and every number of its header is checked against the file. The data is not touched: the C side reads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .._core import CheckpointError
from . import kinds
from .files import (
    JSON_LIMIT,
    inside,
    kind_of,
    names_in,
    opened,
    parsed,
    read_json,
    some,
    there,
    unreadable,
)

# name, dtype as safetensors spells it, shape, index into files, byte offset in that file, bytes
Tensor = tuple[str, str, tuple[int, ...], int, int, int]

# bits of one element, by the names safetensors uses
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
INDEX = "model.safetensors.index.json"


def has_weights(folder: str) -> bool:
    return any(name.endswith(".safetensors") for name in names_in(folder))


def weight_files(folder: str, config: Mapping[str, object]) -> tuple[list[str], dict[str, str] | None]:
    """The files of weights, and where they are shards, which of them holds which tensor.

    Raises CheckpointError, which says what lies in the folder instead, where there are none.
    """
    single = os.path.join(folder, "model.safetensors")
    index = os.path.join(folder, INDEX)
    if there(single):
        return [single], None
    if there(index):
        return _shards(folder, index)
    raise CheckpointError(kinds.without_weights(folder, config))


def _shards(folder: str, index: str) -> tuple[list[str], dict[str, str]]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensor names to file names")
    shards = sorted(set(where.values()))
    files = [inside(folder, shard, os.path.basename(index)) for shard in shards]
    missing = [shard for shard, path in zip(shards, files, strict=True) if not there(path)]
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} of {len(shards)} shards are missing: {some(missing)}")
    return files, where


def read_tensors(folder: str, config: Mapping[str, object]) -> tuple[list[str], list[Tensor]]:
    """The files of weights, and the tensors in them. Raises CheckpointError where they do not agree."""
    files, where = weight_files(folder, config)
    if where is None:
        return files, read_header(files[0], 0)
    index = os.path.join(folder, INDEX)
    tensors: list[Tensor] = []
    home: dict[str, str] = {}
    for number, (shard, path) in enumerate(zip(sorted(set(where.values())), files, strict=True)):
        for tensor in read_header(path, number):
            first = home.setdefault(tensor[0], shard)
            if first != shard:
                raise CheckpointError(f"{folder}: tensor {tensor[0]} lies in both {first} and {shard}")
            tensors.append(tensor)
    lost = [f"{name} ({shard})" for name, shard in where.items() if home.get(name) != shard]
    if lost:
        raise CheckpointError(f"{index}: names tensors that are not in the shard it gives: {some(lost)}")
    return files, tensors


def read_header(path: str, number: int = 0) -> list[Tensor]:
    """The tensors of one safetensors file, in the order of their bytes; `number` is the file's index in the answer.

    Raises CheckpointError where a number of the header does not agree with the others, or with the file.
    """
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            if head == b"version ":
                raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights; run: git lfs pull")
            length = int.from_bytes(head, "little")
            if len(head) == 8 and length > JSON_LIMIT:
                raise CheckpointError(f"{path}: claims a header of {length} bytes; the limit is {JSON_LIMIT}")
            if len(head) < 8 or 8 + length > size:
                needed = 8 + length if len(head) == 8 else 8
                raise CheckpointError(
                    f"{path}: truncated, {needed - size} bytes of its header are missing; copy or download it again"
                )
            data = file.read(length)
        except OSError as error:
            raise CheckpointError(unreadable(path, error)) from None
    header = parsed(data, f"{path}: header")
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is a JSON {kind_of(header)}; an object belongs there")
    header.pop("__metadata__", None)
    entries = sorted((_entry(path, name, value) for name, value in header.items()), key=lambda entry: entry[3:])
    _check_cover(path, entries, size - 8 - length)
    first = 8 + length
    return [(name, dtype, shape, number, first + begin, end - begin) for name, dtype, shape, begin, end in entries]


_Entry = tuple[str, str, tuple[int, ...], int, int]  # name, dtype, shape, first byte of the data, one past the last


def _entry(path: str, name: str, value: object) -> _Entry:
    """One line of a header, its own numbers in agreement with each other."""
    what = f"{path}: tensor {name}"
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is a JSON {kind_of(value)} in the header; an object belongs there")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise CheckpointError(f"{what} has dtype {dtype!r}; known are {', '.join(_BITS)}")
    if not _naturals(shape) or len(shape) > 16:
        raise CheckpointError(f"{what} has shape {shape!r}; a list of at most 16 sizes belongs there")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{what} has data_offsets {offsets!r}; [begin, end] belongs there")
    bits = _BITS[dtype]
    for side in shape:
        bits *= side
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            f"{what} has shape {list(shape)} of {dtype}, {(bits + 7) // 8} bytes, but data_offsets "
            f"{list(offsets)} span {offsets[1] - offsets[0]} bytes"
        )
    return name, dtype, tuple(shape), offsets[0], offsets[1]


def _naturals(value: object) -> bool:
    """A list of integers from 0 to what the C side can count (JSON's true is an int to Python, hence `type`)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(path: str, entries: list[_Entry], size: int) -> None:
    """The tensors, sorted by offset, cover all `size` bytes of data once."""
    at, before = 0, ""
    for name, _, _, begin, end in entries:
        if begin < at:
            raise CheckpointError(f"{path}: tensors {before} and {name} overlap by {min(at, end) - begin} bytes")
        if begin > at:
            raise CheckpointError(f"{path}: {begin - at} bytes before tensor {name} belong to no tensor; damaged?")
        at, before = end, name
    if at > size:
        raise CheckpointError(
            f"{path}: truncated, {at - size} of {at} data bytes are missing (tensor {before} ends there); "
            f"copy or download it again"
        )
    if at < size:
        raise CheckpointError(f"{path}: {size - at} bytes after the last tensor belong to no tensor; damaged?")
