"""The columns that score is given: names as Spark takes them, and expressions, as places in a wider table."""

from difflib import get_close_matches
from typing import TYPE_CHECKING

import pyspark.sql.functions as F
from pyspark.sql import Column
from pyspark.sql.utils import AnalysisException, is_remote

from .._core import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

NAMED = 20  # columns that an error lists; a table may have thousands


def find_inputs(df: "DataFrame", columns: tuple["Column | str", ...]) -> tuple[list[int], list[Column]]:
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


def said(column: "Column | str") -> str:
    """A column in an error: its name, or the expression as Spark prints it."""
    return column if isinstance(column, str) else str(column).removeprefix("Column<'").removesuffix("'>")
