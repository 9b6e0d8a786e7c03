"""A Job as a column function: what `embed_udf` and its like return.

The function that Spark pickles is made here, a closure over the Job alone; everything it calls is pickled by name, so
firesteel must be installed on the executors and nothing of it travels.
"""

import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyspark.sql.functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    FloatType,
    IntegerType,
    MapType,
    StringType,
    StructField,
    StructType,
)
from pyspark.sql.utils import is_remote

from .._core import ConfigError, RequestError
from ..table import counters
from ..table.columns import from_series, in_boxes, to_frame, to_series
from ..table.job import Job
from ..table.stream import stream
from . import _worker

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import Column

# By task: how many columns go in, at least and at most, and how a sentence calls them.
COLUMNS = {"embed": (1, 1), "classify": (1, 2), "rerank": (2, 2), "hidden_states": (1, 2)}
_NAMES = {
    "embed": ("the column",),
    "classify": ("the column", "the second texts"),
    "rerank": ("the queries", "the documents"),
    "hidden_states": ("the column", "the targets"),
}


def result_type(job: Job) -> DataType:
    """The Spark type of what the job makes of a row."""
    result = _of_task(job.task, dict(job.request))
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


def _of_task(task: str, request: dict[str, object]) -> DataType:
    if task == "rerank":
        return FloatType()
    if task == "classify":
        label = StructType([StructField("label", StringType()), StructField("score", FloatType())])
        if request["scores"] is not None:
            return MapType(StringType(), FloatType())
        return label if request["top_k"] is None else ArrayType(label)
    vector = ArrayType(FloatType())
    return ArrayType(vector) if request.get("output") == "all" else vector


def check_count(job: Job, given: int, function: str) -> None:
    """Raises ConfigError where the job does not take that many columns. `function` is how the user called it."""
    least, most = COLUMNS[job.task]
    if least <= given <= most:
        return
    takes = "1 column" if most == 1 else f"{most} columns" if least == most else f"{least} or {most} columns"
    if job.task == "rerank":
        takes += ": the query first, then the document"
    way = "; concat_ws(' ', ...) makes one text of several" if given > most == 1 else ""
    raise ConfigError(f"{function} takes {takes}; {given} {'was' if given == 1 else 'were'} given{way}")


class ColumnFunction:
    """A model as a function of columns: a description. Making, copying or pickling one touches no device.

    Two with the same content are equal, and in a worker they share what is loaded. It has what Spark's own UDF objects
    have (func, returnType, evalType, deterministic, asNondeterministic), so `spark.udf.register(name, udf)` takes it.

    Example::

        vectors = firesteel.embed_udf("models/all-MiniLM-L6-v2")
        df.select(vectors("text"), vectors(F.lower("text")))
    """

    def __init__(self, job: Job, deterministic: bool = True, name: str | None = None) -> None:
        self.job = job
        self.deterministic = deterministic
        self._name = name  # in SQL, where it has one: errors call it so

    def __call__(self, *columns: "Column | str") -> "Column":
        """The column of results. A column is a name, or any expression."""
        check_count(self.job, len(columns), f"{self.job.task}_udf's function")
        if is_label(self.job) and not hasattr(F, "arrow_udf"):
            boxes = _pandas_udf_of_boxes(self.job, self.deterministic, is_remote(), self._name)
            return boxes(*columns).getItem(0)
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
        return ColumnFunction(self.job, deterministic=False, name=self._name)

    def named(self, name: str) -> "ColumnFunction":
        """The same, as errors of SQL's `name` tell of it."""
        return ColumnFunction(self.job, self.deterministic, name)

    @property
    def _spark(self) -> Callable[..., "Column"]:
        return _spark_udf(self.job, self.deterministic, is_remote(), self._name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ColumnFunction):
            return NotImplemented
        return (self.job, self.deterministic) == (other.job, other.deterministic)

    def __hash__(self) -> int:
        return hash((self.job, self.deterministic))

    def __repr__(self) -> str:
        plain: dict[str, object] = dict.fromkeys(("pooling", "normalize", "devices", "parallel", "dtype"), "auto")
        plain |= {"truncate": True, "output": "all", "manager": True, "raw": False}
        given = {name: value for name, value in self.job.engine + self.job.request if value != plain.get(name)}
        said = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"{self.job.task}_udf({self.job.model.name!r}{said})"


@lru_cache(maxsize=256)
def _spark_udf(job: Job, deterministic: bool, remote: bool, name: str | None) -> Callable[..., "Column"]:
    """Spark's own UDF object for a job. Kept, so that Spark sees the same expression where a cell is run again."""
    kind = result_type(job)
    arrow_udf = getattr(F, "arrow_udf", None)
    made = arrow_udf(arrow_function(job, name), kind) if arrow_udf else F.pandas_udf(pandas_function(job, name), kind)
    return made if deterministic else made.asNondeterministic()


def is_label(job: Job) -> bool:
    return isinstance(result_type(job), StructType) and not job.details


@lru_cache(maxsize=256)
def _pandas_udf_of_boxes(job: Job, deterministic: bool, remote: bool, name: str | None) -> Callable[..., "Column"]:
    """The same before Spark 4.1, of a struct: pandas has no null for one, but has for an array with it inside."""
    made = F.pandas_udf(pandas_function(job, name, boxed=True), ArrayType(result_type(job)))
    return made if deterministic else made.asNondeterministic()


def arrow_function(job: Job, name: str | None = None) -> Callable[[Iterator[pa.Array]], Iterator[pa.Array]]:
    """For arrow_udf (Spark >= 4.1): the results are the engine's own memory, nothing is copied."""

    def compute(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        given = _given(job, batches, name)
        for _, result in stream(job, given, _worker.attach, tuple, _names(job), counters.of_task()):
            yield result

    compute.__name__ = job.task  # which Spark names the column by
    return compute


def pandas_function(
    job: Job, name: str | None = None, boxed: bool = False
) -> "Callable[[Iterator[pd.Series]], Iterator[pd.Series]]":
    """For pandas_udf, before Spark 4.1: some 60 us a row for the way through pandas. boxed: arrays of one result."""
    import pandas as pd

    def rows(batches: Iterator[pd.Series]) -> Iterator[pa.Array]:
        given = (_Given(map(_from_pandas, batch, _names(job))) for batch in _given(job, batches, name))
        for _, result in stream(job, given, _worker.attach, tuple, _names(job), counters.of_task()):
            yield result

    def compute(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        yield from (to_series(in_boxes(array) if boxed else array) for array in rows(batches))

    def compute_with_fields(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        yield from map(to_frame, rows(batches))

    made = compute_with_fields if isinstance(result_type(job), StructType) and not boxed else compute
    made.__name__ = job.task
    return made


class _Given(tuple):
    """The columns of a batch."""

    def slice(self, begin: int, rows: int) -> "_Given":
        return self  # nobody asks for it again: results go back alone


def _given(job: Job, batches: Iterator[object], name: str | None) -> Iterator[_Given]:
    """What Spark hands over: for a batch a tuple of columns, or where there is but one, that.

    SQL calls a function with as many columns as it likes, and only here is that seen. Raises ConfigError. With none,
    Spark's own worker fails before 4.1: it takes the length of the first.
    """
    function = name or f"{job.task}_udf's function"
    while True:
        try:
            batch = next(batches, None)
        except IndexError as error:
            if not _of_worker(error):
                raise
            batch = ()
        if batch is None:
            return
        found = _Given(batch if isinstance(batch, tuple) else (batch,))
        check_count(job, len(found), function)
        yield found


def _of_worker(error: Exception) -> bool:
    """Whether Spark's worker raised it, and no function that stands before ours."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts[-2:] == ("pyspark", "worker.py")


def _from_pandas(given: "pd.Series | pd.DataFrame", column: str) -> pa.Array:
    if given.ndim == 1:
        return from_series(given)
    fields = ", ".join(map(str, given.columns))
    raise RequestError(
        f"{column} is a struct of {fields}; string (text) or array<int> (token ids), or for models that take features "
        f"array<array<float>>, belongs there: choose one of its fields"
    )


def _names(job: Job) -> list[str]:
    return [f"{name} given to {job.task}_udf" for name in _NAMES[job.task]]
