"""score: a whole table through a model, by mapInArrow.

    df -> select(*, inputs that are no plain column) -> columns renamed by place -> mapInArrow -> all of df, and output

mapInArrow addresses columns by name, and a table may have names that no expression can say: two of one name after a
join, a dot, nothing at all. So the columns go in under names of their own and come out, by place, under the table's.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.types import StructField, StructType

from .._core import ConfigError
from ..table import counters, stream
from ..table.job import Job
from . import _worker
from ._carried import as_it_was, as_string, check_carried, check_input, numbered, without_char
from ._inputs import find_inputs, said
from ._udf import ColumnFunction, check_count

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def score(df: "DataFrame", udf: ColumnFunction, *columns: "Column | str", output: str = "prediction") -> "DataFrame":
    """The table with one more column, `output`: what `udf` makes of `columns`.

    columns      names, or expressions as F.lower("text"). A name is that of a column, dots and all; where the table has
                 none of exactly that name it is what Spark's F.col takes: another case, a field ("s.text"), backticks
    output       the new column's name, as it stands: a dot in it is no field

    All other columns and the order within partitions are kept; columns may share a name. It goes through mapInArrow,
    where vectors are handed over without a copy on every Spark from 3.5 on. Spark pushes no filter through a
    mapInArrow: filter before. Write the result before a sort or a join, which would compute it twice.

    Before anything runs it raises ConfigError for a name that is missing or stands for several columns; RequestError
    for an input of another type than the function takes, or a column that Arrow cannot carry (intervals of months, a
    struct with two fields of one name); and what Spark raises for an expression that does not belong to the table.

    Example:

    >>> df = spark.createDataFrame([(1, "a first text"), (2, "another")], "id int, text string")
    >>> scored = firesteel.score(df, firesteel.embed_udf(model), "text", output="v")
    >>> scored.selectExpr("id", "text", "size(v) AS n").orderBy("id").collect()
    [Row(id=1, text='a first text', n=384), Row(id=2, text='another', n=384)]
    """
    if not isinstance(udf, ColumnFunction):
        raise ConfigError(
            f"udf is a {type(udf).__name__}; what firesteel.embed_udf returns, or its like, belongs there"
        )
    if not hasattr(df, "mapInArrow"):
        raise ConfigError(
            f"df is a {type(df).__name__}; a DataFrame of Spark belongs there, as spark.createDataFrame(...) makes one"
        )
    check_count(udf.job, len(columns), f"{udf.job.task}_udf")
    fields = df.schema.fields
    _check_output(df, output)
    places, made = find_inputs(df, columns)
    wide = df.select("*", *made) if made else df
    kinds = [field.dataType for field in (wide.schema.fields if made else fields)]
    called = [f"column {said(column)}" for column in columns]
    for place, name in zip(places, called, strict=True):
        check_input(kinds[place], name)
    for field in fields:
        check_carried(field)
    plain_types = without_char(wide.toDF(*numbered(len(kinds))), kinds)
    carried = [StructField(f.name, as_string(f.dataType), f.nullable, f.metadata) for f in fields]
    schema = StructType([*carried, StructField(output, udf.returnType)])
    scored = plain_types.mapInArrow(_function(udf.job, places, called, len(fields)), schema)
    return scored if carried == fields else as_it_was(scored, fields, output)


def _function(job: Job, places: list[int], called: list[str], carried: int):
    names = numbered(carried + 1)  # Spark takes the result by place

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        def given(batch: pa.RecordBatch) -> list[pa.Array]:
            return [batch.column(place) for place in places]

        pieces = stream.stream(job, batches, _worker.attach, given, called, counters.of_task())
        for batch, result in pieces:
            yield pa.RecordBatch.from_arrays([*batch.columns[:carried], result], names)

    return score


def _check_output(df: "DataFrame", output: object) -> None:
    if not isinstance(output, str) or not output or not _is_text(output):
        raise ConfigError(f"output is {output!r}; the name of the new column belongs there")
    exact = str(df.sparkSession.conf.get("spark.sql.caseSensitive", "false")).lower() == "true"
    known = df.columns if exact else [name.lower() for name in df.columns]
    if (output if exact else output.lower()) in known:
        raise ConfigError(f"output is {output!r}, which the table already has; choose another: output=...")


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
