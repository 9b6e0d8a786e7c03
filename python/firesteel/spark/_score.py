"""score: a whole table through a model, by mapInArrow.

    df -> select(*, inputs that are no plain column) -> columns renamed by place -> mapInArrow -> all of df, and output

mapInArrow addresses columns by name, and a table may have names that no expression can say: two of one name after a
join, a dot, nothing at all. So the columns go in under names of their own and come out, by place, under the table's.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

import pyarrow as pa
import pyspark.sql.functions as F
from pyspark.sql import Column
from pyspark.sql.types import (
    ArrayType,
    CharType,
    DataType,
    FractionalType,
    IntegralType,
    MapType,
    NullType,
    StringType,
    StructField,
    StructType,
    UserDefinedType,
    VarcharType,
)
from pyspark.sql.utils import AnalysisException, is_remote

from .._core import ConfigError, RequestError
from ..table import counters, stream
from ..table.job import Job
from . import _worker
from ._udf import ColumnFunction, check_count

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

NAMED = 20  # columns that an error lists; a table may have thousands
UNCARRIED = ("YearMonthIntervalType", "CalendarIntervalType")  # by name: PySpark 3.5 does not have the second


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
            f"udf is a {type(udf).__name__}; what firesteel.embed_udf returns, or hidden_states_udf, belongs there"
        )
    if not hasattr(df, "mapInArrow"):
        raise ConfigError(
            f"df is a {type(df).__name__}; a DataFrame of Spark belongs there, as spark.createDataFrame(...) makes one"
        )
    check_count(udf.job, len(columns), f"{udf.job.task}_udf")
    fields = df.schema.fields
    _check_output(df, output)
    places, made = _inputs(df, columns)
    wide = df.select("*", *made) if made else df
    kinds = [field.dataType for field in (wide.schema.fields if made else fields)]
    called = [f"column {_said(column)}" for column in columns]
    for place, name in zip(places, called, strict=True):
        _check_input(kinds[place], name)
    for field in fields:
        _check_carried(field)
    plain = _plain(wide.toDF(*_numbered(len(kinds))), kinds)
    carried = [StructField(f.name, _as_string(f.dataType), f.nullable, f.metadata) for f in fields]
    schema = StructType([*carried, StructField(output, udf.returnType)])
    scored = plain.mapInArrow(_function(udf.job, places, called, len(fields)), schema)
    return scored if carried == fields else _as_it_was(scored, fields, output)


def _function(job: Job, places: list[int], called: list[str], carried: int):
    names = _numbered(carried + 1)  # Spark takes the result by place

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        def given(batch: pa.RecordBatch) -> list[pa.Array]:
            return [batch.column(place) for place in places]

        pieces = stream.stream(job, batches, _worker.attach, given, called, counters.of_task())
        for batch, result in pieces:
            yield pa.RecordBatch.from_arrays([*batch.columns[:carried], result], names)

    return score


# --- which columns ---------------------------------------------------------------------------------------------------


def _inputs(df: "DataFrame", columns: tuple["Column | str", ...]) -> tuple[list[int], list[Column]]:
    """(where each input stands, expressions to put behind the table's columns)."""
    names = df.columns
    places: list[int] = []
    made: list[Column] = []
    for column in columns:
        if isinstance(column, str) and names.count(column) == 1:
            places.append(names.index(column))
            continue
        if not isinstance(column, (str, *_column_types())):
            raise ConfigError(f"columns are {column!r}; score takes names of columns, as strings, and expressions")
        places.append(len(names) + len(made))
        made.append(_resolve(df, column) if isinstance(column, str) else _one(column, len(made)))
    return places, made


def _column_types() -> tuple[type, ...]:
    """Before Spark 4.0 Connect's columns are a class of their own."""
    if not is_remote():
        return (Column,)
    from pyspark.sql.connect.column import Column as RemoteColumn

    return Column, RemoteColumn


def _one(column: Column, number: int = 0) -> Column:
    """The expression as exactly one value a row: inside another Spark refuses `*`, and what makes rows (explode)."""
    name = f"firesteel_{number}"
    return F.coalesce(column.alias(name)).alias(name)


def _resolve(df: "DataFrame", name: str) -> Column:
    """What Spark takes a name for. Raises ConfigError where that is nothing, or not one column."""
    names = df.columns
    if (times := names.count(name)) > 1:
        raise ConfigError(
            f"the table has {times} columns {name!r}, so it is ambiguous; rename one, or give the column itself: "
            f"score(..., F.col('alias.{name}'))"
        )
    try:
        column = _one(F.col(name))
        _ = df.select(column).schema  # Connect resolves a plan when it is asked something
        return column
    except AnalysisException as error:
        if "AMBIGUOUS_REFERENCE_TO_FIELDS" in str(error):
            raise ConfigError(
                f"{name!r} names several fields of one struct, which no expression can tell apart; rename one"
            ) from None
        if "AMBIGUOUS_REFERENCE" in str(error):
            said = f"the table has several columns {name!r}, as Spark compares names: {_list(_alike(names, name))}"
            raise ConfigError(f"{said}; give the exact name of one") from None
    except Exception as error:
        if type(error).__name__ not in ("ParseException", "IllegalArgumentException"):
            raise
    close = get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(
        f"the table has no column {name!r}; {hint}its columns are {_list(names)}, and an expression goes as a Column: "
        f"F.expr(...)"
    )


def _alike(names: list[str], name: str) -> list[str]:
    return [other for other in names if other.lower() == name.lower()] or names


def _list(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _said(column: "Column | str") -> str:
    """A column in an error: its name, or the expression as Spark prints it."""
    return column if isinstance(column, str) else str(column).removeprefix("Column<'").removesuffix("'>")


def _check_output(df: "DataFrame", output: object) -> None:
    if not isinstance(output, str) or not output or not _is_text(output):
        raise ConfigError(f"output is {output!r}; the name of the new column belongs there")
    exact = str(df.sparkSession.conf.get("spark.sql.caseSensitive", "false")).lower() == "true"
    known = df.columns if exact else [name.lower() for name in df.columns]
    if (output if exact else output.lower()) in known:
        raise ConfigError(f"output is {output!r}, which the table already has; choose another: output=...")


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


# --- of which types --------------------------------------------------------------------------------------------------


def _check_input(kind: DataType, called: str) -> None:
    if isinstance(kind, (StringType, CharType, VarcharType, NullType)):
        return
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, (IntegralType, NullType)):
        return
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, ArrayType):
        if isinstance(kind.elementType.elementType, (FractionalType, IntegralType, NullType)):
            return
    raise RequestError(
        f"{called} is {kind.simpleString()}; string (text) or array<int> (token ids), or for models that "
        f"take features array<array<float>>, belongs there: cast it, or choose another column"
    )


def _check_carried(field: StructField) -> None:
    if why := _not_carried(field.dataType):
        raise RequestError(
            f"column {field.name} is {field.dataType.simpleString()}, and Spark cannot hand {why} to Python and back; "
            f"cast it or leave it out (select the others before score), or call the function in withColumn"
        )


def _not_carried(kind: DataType, nullable: bool = True) -> str | None:
    """What of a type mapInArrow fails on, in words; None where it carries all."""
    if isinstance(kind, UserDefinedType):
        return _not_carried(kind.sqlType(), nullable)
    if isinstance(kind, ArrayType):
        return _not_carried(kind.elementType, kind.containsNull)
    if isinstance(kind, MapType):
        return _not_carried(kind.keyType, False) or _not_carried(kind.valueType, kind.valueContainsNull)
    if isinstance(kind, StructType):
        if len(set(kind.names)) < len(kind.names):
            return "a struct with two fields of one name"
        return next(filter(None, (_not_carried(field.dataType, field.nullable) for field in kind.fields)), None)
    if isinstance(kind, NullType):
        return None if nullable else "void that is never null"
    return kind.simpleString() if type(kind).__name__ in UNCARRIED else None


def _as_string(kind: DataType) -> DataType:
    """CHAR and VARCHAR, which Python's side of Spark does not know in Arrow, as the strings that they are."""
    if isinstance(kind, (CharType, VarcharType)):
        return StringType()
    if isinstance(kind, ArrayType):
        return ArrayType(_as_string(kind.elementType), kind.containsNull)
    if isinstance(kind, MapType):
        return MapType(_as_string(kind.keyType), _as_string(kind.valueType), kind.valueContainsNull)
    if isinstance(kind, StructType):
        return StructType([StructField(f.name, _as_string(f.dataType), f.nullable, f.metadata) for f in kind.fields])
    return kind


def _plain(df: "DataFrame", kinds: list[DataType]) -> "DataFrame":
    """The table without CHAR and VARCHAR; its names are _numbered."""
    if all(_as_string(kind) == kind for kind in kinds):
        return df
    wanted = zip(_numbered(len(kinds)), kinds, strict=True)
    return df.select(
        *(F.col(name) if _as_string(kind) == kind else F.col(name).cast(_as_string(kind)) for name, kind in wanted)
    )


def _as_it_was(df: "DataFrame", fields: list[StructField], output: str) -> "DataFrame":
    """_plain, undone on the way out."""
    names = _numbered(len(fields) + 1)
    df = df.toDF(*names)
    columns = []
    for name, field in zip(names, fields, strict=False):
        column = F.col(name) if _as_string(field.dataType) == field.dataType else F.col(name).cast(field.dataType)
        columns.append(column.alias(field.name, metadata=field.metadata))
    return df.select(*columns, F.col(names[-1]).alias(output))


def _numbered(columns: int) -> list[str]:
    return [f"c{place}" for place in range(columns)]
