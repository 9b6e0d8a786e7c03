"""Scores of labels as Arrow: what classify_udf and rerank_udf give. Nothing here knows Spark.

float32 [rows, labels] -> best        struct<label, score>
                       -> ranked      array<struct<label, score>>, the best first; equal ones by their place
                       -> by_name     map<string, float>, in the order of the labels
float32 [rows]         -> numbers     float
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from .columns import bitmap

LABEL = pa.struct([("label", pa.string()), ("score", pa.float32())])
LABELS = pa.list_(pa.field("element", LABEL))  # as Spark names the field
SCORES = pa.map_(pa.string(), pa.float32())
NUMBER = pa.float32()
# A map's entries, whose keys are never null.
_ENTRY = (pa.field("key", pa.string(), nullable=False), pa.field("value", pa.float32()))


def best(scores: np.ndarray, names: Sequence[str], good: np.ndarray) -> pa.Array:
    """The first of the largest scores of each row. Rows that are not `good` are null."""
    place = scores.argmax(axis=1)
    return _labels(place, scores[np.arange(len(scores)), place], names, good)


def ranked(scores: np.ndarray, names: Sequence[str], good: np.ndarray, most: int) -> pa.Array:
    """The `most` largest scores of each row, or all where it has fewer."""
    most = min(most, scores.shape[1])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :most]
    inside = _labels(order.reshape(-1), np.take_along_axis(scores, order, axis=1).reshape(-1), names)
    return pa.Array.from_buffers(LABELS, len(scores), [bitmap(good), _offsets(len(scores), most)], children=[inside])


def by_name(scores: np.ndarray, names: Sequence[str], good: np.ndarray) -> pa.Array:
    rows, labels = scores.shape
    keys = _names(np.tile(np.arange(labels), rows), names)
    entries = pa.StructArray.from_arrays([keys, _floats(scores.reshape(-1))], fields=list(_ENTRY))
    return pa.Array.from_buffers(SCORES, rows, [bitmap(good), _offsets(rows, labels)], children=[entries])


def numbers(scores: np.ndarray, good: np.ndarray) -> pa.Array:
    return pa.array(scores, NUMBER, mask=~good)


def _labels(places: np.ndarray, scores: np.ndarray, names: Sequence[str], good: np.ndarray | None = None) -> pa.Array:
    valid = None if good is None else bitmap(good)
    return pa.Array.from_buffers(LABEL, len(places), [valid], children=[_names(places, names), _floats(scores)])


def _names(places: np.ndarray, names: Sequence[str]) -> pa.Array:
    which = pa.array(places.astype(np.int32))
    return pa.DictionaryArray.from_arrays(which, pa.array(names, pa.string())).dictionary_decode()


def _floats(scores: np.ndarray) -> pa.Array:
    scores = np.ascontiguousarray(scores, np.float32)
    return pa.Array.from_buffers(pa.float32(), len(scores), [None, pa.py_buffer(scores)])


def _offsets(rows: int, each: int) -> pa.Buffer:
    return pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * np.int32(each))
