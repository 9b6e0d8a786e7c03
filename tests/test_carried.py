"""What `firesteel run` carries along is neither lost nor changed: awkward files, compared with readers of other makers
(csv, json, pyarrow).

A stand-in takes the engine's place, so that there are hundreds of files; all else is what the command runs.
"""

import csv
import io
import json
import os
import re
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from firesteel.commands import run
from firesteel.table import csv_file, files
from firesteel.table.columns import FLOATS, details_type
from firesteel.table.job import Job
from firesteel.table.targets import open_target
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

VECTOR = np.float32([0.1, 1, -0.0, 1e-7, 3.4e38, 16777216])
VECTOR_TEXT = "[0.1,1.0,-0.0,1e-7,3.4e+38,16777216.0]"  # the shortest that gives each float32 back
MANY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class StandIn:
    """An engine that gives VECTOR for every row, and works on no null."""

    settings = {"max_length": 64, "width": len(VECTOR), "rows": "ids"}

    def dimension(self, *_: object) -> int:
        return len(VECTOR)

    def start_embed(self, rows: object, **_: object) -> SimpleNamespace:
        matrix = np.tile(VECTOR, (len(rows), 1))
        tokens = np.full(len(rows), 3, np.int32)
        return SimpleNamespace(tokens=tokens, known=(0, 0), result=lambda: (matrix, []), cancel=lambda: None)

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *_: object) -> None: ...


def carry(
    source: Path, ending: str, *, column: str = "text", output: str = "v", delimiter: str = ",", details: bool = False
) -> tuple[run.Report, Path]:
    """(report, target) of a run that makes faulty rows null."""
    options = dict(pooling="auto", normalize="auto", max_length=None, dimensions=None, truncate=True)
    job = Job("embed", None, (("manager", False),), tuple(options.items()), details, "null", 1.0)
    reads = files.check_source(str(source), run.READ)
    opened = run._open(str(source), column, output, reads, ending, delimiter.encode())
    target = source.parent / f"out{ending}"
    field = pa.field(output, details_type(FLOATS) if details else FLOATS)
    work = run.Work(job, StandIn(), opened, open_target(str(target), opened, field, delimiter), str(target))
    return work.run(quiet=True), target


def carried(data: bytes, reads: str, writes: str, **options: object) -> tuple[run.Report, object]:
    """(report, the output: bytes, or a table)."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / f"in{reads}"
        source.write_bytes(data)
        report, target = carry(source, writes, **options)
        assert sorted(os.listdir(folder)) == sorted([source.name, target.name])
        return report, pq.ParquetFile(target).read() if writes == ".parquet" else target.read_bytes()


# --- CSV -------------------------------------------------------------------------------------------------------------

CELLS = st.lists(st.sampled_from([b"a", b"00123", b'"', b",", b";", b"\n", b"\r", b"\0", b"\xff", "é".encode(), b" "]))
CELL = st.one_of(CELLS.map(b"".join), st.sampled_from([b"", b"4912345678901234567890", b"1e400", b"NaN", b"null"]))
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def csv_files(draw):
    """(bytes, delimiter, header, records: their bytes without and with their cells' texts, line ends)."""
    delimiter = draw(st.sampled_from([b",", b";", b"\t"]))
    others = draw(st.lists(st.sampled_from([b"", b"n", b"a.b", 'é "x",'.encode()]), unique=True, max_size=3))
    header = [b"text", *others]

    def written(cells: list[bytes]) -> bytes:
        parts = []
        for cell in cells:
            bare = not cell.startswith(b'"') and not re.search(rb"[\r\n]", cell) and delimiter not in cell
            bare = bare and not (len(cells) == 1 and cell == b"")  # a blank line is no row
            parts.append(cell if bare and draw(st.booleans()) else b'"' + cell.replace(b'"', b'""') + b'"')
        return delimiter.join(parts)

    rows = draw(st.lists(st.lists(CELL, min_size=len(header), max_size=len(header)), max_size=8))
    if draw(st.booleans()):  # one row with a cell too few or too many
        rows.append(draw(st.lists(CELL, min_size=1, max_size=5)))
    records = [(written(row), row) for row in rows]
    ends = [draw(LINE_ENDS) for _ in range(len(rows) + 1)]
    if rows and draw(st.booleans()):
        ends[-1] = b""
    bom = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    top = bom + written(header)
    data = top + ends[0] + b"".join(record + end for (record, _), end in zip(records, ends[1:], strict=True))
    return SimpleNamespace(data=data, delimiter=delimiter, header=header, top=top, records=records, ends=ends)


def is_text(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def code_of(file, row) -> str | None:
    if len(row) != len(file.header):
        return "SCHEMA"
    return None if is_text(row[0]) else "BAD_UTF8"


@MANY
@given(file=csv_files())
def test_csv_to_csv_keeps_every_byte(file):
    report, out = carried(file.data, ".csv", ".csv", delimiter=file.delimiter.decode())
    expected = file.top + file.delimiter + b"v" + file.ends[0]
    for (record, row), end in zip(file.records, file.ends[1:], strict=True):
        filled = file.delimiter * max(0, len(file.header) - len(row))  # the result stands in its column
        quotes = b'"' if file.delimiter == b"," else b""
        cell = b"" if code_of(file, row) else quotes + VECTOR_TEXT.encode() + quotes
        expected += record + filled + file.delimiter + cell + end
    assert out == expected
    codes = [code for _, row in file.records if (code := code_of(file, row))]
    assert report.rows == len(file.records) and report.failed.total() == len(codes) and report.nulls == 0
    assert dict(report.failed) == {code: codes.count(code) for code in codes}
    assert report.exit_code == (3 if codes else 0) and report.escaped == ""
    text = out.removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"\1").decode("latin-1")  # before 3.11 csv takes no NUL
    _, *parsed = csv.reader(io.StringIO(text, newline=""), delimiter=file.delimiter.decode())
    for (_, row), found in zip(file.records, parsed, strict=True):
        assert [cell.encode("latin-1") for cell in found[: len(row)]] == [cell.replace(b"\0", b"\1") for cell in row]


@MANY
@given(file=csv_files(), ending=st.sampled_from([".parquet", ".jsonl"]))
def test_csv_becomes_text_cell_by_cell(file, ending):
    report, out = carried(file.data, ".csv", ending, delimiter=file.delimiter.decode())
    names = [name.decode() for name in file.header]
    if ending == ".parquet":
        assert out.schema.types[:-1] == [pa.string()] * len(names)
        found = list(zip(*(column.to_pylist() for column in out.columns), strict=True))
    else:
        found = [tuple(json.loads(line).values()) for line in out.decode().splitlines()]
    odd = 0
    for (_, row), cells in zip(file.records, found, strict=True):
        kept = row[: len(names)]
        odd += sum(not is_text(cell) for cell in kept)
        right = [cell.decode("utf-8", "backslashreplace") for cell in kept]
        assert list(cells[:-1]) == right + [None] * (len(names) - len(right))
        assert (cells[-1] is None) == (code_of(file, row) is not None)
    assert bool(report.escaped) == (odd > 0)
    assert odd < 2 or report.escaped.startswith(f"{odd} carried cells are not UTF-8, first in column ")


@MANY
@given(
    parts=st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"a", b" ", b'""', b'",', b'\n"', b"\xff"]), max_size=40)
)
@example(parts=[b'"a"b"c",d', b"\n"])
@example(parts=[b'"a"""', b"\r", b'"'])
def test_any_bytes_are_the_cells_that_pythons_csv_finds(parts):
    """Unclosed quotes aside, which Python lets pass."""
    data = b"".join(parts)
    right = [row for row in csv.reader(io.StringIO(data.decode("latin-1"), newline="")) if row]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "in.csv"
        path.write_bytes(b"text\n" + data)
        reader = csv_file._Csv.__new__(csv_file._Csv)
        reader._file, reader._delimiter, reader._opening = files.TextFile(str(path)), b",", b',"'
        try:
            _, *found = ([cell.decode("latin-1") for cell in reader._cells(body)] for body, _, _ in reader._records())
        except files.BadFile as error:
            assert "is not closed" in str(error) and data.count(b'"') > 0
            return
        finally:
            reader._file.close()
    assert found == right


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_records_do_not_depend_on_where_the_file_is_cut(size, monkeypatch):
    monkeypatch.setattr(csv_file, "CHUNK_BYTES", size)
    monkeypatch.setattr(files, "BATCH_ROWS", 2)
    data = b'text,n\r\n"a\r\n""b",1\r\rc,"2"\n"",\r\nlast,"x""\n\n"'
    _, out = carried(data, ".csv", ".csv")
    cell = f'"{VECTOR_TEXT}"'.encode()
    right = [b"text,n,v\r\n", b'"a\r\n""b",1,', cell, b'\rc,"2",', cell, b'\n"",,', cell, b'\r\nlast,"x""\n\n",', cell]
    assert out == b"".join(right)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b""], ids=ascii)
def test_a_long_row_is_put_together_once(end, monkeypatch):
    """In time that grows with its length: each piece again would be 30 GB here."""
    monkeypatch.setattr(csv_file, "CHUNK_BYTES", 64)
    data = b"text,n\n" + b"a" * 2_000_000 + b",1" + end
    assert carried(data, ".csv", ".csv")[1] == b"text,n,v\n" + data[7:].rstrip() + b',"%b"' % VECTOR_TEXT.encode() + end


def test_a_row_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 1000)
    for data, ending in ((b"text\na\n" + b"b" * 3_000_000, ".csv"), (b'text\na\n"b' + b"\n" * 2000, ".csv")):
        with pytest.raises(files.BadFile, match="the row in line 3 has more than .* MiB; a quote may be missing there"):
            carried(data, ending, ".parquet")
    with pytest.raises(files.BadFile, match="the row in line 2 has more than"):
        carried(b'{"text":"a"}\n{"text":"' + b"b" * 2000 + b'"}', ".jsonl", ".csv")


def test_a_header_alone_is_a_table_without_rows():
    for data, right in ((b"text,n", b"text,n,v\n"), (b"text,n\r\n", b"text,n,v\r\n"), (b"\xef\xbb\xbftext\n\n", None)):
        report, out = carried(data, ".csv", ".csv")
        assert report.rows == 0 and report.exit_code == 0 and out == (right or b"\xef\xbb\xbftext,v\n")
        assert carried(data, ".csv", ".parquet")[1].num_rows == 0


# --- JSON lines ------------------------------------------------------------------------------------------------------

NUMBERS = [
    "0",
    "-0",
    "1",
    "1.0",
    "1.50",
    "1e3",
    "-1E+2",
    "0.1",
    "1e400",
    "-1e-400",
    "12345678901234567890123",
    "5e-324",
]
NUMBERS += [
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "0.1000000000000000055511151231257827",
    "NaN",
]
NUMBERS += ["-Infinity", "1" * 5000, "100000000000000000000"]
STRINGS = [
    '"a"',
    '""',
    '"\\u00e9"',
    '"é"',
    '"\\ud83d\\ude00"',
    '"\\udc80"',
    '"a\\/b"',
    '"\\u0000"',
    '"00123"',
    '"{"',
    '"null"',
]
SCALAR = st.sampled_from([*NUMBERS, *STRINGS, "true", "false", "null"])
NAME = st.sampled_from(['"a"', '"b"', '"\\u0063"', '""', '"a.b"'])
SPACE = st.sampled_from(["", " ", "\t", "  "])


def nested(inner):
    array = st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
    members = st.lists(st.tuples(NAME, inner), max_size=3)
    return array | members.map(lambda pairs: "{" + ",".join(f"{name} :{value}" for name, value in pairs) + "}")


VALUE = st.recursive(SCALAR, nested, max_leaves=6)
INTS = st.sampled_from(["1", "-7", "null", "9007199254740993"])
LIKE = st.sampled_from(
    [VALUE, INTS, st.sampled_from(['"a"', '"é"', "null"]), st.sampled_from(["1", "0.5", "1e3", "NaN"])]
)


@st.composite
def json_files(draw):
    """(lines, each with its line end; of each its text in JSON, or None)."""
    kinds = {name: draw(LIKE) for name in ('"a"', '"b"', '"\\u0063"', '"a.b"')}  # columns of one kind, or of any
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        names = draw(st.lists(st.sampled_from(sorted(kinds)), unique=True))
        members = [(name, draw(kinds[name])) for name in names]
        text = draw(st.sampled_from(['"x"', '"é\\n"', "null", '""', None]))
        if text is not None:
            members.insert(draw(st.integers(0, len(members))), ('"text"', text))
        gap = draw(SPACE)
        inside = f"{gap},{gap}".join(f"{name}{gap}:{gap}{value}" for name, value in members)
        line = f"{gap}{{{gap}{inside}{draw(SPACE)}}}{gap}"
        lines.append((line + draw(st.sampled_from(["\n", "\r\n", "\n\n"])), text))
    lines.append(('{"text":"end"}', '"end"'))
    return lines


def pairs(line: str) -> list[tuple[str, object]]:
    """Members in order, numbers as their text, objects as lists of pairs."""
    with_text = dict(parse_int=lambda text: ("int", text), parse_float=lambda text: ("float", text))
    return json.loads(line, object_pairs_hook=lambda found: ("object", found), **with_text)[1]


@MANY
@given(lines=json_files(), bom=st.booleans())
def test_json_lines_to_json_lines_keeps_every_byte(lines, bom):
    data = (b"\xef\xbb\xbf" if bom else b"") + "".join(line for line, _ in lines).encode()
    report, out = carried(data, ".jsonl", ".jsonl")
    assert report.rows == len(lines) and not report.failed
    assert report.nulls == sum(text in (None, "null") for _, text in lines)
    assert out.startswith(b"\xef\xbb\xbf") == bom
    found = out.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    for (line, text), made in zip(lines, found, strict=True):
        result = "null" if text in (None, "null") else VECTOR_TEXT
        kept = line.strip()[:-1].rstrip()
        assert made.strip().startswith(kept) and made.strip().endswith("}")
        assert made.replace(f'"v":{result}', "").replace(kept, "").strip(" \t,") == "}"
        assert pairs(made)[:-1] == pairs(line) and pairs(made)[-1][0] == "v"


def same(found: object, value: object) -> bool:
    """Whether a typed value is the JSON value, as `pairs` gives it."""
    if isinstance(value, tuple) and value[0] == "int":
        return float(value[1]) == found if isinstance(found, float) else found == int(value[1])
    if isinstance(value, tuple) and value[0] == "float":
        return isinstance(found, float) and Decimal(repr(found)) == Decimal(value[1])
    if isinstance(value, tuple):
        names = [name for name, _ in value[1]]
        return list(found) == names and all(same(found[name], item) for name, item in value[1])
    if isinstance(value, list):
        return len(found) == len(value) and all(map(same, found, value))
    if isinstance(value, float):  # NaN and infinities
        return repr(found) == repr(value)
    return type(found) is type(value) and found == value


@MANY
@given(lines=json_files(), batch=st.integers(1, 5))
def test_json_lines_become_columns_that_give_every_value_back(lines, batch):
    kept, files.BATCH_ROWS = files.BATCH_ROWS, batch
    try:
        _, table = carried("".join(line for line, _ in lines).encode(), ".jsonl", ".parquet")
    finally:
        files.BATCH_ROWS = kept
    rows = [dict(pairs(line)) for line, _ in lines]
    assert set(table.schema.names) == {name for row in rows for name in row} | {"v"}
    for name in table.schema.names[:-1]:
        column, values = table[name], [row.get(name) for row in rows]
        texts = all(value is None or (isinstance(value, str) and not files.surrogates(value)) for value in values)
        if texts or not pa.types.is_string(column.type):
            assert all(map(same, column.to_pylist(), values)), (name, column, values)
        else:
            found = [None if text is None else pairs(f'{{"x":{text}}}')[0][1] for text in column.to_pylist()]
            assert [repr(value) for value in found] == [repr(value) for value in values]


@MANY
@given(lines=json_files())
def test_json_lines_become_csv_with_texts_or_their_json(lines):
    _, out = carried("".join(line for line, _ in lines).encode(), ".jsonl", ".csv")
    header, *found = csv.reader(io.StringIO(out.decode(), newline=""))
    rows = [dict(pairs(line)) for line, _ in lines]
    assert len(found) == len(rows) and all(len(cells) == len(header) for cells in found)
    for at, name in enumerate(header[:-1]):
        values = [row.get(name) for row in rows]
        texts = all(value is None or (isinstance(value, str) and not files.surrogates(value)) for value in values)
        for cells, value in zip(found, values, strict=True):
            if value is None or texts:
                assert cells[at] == (value or "")
            else:
                assert repr(pairs(f'{{"x":{cells[at]}}}')[0][1]) == repr(value)


TYPES = [
    ("ints", ["1", "9223372036854775807", "null"], pa.int64()),
    ("no more ints", ["1", "9223372036854775808"], pa.string()),
    ("doubles", ["0.5", "1.50", "7", "-0", "NaN"], pa.float64()),
    ("digits that a double drops", ["0.5", "0.10000000000000001"], pa.string()),
    ("too large for a double", ["0.5", "1e400"], pa.string()),
    ("a whole number that a double drops", ["0.5", "9007199254740993"], pa.string()),
    ("bool", ["true", "null", "false"], pa.bool_()),
    ("strings", ['"a"', '"\\u00e9"'], pa.string()),
    ("mixed", ['"a"', "1"], pa.string()),
    ("nulls", ["null", "null"], pa.string()),
    ("lists", ["[1]", "[]", "[null, 2]", "null"], pa.list_(pa.int64())),
    ("objects", ['{"a": 1, "b": "x"}', '{"a": null, "b": "y"}'], pa.struct([("a", pa.int64()), ("b", pa.string())])),
    ("objects with other names", ['{"a": 1}', '{"b": 1}'], pa.string()),
    ("objects in another order", ['{"a": 1, "b": 2}', '{"b": 1, "a": 2}'], pa.string()),
    ("a name twice", ['{"a": 1, "a": 2}'], pa.string()),
    ("an empty object", ["{}"], pa.string()),
    ("deep", ["[" * 100 + "]" * 100], pa.string()),
]


@pytest.mark.parametrize(("values", "kind"), [case[1:] for case in TYPES], ids=[case[0] for case in TYPES])
def test_a_column_has_the_type_that_every_value_comes_back_from(values, kind):
    data = "".join(f'{{"text":"a","x":{value}}}\n' for value in values).encode()
    _, table = carried(data, ".jsonl", ".parquet")
    assert table["x"].type == kind or str(table["x"].type) == str(kind).replace("item", "element")
    if kind == pa.string() and not all(value.startswith('"') for value in values):
        assert table["x"].to_pylist() == [None if value == "null" else value for value in values]


@pytest.mark.parametrize("late", ["7", '"x"', "[1]", '{"a": 1}', "1e400"])
def test_the_last_row_counts_as_much_as_the_first(late, monkeypatch):
    monkeypatch.setattr(files, "BATCH_BYTES", 1000)
    lines = ['{"text": "a", "x": null}'] * 1000 + [f'{{"text": "b", "x": {late}}}']
    for ending in (".parquet", ".csv", ".jsonl"):
        report, out = carried("\n".join(lines).encode(), ".jsonl", ending)
        assert report.rows == 1001 and report.exit_code == 0
        if ending == ".parquet":
            assert out["x"].null_count == 1000 and out["x"][1000].is_valid


def test_bytes_that_are_no_utf8_go_from_json_lines_to_json_lines():
    data = b'{"text":"a","x":"caf\xe9\\n"}\n{"text":"b","x":"\\u00e9"}\n'
    report, out = carried(data, ".jsonl", ".jsonl")
    assert b'"x":"caf\xe9\\n","v":[' in out and report.escaped == ""
    for ending in (".parquet", ".csv"):
        report, out = carried(data, ".jsonl", ending)
        assert report.escaped.startswith("1 carried cell is not UTF-8, first in column x, line 1; ")
        assert report.exit_code == 0 and not report.failed
        texts = (
            out["x"].to_pylist()
            if ending == ".parquet"
            else [row[1] for row in csv.reader(io.StringIO(out.decode(), newline=""))][1:]
        )
        assert texts == ["caf\\xe9\n", "é"]


def test_a_name_twice_is_a_fault_where_there_is_room_for_one():
    data = b'{"text":"a","x":1,"x":2}\n{"text":"b","x":3}\n'
    assert carried(data, ".jsonl", ".jsonl")[0].exit_code == 0
    for ending in (".parquet", ".csv"):
        report, _ = carried(data, ".jsonl", ending)
        assert dict(report.failed) == {"SCHEMA": 1} and report.exit_code == 3


def test_names_without_end_are_no_columns(monkeypatch):
    monkeypatch.setattr(files, "MOST_COLUMNS", 10)
    data = b"".join(b'{"k%d":1,"text":"a"}\n' % row for row in range(30))
    assert carried(data, ".jsonl", ".jsonl")[0].rows == 30
    with pytest.raises(files.BadFile, match=r"line 10 has a name beyond 10 others; only \.jsonl carries so many"):
        carried(data, ".jsonl", ".parquet")


# --- Parquet ---------------------------------------------------------------------------------------------------------

NAN = np.array([0x7FC00001, 0x80000000, 0x7F800000], np.uint32).view(np.float32)
AWKWARD = {
    "int8": pa.array([-128, None, 127], pa.int8()),
    "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "float": pa.array(NAN),
    "double": pa.array([0.1, float("nan"), 5e-324]),
    "decimal": pa.array([Decimal("1.10"), None, Decimal("-0.01")], pa.decimal128(30, 2)),
    "large": pa.array(["a", None, ""], pa.large_string()),
    "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
    "us": pa.array([datetime(1, 1, 1), None, datetime(9999, 12, 31, 23, 59, 59, 999999)], pa.timestamp("us")),
    "ns": pa.array([1, None, -1], pa.timestamp("ns")),
    "zone": pa.array([datetime(2024, 1, 1, tzinfo=timezone.utc)] * 3, pa.timestamp("us", "Europe/Berlin")),
    "date": pa.array([date(1, 1, 1), None, date(2024, 2, 29)]),
    "time": pa.array([time(1, 2, 3, 4), None, time(0)], pa.time64("us")),
    "list": pa.array([[1.5, None], None, []], pa.list_(pa.float32())),
    "fixed": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]),
    "bool": pa.array([True, None, False]),
}
NO_TEXT = {
    "binary": pa.array([b"\xff", None, b""]),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "nested binary": pa.array([[b"a"], None, []]),
}


def table_of(columns: dict[str, pa.Array], names: list[str] | None = None) -> pa.Table:
    arrays = [pa.array(["x", None, ""]), *columns.values()]
    names = ["text", *(names or columns)]
    fields = [
        pa.field(name, array.type, metadata={"k": name or "-"}) for name, array in zip(names, arrays, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={"mine": "kept"}))


@pytest.mark.parametrize("group", [1, 3])
def test_parquet_to_parquet_keeps_types_metadata_and_bits(group, tmp_path):
    table = table_of(AWKWARD | NO_TEXT)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=group, version="2.6")
    given = pq.ParquetFile(tmp_path / "in.parquet").read()
    report, target = carry(tmp_path / "in.parquet", ".parquet")
    found = pq.ParquetFile(target).read()
    assert (report.rows, report.nulls, report.exit_code) == (3, 1, 0)
    kept = found.select(range(len(table.schema)))
    assert kept.schema.equals(given.schema, check_metadata=True)
    for name in table.schema.names:
        if name not in ("float", "double"):  # NaN is no other's equal
            assert kept[name].equals(given[name]), name
    for name, bits in (("float", np.uint32), ("double", np.uint64)):
        sides = [side[name].to_numpy().view(bits).tolist() for side in (kept, table)]
        assert sides[0] == sides[1]


@pytest.mark.parametrize("names", [["a.b", "", "a"], ["twice", "twice", "é"], ["text.x", "Text", " "]], ids=str)
def test_parquet_columns_keep_their_names(names, tmp_path):
    table = table_of(
        dict(zip("abc", [pa.array([1, 2, 3]), pa.array(["a", "b", None]), pa.array([{"a": 1}] * 3)], strict=True)),
        names,
    )
    pq.write_table(table, tmp_path / "in.parquet")
    found = pq.ParquetFile(carry(tmp_path / "in.parquet", ".parquet")[1]).read()
    assert found.schema.names == [*table.schema.names, "v"]
    assert found.select(range(4)).equals(table)
    if "twice" in names:
        with pytest.raises(files.BadFile, match="2 columns are named 'twice', which .jsonl cannot hold"):
            carry(tmp_path / "in.parquet", ".jsonl")
    _, *rows = csv.reader(io.StringIO(carry(tmp_path / "in.parquet", ".csv")[1].read_text(), newline=""))
    assert [row[2] for row in rows] == ["a", "b", ""]


RIGHT = {
    "int8": [-128, None, 127],
    "uint64": [2**64 - 1, 0, None],
    "float": ["NaN", -0.0, "Infinity"],
    "double": [0.1, "NaN", 5e-324],
    "decimal": [Decimal("1.10"), None, Decimal("-0.01")],
    "large": ["a", None, ""],
    "dictionary": ["a", "b", "a"],
    "us": ["0001-01-01T00:00:00.000000", None, "9999-12-31T23:59:59.999999"],
    "ns": ["1970-01-01T00:00:00.000000001", None, "1969-12-31T23:59:59.999999999"],
    "zone": ["2024-01-01T00:00:00.000000Z"] * 3,
    "date": ["0001-01-01", None, "2024-02-29"],
    "time": ["01:02:03.000004", None, "00:00:00.000000"],
    "list": [[1.5, None], None, []],
    "fixed": [[1, 2], None, [3, 4]],
    "struct": [{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}],
    "bool": [True, None, False],
}


@pytest.mark.parametrize("name", AWKWARD)
def test_parquet_to_text_loses_no_value(name, tmp_path):
    pq.write_table(table_of({name: AWKWARD[name]}), tmp_path / "in.parquet", version="2.6")
    lines = carry(tmp_path / "in.parquet", ".jsonl")[1].read_text().splitlines()
    exact = Decimal if name == "decimal" else float
    assert repr([json.loads(line, parse_float=exact)[name] for line in lines]) == repr(RIGHT[name])
    header, *rows = csv.reader(io.StringIO(carry(tmp_path / "in.parquet", ".csv")[1].read_text(), newline=""))
    assert header == ["text", name, "v"] and [row[0] for row in rows] == ["x", "", ""]
    for row, right in zip(rows, RIGHT[name], strict=True):
        plain = right is None or isinstance(right, str)
        assert row[1] == (right or "") if plain else repr(json.loads(row[1], parse_float=exact)) == repr(right)


def test_an_empty_text_and_a_null_are_two_things_in_csv(tmp_path):
    pq.write_table(table_of({}), tmp_path / "in.parquet")
    target = carry(tmp_path / "in.parquet", ".csv")[1]
    assert target.read_text() == f'text,v\nx,"{VECTOR_TEXT}"\n,\n"","{VECTOR_TEXT}"\n'


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_has_no_text_is_refused_by_name(name, tmp_path):
    pq.write_table(table_of({name: NO_TEXT[name]}), tmp_path / "in.parquet")
    for ending in (".csv", ".jsonl"):
        with pytest.raises(files.BadFile, match=rf"^column {name} is .*, which {ending} cannot hold; .parquet can$"):
            carry(tmp_path / "in.parquet", ending)
    assert os.listdir(tmp_path) == ["in.parquet"]


def test_bytes_that_are_no_utf8_go_from_parquet_to_csv(tmp_path):
    bad = pa.array([b"caf\xe9", None, b"ok"], pa.binary()).view(pa.string())
    table = table_of({"x": bad})
    pq.write_table(table, tmp_path / "in.parquet")
    assert b"\nx,caf\xe9," in b"\n" + carry(tmp_path / "in.parquet", ".csv")[1].read_bytes()
    report, target = carry(tmp_path / "in.parquet", ".jsonl")
    assert report.escaped.startswith("1 carried cell is not UTF-8, first in column x; ")
    assert json.loads(target.read_text().splitlines()[0])["x"] == "caf\\xe9"
    report, target = carry(tmp_path / "in.parquet", ".parquet", column="x")
    assert dict(report.failed) == {"BAD_UTF8": 1}
    kept = pq.ParquetFile(target).read()["x"].combine_chunks()
    assert kept.view(pa.binary()).to_pylist() == [b"caf\xe9", None, b"ok"]


BAD = pa.array([b"caf\xe9", None, b"ok"], pa.binary()).view(pa.string())
INSIDE = {
    "list": pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), BAD),
    "struct": pa.StructArray.from_arrays([BAD], ["a"]),
    "deep": pa.StructArray.from_arrays([pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), BAD)], ["a"]),
}


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize("name", INSIDE)
def test_bytes_that_are_no_utf8_inside_lists_are_told(name, ending, tmp_path):
    pq.write_table(table_of({"x": INSIDE[name]}), tmp_path / "in.parquet")
    report, target = carry(tmp_path / "in.parquet", ending)
    assert report.escaped.startswith("1 carried cell is not UTF-8, first in column x; its bytes are written as \\xNN")
    assert target.read_text().count("caf\\\\xe9") == 1


@pytest.mark.parametrize(
    ("reads", "data", "rows", "first"),
    [
        (".csv", b"text,n\na,1,2\nb\nc,3,\n", 2, 2),
        (".csv", b'text\n"a\n"\nb,,,\n', 1, 4),
        (".jsonl", b'{"text":"a","n":1}\n{"text":"b","n":1,"n":2}\n', 1, 2),
        (".jsonl", b'{"text":"a"}\n\nnothing\n["b"]\n{"text":\n', 3, 3),
    ],
)
def test_what_has_no_place_is_counted(reads, data, rows, first, tmp_path):
    words = f"{rows} row{'s' * (rows > 1)} had cells that %s has no place for, first in line {first}; output of the "
    for ending in (".parquet", ".csv", ".jsonl"):
        report, _ = carried(data, reads, ending)
        assert report.cut.startswith(words % ending) if ending != reads else report.cut == ""


def test_old_timestamps_of_spark_keep_all_years(tmp_path):
    moments = [datetime(1, 1, 1), datetime(9999, 12, 31, 1, 2, 3, 4), datetime(2024, 1, 1)]
    table = pa.table({"text": ["a"] * 3, "at": pa.array(moments, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "in.parquet", use_deprecated_int96_timestamps=True)
    assert pq.ParquetFile(carry(tmp_path / "in.parquet", ".parquet")[1]).read()["at"].to_pylist() == moments


NANO = 1_700_000_000_123_456_789
FAR = [-62_135_596_800_000_000, 253_402_300_799_999_999, None]  # the years 1 and 9999, in microseconds


def int96(folder: Path, name: str, array: pa.Array) -> None:
    table = pa.table({"text": ["a"] * len(array), "at": array})
    pq.write_table(table, folder / name, use_deprecated_int96_timestamps=True)


@pytest.mark.parametrize(
    ("numbers", "unit", "kept"),
    [
        ([NANO, 1, -1], "ns", "ns"),
        ([NANO, None, 1000], "ns", "ns"),
        ([2**63 - 1, -(2**63) + 1, 0], "ns", "ns"),
        ([NANO // 1000 * 1000, -1000, None], "ns", "us"),
        ([NANO // 1000, -1, None], "us", "us"),
        (FAR, "us", "us"),
    ],
    ids=str,
)
@pytest.mark.parametrize("nested", [False, True])
def test_times_of_96_bits_lose_no_digit(nested, numbers, unit, kept, tmp_path):
    array = pa.array(numbers, pa.timestamp(unit))
    if nested:
        array = pa.StructArray.from_arrays([pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), array)], ["x"])
    int96(tmp_path, "in.parquet", array)
    found = pq.ParquetFile(carry(tmp_path / "in.parquet", ".parquet")[1]).read()["at"].combine_chunks()
    found = found.field(0).flatten() if nested else found
    assert found.type == pa.timestamp(kept)
    factor = {("ns", "us"): 1000}.get((unit, kept), 1)
    right = [None if number is None else number // factor for number in numbers]
    assert found.cast(pa.int64()).to_pylist() == right


def test_times_of_96_bits_that_no_unit_holds_are_refused_by_name(tmp_path):
    (tmp_path / "in").mkdir()
    int96(tmp_path / "in", "a.parquet", pa.array([NANO, 0], pa.timestamp("ns")))
    int96(tmp_path / "in", "b.parquet", pa.array(FAR, pa.timestamp("us")))
    with pytest.raises(
        files.BadFile, match="a.parquet: column at has times finer than microseconds, and column at of "
    ):
        carry(tmp_path / "in", ".parquet")


# --- folders ---------------------------------------------------------------------------------------------------------

PARTITIONS = [
    (["day=1", "day=02"], ["1", "02"], pa.string()),
    (["day=1", "day=20"], [1, 20], pa.int64()),
    (["day=007", "day=__HIVE_DEFAULT_PARTITION__"], ["007", None], pa.string()),
    (["day=5", "day=__HIVE_DEFAULT_PARTITION__"], [5, None], pa.int64()),
    (["day=a%2Fb", "day=x y"], ["a/b", "x y"], pa.string()),
    (["day=-0", "day=+1"], ["-0", "+1"], pa.string()),
    (["day=2024-01-01", "day="], ["2024-01-01", ""], pa.string()),
    (["day=99999999999999999999", "day=1"], ["99999999999999999999", "1"], pa.string()),
]


@pytest.mark.parametrize(("folders", "values", "kind"), PARTITIONS, ids=[" ".join(case[0]) for case in PARTITIONS])
def test_folders_keep_their_partition_columns(folders, values, kind, tmp_path):
    for number, folder in enumerate(folders):
        place = tmp_path / "in" / folder / "k=x"
        place.mkdir(parents=True)
        (place / "_SUCCESS").touch()
        pq.write_table(pa.table({"text": [f"row {number}"]}), place / "part-0.parquet")
    _, target = carry(tmp_path / "in", ".parquet")
    table = pq.ParquetFile(target).read()
    assert table.schema.names == ["text", "day", "k", "v"] and table.schema.field("day").type == kind
    found = dict(zip(table["text"].to_pylist(), table["day"].to_pylist(), strict=True))
    assert found == {f"row {number}": value for number, value in enumerate(values)}
    assert table["k"].to_pylist() == ["x", "x"]


def test_files_of_a_folder_may_lack_columns(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a"], "old": [1]}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"new": ["x"], "text": ["b"]}), tmp_path / "in" / "b.parquet")
    table = pq.ParquetFile(carry(tmp_path / "in", ".parquet")[1]).read().select(["text", "old", "new"])
    assert table.to_pylist() == [{"text": "a", "old": 1, "new": None}, {"text": "b", "old": None, "new": "x"}]


@pytest.mark.parametrize("names", [["twice", "twice"], ["text.x", "a", "a", "a"], ["", ""], ["b", "c"]], ids=str)
def test_columns_of_one_name_and_partition_columns(names, tmp_path):
    arrays = [pa.array([number, number + 10]) for number in range(len(names))]
    table = pa.Table.from_arrays([pa.array(["a", "b"]), *arrays], names=["text", *names])
    for day in ("1", "2"):
        (tmp_path / "in" / f"day={day}").mkdir(parents=True)
        pq.write_table(table, tmp_path / "in" / f"day={day}" / "a.parquet")
    found = pq.ParquetFile(carry(tmp_path / "in", ".parquet")[1]).read()
    assert found.schema.names == ["text", *names, "day", "v"]
    assert [found.column(at + 1).to_pylist() for at in range(len(names))] == [array.to_pylist() * 2 for array in arrays]
    assert found["day"].to_pylist() == [1, 1, 2, 2]


# rows of the input column, the kind it is, rows that are faulty
KINDS = [
    (["[]", '"dog"', '"cat"'], pa.string(), [0]),
    (["[]", "null", '"dog"', "[]"], pa.string(), [0, 3]),
    (["[]", "[2, 60, 3]"], pa.list_(pa.int64()), []),
    (["[null]", "7", "[2]"], pa.list_(pa.int64()), [1]),
    (["[]", "[]"], pa.list_(pa.int64()), []),
    (["[]", "[[1.0]]"], pa.list_(pa.list_(pa.float64())), []),
    (["[]", "[null]", "[[]]"], pa.list_(pa.list_(pa.float64())), [1]),
    (["7", "[]", '"dog"'], pa.string(), [0, 1]),
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize(("values", "kind", "faulty"), KINDS, ids=[" ".join(case[0]) for case in KINDS])
def test_an_empty_array_says_nothing_of_the_input_column(values, kind, faulty, ending, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text":{value}}}\n' for value in values))
    source = run._open(str(tmp_path / "in.jsonl"), "text", "v", ".jsonl", ending, b",")
    assert source.kind == kind
    assert (source.fault.line - 1 if source.fault else None) == (faulty[0] if faulty else None)
    rows = next(iter(source))
    assert [row for row, code, _ in rows.faults if code == "SCHEMA"] == faulty
    source.close()


@pytest.mark.parametrize("folder", ["x=%E9", "x%FF=1", "x=a%C3", "x=%ED%A0%80", os.fsdecode(b"x=\xe9")], ids=ascii)
def test_a_partition_that_is_no_utf8_is_refused_by_name(folder, tmp_path):
    (tmp_path / "in" / folder).mkdir(parents=True)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    os.rename(tmp_path / "a.parquet", tmp_path / "in" / folder / "a.parquet")
    with pytest.raises(files.BadFile, match="^folder x.*: names a partition that is not UTF-8; rename it$"):
        carry(tmp_path / "in", ".parquet")


def test_only_regular_files_of_a_folder_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in" / "a.parquet")
    os.mkfifo(tmp_path / "in" / "_pipe")  # hidden, so not looked at
    assert carry(tmp_path / "in", ".parquet")[0].rows == 1
    os.unlink(tmp_path / "out.parquet")
    for name, make in (("b.parquet", os.mkfifo), ("c.parquet", lambda path: os.symlink("_pipe", path))):
        make(tmp_path / "in" / name)
        with pytest.raises(files.BadFile, match=f"in/{name}: is no regular file; take it out of the folder"):
            carry(tmp_path / "in", ".parquet")
        os.unlink(tmp_path / "in" / name)


@pytest.mark.parametrize("column", ["text", "n"])
def test_a_page_whose_sum_is_wrong_is_no_data(column, tmp_path):
    table = pa.table({"text": ["aaaaaaaaaaaa"], "n": ["bbbbbbbbbbbb"]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    try:
        pq.write_table(table, tmp_path / "in.parquet", write_page_checksum=True, **plain)
    except TypeError:
        pytest.skip("this pyarrow writes no sums")
    whole = (tmp_path / "in.parquet").read_bytes()
    assert carry(tmp_path / "in.parquet", ".parquet")[0].rows == 1
    cell = table[column][0].as_py().encode()
    assert whole.count(cell) == 1
    (tmp_path / "in.parquet").write_bytes(whole.replace(cell, cell[:-1] + b"?"))
    with pytest.raises(files.BadFile, match="in.parquet: "):
        carry(tmp_path / "in.parquet", ".parquet")


def test_details_go_into_every_format(tmp_path):
    (tmp_path / "in.csv").write_bytes(b"text,n\na,1\n\xff,2\n")
    for ending in (".csv", ".jsonl", ".parquet"):
        report, target = carry(tmp_path / "in.csv", ending, details=True)
        assert report.exit_code == 0 and dict(report.failed) == {"BAD_UTF8": 1}
        if ending == ".parquet":
            found = pq.ParquetFile(target).read()["v"].to_pylist()
        elif ending == ".csv":
            rows = list(csv.reader(io.StringIO(target.read_bytes().decode("latin-1"), newline="")))
            found = [json.loads(row[-1]) for row in rows[1:]]
        else:
            found = [json.loads(line)["v"] for line in target.read_text().splitlines()]
        names = [field.name for field in details_type(FLOATS)]
        assert [list(one) for one in found] == [names, names]
        assert found[0]["error_code"] is None and np.array_equal(np.float32(found[0]["result"]), VECTOR)
        assert found[1]["result"] is None and found[1]["error"] == "byte 0 of the text is not UTF-8"
