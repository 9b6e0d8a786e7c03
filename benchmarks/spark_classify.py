"""Classifying a Spark table: ours against transformers' pipeline in a pandas UDF, same precision, cores, warm session.

    python benchmarks/spark_classify.py [--shape distilbert] [--threads 2] [--rows 5000] [--repeats 5] [--save]

    classify_udf   firesteel.classify_udf(scores="all") as a column function: one engine, in the executor's manager
    pipeline_udf   pipeline("text-classification", top_k=None) in an iterator pandas_udf, a model a worker, one thread a
                   task, each of Spark's batches sorted by length, 16 rows a batch (the fastest of 1, 8, 16, 32, 64)

The model is MiniLM with a head of three labels, or a shape of shapes.py with one, seeded. Sessions, turns and the first
job are as in spark_embed.py. Before anything is timed both must give the same scores (within 1e-4 on every label).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import common
import corpus
import peers
import shapes
import spark_embed

LABELS = 3
BATCH = 16
METHODS = ["classify_udf", "pipeline_udf"]


def classifier(model: str, name: str) -> str:
    """The folder of `model` with a head of LABELS labels, made once."""
    folder = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"firesteel-benchmarks-{os.getuid()}", "classifiers", name)
    if os.path.isdir(folder):
        return folder
    import torch
    import transformers

    torch.manual_seed(0)
    made = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=LABELS)
    for parameter in made.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as scratch:
        work = os.path.join(scratch, name)
        made.save_pretrained(work)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        tokenizer.model_max_length = peers.MAX_TOKENS
        tokenizer.save_pretrained(work)
        os.rename(work, folder)
    return folder


def pipeline(model: str):
    """transformers' pipeline, made once in a worker."""
    import torch
    import transformers

    torch.set_num_threads(1)
    return transformers.pipeline("text-classification", model, device="cpu", top_k=None, batch_size=BATCH)


class Classifying(spark_embed.Spark):
    def scored(self, df):
        if self.method == "classify_udf":
            import firesteel

            return df.withColumn("v", firesteel.classify_udf(self.model, scores="all")("text"))
        from collections.abc import Iterator

        import pandas as pd
        from pyspark.sql.functions import pandas_udf
        from pyspark.sql.types import FloatType, MapType, StringType

        model = self.model

        def classify(parts):
            peer = cached(model)
            for part in parts:
                texts = part.tolist()
                order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
                found = [None] * len(texts)
                results = peer([texts[i] for i in order], truncation=True, max_length=peers.MAX_TOKENS)
                for i, result in zip(order, results, strict=True):
                    found[i] = {one["label"]: one["score"] for one in result}
                yield pd.Series(found)

        classify.__annotations__ = {"parts": Iterator[pd.Series], "return": Iterator[pd.Series]}
        return df.withColumn("v", pandas_udf(classify, MapType(StringType(), FloatType()))("text"))

    def numbers(self, rows) -> object:
        import numpy as np

        return np.array([[row.v[f"LABEL_{i}"] for i in range(LABELS)] for row in rows], np.float32)


_pipelines: dict = {}


def cached(model: str):
    if model not in _pipelines:
        _pipelines[model] = pipeline(model)
    return _pipelines[model]


def measure(model: str, name: str, threads: int, rows: int, repeats: int) -> list[dict]:
    import numpy as np

    tokens = sum(corpus.token_counts(corpus.rows(rows), model))
    workers, cold, scores = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            place = os.path.join(folder, f"{method}.m")
            os.mkdir(place, 0o700)
            arguments = ["--child", method, model, str(threads), str(rows), place]
            workers[method] = common.Child(method, os.path.abspath(__file__), arguments, threads, 1)
            cold[method] = workers[method].ask("cold", save=os.path.join(folder, f"{method}.npy"))
            scores[method] = np.load(os.path.join(folder, f"{method}.npy"))
        off = float(np.abs(scores[METHODS[0]] - scores[METHODS[1]]).max())
        if not off < 1e-4:
            raise SystemExit(f"benchmarks: the scores differ by {off}")
        seconds = common.in_turn(workers, repeats, lambda worker: worker.ask("run")["seconds"])
        for worker in workers.values():
            worker.close()
    lines = []
    for method in METHODS:
        package = "firesteel" if method == "classify_udf" else "transformers"
        line = {"model": name, "method": method, "version": common.version(package), "threads": threads}
        line |= {"spark": common.version("pyspark"), "precision": "fp32", "largest_difference": off}
        line |= common.throughput(seconds[method], rows, tokens) | cold[method]
        if method == "classify_udf":
            line["of_pipeline_udf"] = round(common.paired_ratio(seconds[method], seconds["pipeline_udf"]), 3)
        lines.append(line)
        print(f"{method:14} {line['rows_per_s']:8} rows/s  {line.get('of_pipeline_udf', '')}", file=sys.stderr)
    return lines


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        method, model, tasks, rows, place = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
        replies = common.replies()
        job = Classifying(method, model, tasks, rows, place)
        return common.serve(replies, {"cold": job.cold, "run": job.run})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(shapes.SHAPES), help="a shape of shapes.py instead of MiniLM")
    parser.add_argument("--threads", type=int, default=2, help="cores of the session, and tasks at once")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/spark_classify.jsonl")
    args = parser.parse_args()
    minilm = peers.minilm()
    name = args.shape or "minilm"
    model = classifier(shapes.made(args.shape, minilm) if args.shape else minilm, name)
    lines = measure(model, name, args.threads, args.rows, args.repeats)
    common.emit("spark_classify", lines, args.save)


if __name__ == "__main__":
    main()
