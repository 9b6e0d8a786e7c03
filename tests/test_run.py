"""`firesteel run` with a tiny model: what it writes and reports, and what bad input gets. test_carried*.py show that
nothing that it carries along is lost or changed.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import firesteel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from firesteel.commands import cli
from firesteel.table import files, targets

TEXTS = ["first row", None, "", "the last column", 'a "quoted, one"\nof two lines']


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("cli") / "model"))


@pytest.fixture(scope="module")
def expected(model):
    with firesteel.Engine(model, threads=1) as engine:
        vectors = iter(engine.embed([text for text in TEXTS if text is not None]))
        return [None if text is None else next(vectors).tolist() for text in TEXTS]


@pytest.fixture
def source(tmp_path):
    """The rows as a Parquet file with Spark's own schema in its metadata."""
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    metadata = {"org.apache.spark.sql.parquet.row.metadata": json.dumps({"type": "struct", "fields": []})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def command(*arguments: object, capsys) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command in this process."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as left:  # argparse leaves this way
        code = left.code
    said = capsys.readouterr()
    return code, said.out, said.err


def embed(model, source, target, *more, capsys) -> tuple[int, str, str]:
    return command("run", model, "--input", source, "--column", "text", "--output", target, *more, capsys=capsys)


# --- run: what it writes ---------------------------------------------------------------------------------------------


def as_jsonl(folder):
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder / "in.jsonl"


def as_csv(folder):
    cells = ["" if text is None else '"' + text.replace('"', '""') + '"' for text in TEXTS]
    (folder / "in.csv").write_text("id,text\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    return folder / "in.csv"


def as_parquet(folder):
    return folder / "in.parquet"


def as_folder(folder):
    """As Spark leaves it."""
    (folder / "parts").mkdir()
    (folder / "parts" / "_SUCCESS").touch()
    for part, rows in enumerate(([0, 1], [2, 3, 4])):
        table = pa.table({"id": rows, "text": [TEXTS[row] for row in rows]})
        pq.write_table(table, folder / "parts" / f"part-{part:05}.snappy.parquet")
    return folder / "parts"


@pytest.mark.parametrize("make", [as_parquet, as_folder, as_jsonl, as_csv], ids=lambda make: make.__name__)
def test_run_writes_what_the_engine_gives(make, model, source, expected, tmp_path, capsys):
    target, given = tmp_path / "out.parquet", make(tmp_path)
    code, said, trouble = embed(model, given, target, "--threads", 1, capsys=capsys)
    assert (code, trouble) == (0, "")
    assert said.startswith(f"{target}: 5 rows")
    table = pq.read_table(target)
    assert table.schema.names == ["id", "text", "prediction"] and not table.schema.metadata
    cells = make is as_csv  # all of them text there, and an empty one is an empty text
    assert table["id"].to_pylist() == [str(row) if cells else row for row in range(5)]
    assert table["text"].to_pylist() == ["" if cells and text is None else text for text in TEXTS]
    found = table["prediction"].to_pylist()
    assert found == [expected[2] if cells and vector is None else vector for vector in expected]
    assert set(os.listdir(tmp_path)) == {"out.parquet", "in.parquet", given.name}


def test_run_takes_token_ids_and_options(tmp_path, model, capsys):
    pq.write_table(pa.table({"text": [[2, 60, 3], [2, 160, 3], None]}), tmp_path / "ids.parquet")
    options = ["--details", "--dimensions", 4, "--pooling", "cls,max", "--output-column", "v", "--normalize", "yes"]
    code, said, trouble = embed(model, tmp_path / "ids.parquet", tmp_path / "o.parquet", *options, capsys=capsys)
    assert (code, trouble) == (0, "") and "3 rows, 2 of them without a result: 1 null, 1 failed (SCHEMA 1)" in said
    rows = pq.read_table(tmp_path / "o.parquet")["v"].to_pylist()
    with firesteel.Engine(model, threads=1) as engine:
        vector = engine.embed([[2, 60, 3]], pooling=["cls", "max"], dimensions=4, normalize=True)[0]
    assert np.array_equal(np.float32(rows[0]["result"]), vector)
    assert rows[1]["result"] is None and rows[1]["error_code"] == "SCHEMA" and rows[2] is None


def test_run_puts_a_prompt_before_each_row(tmp_path, source, capsys):
    sentence = {"settings": {"prompts": {"query": "first "}}}
    prompted = tiny.write(tmp_path / "prompted", sentence=sentence)
    for flags in (["--prompt-name", "query"], ["--prompt", "first "]):
        code, _, trouble = embed(prompted, source, tmp_path / "o.parquet", "--force", *flags, capsys=capsys)
        assert (code, trouble) == (0, "")
        found = pq.read_table(tmp_path / "o.parquet")["prediction"].to_pylist()
        with firesteel.Engine(prompted, threads=1) as engine:
            assert found[0] == engine.embed(["first first row"])[0].tolist()


def test_run_writes_many_rows_in_few_groups(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(files, "BATCH_BYTES", 10_000)  # many batches
    with open(tmp_path / "in.jsonl", "w") as file:
        for row in range(9000):
            file.write(json.dumps({"id": row, "text": f"row {row % 10}", "more": {"a": row}}) + "\n")
    assert embed(model, tmp_path / "in.jsonl", tmp_path / "o.parquet", capsys=capsys)[0] == 0
    written = pq.ParquetFile(tmp_path / "o.parquet")
    assert written.metadata.num_rows == 9000 and written.metadata.num_row_groups <= 3
    table = written.read()
    assert table["id"].to_pylist() == list(range(9000)) and table["more"][8999].as_py() == {"a": 8999}
    first = table["prediction"][:10].to_pylist()
    assert table["prediction"].to_pylist() == first * 900


def test_run_shows_a_progress_bar_on_a_terminal(tmp_path, model, source):
    import fcntl
    import pty
    import struct
    import termios

    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    arguments = [sys.executable, "-m", "firesteel", "run", model, "--input", str(source), "--column", "text"]
    done = subprocess.run([*arguments, "--output", str(tmp_path / "o.parquet")], stderr=other, timeout=120)
    os.close(other)
    assert done.returncode == 0
    with os.fdopen(main, "rb", buffering=0) as terminal:
        shown = b""
        with suppress(OSError):  # how a terminal without another end says that there is no more
            while more := terminal.read(4096):
                shown += more
    assert b"5.00/5.00" in shown and b" rows/s" in shown, shown


# --- run: faulty rows ------------------------------------------------------------------------------------------------

# name, file, code and line of the faulty row
FAULTY = [
    ("byte.csv", b"text,n\na,1\ncaf\xe9,2\nb,3\n", "BAD_UTF8", 3),
    ("short.csv", b"text,n\na,1\nb\nc,3\n", "SCHEMA", 3),
    ("long.csv", b'text,n\n"a\n",1\nb,2,2\nc,3\n', "SCHEMA", 4),
    ("byte.jsonl", b'{"text":"a"}\n\n{"text":"caf\xe9"}\n{"text":"b"}\n', "BAD_UTF8", 3),
    ("half.jsonl", b'{"text":"a"}\n{"text":"\\ud800"}\n{"text":"b"}', "BAD_UTF8", 2),
    ("number.jsonl", b'{"text":"a"}\n{"text":7}\n{"text":"b"}', "SCHEMA", 2),
    ("broken.jsonl", b'{"text":"a"}\n{"text":\n{"text":"b"}', "SCHEMA", 2),
    ("array.jsonl", b'{"text":"a"}\n["text"]\n{"text":"b"}', "SCHEMA", 2),
    ("twice.jsonl", b'{"text":"a"}\n{"text":"x","text":"y"}\n{"text":"b"}', "SCHEMA", 2),
    ("deep.jsonl", b'{"text":"a"}\n{"text":"x","n":' + b"[" * 200_000 + b'}\n{"text":"b"}', "SCHEMA", 2),
    ("ids.jsonl", b'{"text":[2,60,3]}\n{"text":[2,1.5]}\n{"text":[2,3]}', "SCHEMA", 2),
    ("large.jsonl", b'{"text":[2,60,3]}\n{"text":[99999999999999999999]}\n{"text":[2,3]}', "SCHEMA", 2),
    ("null.jsonl", b'{"text":[2,60,3]}\n{"text":[2,null,3]}\n{"text":[2,3]}', "SCHEMA", 2),
]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(("name", "data", "code", "line"), FAULTY, ids=[name for name, *_ in FAULTY])
def test_a_faulty_row_is_one_row(ending, name, data, code, line, tmp_path, model, capsys):
    (tmp_path / name).write_bytes(data)
    target = tmp_path / f"out{ending}"
    exit_code, said, trouble = embed(model, tmp_path / name, target, capsys=capsys)
    assert (exit_code, said) == (1, "") and f"{name}: line {line} ({code}): " in trouble, trouble
    assert trouble.count("\n") == 1 and not target.exists()

    exit_code, said, trouble = embed(model, tmp_path / name, target, "--on-error", "null", capsys=capsys)
    assert exit_code == 3
    cut = name.split(".")[0] in ("long", "twice", "broken", "array", "deep") and not name.endswith(ending)
    if cut:
        assert f"firesteel: 1 row had cells that {ending} has no place for, first in line {line}; output of" in trouble
    else:
        assert trouble == "" or (code == "BAD_UTF8" and "its bytes are written as \\xNN" in trouble)
    assert trouble.count("\n") <= 1
    assert f"3 rows, 1 of them without a result: 1 failed ({code} 1); in" in said
    assert [result is None for result in results(target)] == [False, True, False]

    exit_code, said, _ = embed(model, tmp_path / name, target, "--details", "--force", capsys=capsys)
    assert f"1 failed ({code} 1)" in said
    found = results(target)
    there = found[1] is not None  # a line that is no JSON has no place for it in JSON lines
    assert exit_code == (0 if there else 3)
    assert there or (ending == ".jsonl" and name in ("broken.jsonl", "array.jsonl", "deep.jsonl"))
    good, bad = found[0], found[1] or {"result": None, "error_code": code, "error": "..."}
    assert good["error_code"] is None and len(good["result"]) == 48
    assert bad["result"] is None and bad["error_code"] == code and bad["error"]


def results(target) -> list[object]:
    """The column prediction: None, a vector, or a dict."""
    if target.suffix == ".parquet":
        return pq.ParquetFile(target).read()["prediction"].to_pylist()
    if target.suffix == ".csv":
        with open(target, newline="", encoding="latin-1") as file:
            header, *rows = csv.reader(file)
            at = header.index("prediction")
            return [json.loads((row[-1] if len(row) > len(header) else row[at]) or "null") for row in rows]
    found = []
    for line in target.read_bytes().decode("latin-1").splitlines():
        try:
            found.append(json.loads(line)["prediction"])
        except (ValueError, TypeError, RecursionError):
            found.append(None)
    return found


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("make", [as_parquet, as_jsonl, as_csv], ids=lambda make: make.__name__)
def test_vectors_keep_their_bits_in_every_format(make, ending, model, source, expected, tmp_path, capsys):
    target, given = tmp_path / f"out{ending}", make(tmp_path)
    code, said, trouble = embed(model, given, target, "--threads", 1, capsys=capsys)
    assert (code, trouble) == (0, "") and said.startswith(f"{target}: 5 rows")
    found = results(target)
    right = [expected[2] if make is as_csv and vector is None else vector for vector in expected]
    for vector, wanted in zip(found, right, strict=True):
        assert (vector is None) == (wanted is None)
        assert wanted is None or np.array_equal(np.float32(vector), np.float32(wanted))


def test_too_many_faulty_rows_end_the_run(tmp_path, model, capsys):
    rows = [b"caf\xe9" if row % 3 else b"a" for row in range(3000)]
    (tmp_path / "in.csv").write_bytes(b"text\n" + b"\n".join(rows))
    code, said, trouble = embed(model, tmp_path / "in.csv", tmp_path / "o.csv", "--on-error", "null", capsys=capsys)
    assert (code, said) == (1, "") and trouble.count("\n") == 1
    assert "rows cannot be computed, and --max-errors is 0.5" in trouble
    assert "are BAD_UTF8, as line 3: byte 3 of the text is not UTF-8" in trouble
    more = ["--on-error", "null", "--max-errors", "0.9"]
    code, said, _ = embed(model, tmp_path / "in.csv", tmp_path / "o.csv", *more, capsys=capsys)
    assert code == 3 and "3,000 rows, 2,000 of them without a result: 2,000 failed (BAD_UTF8 2,000)" in said


# line, what is said of it
NO_JSON = [
    (b'{"text":"abc', "Unterminated string starting at character 8"),
    (b'{"text":"a\x01b"}', "Invalid control character at character 10"),
    (b'{"text":"a\\qb"}', "Invalid \\escape at character 10"),
    (b'{"text" "a"}', "Expecting ':' delimiter at character 8"),
    (b'[{"text":"b"}]', "does not begin with {; an array has to be written with one object a line"),
    (b"[", "does not begin with {; an array has to be written with one object a line"),
    (b'{"text":"b"}\r{"text":"c"}\r{"text":"d"}', "lines end with \\n or \\r\\n, not with \\r alone"),
    (b'{"text":"b"}, {"text":"c"}', "something follows the JSON object at character 12;"),
]


@pytest.mark.parametrize(("line", "words"), NO_JSON, ids=[words for _, words in NO_JSON])
def test_a_line_that_is_no_json_is_told_why(line, words, tmp_path, model, capsys):
    (tmp_path / "in.jsonl").write_bytes(b'{"text":"a"}\n' + line)
    code, _, trouble = embed(model, tmp_path / "in.jsonl", tmp_path / "o.csv", capsys=capsys)
    assert code == 1 and "in.jsonl: line 2 (SCHEMA): " in trouble and words in trouble and " at at " not in trouble
    assert trouble.count("\n") == 1


# --- run: what bad input gets ----------------------------------------------------------------------------------------

REFUSED = [
    (["--input", "none.parquet"], "--input is none.parquet, which does not exist"),
    (["--input", "in.xlsx"], "--input is in.xlsx; .parquet, .jsonl, .ndjson, .csv can be read"),
    (["--input", "broken.parquet"], "broken.parquet: "),
    (["--input", "empty.jsonl"], "empty.jsonl: is empty; lines with one JSON object each belong there"),
    (["--input", "empty.csv"], "empty.csv: is empty; a line with the names of the columns belongs there"),
    (["--input", "bom.csv"], "bom.csv: is empty"),
    (["--input", "array.jsonl"], "array.jsonl: has no line with a JSON object; line 1: the line is no JSON object"),
    (["--input", "numbers.jsonl"], "column text is a number in line 1; text (a string) or token ids"),
    (["--input", "taken.jsonl"], "--output-column is 'prediction', which the input already has"),
    (["--input", "nothing.jsonl"], "nothing.jsonl: has no column 'text'; its columns are txt"),
    (["--input", "utf16.csv"], "utf16.csv: is UTF-16, and UTF-8 is read; save it as UTF-8"),
    (["--input", "utf16.jsonl"], "utf16.jsonl: is UTF-16"),
    (["--input", "quote.csv"], "quote.csv: the quote that opens a cell in line 3 is not closed"),
    (["--input", "semicolon.csv"], "has no column 'text'; its columns are id;text; perhaps --delimiter ';'"),
    (["--input", "tab.csv"], "perhaps --delimiter tab"),
    (["--input", "twice.csv"], "twice.csv: has 2 columns 'text'"),
    (["--input", "latin.csv"], "the name of column 2, 'caf\\\\xe9', is not UTF-8; only .csv output carries it"),
    (["--input", "in.csv.gz"], "can be read, by the ending of the name; unpack it first"),
    (["--input", "in.json"], "a file with one object a line is .jsonl"),
    (["--input", "pipe.csv"], "pipe.csv, which is no regular file; it is read twice, so write it to one first"),
    (["--input", "delta"], "delta: is a Delta table"),
    (["--input", "mixed"], "column n is string here and int64 in mixed/a.parquet; cast one of them"),
    (["--input", "uneven"], "its folders name other partition columns than those of"),
    (["--input", "double"], "column k is in the files and in the names of their folders; rename one"),
    (["--input", "binary.parquet", "--output", "o.csv"], "column raw is binary, which .csv cannot hold; .parquet can"),
    (["--input", "binary.parquet", "--output", "o.jsonl"], "column raw is binary, which .jsonl cannot hold"),
    (["--delimiter", ";"], "--delimiter is ';', and neither --input nor --output is .csv"),
    (["--output", "o.csv", "--delimiter", "ab"], "--delimiter is 'ab'; one sign belongs there"),
    (["--output", "o.csv", "--delimiter", '"'], "one sign belongs there"),
    (["--input", "empty"], "empty: holds no Parquet file"),
    (["--column", "txet"], "in.parquet: has no column 'txet'; its columns are id, text"),
    (["--column", "id"], "in.parquet: column id is bigint; string (text) or array<int>"),
    (["--output", "o.xlsx"], "--output is o.xlsx; .parquet, .jsonl, .ndjson, .csv can be written"),
    (["--output", "no/o.parquet"], "there is no folder"),
    (["--output", "taken.parquet"], "--output is taken.parquet, which exists; --force replaces it"),
    (["--output", "in.parquet", "--force"], "--output is in.parquet, which is the input"),
    (["--output", "in.parquet"], "--output is in.parquet, which is the input; give another name"),
    (["--output", "to-input.parquet", "--force"], "--output is to-input.parquet, which is the input"),
    (["--input", "mixed", "--output", "mixed/a.parquet", "--force"], "which lies in the input folder; give a place"),
    (["--input", "mixed", "--output", "mixed/new.csv"], "--output is mixed/new.csv, which lies in the input folder"),
    (["--input", "uneven", "--output", "uneven/k=1/o.jsonl"], "which lies in the input folder; give a place outside"),
    (["--input", "to-mixed", "--output", "mixed/o.parquet"], "which lies in the input folder"),
    (["--input", "mixed", "--output", "to-mixed/o.parquet"], "which lies in the input folder"),
    (["--input", "mixed", "--output", "into-mixed.parquet", "--force"], "which lies in the input folder"),
    (
        ["--input", "linked", "--output", "in.parquet", "--force"],
        "which is linked/a.parquet of the input; give another",
    ),
    (["--input", "linked", "--output", "to-input.parquet", "--force"], "which is linked/a.parquet of the input"),
    (["--input", "linked", "--output", "hard.parquet", "--force"], "which is linked/b.parquet of the input"),
    (["--output", "dangling.parquet"], "--output is dangling.parquet, which is a link to "),
    (["--output", "to-taken.parquet"], "taken.parquet; --force writes there"),
    (["--output", "loop.parquet", "--force"], "--output is loop.parquet, which is a link that leads back to itself"),
    (["--output", ""], "--output is empty; .parquet, .jsonl, .ndjson, .csv can be written"),
    (["--input", ""], "--input is empty; the name of a file belongs there"),
    (["--input", "-"], "--input is -, and standard input can be read only once; it is read twice, so write it to one"),
    (["--input", "/dev/stdin"], "can be read, by the ending of the name; this is no regular file: it is read twice"),
    (["--input", "in.tsv"], "can be named .csv, and be read with --delimiter tab"),
    (["--input", "csvs"], "csvs/a.csv: a folder is read as Parquet; name one file"),
    (["--input", "jsons"], "jsons/part-0.JSON: a folder is read as Parquet"),
    (["--input", "nul.csv"], "nul.csv: has no column 'text'; its columns are t"),
    (["--input", "nul.jsonl"], "nul.jsonl: has no line with a JSON object"),
    (["--input", "features.parquet"], "features.parquet: column text holds features, lists of numbers, and "),
    (["--input", "features.jsonl"], "features.jsonl: column text holds features, lists of numbers, and "),
    (["--output-column", ""], "--output-column is empty; the name of the new column belongs there"),
    (["--output-column", "", "--input", "good.csv"], "--output-column is empty; the name of the new column belongs"),
    (["--output-column", "", "--input", "array.jsonl"], "--output-column is empty; the name of the new column belongs"),
    (["--output-column", "id"], "--output-column is 'id', which the input already has"),
    (["--task", "rank"], "invalid choice: 'rank'"),
    (["--pooling", "median"], "pooling median is not known"),
    (["--normalize", "maybe"], "invalid choice: 'maybe'"),
    (["--max-length", "65"], "max_length is 65; the model has 64 positions"),
    (["--max-length", "1"], "max_length is 1; 2 special tokens"),
    (["--max-length", "long"], "invalid int value: 'long'"),
    (["--dimensions", "49"], "dimensions is 49; vectors have 48"),
    (["--prompt", "query"], "pass prompt_name='query'"),
    (["--prompt-name", "passage"], "prompt_name is 'passage'; the model's prompts are query, document"),
    (["--prompt-name", "query", "--prompt", "a: "], "prompt is 'a: ' and prompt_name is 'query'"),
    (["--truncate", "middle"], "invalid choice: 'middle'"),
    (["--on-error", "ignore"], "invalid choice: 'ignore'"),
    (["--max-errors", "2"], "max_errors is 2.0; a share of the rows"),
    (["--devices", "tpu"], "tpu"),
    (["--dtype", "bf16"], "dtype bf16 is not computed on cpu:0"),
    (["--max-memory", "lots"], "max_memory is 'lots'"),
    (["--threads", "0"], "threads is 0; a whole number from 1 to 4096"),
    (["--cpu-path", "sse"], "there is no CPU path sse; choose one of"),
    (["--colunm", "text"], "unrecognized arguments: --colunm"),
]

TEXT_FILES = {
    "empty.jsonl": b"",
    "empty.csv": b"",
    "bom.csv": b"\xef\xbb\xbf",
    "array.jsonl": b'[\n{"text": "a"}\n]\n'.replace(b"\n{", b"{").replace(b"}\n", b"}"),
    "numbers.jsonl": b'{"text": 7}\n{"text": 8}\n',
    "taken.jsonl": b'{"text": "a"}\n{"text": "b", "prediction": 1}\n',
    "nothing.jsonl": b'{"txt": "a"}\n',
    "utf16.csv": "text\na\n".encode("utf-16"),
    "utf16.jsonl": '{"text": "a"}\n'.encode("utf-16-be"),
    "quote.csv": b'text,n\n"a\nb","c\nd\n',
    "semicolon.csv": b"id;text\n1;a\n",
    "tab.csv": b"id\ttext\n1\ta\n",
    "twice.csv": b"text,text\na,b\n",
    "latin.csv": b"text,caf\xe9\na,b\n",
    "in.csv.gz": b"",
    "in.json": b"[]",
    "in.tsv": b"id\ttext\n",
    "nul.csv": b"t\0ext\na\n",
    "nul.jsonl": b"\0{}\n",
    "features.jsonl": b'{"text": [[1.0]]}\n',
    "good.csv": b"text\na\n",
}


@pytest.fixture
def folder(source, tmp_path, monkeypatch):
    """The current folder, with files of many kinds."""
    (tmp_path / "in.xlsx").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    for name, data in TEXT_FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "delta" / "_delta_log").mkdir(parents=True)
    parts = {
        "mixed/a": {"text": ["a"], "n": [1]},
        "mixed/b": {"text": ["b"], "n": ["1"]},
        "uneven/k=1/a": {"text": ["a"]},
        "uneven/b": {"text": ["a"]},
        "double/k=1/a": {"text": ["a"], "k": [1]},
        "binary": {"text": ["a"], "raw": [b"a"]},
        "features": {"text": [[[1.0]], [[2.0]]]},
    }
    for name, part in parts.items():
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(part), path)
    for name in ("csvs/a.csv", "jsons/part-0.JSON"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"text\na\n")
    (tmp_path / "taken.parquet").touch()
    links = {
        "to-input.parquet": "in.parquet",
        "to-mixed": "mixed",
        "into-mixed.parquet": "mixed/a.parquet",
        "dangling.parquet": "nowhere.parquet",
        "to-taken.parquet": "taken.parquet",
        "loop.parquet": "loop.parquet",
        "linked/a.parquet": "../in.parquet",
    }
    (tmp_path / "linked").mkdir()
    os.link(tmp_path / "binary.parquet", tmp_path / "linked" / "b.parquet")
    os.link(tmp_path / "binary.parquet", tmp_path / "hard.parquet")
    for name, leads in links.items():
        (tmp_path / name).symlink_to(leads)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("flags", "words"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_a_wrong_flag_gives_one_sentence_and_exit_code_2(flags, words, folder, model, capsys):
    before = sorted(os.listdir(folder))
    good = {"--input": "in.parquet", "--column": "text", "--output": "o.parquet"}
    rest = [part for name, value in good.items() if name not in flags for part in (name, value)]
    code, said, trouble = command("run", model, *rest, *flags, capsys=capsys)
    assert code == 2 and said == ""
    assert words in trouble
    assert trouble.count("\n") == 1 and trouble.startswith("firesteel"), trouble
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("flag", ["--input", "--column", "--output"])
def test_a_missing_flag_is_named(flag, model, capsys):
    good = {"--input": "in.parquet", "--column": "text", "--output": "o.parquet"}
    rest = [part for name, value in good.items() if name != flag for part in (name, value)]
    code, _, trouble = command("run", model, *rest, capsys=capsys)
    assert code == 2 and f"required: {flag}; see firesteel run --help" in trouble


@pytest.mark.parametrize(("wrong", "words"), [("none", "none: no such folder"), ("empty", "config.json is missing")])
def test_a_wrong_model_gives_exit_code_2(wrong, words, folder, capsys):
    code, _, trouble = embed(wrong, "in.parquet", "o.parquet", capsys=capsys)
    assert code == 2 and words in trouble and trouble.count("\n") == 1


def test_a_faulty_row_gives_exit_code_1_and_leaves_no_file(tmp_path, model, capsys):
    pq.write_table(pa.table({"text": ["fine"] * 300 + ["row " * 70]}), tmp_path / "in.parquet")
    code, said, trouble = embed(
        model, tmp_path / "in.parquet", tmp_path / "o.parquet", "--truncate", "error", capsys=capsys
    )
    assert (code, said) == (1, "")
    assert (
        "in.parquet: row 300, counted from 0 (TOO_LONG): the row has 72 tokens; the limit is 64; --on-error null makes"
        in trouble
    )
    assert os.listdir(tmp_path) == ["in.parquet"]


@pytest.mark.parametrize(("file", "row"), [("a", 0), ("b", 150), ("b", 5000)])
def test_a_faulty_row_of_a_folder_names_its_file(file, row, tmp_path, model, capsys):
    (tmp_path / "in").mkdir()
    for name in "ab":
        texts = ["fine"] * (row + 1)
        texts[row] = "row " * 70 if name == file else "fine"
        pq.write_table(pa.table({"text": texts}), tmp_path / "in" / f"{name}.parquet")
    more = ["--truncate", "error"]
    code, _, trouble = embed(model, tmp_path / "in", tmp_path / "o.parquet", *more, capsys=capsys)
    assert code == 1 and f"in/{file}.parquet: row {row}, counted from 0 (TOO_LONG): the row has" in trouble


def test_a_file_that_changes_while_it_is_read_gives_exit_code_1(tmp_path, model, capsys, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"text": "row"}\n' * 500)
    start = firesteel.Engine.start_embed

    def changing(*arguments, **options):
        (tmp_path / "in.jsonl").write_text('{"text": "other"}\n' * 600)
        return start(*arguments, **options)

    monkeypatch.setattr(firesteel.Engine, "start_embed", changing)
    code, said, trouble = embed(model, tmp_path / "in.jsonl", tmp_path / "o.parquet", capsys=capsys)
    assert (code, said) == (1, "") and "in.jsonl: was changed while it was read" in trouble
    assert trouble.count("\n") == 1 and os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_a_full_disk_gives_exit_code_1(ending, tmp_path, source, model, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    monkeypatch.setattr(targets.TextTarget, "_lines", full)
    code, said, trouble = embed(model, source, tmp_path / f"o{ending}", capsys=capsys)
    assert (code, said) == (1, "") and trouble.count("\n") == 1
    assert f"o{ending}: cannot be written: [Errno 28] No space left on device" in trouble
    assert os.listdir(tmp_path) == ["in.parquet"]


def test_force_replaces_only_when_all_is_written(tmp_path, source, model, capsys):
    target = tmp_path / "o.parquet"
    target.write_text("old")
    bad = pa.table({"text": ["row " * 70]})
    pq.write_table(bad, tmp_path / "bad.parquet")
    assert embed(model, tmp_path / "bad.parquet", target, "--force", "--truncate", "error", capsys=capsys)[0] == 1
    assert target.read_text() == "old"
    assert embed(model, source, target, "--force", capsys=capsys)[0] == 0
    assert pq.read_table(target).num_rows == len(TEXTS)


def test_sigterm_is_left_to_who_has_taken_it(tmp_path, source, model, capsys):
    def mine(*_): ...

    for handler in (mine, signal.SIG_IGN, signal.SIG_DFL):
        before = signal.signal(signal.SIGTERM, handler)
        try:
            assert embed(model, source, tmp_path / "o.csv", "--force", capsys=capsys)[0] == 0
            assert signal.getsignal(signal.SIGTERM) == handler
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "dangling"])
@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_an_output_that_is_a_link_is_followed(there, ending, tmp_path, source, model, capsys):
    (tmp_path / "place").mkdir()
    target, link = tmp_path / "place" / f"real{ending}", tmp_path / f"o{ending}"
    if there:
        target.write_text("old")
    link.symlink_to(target)
    assert embed(model, source, link, "--force", capsys=capsys)[0] == 0
    assert link.is_symlink() and len(results(target)) == len(TEXTS)
    assert os.listdir(tmp_path / "place") == [target.name]


@pytest.mark.parametrize("name", ["a\nb.csv", "a\r.parquet", "\u2028.jsonl"], ids=repr)
def test_the_report_is_one_line_whatever_the_output_is_called(name, tmp_path, source, model, capsys):
    code, said, trouble = embed(model, source, tmp_path / name, capsys=capsys)
    assert (code, trouble, len(said.splitlines())) == (0, "", 1) and (tmp_path / name).exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_signal_gives_its_code_and_leaves_no_file(sent, code, tmp_path, model):
    pq.write_table(pa.table({"text": ["the last column of the table " * 5] * 400_000}), tmp_path / "in.parquet")
    arguments = [sys.executable, "-m", "firesteel", "run", model, "--column", "text", "--quiet"]
    arguments += ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "o.parquet")]
    started = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 2 and time.monotonic() < end:  # until the temporary file is there
        time.sleep(0.02)
    started.send_signal(sent)
    _, trouble = started.communicate(timeout=60)
    assert started.returncode == code
    assert trouble == "firesteel: stopped; nothing was written\n"
    assert os.listdir(tmp_path) == ["in.parquet"]
