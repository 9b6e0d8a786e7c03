"""What a process knows of itself and its host: other processes, locked files, settings, the Spark task that it runs.

processes    which process it is, what /proc says of others, the JVM above
locks        files that are locked as long as a process lives
settings     FIRESTEEL_X of the environment, spark.firesteel.x of the session's conf
text         sentences that any messenger takes
task         what Spark says of this worker's task, without importing Spark
values       what callers give as options, NumPy's scalars as Python's own
"""
