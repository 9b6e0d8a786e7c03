"""Values that callers give: NumPy's scalars as Python's own.

Jobs are keyed by their options and options travel as JSON, so whatever takes an option makes it plain at once: 64 and
np.int64(64) are then one value in every check, sentence and key.
"""

from __future__ import annotations

import numpy as np

_KINDS = ((np.bool_, bool), (np.integer, int), (np.floating, float), (np.str_, str))


def plain(value: object) -> object:
    """A NumPy scalar, or an array without axes, as the int, float, bool or str that it is; all else as it came.

    Lists and tuples are gone through. Nothing is rounded or converted from one kind to another: what a check refuses of
    Python's types (a float where a whole number belongs, a bool as a number), it refuses of NumPy's.

    Example:

    >>> plain(np.int64(64)), plain([np.str_("cls"), "mean"]), plain(np.float32(0.5)), plain(None)
    (64, ['cls', 'mean'], 0.5, None)
    """
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    for kind, made in _KINDS:
        if isinstance(value, kind) and not isinstance(value, np.timedelta64):  # which passes for an integer
            return made(value)
    return value
