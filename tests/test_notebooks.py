"""Every notebook is in Databricks' source format and runs from top to bottom as it stands."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
CELL = "\n# COMMAND ----------\n"

TEXTS = [
    "The flat is two minutes from the sea and nobody makes noise at night.",
    "Great bars next door, we danced until five.",
    "The heating was broken and nobody answered the phone.",
    "",
    None,
]


class Widgets:
    """dbutils.widgets: what a test sets wins over the notebook's default."""

    def __init__(self, given: dict[str, str]) -> None:
        self.given, self.asked = given, []

    def text(self, name: str, default: str, label: str = "") -> None:
        assert default and label
        self.asked.append(name)

    def get(self, name: str) -> str:
        return self.given[name]


class Utilities:
    def __init__(self, widgets: Widgets) -> None:
        self.widgets = widgets


def run(path: Path, **names: object) -> dict[str, object]:
    """Executes a notebook's cells one after the other, and gives what they left behind."""
    for cell in path.read_text("utf-8").split(CELL):
        exec(compile(cell, str(path), "exec"), names)
    return names


def test_there_are_these_notebooks():
    expected = ["classify_and_search.py", "data_parallelism.py", "embed_table.py", "model_parallelism.py"]
    assert [path.name for path in NOTEBOOKS] == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_is_in_source_format(path):
    text = path.read_text("utf-8")
    assert text.startswith("# Databricks notebook source\n# MAGIC %md\n")
    for cell in text.split(CELL)[1:]:
        lines = [line for line in cell.splitlines() if line]
        magic = [line.startswith("# MAGIC") for line in lines]
        assert lines and (all(magic) or not any(magic)), f"one cell mixes magic and Python:\n{cell}"
    assert not re.search(r"dbutils\.widgets\.get\(\"(\w+)\"\)(?s:.*)dbutils\.widgets\.text\(\"\1\"", text)


@pytest.mark.spark
def test_embed_table(spark, minilm, capsys):
    spark.createDataFrame([(i, text) for i, text in enumerate(TEXTS)], "id int, note string").createOrReplaceTempView(
        "notes"
    )
    spark.sql("DROP TABLE IF EXISTS note_vectors")
    given = {"model": minilm, "source": "notes", "column": "note", "target": "note_vectors"}
    widgets = Widgets(given | {"question": "a quiet place near the beach"})
    left = run(ROOT / "notebooks" / "embed_table.py", spark=spark, dbutils=Utilities(widgets))

    assert set(widgets.asked) == set(widgets.given)
    stored = spark.table("note_vectors").orderBy("id").collect()
    assert [row.note for row in stored] == TEXTS
    sizes = [None if row.embedding is None else len(row.embedding.result) for row in stored]
    assert sizes == [384, 384, 384, 384, None]
    best = left["nearest"].first()
    assert best.note == TEXTS[0] and 0.3 < best.score < 1
    assert TEXTS[0] in capsys.readouterr().out
    spark.sql("DROP TABLE note_vectors")


@pytest.mark.spark
@pytest.mark.parametrize("name", ["data_parallelism", "model_parallelism"])
def test_parallelism(spark, tmp_path, capsys, monkeypatch, name):
    """The folders are those of the examples, so that no torch is needed."""
    monkeypatch.syspath_prepend(ROOT / "examples" / name)
    monkeypatch.delitem(sys.modules, "example", raising=False)
    import example

    model = example.write_model(tmp_path / "model")
    monkeypatch.delitem(sys.modules, "example")
    widgets = Widgets({"model": model, "devices": "cpu:0,cpu:1", "rows": "5", "length": "16"})
    left = run(ROOT / "notebooks" / f"{name}.py", spark=spark, dbutils=Utilities(widgets))

    assert set(widgets.asked) == set(widgets.given)
    assert left["config"].items() == example.CONFIG.items() | {("model_type", "torch_transformer")}
    rows = left["scored"].collect()
    assert len(rows) == 5 and all(len(row.state) == 512 for row in rows)
    assert left["different"] == 0
    assert "0 of 5 rows differ" in capsys.readouterr().out


@pytest.mark.spark
def test_classify_and_search(spark, minilm, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    given = {"model": minilm, "made": str(tmp_path), "question": "which function parses a date string?"}
    widgets = Widgets(given)
    left = run(ROOT / "notebooks" / "classify_and_search.py", spark=spark, dbutils=Utilities(widgets))

    assert set(widgets.asked) == set(widgets.given)
    assert left["accuracy"] > 0.75 and left["most"] < 0.25
    relevance, cosines = left["relevance"], left["cosines"]
    assert (relevance[:, :1] > relevance[:, 1:-1]).mean() > 0.65  # near ones; chance is a half
    assert (relevance[:, 0] > relevance[:, -1]).mean() > 0.8 < (cosines[:, 0] > cosines[:, -1]).mean()
    found = left["neighbours"]
    assert [row.place for row in found] == list(range(1, 21)) == sorted(row.by_cosine for row in found)
    assert found[0].name == "to_date"
    assert "held-out rows are right" in capsys.readouterr().out

    # The pictures: a bar for each label; all names are there, and none covers another.
    bars = left["bars"].axes[0].patches
    assert sum(bar.get_width() for bar in bars) == sum(row.rows for row in left["counted"])
    left["picture"].canvas.draw()
    boxes = [text.get_window_extent() for text in left["names"]]
    assert len(boxes) == 21
    assert not any(box.count_overlaps(boxes[:place]) for place, box in enumerate(boxes))
    for figure in (left["bars"], left["picture"]):
        left["plt"].close(figure)
    for view in ("functions", "classified", "embedded", "nearest"):
        spark.catalog.dropTempView(view)
