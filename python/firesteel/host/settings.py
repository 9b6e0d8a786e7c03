"""Settings: FIRESTEEL_X in the environment, or spark.firesteel.x in the session's conf, which travels with its jobs."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .. import _core
from .task import local_property
from .values import plain


def seconds(knob: str, option: float | None = None) -> float:
    """A number of seconds: the option, else the environment's, else the knob's default. Raises ConfigError."""
    return number(knob, "seconds", option)


def number(knob: str, unit: str, option: float | None = None) -> float:
    preset = next(row["default"] for row in _core.knobs() if row["name"] == knob)
    said = os.environ.get(f"FIRESTEEL_{knob}") or preset if option is None else plain(option)
    try:
        value = -1.0 if isinstance(said, bool) else float(said)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < math.inf:
        thing = f"FIRESTEEL_{knob}" if option is None else knob.removeprefix("MANAGER_").lower()
        raise _core.ConfigError(f"{thing} is {said!r}; it takes a number of {unit} that is not negative")
    return value


def address_limit() -> str:
    """What to know of a limit on this process's address space, which the manager inherits; empty without one."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        f"RLIMIT_AS leaves it {limit / 2**30:.1f} GiB of addresses, and GPUs and weights need more: unset "
        f"spark.executor.pyspark.memory (outside Spark: ulimit -v unlimited)"
    )


@contextmanager
def ignore_keys_of_session() -> Iterator[None]:
    """On the driver: the one knob that decides whether a checkpoint is fine, as the active session's workers see it."""
    spark = sys.modules.get("pyspark.sql")  # not there: there is no session
    session = spark.SparkSession.getActiveSession() if spark is not None else None
    said = session.conf.get("spark.firesteel.ignore_keys", None) if session is not None else None
    with environment({} if said is None else {"IGNORE_KEYS": said}):
        yield


def of_task() -> dict[str, str]:
    """{X: what spark.firesteel.x said} of this worker's task, for those that were set."""
    names = [row["name"] for row in _core.knobs()]
    values = {name: local_property(f"spark.firesteel.{name.lower()}") for name in names}
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def environment(knobs: Mapping[str, str]) -> Iterator[None]:
    """FIRESTEEL_X as `knobs` says, for as long as an engine opens: they are read then and at no other time."""
    before = {name: os.environ.get(f"FIRESTEEL_{name}") for name in knobs}
    os.environ.update({f"FIRESTEEL_{name}": value for name, value in knobs.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[f"FIRESTEEL_{name}"]
            else:
                os.environ[f"FIRESTEEL_{name}"] = value
