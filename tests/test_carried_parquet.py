"""What `firesteel run` carries along from Parquet files, and folders of them, is neither lost nor changed.

test_carried.py has the text formats.
"""

import csv
import io
import json
import os
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from carry_kit import VECTOR_TEXT, carry
from firesteel.table import files

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
