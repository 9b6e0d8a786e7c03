"""What Spark users call: models as column functions and tables scored whole.

    vectors = firesteel.embed_udf("models/all-MiniLM-L6-v2")
    df.withColumn("v", vectors("text"))                        # in an expression
    firesteel.score(df, vectors, "text", output="v")           # the same for a whole table; quicker before Spark 4.1
    firesteel.register(spark, "embed_text", vectors)           # in SQL

Only this folder imports pyspark, and only when one of these names is used: the modules that move rows
(_rows, _tasks, _columns, _window) serve `python -m firesteel run`, which has no Spark, as well.

    _embed, _hidden_states, _score, _register, _warm, _release, _progress    one Spark-facing function each
    _everywhere                a question to the managers of all executors
    _options                   options -> Job, checked on the driver; what travels to the workers
    _udf                       Job -> column function
    _rows                      batches in, results out, in order: what a worker runs
    _tasks                     what a task asks of the engine, and makes of the answer
    _window                    how far a worker reads ahead
    _counters                  what tasks tell the driver of their rows while a progress is on
    _watch                     a progress from beginning to end, with what is its own:
    _listener, _totals         the port to which tasks tell, and the sums of what they told
    _tasks_seen, _bar, _report what Spark knows of tasks, what is shown, what is left in the end
    _task_context              what Spark says of the task that this worker runs
    _columns                   all Arrow and pandas conversions
    _worker                    the engines that this worker process uses; the only place that knows where they are
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._embed import embed_udf
    from ._hidden_states import hidden_states_udf
    from ._progress import progress
    from ._register import register
    from ._release import release
    from ._report import Report as Report  # firesteel.Report; no function, and so not in __all__
    from ._score import score
    from ._warm import warm

_HOME = {
    "Report": "_report",
    "embed_udf": "_embed",
    "hidden_states_udf": "_hidden_states",
    "progress": "_progress",
    "register": "_register",
    "release": "_release",
    "score": "_score",
    "warm": "_warm",
}

__all__ = ["embed_udf", "hidden_states_udf", "progress", "register", "release", "score", "warm"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
