"""Heads that a folder has and vectors are made without: told once by name, and never dropped in silence.

A folder of a classifier embeds as its encoder does, which is rarely what a classifier was meant for. Heads of a
pre-training (masked words, next sentences) are no such heads: sentence models are made of what they have trained.
"""

from __future__ import annotations

import re
import sys
import threading
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ..host import task
from ..host.text import one_line
from .files import some
from .kinds import classes_of

_CLASSES = re.compile(r"For\w*(Classification|QuestionAnswering|MultipleChoice)")
# As transformers names them, behind the name of the model that the head is on or behind nothing.
_TENSORS = re.compile(
    r"(\w+\.)?(classifier|pre_classifier|qa_outputs|score|logits_proj|sequence_summary\.summary)"
    r"(\.(dense|out_proj|summary))?\.(weight|bias)"
)

_told: set[str] = set()
_telling = threading.Lock()


def head_of(config: Mapping[str, object], tensors: Iterable[str]) -> str | None:
    """`BertForTokenClassification (classifier.bias, classifier.weight)`, by config.json and by the weights' names.

    Either is enough: files are converted by tools that lose one of the two. None: there is no head.
    """
    classes = [name for name in classes_of(config) if _CLASSES.search(name)]
    names = sorted(name for name in tensors if _TENSORS.fullmatch(name))
    if not classes:
        return some(names, 4) or None
    return some(classes, 2) + (f" ({some(names, 4)})" if names else "")


def warn_of_head(folder: str, head: str | None) -> None:
    """Tells that the model in `folder` has a head which vectors are made without: once a process for a model.

    A UserWarning; in a worker of Spark's a line on its stderr, which is the executor's log.
    """
    if head is None:
        return
    sentence = one_line(
        f"{folder}: has a head, {head}, that vectors are made without: they are its encoder's hidden states, pooled, "
        f"and say nothing of its labels or scores"
        + ("; classify and rerank give those" if "ForSequenceClassification" in head else "")
    )
    with _telling:
        if sentence in _told:
            return
        _told.add(sentence)
    if task.current() is None:
        warnings.warn(sentence, UserWarning, stacklevel=_outside())
        return
    with suppress(OSError, ValueError, AttributeError):  # stderr is closed, or there is none
        print(f"firesteel: {sentence}", file=sys.stderr, flush=True)


def _outside() -> int:
    """How far up the caller of this package is: whose line the warning shows."""
    frame, level = sys._getframe(1), 1
    while frame is not None and f"{frame.f_globals.get('__name__')}.".startswith("firesteel."):
        frame, level = frame.f_back, level + 1
    return level
