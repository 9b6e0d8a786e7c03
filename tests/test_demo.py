"""The demo runs as `make demo` runs it, and its answers make sense to a reader."""

import os
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from firesteel.commands import cli
from firesteel.commands import demo as command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(folder):
    """One whole run, in a process and a Spark session of its own."""
    command = [sys.executable, "-m", "firesteel", "demo", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def answers(demo):
    """question -> [(score, function)]"""
    found: dict[str, list[tuple[float, str]]] = {}
    for line in demo.stdout.splitlines():
        hit = re.match(r"  (-?\d\.\d\d)  (\w+) ", line)
        if line.endswith("?"):
            found[line] = []
        elif hit and found:
            found[list(found)[-1]].append((float(hit[1]), hit[2]))
    return found


@pytest.mark.spark
def test_the_date_question_finds_a_function_that_parses_dates(answers):
    hits = [name for _, name in answers["which function parses a date string?"]]
    assert {"to_date", "to_timestamp"} & set(hits), hits


SENSE = {
    "how similar are two strings?": {"levenshtein", "jaro_winkler_similarity"},
    "how do I turn an array into one row per element?": {"explode", "explode_outer", "posexplode"},
    "how many months lie between two dates?": {"months_between"},
    "how do I read a value out of a JSON string?": {"get_json_object"},
}


@pytest.mark.spark
@pytest.mark.parametrize("question", SENSE)
def test_answers_make_sense(question, answers):
    hits = answers[question]
    scores = [score for score, _ in hits]
    assert len(hits) == 3 and scores == sorted(scores, reverse=True)
    assert SENSE[question] & {name for _, name in hits}, hits
    assert 0.4 < hits[0][0] <= 1


@pytest.mark.spark
def test_every_question_is_answered(answers):
    assert tuple(answers) == command.QUESTIONS


@pytest.mark.spark
def test_vectors_of_all_functions_are_stored(demo, folder):
    table = pq.read_table(folder / "functions.parquet")
    documented = command.documentation()
    assert len(documented) > 400
    assert sorted(zip(table["name"].to_pylist(), table["text"].to_pylist(), strict=True)) == sorted(documented)
    assert {len(vector) for vector in table["vector"].to_pylist()} == {384}
    assert f"stored in {folder / 'functions.parquet'}" in demo.stdout


@pytest.mark.spark
def test_progress_and_speed_are_shown(demo):
    count = len(command.documentation())
    assert re.search(rf"\n{count} rows in [\d.]+ s: \d+ rows/s", demo.stdout)
    assert "100%" in demo.stderr and f"{count}/{count}" in demo.stderr and "rows/s" in demo.stderr


SENTENCES = [
    ("Converts a :class:`~pyspark.sql.Column` into :class:`pyspark.sql.types.DateType`\nusing a format.", "column"),
    ("Returns the value.\n\n.. versionadded:: 3.5.0\n", "Returns the value."),
    ("String function: Splits ``str`` by `delim`. And more.", "Splits str by delim."),
    ("\n.. deprecated:: 4.0.0\n    Use :func:`other` instead.\n", ""),
    (
        "Trims the column.\n\nParameters\n----------\ncol : Column\n    A column that evaluates to a string or date.\n",
        "Trims a string.",
    ),
]


@pytest.mark.parametrize(("docstring", "words"), SENTENCES, ids=range(len(SENTENCES)))
def test_a_docstring_becomes_a_plain_sentence(docstring, words):
    sentence = command.about(docstring)
    assert words in sentence if words else sentence == ""
    assert not re.search(r"[`\n]|::|:class:", sentence)


REFUSED = [
    (["--rows", "0"], {}, "--rows is 0; a number from 1 on"),
    (["--model", "/no/such/folder"], {}, "/no/such/folder: no such folder"),
    ([], {"PATH": "/nowhere", "JAVA_HOME": ""}, "Spark needs a Java, and no java is on the PATH"),
]


@pytest.mark.parametrize(("flags", "environment", "words"), REFUSED, ids=["rows", "model", "java"])
def test_what_the_demo_cannot_do_without_is_said_in_one_sentence(flags, environment, words, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["demo", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_output_is_by_default_a_new_folder(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(command, "_session", lambda: (_ for _ in ()).throw(RuntimeError("far enough")))
    monkeypatch.setattr(command.tempfile, "mkdtemp", lambda prefix: made.append(prefix) or os.devnull)
    with pytest.raises(RuntimeError, match="far enough"):
        command.run(None, rows=1)
    assert made == ["firesteel-demo-"]
