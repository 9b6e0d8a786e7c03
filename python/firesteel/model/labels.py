"""What a classifier's logits mean: the names of its labels, and what is done to a logit to make a score of it.

classify does what transformers' text-classification pipeline does, by config.json's problem_type; rerank what
sentence-transformers' CrossEncoder does, by the activation that the folder names. Whether there is a head, and how many
labels it has, the C side says from the weights.

    classifier_of(checkpoint, labels=2)     # Classifier(names=("NEGATIVE", "POSITIVE"), activation="softmax")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .._core import CheckpointError, ConfigError
from .files import some
from .kinds import classes_of

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

NONE, SIGMOID, SOFTMAX = "none", "sigmoid", "softmax"
_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
_CLASS = "ForSequenceClassification"
_LAST_WEIGHT = re.compile(r"([\w.]+\.)?(classifier|classifier\.out_proj|score)\.weight")
# As CrossEncoder writes them, and as people do.
_SCORES = {
    "torch.nn.modules.linear.Identity": NONE,
    "torch.nn.Identity": NONE,
    "torch.nn.modules.activation.Sigmoid": SIGMOID,
    "torch.nn.Sigmoid": SIGMOID,
}


class Classifier(NamedTuple):
    names: tuple[str, ...]  # of its labels, by their place among the logits
    activation: str  # NONE, SIGMOID or SOFTMAX


def label_names(config: Mapping[str, object], labels: int) -> tuple[str, ...]:
    """id2label's names; LABEL_i, transformers' own, where it has none. Names beyond `labels` are left out."""
    named = config.get("id2label")
    found = {str(place): name for place, name in named.items()} if isinstance(named, dict) else {}
    return tuple(str(found.get(str(place), f"LABEL_{place}")) for place in range(labels))


def classifier_of(checkpoint: Checkpoint, labels: int, function: str = "classify") -> Classifier:
    """The head that `function` needs. labels: how many it has; 0: there is none.

    Raises ConfigError where there is none, or its problem_type is unknown; CheckpointError where id2label does not fit.
    """
    _expect_head(checkpoint, labels, function)
    _check_names(checkpoint, labels)
    problem = checkpoint.config.get("problem_type")
    if problem is not None and problem not in _PROBLEMS:
        raise ConfigError(
            f"{checkpoint.folder}/config.json: problem_type = {problem!r} is not known; known are "
            f"{', '.join(_PROBLEMS)}"
        )
    if problem == "regression":
        activation = NONE
    elif problem == "multi_label_classification" or labels == 1:
        activation = SIGMOID
    else:
        activation = SOFTMAX
    return Classifier(label_names(checkpoint.config, labels), activation)


def reranker_of(checkpoint: Checkpoint, labels: int, raw: bool) -> Classifier:
    """As classifier_of, of a head with the one label that rerank needs. raw: no activation is asked for."""
    _expect_head(checkpoint, labels, "rerank")
    if labels != 1:
        named = some(label_names(checkpoint.config, labels), 4)
        raise ConfigError(
            f"{checkpoint.folder}: its head has {labels} labels ({named}), and rerank needs one of one; "
            f"classify gives the scores of all"
        )
    _check_names(checkpoint, labels)
    return Classifier(label_names(checkpoint.config, 1), NONE if raw else _score(checkpoint))


def labels_by_files(checkpoint: Checkpoint, with_weights: bool = True) -> int:
    """How many labels the head has, as far as files tell: what Spark's driver knows before an executor opens the model.

    0: there is none. with_weights: whether the files of the weights were there to look at.
    """
    if not any(_CLASS in name for name in classes_of(checkpoint.config)):
        return 0
    found = [shape[0] for name, _, shape, *_ in checkpoint.tensors if _LAST_WEIGHT.fullmatch(name) and len(shape) == 2]
    if found or with_weights:
        return found[-1] if found else 0
    named, count = checkpoint.config.get("id2label"), checkpoint.config.get("num_labels")
    return len(named) if isinstance(named, dict) and named else count if type(count) is int and count > 0 else 2


def one_name_each(names: Sequence[str], folder: str) -> None:
    """Raises ConfigError where two labels have one name, which a map of scores has no room for."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f'{folder}: two labels are named {twice!r}, and scores="all" makes a map of names; '
            f"top_k={len(names)} gives an array of all scores"
        )


def _expect_head(checkpoint: Checkpoint, labels: int, function: str) -> None:
    if labels:
        return
    what = f"has no *{_CLASS} head"
    if any(_CLASS in name for name in classes_of(checkpoint.config)):
        lacks = "does not run here" if labels_by_files(checkpoint) else "lacks its last layer among the weights"
        what = f"its head, {checkpoint.head}, {lacks}"
    elif checkpoint.head:
        what = f"its head, {checkpoint.head}, is none of a *{_CLASS}"
    raise ConfigError(f"{checkpoint.folder}: {what}, and {function} needs one; embed makes vectors of its encoder")


def _check_names(checkpoint: Checkpoint, labels: int) -> None:
    """Raises CheckpointError where id2label, or num_labels, is not what the head is made for."""
    config, path = checkpoint.config, f"{checkpoint.folder}/config.json"
    named = config.get("id2label")
    if named is not None and not isinstance(named, dict):
        raise CheckpointError(
            f"{path}: id2label is a {type(named).__name__}; an object from numbers to names belongs there"
        )
    for place, name in (named or {}).items():
        if not re.fullmatch(r"\d{1,9}", place, re.ASCII):
            raise CheckpointError(f"{path}: id2label has the key {place!r}; numbers from 0 on belong there")
        if not isinstance(name, (str, int, float)):
            raise CheckpointError(f"{path}: id2label names label {place} {name!r}; a string belongs there")
    key, said = ("id2label", len(named)) if named else ("num_labels", config.get("num_labels"))
    if type(said) is int and said != labels:
        what = f"names {said} labels" if named else f"is {said}"
        raise CheckpointError(f"{path}: {key} {what}, and the head has {labels}; make them agree")


def _score(checkpoint: Checkpoint) -> str:
    """CrossEncoder's activation, looked for where it looks."""
    config = checkpoint.config
    said = config.get("sentence_transformers")
    where, named = "config_sentence_transformers.json: activation_fn", checkpoint.sentence.activation
    if named is None and isinstance(said, dict) and "activation_fn" in said:
        where, named = "config.json: sentence_transformers.activation_fn", said["activation_fn"]
    elif named is None:
        key = "sbert_ce_default_activation_function"
        where, named = f"config.json: {key}", config.get(key)
    if named is None:
        return SIGMOID
    if not isinstance(named, str) or named not in _SCORES:
        known = ", ".join(list(_SCORES)[::2])
        raise ConfigError(
            f"{checkpoint.folder}/{where} = {named!r} is not known; known are {known}; raw=True gives the logits"
        )
    return _SCORES[named]
