"""rerank_udf: query and document in, a score out, as a column function."""

import os

from ..table.job import rerank_job
from ._udf import ColumnFunction


def rerank_udf(
    model: str | os.PathLike[str],
    *,
    max_length: int | None = None,
    truncate: bool | str = True,
    raw: bool = False,
    **options: object,
) -> ColumnFunction:
    """A column function of a query and a document, both string -> float: how well the document answers, higher is
    better.

    model     as in embed_udf; the folder of a cross-encoder, a *ForSequenceClassification with one label
    max_length, truncate, raw    as in firesteel.Engine.rerank, whose scores these are, bit for bit
    options   devices and all other options of firesteel.Engine; manager, details, on_error, max_errors: as in embed_udf

    null in, null out, whichever of the two is null. How Spark calls the function, and how often, is as in embed_udf;
    `firesteel.score` takes it too. Raises ConfigError, RequestError, CheckpointError; the same in a task reach the
    driver with the task's failure.

    Example:

    >>> relevance = firesteel.rerank_udf(reranker)
    >>> rows = [(1, "to_date parses a date"), (2, "a fine day"), (3, None)]
    >>> df = spark.createDataFrame(rows, "id int, document string")
    >>> scored = df.withColumn("score", relevance(F.lit("how do I parse a date?"), "document"))
    >>> scored.selectExpr("id", "score BETWEEN 0 AND 1 AS scored").orderBy("id").collect()
    [Row(id=1, scored=True), Row(id=2, scored=True), Row(id=3, scored=None)]
    """
    return ColumnFunction(rerank_job(model, max_length=max_length, truncate=truncate, raw=raw, **options))
