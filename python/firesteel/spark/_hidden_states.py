"""hidden_states_udf: a model's last hidden states, as a column function."""

import os

from ..table.job import hidden_states_job
from ._udf import ColumnFunction


def hidden_states_udf(model: str | os.PathLike[str], output: str = "all", **options: object) -> ColumnFunction:
    """A column function from rows to a model's last hidden states, the same bits as firesteel.Engine.hidden_states.

    It takes one column, or for models with a decoder two: the rows, and the targets, which the decoder reads. A column
    is string (text, tokenised and cut as in embed_udf), array<int> (token ids) or, of models that take them,
    array<array<float>> (features: as many numbers a token as the model is wide). Targets are no text.

    model     as in embed_udf
    output    "all": array<array<float>>, a vector a token; "first", "last", "mean": array<float>, that token's vector
              or the mean of all of them. Tokens are those of the targets where there are targets
    options   max_length, truncate: as in firesteel.Engine.embed; devices and all other options of firesteel.Engine;
              manager, details, on_error, max_errors: as in embed_udf. A row without tokens has no first, last and
              mean, which is a fault of the row; so is a token of another width than the model's

    null in, null out, whichever of the two columns is null. How Spark calls the function, and how often, is as in
    embed_udf; `firesteel.score` takes it too. Raises ConfigError, RequestError, CheckpointError; the same in a task
    reach the driver with the task's failure.

    Example:

    >>> states = firesteel.hidden_states_udf(model)
    >>> df = spark.createDataFrame([([101, 7592, 102],), (None,)], "ids array<int>")
    >>> df.select(states("ids").alias("s")).selectExpr("size(s) AS tokens", "size(s[0]) AS width").collect()
    [Row(tokens=3, width=384), Row(tokens=None, width=None)]
    """
    return ColumnFunction(hidden_states_job(model, output=output, **options))
