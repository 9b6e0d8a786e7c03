"""embed_udf: text in, vectors out, as a column function."""

import os
from collections.abc import Sequence

from ..table.job import embed_job
from ._udf import ColumnFunction


def embed_udf(
    model: str | os.PathLike[str],
    *,
    pooling: str | Sequence[str] = "auto",
    normalize: bool | str = "auto",
    max_length: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    dimensions: int | None = None,
    truncate: bool | str = True,
    devices: str | Sequence[str] = "auto",
    parallel: str = "auto",
    dtype: str = "auto",
    max_memory: int | str | None = None,
    threads: int | None = None,
    cpu_path: str | None = None,
    manager: bool = True,
    details: bool = False,
    on_error: str | None = None,
    max_errors: float = 0.5,
    **unknown: object,
) -> ColumnFunction:
    """A column function from text to sentence vectors: string (or array<int>, token ids) -> array<float>.

    model        as in firesteel.Engine: a folder in Hugging Face layout that every executor has (one on a network mount
                 is copied once a node), "file:///...", "dbfs:/...", "models:/name@alias", "org/name@revision". Aliases
                 and revisions are looked up here, once; an executor with other files than the driver's fails and names
                 the file. A relative folder that the driver lacks ("./minilm", from spark.archives) is looked for in
                 each task's working directory, then in SparkFiles
    pooling ... truncate    as in firesteel.Engine.embed
    devices ... cpu_path    as in firesteel.Engine; threads=None: spark.firesteel.threads, else FIRESTEEL_THREADS, else
                            all cores of the executor, or with manager=False spark.task.cpus
    manager      True: the model is in the executor's manager, once for all of its tasks, as with firesteel.connect;
                 False: each worker process has its own
    details      True: struct<result:array<float>, error_code:string, error:string, prompt_tokens:int,
                 completion_tokens:int, finish_reason:string>; finish_reason is "length" where a row fills max_length
                 (its text was cut, unless it just fits), else "stop"
    on_error     what a faulty row does (too long with truncate="error", no valid UTF-8, an unknown token id): "fail"
                 the task, or become "null"; None: "null" with details, else "fail". Other faults always fail the task.
    max_errors   share of a partition's rows that may be faulty, judged from its 1,000th row on; more fail the task

    null in, null out. An empty string is a text. A row's vector is the same, bit for bit, wherever and with whatever
    else it is computed. The options are checked here, as firesteel.Engine checks them, and so is the model's folder
    where the driver has it; where it has not, a UserWarning says so. Which devices an executor has, it alone can tell,
    in the task.

    The function is an iterator arrow_udf from Spark 4.1 on. Before, it is an iterator pandas_udf, and the way of the
    vectors through pandas costs some 60 us a row: `firesteel.score` has no such cost on any Spark.

    Spark may evaluate a column twice, for a filter or a sort on it: write the table first where that matters.

    Raises ConfigError, RequestError, CheckpointError; the same in a task reach the driver with the task's failure.

    Example:

    >>> vectors = firesteel.embed_udf(model)
    >>> df = spark.createDataFrame([("a first text",), (None,)], "text string")
    >>> df.select(vectors("text").alias("v")).selectExpr("size(v) AS n", "v IS NULL AS missing").collect()
    [Row(n=384, missing=False), Row(n=None, missing=True)]
    """
    job = embed_job(
        model,
        pooling=pooling,
        normalize=normalize,
        max_length=max_length,
        prompt=prompt,
        prompt_name=prompt_name,
        dimensions=dimensions,
        truncate=truncate,
        devices=devices,
        parallel=parallel,
        dtype=dtype,
        max_memory=max_memory,
        threads=threads,
        cpu_path=cpu_path,
        manager=manager,
        details=details,
        on_error=on_error,
        max_errors=max_errors,
        **unknown,
    )
    return ColumnFunction(job)
