"""`firesteel run --task classify|rerank`: what is written in each format, pairs, and flags of other tasks."""

import csv
import json

import firesteel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_run import command
from test_spark_classify import NAMES, as_label, ranking, write

TEXTS = ["first row", None, "", "the last column", 'a "quoted, one"\nof two lines']
PAIRS = ["of a table", "the", "a date", None, "parse"]
ODD_NAMES = ['no, "never"', "perhaps", "yes\n"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run") / "classifier", NAMES)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run") / "reranker", ["relevant"])


def as_parquet(folder):
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS, "pair": PAIRS})
    pq.write_table(table, folder / "in.parquet")
    return folder / "in.parquet"


def as_folder(folder):
    """Whose second file has its columns in another order."""
    (folder / "parts").mkdir()
    for part, (begin, end) in enumerate(((0, 2), (2, 5))):
        columns = {"id": range(begin, end), "text": TEXTS[begin:end], "pair": PAIRS[begin:end]}
        names = list(columns) if part == 0 else list(columns)[::-1]
        pq.write_table(pa.table({name: columns[name] for name in names}), folder / "parts" / f"{part}.parquet")
    return folder / "parts"


def as_jsonl(folder):
    lines = [{"id": i, "text": TEXTS[i], "pair": PAIRS[i]} for i in range(len(TEXTS))]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "in.jsonl"


def as_csv(folder):
    """Where a null is an empty text."""
    with (folder / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text", "pair"], *zip(range(len(TEXTS)), TEXTS, PAIRS, strict=True)])
    return folder / "in.csv"


SOURCES = [as_parquet, as_folder, as_jsonl, as_csv]


def run(model, source, target, *flags, capsys):
    given = ("run", model, "--input", source, "--column", "text", "--output", target, "--threads", 1)
    return command(*given, *flags, capsys=capsys)


def expected(call, *sides, empty):
    """The engine's scores, None for a row with a null; empty: nulls are empty texts."""
    rows = [tuple(text or "" if empty else text for text in row) for row in zip(*sides, strict=True)]
    good = [row for row in rows if None not in row]
    scores = iter(call(*(list(side) for side in zip(*good, strict=True))))
    return [next(scores) if None not in row else None for row in rows]


def read(target):
    """The predictions of any format."""
    if target.suffix == ".parquet":
        return pq.read_table(target)["prediction"].to_pylist()
    if target.suffix == ".jsonl":
        return [json.loads(line)["prediction"] for line in target.read_text().splitlines()]
    with target.open(newline="") as file:
        return [json.loads(row["prediction"]) if row["prediction"] else None for row in csv.DictReader(file)]


def same(found, wanted):
    """Of labels and scores, whose digits in text give the float32 back."""
    if isinstance(wanted, dict):
        found = dict(found)
        assert list(found) == list(wanted)
        return all(same(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, tuple):
        return found["label"] == wanted[0] and same(found["score"], wanted[1])
    return found is None if wanted is None else np.float32(found) == wanted


SHAPES = {
    "label": ([], as_label),
    "two": (["--top-k", 2], lambda row: ranking(row, 2)),
    "all": (["--scores", "all"], lambda row: dict(zip(NAMES, row, strict=True))),
}


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_classify(model, tmp_path, make, shape, ending, capsys):
    flags, wanted = SHAPES[shape]
    for columns, more in (((TEXTS,), []), ((TEXTS, PAIRS), ["--pair-column", "pair"])):
        target = tmp_path / f"out{len(columns)}{ending}"
        given = make(tmp_path) if not more else next(tmp_path.glob("parts" if make is as_folder else "in.*"))
        done = run(model, given, target, "--task", "classify", *flags, *more, capsys=capsys)
        assert (done[0], done[2]) == (0, "")
        with firesteel.Engine(model, threads=1) as engine:
            scores = expected(engine.classify, *columns, empty=make is as_csv)
        found = read(target)
        assert len(found) == len(scores)
        for one, row in zip(found, scores, strict=True):
            assert same(one, None if row is None else wanted(row))


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv"])
@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_rerank(reranker, tmp_path, make, ending, capsys):
    flags = ["--task", "rerank", "--pair-column", "pair", "--raw"]
    done = run(reranker, make(tmp_path), tmp_path / f"out{ending}", *flags, capsys=capsys)
    assert (done[0], done[2]) == (0, "")
    with firesteel.Engine(reranker, threads=1) as engine:
        wanted = expected(lambda *sides: engine.rerank(*sides, raw=True), TEXTS, PAIRS, empty=make is as_csv)
    assert all(map(same, read(tmp_path / f"out{ending}"), wanted))


def test_names_that_need_quotes(tmp_path, capsys):
    model = write(tmp_path / "odd", ODD_NAMES)
    for ending in (".csv", ".jsonl"):
        target = tmp_path / f"out{ending}"
        flags = ["--task", "classify", "--scores", "all"]
        assert run(model, as_parquet(tmp_path), target, *flags, capsys=capsys)[0] == 0
        assert [None if row is None else list(row) for row in read(target)] == [
            None if text is None else ODD_NAMES for text in TEXTS
        ]


@pytest.mark.parametrize("shape", SHAPES)
def test_details_and_token_ids(model, tmp_path, shape, capsys):
    flags, wanted = SHAPES[shape]
    pq.write_table(pa.table({"text": [[2, 60, 3], [2, 160, 3], None, [2, 3]]}), tmp_path / "ids.parquet")
    flags = ["--task", "classify", "--details", *flags]
    for ending in (".parquet", ".jsonl"):
        target = tmp_path / f"out{ending}"
        code, said, _ = run(model, tmp_path / "ids.parquet", target, *flags, capsys=capsys)
        assert code == 0 and "1 null, 1 failed (SCHEMA 1)" in said
        found = read(target)
        with firesteel.Engine(model, threads=1) as engine:
            scores = engine.classify([[2, 60, 3], [2, 3]])
        assert same(found[0]["result"], wanted(scores[0])) and same(found[3]["result"], wanted(scores[1]))
        assert found[1]["result"] is None and found[1]["error_code"] == "SCHEMA" and found[2] is None


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_faulty_second_text(model, tmp_path, name, capsys):
    rows = {
        "in.csv": b"text,pair\na,b\nc,\xff\n",
        "in.jsonl": b'{"text": "a", "pair": "b"}\n{"text": "c", "pair": "\xff"}\n',
    }
    (tmp_path / name).write_bytes(rows[name])
    flags = ["--task", "classify", "--pair-column", "pair"]
    code, _, trouble = run(model, tmp_path / name, tmp_path / "out.parquet", *flags, capsys=capsys)
    assert code == 1 and "(BAD_UTF8)" in trouble and not (tmp_path / "out.parquet").exists()
    code, said, _ = run(model, tmp_path / name, tmp_path / "out.parquet", *flags, "--details", capsys=capsys)
    found = read(tmp_path / "out.parquet")
    assert code == 0 and found[0]["result"]["label"] in NAMES and found[1]["error_code"] == "BAD_UTF8"


def test_a_second_text_that_is_none(model, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "a", "pair": "b"}\n{"text": "c", "pair": 3}\n{"text": "d"}\n')
    flags = ["--task", "classify", "--pair-column", "pair", "--on-error", "null"]
    code, said, _ = run(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", *flags, capsys=capsys)
    assert code == 3 and "1 null, 1 failed (SCHEMA 1)" in said
    assert [row is None for row in read(tmp_path / "out.jsonl")] == [False, True, True]


WRONG = [
    (["--task", "rerank"], "--task rerank needs --pair-column"),
    (["--task", "classify", "--pooling", "cls"], "--pooling goes with --task embed, not classify"),
    (["--task", "classify", "--prompt-name", "x"], "--prompt-name goes with --task embed, not classify"),
    (["--task", "rerank", "--pair-column", "pair", "--top-k", 2], "--top-k goes with --task classify, not rerank"),
    (["--raw"], "--raw goes with --task classify or rerank, not embed"),
    (["--pair-column", "pair"], "--pair-column goes with --task classify or rerank, not embed"),
    (["--task", "classify", "--pair-column", "text"], "--pair-column is 'text', which is --column"),
    (["--task", "classify", "--pair-column", "piar"], "has no column 'piar'; its columns are id, text, pair"),
    (["--task", "classify", "--pair-column", "id"], "column id is bigint; string (text)"),
    (["--task", "classify", "--top-k", 0], "top_k is 0"),
    (["--task", "classify", "--top-k", 2, "--scores", "all"], "top_k makes an array"),
    (["--task", "rerank", "--pair-column", "pair"], "its head has 3 labels"),
    (["--task", "classify", "--max-length", 99], "max_length is 99; the model has 64 positions"),
    (["--task", "classify", "--pair-column", "pair", "--max-length", 2], "3 special tokens alone need 3"),
]


@pytest.mark.parametrize(("flags", "words"), WRONG, ids=str)
def test_flags_that_are_wrong(model, tmp_path, flags, words, capsys):
    code, said, trouble = run(model, as_parquet(tmp_path), tmp_path / "out.parquet", *flags, capsys=capsys)
    assert (code, said) == (2, "") and words in trouble, trouble
    assert not (tmp_path / "out.parquet").exists()


def test_ids_are_no_pairs(model, tmp_path, capsys):
    pq.write_table(pa.table({"text": [[2, 3]], "pair": ["a"]}), tmp_path / "in.parquet")
    flags = ["--task", "classify", "--pair-column", "pair"]
    code, _, trouble = run(model, tmp_path / "in.parquet", tmp_path / "out.parquet", *flags, capsys=capsys)
    assert code == 2 and "texts has rows of token ids; a pair is two texts" in trouble


def test_cutting_on_a_side(model, tmp_path, capsys):
    pq.write_table(pa.table({"text": ["the first row of the table"]}), tmp_path / "in.parquet")
    found = {}
    with firesteel.Engine(model, threads=1) as engine:
        for side in ("left", "right"):
            target = tmp_path / f"{side}.parquet"
            flags = ["--task", "classify", "--max-length", 5, "--truncate", side, "--top-k", 3]
            assert run(model, tmp_path / "in.parquet", target, *flags, capsys=capsys)[0] == 0
            (found[side],) = read(target)
            wanted = engine.classify(["the first row of the table"], max_length=5, truncate=side)[0]
            assert same(found[side], ranking(wanted, 3))
    assert found["left"] != found["right"]
