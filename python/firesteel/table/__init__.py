"""Arrow batches in, results out, in order. No Spark: a worker's UDF and `python -m firesteel run` both stand on it.

job          options -> Job, checked on the driver; what travels to the workers
stream       batches in, results out: what a worker runs
tasks        what a task asks of the engine, and makes of the answer
window       how far it reads ahead
columns      all Arrow and pandas conversions
scores       of labels, as Arrow
files        what readers and writers of files share: rows with all that is carried along
             parquet_file, csv_file, json_lines (json_values) read them; targets (texts) writes them
counters     what tasks tell the driver of their rows while a progress is on
"""
