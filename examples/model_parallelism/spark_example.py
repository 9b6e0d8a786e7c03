"""Model parallelism in Spark: the model of example.py, its layers on the devices of an executor.

    cd examples/model_parallelism && python spark_example.py

Its only difference to ../data_parallelism/spark_example.py, the model and its columns aside, is parallel="split".
"""

import os
import tempfile

import example  # first: it finds `support`
import firesteel
import numpy as np
import support


def main() -> None:
    given = support.arguments(__doc__.splitlines()[0])
    rows, targets = example.batch(given.rows, given.length)
    spark = support.session()
    with tempfile.TemporaryDirectory() as folder:
        model = example.write_model(folder)
        df = spark.read.parquet(support.write_table(folder, {"source": rows, "target": targets}))
        states = firesteel.hidden_states_udf(
            model, "first", devices=given.devices, parallel="split", threads=os.cpu_count()
        )
        scored = firesteel.score(df, states, "source", "target", output="state")
        found = support.timed("firesteel in Spark, engine opened", lambda: support.collected(scored))
        with firesteel.Engine(model, devices=given.devices) as engine:
            assert np.array_equal(found, example.decoded(engine, rows, targets)[:, 0])
            print("the same bits as without Spark")
    spark.stop()


if __name__ == "__main__":
    main()
