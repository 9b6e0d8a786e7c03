"""A Job as a column function: what `embed_udf` returns.

The function that Spark pickles is made here, a closure over the Job alone; everything it calls is pickled by name, so
firesteel must be installed on the executors and nothing of it travels.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyspark.sql.functions as F
from pyspark.sql.types import ArrayType, DataType, FloatType, IntegerType, StringType, StructField, StructType
from pyspark.sql.utils import is_remote

from .._core import ConfigError
from . import _columns, _rows, _worker
from ._options import Job

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import Column

RESULTS: dict[str, DataType] = {"embed": ArrayType(FloatType())}  # by task


def result_type(job: Job) -> DataType:
    """The Spark type of what the job makes of a row."""
    result = RESULTS[job.task]
    if not job.details:
        return result
    fields = {
        "result": result,
        "error_code": StringType(),
        "error": StringType(),
        "prompt_tokens": IntegerType(),
        "completion_tokens": IntegerType(),
        "finish_reason": StringType(),
    }
    return StructType([StructField(name, kind) for name, kind in fields.items()])


class ColumnFunction:
    """A model as a function of columns: a description. Making, copying or pickling one touches no device.

    Two with the same content are equal, and in a worker they share what is loaded. It has what Spark's own UDF objects
    have (func, returnType, evalType, deterministic, asNondeterministic), so `spark.udf.register(name, udf)` takes it.

    Example::

        vectors = firesteel.embed_udf("models/all-MiniLM-L6-v2")
        df.select(vectors("text"), vectors(F.lower("text")))
    """

    def __init__(self, job: Job, deterministic: bool = True) -> None:
        self.job = job
        self.deterministic = deterministic

    def __call__(self, *columns: "Column | str") -> "Column":
        """The column of results. One column goes in: its name, or any expression."""
        if len(columns) != 1:
            raise ConfigError(f"{self.job.task}_udf's function takes 1 column; {len(columns)} were given")
        return self._spark(columns[0])

    @property
    def func(self) -> Callable[..., object]:
        return self._spark.func

    @property
    def returnType(self) -> DataType:
        return result_type(self.job)

    @property
    def evalType(self) -> int:
        return self._spark.evalType

    def asNondeterministic(self) -> "ColumnFunction":
        """The same, which Spark evaluates once a row: filters on other columns are then not run before it."""
        return ColumnFunction(self.job, deterministic=False)

    @property
    def _spark(self) -> Callable[..., "Column"]:
        return _spark_udf(self.job, self.deterministic, is_remote())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ColumnFunction):
            return NotImplemented
        return (self.job, self.deterministic) == (other.job, other.deterministic)

    def __hash__(self) -> int:
        return hash((self.job, self.deterministic))

    def __repr__(self) -> str:
        plain = {"pooling": "auto", "normalize": "auto", "truncate": True, "devices": "auto", "dtype": "auto"}
        given = {name: value for name, value in self.job.engine + self.job.request if value != plain.get(name)}
        said = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"{self.job.task}_udf({self.job.model!r}{said})"


@lru_cache(maxsize=256)
def _spark_udf(job: Job, deterministic: bool, remote: bool) -> Callable[..., "Column"]:
    """Spark's own UDF object for a job. Kept, so that Spark sees the same expression where a cell is run again."""
    kind = result_type(job)
    arrow_udf = getattr(F, "arrow_udf", None)
    made = arrow_udf(arrow_function(job), kind) if arrow_udf else F.pandas_udf(pandas_function(job), kind)
    return made if deterministic else made.asNondeterministic()


def arrow_function(job: Job) -> Callable[[Iterator[pa.Array]], Iterator[pa.Array]]:
    """For arrow_udf (Spark >= 4.1): the results are the engine's own memory, nothing is copied."""

    def embed(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        for _, result in _rows.embed(job, batches, _worker.attach, _same, f"the column given to {job.task}_udf"):
            yield result

    return embed


def pandas_function(job: Job) -> "Callable[[Iterator[pd.Series]], Iterator[pd.Series]]":
    """For pandas_udf, before Spark 4.1: some 60 us a row for the way through pandas."""
    import pandas as pd

    def rows(batches: Iterator[pd.Series]) -> Iterator[pa.Array]:
        arrays = map(_columns.from_series, batches)
        for _, result in _rows.embed(job, arrays, _worker.attach, _same, f"the column given to {job.task}_udf"):
            yield result

    def embed(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        yield from map(_columns.to_series, rows(batches))

    def embed_with_details(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        yield from map(_columns.to_frame, rows(batches))

    return embed_with_details if job.details else embed


def _same(array: pa.Array) -> pa.Array:
    return array
