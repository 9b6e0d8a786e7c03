"""register: a column function under a name that SQL knows."""

import re
from typing import TYPE_CHECKING

from .._core import ConfigError
from ._udf import ColumnFunction

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def register(spark: "SparkSession", name: str, udf: ColumnFunction) -> ColumnFunction:
    """Makes `udf` known to the session's SQL as `name`, and returns it. A name used before is given anew.

    Raises ConfigError for a name that SQL cannot say, or one that begins with ai_. A query that gives the function more
    or fewer columns than it takes fails in its first task, whose ConfigError says so by this name.

    Example:

    >>> _ = firesteel.register(spark, "embed_text", firesteel.embed_udf(model))
    >>> spark.sql("SELECT size(embed_text('a text')) AS n").first()
    Row(n=384)
    """
    if not isinstance(udf, ColumnFunction):
        raise ConfigError(
            f"udf is a {type(udf).__name__}; what firesteel.embed_udf returns, or its like, belongs there"
        )
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigError(f"name is {name!r}; letters, digits and _ make a name that SQL can call")
    if name.lower().startswith("ai_"):
        raise ConfigError(
            f"name is {name!r}; names that begin with ai_ belong to Databricks' own SQL functions: choose another"
        )
    if not hasattr(spark, "udf"):
        raise ConfigError(f"spark is a {type(spark).__name__}; a SparkSession belongs there")
    spark.udf.register(name, udf.named(name))
    return udf
