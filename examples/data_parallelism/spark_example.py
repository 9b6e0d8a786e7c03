"""Data parallelism in Spark: the model of example.py, a copy on each device of an executor.

    cd examples/data_parallelism && python spark_example.py

Its only difference to ../model_parallelism/spark_example.py, the model and its columns aside, is parallel="replicate".
"""

import os
import tempfile

import example  # first: it finds `support`
import firesteel
import numpy as np
import support


def main() -> None:
    given = support.arguments(__doc__.splitlines()[0])
    ids = example.batch(given.rows, given.length)
    spark = support.session()
    with tempfile.TemporaryDirectory() as folder:
        model = example.write_model(folder)
        df = spark.read.parquet(support.write_table(folder, {"ids": ids}))
        states = firesteel.hidden_states_udf(
            model, "first", devices=given.devices, parallel="replicate", threads=os.cpu_count()
        )
        scored = firesteel.score(df, states, "ids", output="state")
        found = support.timed("firesteel in Spark, engine opened", lambda: support.collected(scored))
        with firesteel.Engine(model, devices=given.devices) as engine:
            assert np.array_equal(found, example.first_positions(engine, ids))
            print("the same bits as without Spark")
    spark.stop()


if __name__ == "__main__":
    main()
