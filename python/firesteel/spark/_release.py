"""release: executors give the memory of models back."""

from typing import TYPE_CHECKING

from ._everywhere import ask_manager, everywhere

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def release(spark: "SparkSession") -> int:
    """Closes the models that have no rows in the managers of all executors. How many there were.

    Managers stay; a model opens again when rows come. Nobody has to call this: after two minutes without rows a manager
    does the same by itself.

    Example:

    >>> _ = firesteel.warm(spark, model)
    >>> firesteel.release(spark) > 0
    True
    """

    def let_go() -> dict[str, object]:
        return ask_manager({"ask": "release"})

    return sum(int(said.get("released", 0)) for told in everywhere(spark, let_go).values() for said in told)
