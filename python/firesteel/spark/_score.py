"""score: a whole table through a model, by mapInArrow."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.types import (
    ArrayType,
    DataType,
    FractionalType,
    IntegralType,
    NullType,
    StringType,
    StructField,
    StructType,
)

from .._core import ConfigError, RequestError
from ..table import counters, stream
from ..table.job import Job
from . import _worker
from ._udf import ColumnFunction, check_count

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def score(df: "DataFrame", udf: ColumnFunction, *columns: str, output: str = "prediction") -> "DataFrame":
    """The table with one more column, `output`: what `udf` makes of `columns`, which are names.

    All other columns and the order within partitions are kept. It goes through mapInArrow, where vectors are handed
    over without a copy on every Spark from 3.5 on. Spark pushes no filter through a mapInArrow: filter before.
    Write the result before a sort or a join, which would compute it twice.

    Raises ConfigError, or RequestError for a column of another type than the function takes, before anything runs.

    Example:

    >>> df = spark.createDataFrame([(1, "a first text"), (2, "another")], "id int, text string")
    >>> scored = firesteel.score(df, firesteel.embed_udf(model), "text", output="v")
    >>> scored.selectExpr("id", "text", "size(v) AS n").orderBy("id").collect()
    [Row(id=1, text='a first text', n=384), Row(id=2, text='another', n=384)]
    """
    if not isinstance(udf, ColumnFunction):
        raise ConfigError(
            f"udf is a {type(udf).__name__}; what firesteel.embed_udf returns, or hidden_states_udf, belongs there"
        )
    check_count(udf.job, len(columns))
    names = df.columns
    places = [_find(names, column) for column in columns]
    for place in places:
        _check_type(df.schema.fields[place])
    if not isinstance(output, str) or not output:
        raise ConfigError(f"output is {output!r}; the name of the new column belongs there")
    if output.lower() in (name.lower() for name in names):
        raise ConfigError(f"output is {output!r}, which the table already has; choose another: output=...")
    schema = StructType([*df.schema.fields, StructField(output, udf.returnType)])
    return df.mapInArrow(_function(udf.job, places, [*names, output]), schema)


def _function(job: Job, places: list[int], names: list[str]):
    called = [f"column {names[place]}" for place in places]

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        def given(batch: pa.RecordBatch) -> list[pa.Array]:
            return [batch.column(place) for place in places]

        pieces = stream.stream(job, batches, _worker.attach, given, called, counters.of_task())
        for batch, result in pieces:
            yield pa.RecordBatch.from_arrays([*batch.columns, result], names)

    return score


def _find(names: list[str], name: object) -> int:
    if not isinstance(name, str):
        raise ConfigError(f"columns are {name!r}; score takes the names of columns, as strings")
    times = names.count(name)
    if times != 1:
        what = "no column" if times == 0 else f"{times} columns"
        raise ConfigError(f"the table has {what} {name!r}; its columns are {', '.join(names)}")
    return names.index(name)


def _check_type(field: StructField) -> None:
    kind: DataType = field.dataType
    if isinstance(kind, (StringType, NullType)):
        return
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, (IntegralType, NullType)):
        return
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, ArrayType):
        if isinstance(kind.elementType.elementType, (FractionalType, IntegralType, NullType)):
            return
    raise RequestError(
        f"column {field.name} is {kind.simpleString()}; string (text) or array<int> (token ids), or for models that "
        f"take features array<array<float>>, belongs there: cast it, or choose another column"
    )
