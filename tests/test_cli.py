"""The commands: what they say, what they write, and their exit codes. The demo has a file of its own."""

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
from firesteel.commands import cli, doctor, run

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
    assert table["id"].to_pylist() == list(range(5))
    csv = make is as_csv  # an empty cell is an empty text there
    assert table["text"].to_pylist() == ["" if csv and text is None else text for text in TEXTS]
    found = table["prediction"].to_pylist()
    assert found == [expected[2] if csv and vector is None else vector for vector in expected]
    assert set(os.listdir(tmp_path)) == {"out.parquet", "in.parquet", given.name}


def test_run_takes_token_ids_and_options(tmp_path, model, capsys):
    pq.write_table(pa.table({"text": [[2, 60, 3], [2, 160, 3], None]}), tmp_path / "ids.parquet")
    options = ["--details", "--dimensions", 4, "--pooling", "cls,max", "--output-column", "v", "--normalize", "yes"]
    code, said, trouble = embed(model, tmp_path / "ids.parquet", tmp_path / "o.parquet", *options, capsys=capsys)
    assert (code, trouble) == (0, "") and "3 rows, 2 of them without a result" in said
    rows = pq.read_table(tmp_path / "o.parquet")["v"].to_pylist()
    with firesteel.Engine(model, threads=1) as engine:
        vector = engine.embed([[2, 60, 3]], pooling=["cls", "max"], dimensions=4, normalize=True)[0]
    assert np.array_equal(np.float32(rows[0]["result"]), vector)
    assert rows[1]["result"] is None and rows[1]["error_code"] == "SCHEMA" and rows[2] is None


def test_run_writes_many_rows_in_few_groups(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(run, "BLOCK_BYTES", 10_000)  # many blocks
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


# --- run: what bad input gets ----------------------------------------------------------------------------------------

REFUSED = [
    (["--input", "none.parquet"], "--input is none.parquet, which does not exist"),
    (["--input", "in.xlsx"], "--input is in.xlsx; .parquet, .jsonl, .ndjson, .csv can be read"),
    (["--input", "broken.parquet"], "broken.parquet: "),
    (["--input", "broken.jsonl"], "broken.jsonl: JSON parse error"),
    (["--input", "empty.jsonl"], "empty.jsonl: is empty"),
    (["--input", "empty.csv"], "empty.csv: "),
    (["--input", "empty"], "empty: holds no Parquet file"),
    (["--column", "txet"], "in.parquet: has no column 'txet'; its columns are id, text"),
    (["--column", "id"], "in.parquet: column id is bigint; string (text) or array<int>"),
    (["--output", "o.csv"], "--output is o.csv; only .parquet can be written"),
    (["--output", "no/o.parquet"], "there is no folder"),
    (["--output", "taken.parquet"], "--output is taken.parquet, which exists; --force replaces it"),
    (["--output", "in.parquet", "--force"], "--output is in.parquet, which is the input"),
    (["--output-column", "id"], "--output-column is 'id', which the input already has"),
    (["--task", "classify"], "invalid choice: 'classify'"),
    (["--pooling", "median"], "pooling median is not known"),
    (["--normalize", "maybe"], "invalid choice: 'maybe'"),
    (["--max-length", "65"], "max_length is 65; the model has 64 positions"),
    (["--max-length", "1"], "max_length is 1; 2 special tokens"),
    (["--max-length", "long"], "invalid int value: 'long'"),
    (["--dimensions", "49"], "dimensions is 49; vectors have 48"),
    (["--truncate", "left"], "invalid choice: 'left'"),
    (["--on-error", "ignore"], "invalid choice: 'ignore'"),
    (["--max-errors", "2"], "max_errors is 2.0; a share of the rows"),
    (["--devices", "tpu"], "tpu"),
    (["--dtype", "bf16"], "dtype bf16 is not computed on cpu:0"),
    (["--max-memory", "lots"], "max_memory is 'lots'"),
    (["--threads", "0"], "threads is 0; a whole number from 1 to 4096"),
    (["--cpu-path", "sse"], "there is no CPU path sse; choose one of"),
    (["--colunm", "text"], "unrecognized arguments: --colunm"),
]


@pytest.fixture
def folder(source, tmp_path, monkeypatch):
    """The current folder, with files of many kinds."""
    (tmp_path / "in.xlsx").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.parquet").touch()
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
    assert "row 300 of the partition (TOO_LONG): the row has 72 tokens; the limit is 64" in trouble
    assert os.listdir(tmp_path) == ["in.parquet"]


def test_a_file_that_breaks_in_the_middle_gives_exit_code_1(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(run, "BLOCK_BYTES", 1000)
    lines = [json.dumps({"text": f"row {row}"}) for row in range(500)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"text": 7}']))
    code, said, trouble = embed(model, tmp_path / "in.jsonl", tmp_path / "o.parquet", capsys=capsys)
    assert (code, said) == (1, "") and "in.jsonl: JSON parse error" in trouble and trouble.count("\n") == 1
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_a_full_disk_gives_exit_code_1(tmp_path, source, model, capsys, monkeypatch):
    def full(self, table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    code, said, trouble = embed(model, source, tmp_path / "o.parquet", capsys=capsys)
    assert (code, said) == (1, "") and trouble.count("\n") == 1
    assert "o.parquet: cannot be written: [Errno 28] No space left on device" in trouble
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


def test_ctrl_c_gives_130_and_leaves_no_file(tmp_path, model):
    pq.write_table(pa.table({"text": ["the last column of the table " * 5] * 400_000}), tmp_path / "in.parquet")
    arguments = [sys.executable, "-m", "firesteel", "run", model, "--column", "text", "--quiet"]
    arguments += ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "o.parquet")]
    started = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 2 and time.monotonic() < end:  # until the temporary file is there
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, trouble = started.communicate(timeout=60)
    assert started.returncode == 130
    assert trouble == "firesteel: stopped; nothing was written\n"
    assert os.listdir(tmp_path) == ["in.parquet"]


# --- help and doctor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["demo", "--help"], ["doctor", "--help"], ["plan", "--help"], ["run", "--help"]],
    ids=" ".join,
)
def test_help_documents_the_exit_codes(arguments, capsys):
    code, said, _ = command(*arguments, capsys=capsys)
    assert code == 0
    assert [f"\n  {number:<5}" in said for number in (0, 1, 2, 130)] == [True] * 4


def test_no_command_is_exit_code_2(capsys):
    code, _, trouble = command(capsys=capsys)
    assert code == 2 and "COMMAND" in trouble and trouble.count("\n") == 1


def test_python_m_firesteel_leaves_with_the_code():
    done = subprocess.run([sys.executable, "-m", "firesteel", "run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_doctor_tells_what_there_is(capsys):
    code, said, _ = command("doctor", capsys=capsys)
    assert code == 0
    for words in ("path portable", "may be used", "GiB", "numpy ", "pyarrow ", "tokenizers ", "pyspark ", "java "):
        assert words in said, f"{words!r} is missing:\n{said}"
    assert "chosen" in said and "firesteel can compute here" in said


def test_doctor_tells_what_is_missing_and_how_to_get_it(capsys, monkeypatch, tmp_path):
    libraries = (doctor.Library("no-such-package", "2.0", ""), doctor.Library("numpy", "99", "dreams"))
    monkeypatch.setattr(doctor, "LIBRARIES", (*libraries, doctor.Library("pyspark", "3.5", "Spark", imported=False)))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("FIRESTEEL_THREDS", "4")
    code, said, _ = command("doctor", capsys=capsys)
    assert code == 1
    assert "not found: pip install 'no-such-package>=2.0'" in said
    assert "is older than 99: pip install 'numpy>=99' (only dreams needs it)" in said
    assert f"{tmp_path}/bin/java (by JAVA_HOME={tmp_path}) does not run" in said and "openjdk-17" in said
    assert "FIRESTEEL_THREDS" in said and "there is no such knob" in said


JAVAS = [
    ('openjdk version "17.0.9" 2023', True),
    ('java version "21" 2023', True),
    ('openjdk version "1.8.0_392"', False),
    ('openjdk version "11.0.2"', False),
    ("what is it", False),
]


@pytest.mark.parametrize(("says", "fine"), JAVAS, ids=[says for says, _ in JAVAS])
def test_java_is_judged_by_its_version(says, fine, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found, problem = doctor.java()
    assert (found is not None, problem is None) == (fine, fine)
    assert fine or "install one" in problem


def test_no_java_at_all(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.java()[0] is None and "no java is on the PATH" in doctor.java()[1]
