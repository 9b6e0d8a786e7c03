"""classify_udf: text in, labels and scores out, as a column function."""

import os

from ..table.job import classify_job
from ._udf import ColumnFunction


def classify_udf(
    model: str | os.PathLike[str],
    *,
    top_k: int | None = None,
    scores: str | None = None,
    max_length: int | None = None,
    truncate: bool | str = True,
    raw: bool = False,
    **options: object,
) -> ColumnFunction:
    """A column function from text to a classifier's label: string (or array<int>, token ids) -> struct<label:string,
    score:float>, the label that scores best.

    It takes one column, or of models that judge pairs two: the texts, and their second texts, which are no token ids.

    model     as in embed_udf; the folder of a *ForSequenceClassification
    top_k     array<struct<label:string, score:float>> instead: so many labels, the best first, or all where there are
              fewer; equal scores in the order of the model's labels
    scores    "all": map<string,float> instead, the score of every label
    max_length, truncate, raw    as in firesteel.Engine.classify, whose scores these are, bit for bit
    options   devices and all other options of firesteel.Engine; manager, details, on_error, max_errors: as in embed_udf

    null in, null out, whichever of two columns is null. In SQL before Spark 4.1 pandas has no null for a struct: there
    its label and score are null. How Spark calls the function, and how often, is as in embed_udf; `firesteel.score`
    takes it too.

    Raises ConfigError, RequestError, CheckpointError; the same in a task reach the driver with the task's failure.

    Example:

    >>> sentiment = firesteel.classify_udf(classifier)
    >>> df = spark.createDataFrame([("what a fine day",), (None,)], "text string")
    >>> df.select(sentiment("text").alias("s")).selectExpr("s.label", "s.score > 0.5 AS sure").collect()
    [Row(label='fair', sure=True), Row(label=None, sure=None)]
    >>> every = firesteel.classify_udf(classifier, scores="all")
    >>> df.select(every("text").alias("s")).selectExpr("map_keys(s) AS labels").first()
    Row(labels=['fair', 'foul'])
    """
    job = classify_job(model, top_k=top_k, scores=scores, max_length=max_length, truncate=truncate, raw=raw, **options)
    return ColumnFunction(job)
