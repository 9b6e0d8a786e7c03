"""warm: a model on all executors, before there are rows."""

import os
from typing import TYPE_CHECKING

from ..table.job import ENGINE, hidden_states_job, refuse_unknown
from . import _worker
from ._everywhere import everywhere

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def warm(spark: "SparkSession", model: str | os.PathLike[str], **options: object) -> int:
    """Opens the model in the managers of all executors, so that the first rows need not wait. How many executors.

    options    devices and all other options of firesteel.Engine, as they will be given to the column function

    Tasks are spread by Spark, so an executor that is busy with other jobs may be passed over; it opens the model when
    rows come. Raises what embed_udf raises, and where the model cannot be opened what the first row would have met.

    Example:

    >>> firesteel.warm(spark, model)
    1
    """
    refuse_unknown("warm", options, list(ENGINE))
    job = hidden_states_job(model, said_by="warm", **options)
    name, engine = job.model, job.engine

    def open_model() -> dict[str, object]:
        with _worker.attach(name, engine) as opened:
            return {"numerics": opened.numerics}

    return len(everywhere(spark, open_model))
