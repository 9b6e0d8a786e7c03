"""Types of the columns that score reads, and of those that it carries through mapInArrow and back."""

from typing import TYPE_CHECKING

import pyspark.sql.functions as F
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

from .._core import RequestError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

UNCARRIED = ("YearMonthIntervalType", "CalendarIntervalType")  # by name: PySpark 3.5 does not have the second


def check_input(kind: DataType, called: str) -> None:
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


def check_carried(field: StructField) -> None:
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


def as_string(kind: DataType) -> DataType:
    """CHAR and VARCHAR, which Python's side of Spark does not know in Arrow, as the strings that they are."""
    if isinstance(kind, (CharType, VarcharType)):
        return StringType()
    if isinstance(kind, ArrayType):
        return ArrayType(as_string(kind.elementType), kind.containsNull)
    if isinstance(kind, MapType):
        return MapType(as_string(kind.keyType), as_string(kind.valueType), kind.valueContainsNull)
    if isinstance(kind, StructType):
        return StructType([StructField(f.name, as_string(f.dataType), f.nullable, f.metadata) for f in kind.fields])
    return kind


def without_char(df: "DataFrame", kinds: list[DataType]) -> "DataFrame":
    """The table without CHAR and VARCHAR; its names are `numbered`."""
    if all(as_string(kind) == kind for kind in kinds):
        return df
    wanted = zip(numbered(len(kinds)), kinds, strict=True)
    return df.select(
        *(F.col(name) if as_string(kind) == kind else F.col(name).cast(as_string(kind)) for name, kind in wanted)
    )


def as_it_was(df: "DataFrame", fields: list[StructField], output: str) -> "DataFrame":
    """without_char, undone on the way out."""
    names = numbered(len(fields) + 1)
    df = df.toDF(*names)
    columns = []
    for name, field in zip(names, fields, strict=False):
        column = F.col(name) if as_string(field.dataType) == field.dataType else F.col(name).cast(field.dataType)
        columns.append(column.alias(field.name, metadata=field.metadata))
    return df.select(*columns, F.col(names[-1]).alias(output))


def numbered(columns: int) -> list[str]:
    return [f"c{place}" for place in range(columns)]
