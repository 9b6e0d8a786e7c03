"""firesteel scores Spark tables with transformer models: a C engine in a Python extension module.

    engine = firesteel.Engine("models/all-MiniLM-L6-v2")          # in this process
    engine = firesteel.connect("models/all-MiniLM-L6-v2")         # in the manager that this executor's workers share
    vectors = engine.embed(["one row", "another row"])            # float32 [2, 384]

    df.withColumn("v", firesteel.embed_udf("models/all-MiniLM-L6-v2")("text"))     # in Spark

Importing opens no device, thread, file or socket, and imports no Spark: the functions that need it come on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._core import (
    CheckpointError,
    ConfigError,
    DeviceError,
    Error,
    ManagerError,
    OutOfMemory,
    RequestError,
)
from .engine.engine import Engine
from .engine.placement import Placement, plan

if TYPE_CHECKING:
    from .manager.remote import connect
    from .spark import (
        Report,
        classify_udf,
        embed_udf,
        hidden_states_udf,
        progress,
        register,
        release,
        rerank_udf,
        score,
        warm,
    )

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "Engine",
    "Error",
    "ManagerError",
    "OutOfMemory",
    "Placement",
    "Report",
    "RequestError",
    "classify_udf",
    "connect",
    "embed_udf",
    "hidden_states_udf",
    "plan",
    "progress",
    "register",
    "release",
    "rerank_udf",
    "score",
    "warm",
]
_SPARK = (
    *("Report", "progress", "register", "release", "score", "warm"),
    *("classify_udf", "embed_udf", "hidden_states_udf", "rerank_udf"),
)


def __getattr__(name: str) -> object:
    if name in _SPARK:
        return getattr(import_module(".spark", __name__), name)
    if name == "connect":
        return import_module(".manager.remote", __name__).connect
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "connect", *_SPARK})
