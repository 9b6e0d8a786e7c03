"""A SentencePiece file, parsed by hand: a protocol buffer of which only pieces, their scores and the map of characters
count. So folders without tokenizer.json need neither sentencepiece nor protobuf.

    ModelProto        1: SentencePiece, once a piece    2: TrainerSpec    3: NormalizerSpec
    SentencePiece     1: text    2: score, a float    3: kind
    TrainerSpec       3: model type, 1 is Unigram
    NormalizerSpec    2: map of characters
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .._core import CheckpointError, ConfigError
from .files import content

NORMAL, CONTROL, USER = 1, 3, 4  # kinds of pieces
_UNIGRAM, _BPE = 1, 2
_MODELS = {_BPE: "a BPE", 3: "a word", 4: "a character"}


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


class Found(NamedTuple):
    pieces: list[Piece]
    characters: bytes | None


def read(path: str, copy_it: str) -> Found:
    """Raises CheckpointError where the file is none, and ConfigError where its model is no Unigram."""
    pieces, characters, model, seen = [], None, _UNIGRAM, set()
    try:
        for number, value in _fields(content(path)):
            seen.add(number)
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                model = dict(_fields(value)).get(3, _UNIGRAM)
            elif number == 3:
                characters = dict(_fields(value)).get(2) or None
        if not pieces:
            raise ValueError("it holds no pieces")
        if not {2, 3} <= seen:  # a file may be cut between two messages
            raise ValueError("its end is missing")
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise CheckpointError(f"{path}: is no SentencePiece file: {error}; {copy_it}") from None
    if model != _UNIGRAM:
        raise ConfigError(
            f"{path}: holds {_MODELS.get(model, 'another')} model, and only Unigram is supported; {copy_it}"
        )
    return Found(pieces, characters)


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(message):
        if number == 1:
            text = value.decode("utf-8")
        elif number == 2:
            score = struct.unpack("<f", value)[0]
        elif number == 3:
            kind = int(value)
    return Piece(text, score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of each field: an int, or its bytes."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
        else:
            if wire == 2:
                size, at = _varint(message, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"byte {at} begins no field")
            value, at = message[at : at + size], at + size
            if at > end:
                raise ValueError(f"{at - end} bytes are missing")
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"byte {at} is in no number")
