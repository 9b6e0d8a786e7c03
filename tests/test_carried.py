"""What `firesteel run` carries along from CSV and JSON lines is neither lost nor changed: awkward files, compared with
readers of other makers (csv, json, pyarrow).

test_carried_parquet.py has Parquet. A stand-in takes the engine's place, see carry_kit.py.
"""

import csv
import io
import json
import re
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from carry_kit import VECTOR, VECTOR_TEXT, carried, carry
from firesteel.commands import run
from firesteel.table import csv_file, files
from firesteel.table.columns import FLOATS, details_type
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
