"""Options of a column function -> a Job: all of them checked, on the driver, before Spark sees a task.

A Python exception in a task costs Spark's four tries, so whatever the driver can know is an error here, at once. Where
it can see the model's folder that includes the checkpoint's own faults: only headers are read, no device is touched.
Options of the engine go through the checks of firesteel.Engine itself, so they fail with its sentences; only what the
devices of an executor decide is left to the task.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from .. import _core
from .._core import ConfigError, RequestError
from ..engine.options import check_prompt, check_truncate, engine_options, prompt_text
from ..host.settings import ignore_keys_of_session
from ..host.text import one_line
from ..host.values import plain
from ..model.checkpoint import Checkpoint
from ..model.heads import warn_of_head
from ..model.labels import classifier_of, labels_by_files, one_name_each, reranker_of
from ..model.locate import FORMS, Located, describe, resolve, unseen
from ..model.sentence import hidden_width, pooling_modes

OUTPUTS = ("all", "first", "last", "mean")
ON_ERROR = ("fail", "null")
MAX_ERRORS = 0.5
ENGINE = dict(devices="auto", parallel="auto", dtype="auto", max_memory=None, threads=None, cpu_path=None)


@dataclass(frozen=True)
class Job:
    """What travels to the workers: small, hashable, pickled by the name of this module.

    Two jobs with equal content are equal, and share an engine in every worker that runs both.
    """

    task: str
    model: Located  # where from, and what its files looked like to the driver
    engine: tuple[tuple[str, object], ...]  # options of firesteel.Engine, and `manager`: whether it is shared
    request: tuple[tuple[str, object], ...]  # options of the task, see tasks.py
    details: bool
    on_error: str
    max_errors: float

    @property
    def shared(self) -> bool:
        """Whether its engine is in the executor's manager."""
        return bool(dict(self.engine)["manager"])

    def own_engine(self) -> dict[str, object]:
        """The options of an engine in this process."""
        return {name: value for name, value in self.engine if name != "manager"}


def embed_job(model: str | os.PathLike[str], *, said_by: str = "embed_udf", **options: object) -> Job:
    """Checks every option. Raises ConfigError or RequestError, and CheckpointError where the driver has the folder.

    Where it has not, a UserWarning says so: then nobody has looked at the model yet.
    """
    request: dict[str, object] = dict(pooling="auto", normalize="auto", max_length=None, prompt=None, prompt_name=None)
    request |= dict(dimensions=None, truncate=True)
    return _job("embed", model, request, _check_embed, said_by, options)


def classify_job(model: str | os.PathLike[str], *, said_by: str = "classify_udf", **options: object) -> Job:
    """As embed_job."""
    request = dict(top_k=None, scores=None, max_length=None, truncate=True, raw=False)
    return _job("classify", model, request, _check_classify, said_by, options)


def rerank_job(model: str | os.PathLike[str], *, said_by: str = "rerank_udf", **options: object) -> Job:
    """As embed_job."""
    request = dict(max_length=None, truncate=True, raw=False)
    return _job("rerank", model, request, _check_scored, said_by, options)


def hidden_states_job(model: str | os.PathLike[str], *, said_by: str = "hidden_states_udf", **options: object) -> Job:
    """As embed_job."""
    request = dict(output="all", max_length=None, truncate=True)
    return _job("hidden_states", model, request, _check_hidden_states, said_by, options)


def _job(
    task: str,
    model: object,
    request: dict[str, object],
    check: Callable[[dict[str, object], str], None],
    said_by: str,
    options: dict[str, object],
) -> Job:
    """`request`: the options of the task with their defaults; `options`: what the user said."""
    engine = dict(ENGINE)
    shared: dict[str, object] = {"manager": True}
    faults: dict[str, object] = dict(details=False, on_error=None, max_errors=MAX_ERRORS)
    refuse_unknown(said_by, options, [*request, *engine, *shared, *faults])
    for part in (engine, shared, request, faults):
        part |= {name: plain(value) for name, value in options.items() if name in part}
    engine_options(**engine)
    check(request, said_by)
    if not isinstance(shared["manager"], bool):
        raise ConfigError(f"manager is {shared['manager']!r}; True or False belongs there")
    details, on_error, max_errors = faults.values()
    if not isinstance(details, bool):
        raise ConfigError(f"details is {details!r}; True or False belongs there")
    if on_error is None:
        on_error = "null" if details else "fail"
    if on_error not in ON_ERROR:
        raise ConfigError(f'on_error is {on_error!r}; "fail" or "null" belongs there')
    if isinstance(max_errors, bool) or not isinstance(max_errors, (int, float)) or not 0 <= max_errors <= 1:
        raise ConfigError(f"max_errors is {max_errors!r}; a share of the rows from 0 to 1 belongs there")
    return Job(
        task=task,
        model=_check_model(task, model, request, engine, said_by),
        engine=tuple(sorted((name, _frozen(value)) for name, value in (engine | shared).items())),
        request=tuple(sorted((name, _frozen(value)) for name, value in request.items())),
        details=details,
        on_error=on_error,
        max_errors=float(max_errors),
    )


def refuse_unknown(said_by: str, given: Sequence[str] | dict[str, object], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"{said_by} has no option {name}; {hint}its options are {', '.join(known)}")


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _check_embed(request: dict[str, object], said_by: str) -> None:
    if request["pooling"] != "auto":
        pooling_modes(request["pooling"], said_by)
    if not isinstance(request["normalize"], bool) and request["normalize"] != "auto":
        raise RequestError(f'normalize is {request["normalize"]!r}; True, False or "auto" belongs there')
    _check_count("dimensions", request["dimensions"])
    check_prompt(request["prompt"], request["prompt_name"])
    _check_length(request)


def _check_hidden_states(request: dict[str, object], said_by: str) -> None:
    if request["output"] not in OUTPUTS:
        raise RequestError(f'output is {request["output"]!r}; "all", "first", "last" or "mean" belongs there')
    _check_length(request)


def _check_classify(request: dict[str, object], said_by: str) -> None:
    _check_count("top_k", request["top_k"])
    scores = request["scores"]
    if scores is not None and not (isinstance(scores, str) and scores == "all"):
        raise RequestError(f'scores is {scores!r}; "all", or None, belongs there')
    if scores is not None and request["top_k"] is not None:
        raise RequestError('top_k makes an array of the best labels, and scores="all" a map of all; give one of them')
    _check_scored(request, said_by)


def _check_scored(request: dict[str, object], said_by: str) -> None:
    if not isinstance(request["raw"], bool):
        raise RequestError(f"raw is {request['raw']!r}; True or False belongs there")
    _check_length(request)


def _check_length(request: dict[str, object]) -> None:
    check_truncate(request["truncate"])
    _check_count("max_length", request["max_length"])


def _check_count(name: str, value: object) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise RequestError(f"{name} is {value!r}; a whole number from 1 on, or None, belongs there")


def _check_model(
    task: str, model: str | os.PathLike[str], request: dict[str, object], engine: dict[str, object], said_by: str
) -> Located:
    """The model, with what its files look like. A folder that this machine does not have is left to the workers."""
    if not isinstance(model, (str, os.PathLike)) or not os.fspath(model):
        raise ConfigError(f"model is {model!r}; {FORMS} belongs there")
    with ignore_keys_of_session():
        located, folder = describe(resolve(model))
        if folder is None:
            if missing := unseen(located):  # on the line that made the function
                warnings.warn(f"{said_by}: {one_line(missing)}", UserWarning, stacklevel=5)
            return located
        checkpoint = Checkpoint.open(folder, weights=located.with_weights)
        name = one_line(checkpoint.folder)
        _core.trace(checkpoint.config, [1], None, name)  # unknown architectures and keys are named by the engine itself
        engine_options(**engine, config=checkpoint.config, folder=name)
    if task in ("classify", "rerank"):
        _check_head(task, checkpoint, request, located.with_weights)
    if task == "embed":
        prompt_text(checkpoint.sentence, request["prompt"], request["prompt_name"])
        warn_of_head(checkpoint.folder, checkpoint.head)
    positions, width = checkpoint.config.get("max_position_embeddings"), hidden_width(checkpoint.config)
    length, dimensions = request["max_length"], request.get("dimensions")
    if length and type(positions) is int and length > positions:
        raise RequestError(
            f"max_length is {length}; the model has {positions} positions, so 1 to {positions} belongs there"
        )
    if "pooling" not in request or width is None:
        return located
    modes = checkpoint.sentence.pooling
    if request["pooling"] != "auto":
        modes = pooling_modes(request["pooling"], said_by)
    width = checkpoint.chain.width(width * len(modes))
    if dimensions and dimensions > width:
        raise RequestError(f"dimensions is {dimensions}; vectors have {width}, so 1 to {width} belongs there")
    return located


def _check_head(task: str, checkpoint: Checkpoint, request: dict[str, object], with_weights: bool) -> None:
    """What the engine would say of the head, as far as the files tell."""
    labels = labels_by_files(checkpoint, with_weights)
    if task == "rerank":
        reranker_of(checkpoint, labels, request["raw"])
        return
    head = classifier_of(checkpoint, labels)
    if request["scores"] is not None:
        one_name_each(head.names, checkpoint.folder)
