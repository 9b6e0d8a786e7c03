"""Logits to scores, as a text-classification pipeline makes them.

Computed in fp64 and rounded once, each row by itself: the same bits whatever else is in the call. Rows that are NaN,
because nothing was computed for them, stay so.
"""

from __future__ import annotations

import numpy as np

from ..model.labels import NONE, SIGMOID


def activated(logits: np.ndarray, activation: str) -> np.ndarray:
    """float32 [rows, labels] from the same; `activation` is model/labels.py's."""
    if activation == NONE or not logits.size:
        return logits
    exact = logits.astype(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if activation == SIGMOID:
            return (1.0 / (1.0 + np.exp(-exact))).astype(np.float32)
        risen = np.exp(exact - exact.max(axis=1, keepdims=True))
        return (risen / risen.sum(axis=1, keepdims=True)).astype(np.float32)


def first_of(logits: np.ndarray, activation: str) -> np.ndarray:
    """float32 [rows]: the scores of a head with one label."""
    return np.ascontiguousarray(activated(logits, activation)[:, 0])
