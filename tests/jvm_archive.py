"""What lets Spark's JVMs start in half the time: the classes that a short job loads, in an archive that all others map.

    python tests/jvm_archive.py ARCHIVE        # prints what JDK_JAVA_OPTIONS should be

A JVM that starts Spark and runs a first job spends 20 s of a core's time, most of it on reading and checking 10,000
classes, and tests start two dozen of them. With an archive (JEP 350) it is 10 s. Another Java, or another Spark's jars,
leave the archive aside without a word; a Java that cannot make one gets the other options alone.
"""

import os
import subprocess
import sys
from pathlib import Path

# Compilers and collectors for short jobs.
OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
QUIET = "-Xlog:disable -Xlog:all=off"  # what the JVM has to say about archives

JOB = """
import sys
from pyspark import SparkContext
from pyspark.sql import SparkSession

builder = SparkSession.builder.master("local[2]").config("spark.driver.extraJavaOptions", sys.argv[1])
for name in ("spark.driver.bindAddress", "spark.driver.host"):
    builder = builder.config(name, "127.0.0.1")
spark = builder.config("spark.ui.enabled", "false").getOrCreate()
df = spark.range(100).selectExpr("id", "CAST(id AS STRING) AS text").repartition(2)
df.mapInPandas(lambda batches: batches, df.schema).write.parquet(sys.argv[2])
spark.read.parquet(sys.argv[2]).groupBy("text").count().toPandas()
spark.stop()
jvm = SparkContext._gateway.proc
SparkContext._gateway.shutdown()
jvm.stdin.close()  # which ends it; the archive is written by then
sys.exit(jvm.wait(300))
"""


def main(archive: Path) -> None:
    archive.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "JDK_JAVA_OPTIONS"}
    environment |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    table = archive.with_suffix(".parquet")
    options = f"-XX:ArchiveClassesAtExit={archive} {OPTIONS} {QUIET}"
    try:
        command = [sys.executable, "-c", JOB, options, str(table)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    finally:
        subprocess.run(["rm", "-rf", str(table)], check=True)
    if done.returncode or not archive.exists():
        archive.unlink(missing_ok=True)
        print(f"no archive of Spark's classes: {done.stderr.strip()[-300:]}", file=sys.stderr)
        print(OPTIONS)
        return
    print(f"-XX:SharedArchiveFile={archive} -Xshare:auto {OPTIONS} {QUIET}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
