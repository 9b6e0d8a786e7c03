"""What Spark users call: models as column functions and tables scored whole.

    vectors = firesteel.embed_udf("models/all-MiniLM-L6-v2")
    df.withColumn("v", vectors("text"))                        # in an expression
    firesteel.classify_udf(...), firesteel.rerank_udf(...)     # labels, and how well documents answer, likewise
    firesteel.score(df, vectors, "text", output="v")           # the same for a whole table; quicker before Spark 4.1
    firesteel.register(spark, "embed_text", vectors)           # in SQL

Only this folder imports pyspark, and only when one of these names is used. What moves the rows is in table/, which
`python -m firesteel run` stands on as well, and needs no Spark.

    _embed, _classify, _rerank, _hidden_states, _score, _register, _warm, _release    one Spark-facing function each
    _progress/                 firesteel.progress; no package of that name, which would hide the function
    _everywhere                a question to the managers of all executors
    _inputs, _carried          score's columns: those it reads, and the types that it carries
    _udf                       Job -> column function
    _worker                    the engines that this worker process uses; the only place that knows where they are
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._classify import classify_udf
    from ._embed import embed_udf
    from ._hidden_states import hidden_states_udf
    from ._progress.progress import progress
    from ._progress.report import Report as Report  # firesteel.Report; no function, and so not in __all__
    from ._register import register
    from ._release import release
    from ._rerank import rerank_udf
    from ._score import score
    from ._warm import warm

_HOME = {
    "Report": "_progress.report",
    "classify_udf": "_classify",
    "embed_udf": "_embed",
    "hidden_states_udf": "_hidden_states",
    "progress": "_progress.progress",
    "register": "_register",
    "release": "_release",
    "rerank_udf": "_rerank",
    "score": "_score",
    "warm": "_warm",
}

__all__ = [
    "classify_udf",
    "embed_udf",
    "hidden_states_udf",
    "progress",
    "register",
    "release",
    "rerank_udf",
    "score",
    "warm",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
