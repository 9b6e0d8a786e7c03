"""A Job as a column function: what `embed_udf` and `hidden_states_udf` return.

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
from ..table import counters
from ..table.columns import from_series, to_frame, to_series
from ..table.job import Job
from ..table.stream import stream
from . import _worker

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import Column

COLUMNS = {"embed": (1, 1), "hidden_states": (1, 2)}  # by task: how many go in, at least and at most


def result_type(job: Job) -> DataType:
    """The Spark type of what the job makes of a row."""
    result: DataType = ArrayType(FloatType())
    if dict(job.request).get("output") == "all":
        result = ArrayType(result)
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


def check_count(job: Job, given: int, of: str = "") -> None:
    """Raises ConfigError where the job does not take that many columns."""
    least, most = COLUMNS[job.task]
    if not least <= given <= most:
        takes = "1 column" if most == 1 else f"{least} or {most} columns"
        raise ConfigError(f"{job.task}_udf{of} takes {takes}; {given} were given")


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
        """The column of results. A column is a name, or any expression."""
        check_count(self.job, len(columns), "'s function")
        return self._spark(*columns)

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
        plain: dict[str, object] = dict.fromkeys(("pooling", "normalize", "devices", "parallel", "dtype"), "auto")
        plain |= {"truncate": True, "output": "all", "manager": True}
        given = {name: value for name, value in self.job.engine + self.job.request if value != plain.get(name)}
        said = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"{self.job.task}_udf({self.job.model.name!r}{said})"


@lru_cache(maxsize=256)
def _spark_udf(job: Job, deterministic: bool, remote: bool) -> Callable[..., "Column"]:
    """Spark's own UDF object for a job. Kept, so that Spark sees the same expression where a cell is run again."""
    kind = result_type(job)
    arrow_udf = getattr(F, "arrow_udf", None)
    made = arrow_udf(arrow_function(job), kind) if arrow_udf else F.pandas_udf(pandas_function(job), kind)
    return made if deterministic else made.asNondeterministic()


def arrow_function(job: Job) -> Callable[[Iterator[pa.Array]], Iterator[pa.Array]]:
    """For arrow_udf (Spark >= 4.1): the results are the engine's own memory, nothing is copied."""

    def compute(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        given = map(_Given.of, batches)
        for _, result in stream(job, given, _worker.attach, tuple, _names(job), counters.of_task()):
            yield result

    compute.__name__ = job.task  # which Spark names the column by
    return compute


def pandas_function(job: Job) -> "Callable[[Iterator[pd.Series]], Iterator[pd.Series]]":
    """For pandas_udf, before Spark 4.1: some 60 us a row for the way through pandas."""
    import pandas as pd

    def rows(batches: Iterator[pd.Series]) -> Iterator[pa.Array]:
        given = (_Given(map(from_series, _Given.of(batch))) for batch in batches)
        for _, result in stream(job, given, _worker.attach, tuple, _names(job), counters.of_task()):
            yield result

    def compute(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        yield from map(to_series, rows(batches))

    def compute_with_details(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        yield from map(to_frame, rows(batches))

    made = compute_with_details if job.details else compute
    made.__name__ = job.task
    return made


class _Given(tuple):
    """What Spark hands over for a batch: a tuple of columns, or where there is but one, that."""

    @classmethod
    def of(cls, batch: object) -> "_Given":
        return cls(batch if isinstance(batch, tuple) else (batch,))

    def slice(self, begin: int, rows: int) -> "_Given":
        return self  # nobody asks for it again: results go back alone


def _names(job: Job) -> tuple[str, str]:
    return f"the column given to {job.task}_udf", f"the targets given to {job.task}_udf"
