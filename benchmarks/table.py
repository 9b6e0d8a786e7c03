"""The README's tables, in Markdown, from the newest result of each kind in results/*.jsonl.

python benchmarks/table.py [--machine TEXT]      # only results whose machine contains TEXT; default: the newest one's
"""

from __future__ import annotations

import argparse
import glob
import json
import os

import common

MB = 1e6


def results() -> list[dict]:
    """All saved results, oldest first."""
    lines = []
    for path in glob.glob(os.path.join(common.RESULTS, "*.jsonl")):
        with open(path) as f:
            lines += [json.loads(line) for line in f]
    return sorted(lines, key=lambda line: line["date"])


def newest(lines: list[dict], benchmark: str) -> list[dict]:
    """The last result of each peer or method and thread count, fastest first within a thread count."""
    last = {(x["threads"], x.get("method", x["peer"])): x for x in lines if x["benchmark"] == benchmark}
    return sorted(last.values(), key=lambda x: (-x["threads"], x["median_s"]))


def print_table(title: str, columns: list[str], rows: list[list]) -> None:
    if rows:
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
        for row in rows:
            print(f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |")


def ratio(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}x"


def named(x: dict) -> str:
    return f"**{x['peer']}**" if x["peer"] == "firesteel" else f"{x['peer']} {x['version']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", default=None)
    args = parser.parse_args()
    lines = results()
    if not lines:
        raise SystemExit("table: no results yet: run encoder.py, spark_embed.py and start.py with --save")
    wanted = args.machine or lines[-1]["machine"]
    lines = [line for line in lines if wanted in line["machine"]]
    if not lines:
        raise SystemExit(f"table: no result of a machine called {wanted!r}")
    last = lines[-1]
    print(f"{last['machine']}; {last['date'][:10]}, commit {last['commit']}{' with changes' if last['dirty'] else ''}")

    print_table(
        "Engine: texts in, MiniLM embeddings out, fp32, medians of a run in which all take turns.",
        ["", "threads", "tokens/s", "rows/s", "seconds (least, most)", "firesteel against it"],
        [
            [named(x), x["threads"], f"{x['tokens_per_s']:,}", f"{x['rows_per_s']:.0f}",
             f"{x['median_s']:.2f} ({x['min_s']:.2f}, {x['max_s']:.2f})", ratio(x.get("firesteel_is"))]
            for x in newest(lines, "encoder")
        ],
    )  # fmt: skip
    print_table(
        "Spark: a table of texts, one task a core, warm session.",
        ["", "rows/s", "engine = 1", "pandas_udf = 1", "predict_batch_udf = 1", "first job", "memory of all workers"],
        [
            [f"{x['method']} ({named(x)})", f"{x['rows_per_s']:.0f}", ratio(x.get("of_engine")),
             ratio(x.get("of_pandas_udf")), ratio(x.get("of_predict_batch")), f"{x['first_job_s']:.1f} s",
             f"{x['memory_bytes'] / MB:.0f} MB"]
            for x in newest(lines, "spark_embed")
        ],
    )  # fmt: skip
    print_table(
        "Start: from no process to the first embedding, page cache warm.",
        ["", "seconds (least, most)", "peak memory", "weights = 1"],
        [
            [named(x), f"{x['median_s']:.2f} ({x['min_s']:.2f}, {x['max_s']:.2f})", f"{x['peak_bytes'] / MB:.0f} MB",
             ratio(x["peak_over_weights"])]
            for x in newest(lines, "start")
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
