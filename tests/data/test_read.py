"""Files become rows, whatever they are called; what cannot be read is named, all of it, and with its place."""

import csv
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fmstune.data.read import ArrowValues, Row, RowProblems, hash_contents, read_rows
from fmstune.errors import UserError

ROWS = [{"text": "naïve, 日本\n👀", "label": "yes"}, {"text": "b", "label": "no"}, {"text": "", "label": "maybe"}]


def json_lines(values: list[Any]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "lines.jsonl": lambda path: path.write_bytes(json_lines(ROWS)),
    "lines.json": lambda path: path.write_bytes(json_lines(ROWS)),
    "lines-with-bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + json_lines(ROWS)),
    "lines-of-windows.jsonl": lambda path: path.write_bytes(json_lines(ROWS).replace(b"}\n", b"}\r\n")),
    "lines-without-suffix": lambda path: path.write_bytes(json_lines(ROWS)),
    "lines-without-last-break.txt": lambda path: path.write_bytes(json_lines(ROWS).rstrip()),
    "array.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "array.jsonl": lambda path: path.write_text(json.dumps(ROWS)),
    "array-with-bom.json": lambda path: path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode()),
    "table.csv": write_csv,
    "table.parquet": lambda path: parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "parquet-without-suffix": lambda path: parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "file.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
}


def read_all(source: Any, max_rows: int | None = None) -> list[Row]:
    return list(read_rows(source, "data.train", max_rows))


def problems_of(source: Any) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        read_all(source)
    return tuple(map(str, raised.value.problems))


@pytest.mark.parametrize("name", WRITERS)
def test_the_content_says_how_to_read_a_file(name: str) -> None:
    WRITERS[name](Path(name))
    assert read_all(name) == [Row(name, number, values) for number, values in enumerate(ROWS, start=1)]


def test_csv_with_a_byte_order_mark_keeps_its_first_column() -> None:
    Path("t.csv").write_bytes(b"\xef\xbb\xbftext,label\na,b\n")
    assert read_all("t.csv") == [Row("t.csv", 1, {"text": "a", "label": "b"})]


def test_blank_lines_are_no_rows_and_the_number_is_the_line() -> None:
    Path("t.jsonl").write_text('\n{"a": 1}\n\n  \n{"a": 2}\n')
    assert read_all("t.jsonl") == [Row("t.jsonl", 2, {"a": 1}), Row("t.jsonl", 5, {"a": 2})]


def test_a_line_separator_inside_a_string_ends_no_line() -> None:
    Path("t.jsonl").write_text('{"a": "x\u2028y\u0085z"}\n', encoding="utf-8")
    assert read_all("t.jsonl") == [Row("t.jsonl", 1, {"a": "x\u2028y\u0085z"})]


def test_no_more_than_max_rows_are_read_over_all_files() -> None:
    Path("a.jsonl").write_bytes(json_lines(ROWS))
    Path("b.jsonl").write_bytes(json_lines(ROWS) + b"broken\n")
    Path("c.jsonl").write_bytes(json_lines(ROWS))
    assert [(row.file, row.number) for row in read_all(["a.jsonl", "b.jsonl", "c.jsonl"], max_rows=4)] == [
        ("a.jsonl", 1),
        ("a.jsonl", 2),
        ("a.jsonl", 3),
        ("b.jsonl", 1),
    ]


def test_a_broken_row_within_max_rows_is_told_of() -> None:
    Path("a.jsonl").write_bytes(b"broken\n" + json_lines(ROWS))
    with pytest.raises(UserError, match="a.jsonl:1: broken JSON"):
        read_all("a.jsonl", max_rows=2)


def test_all_broken_rows_of_all_files_are_told_of_after_the_good_ones() -> None:
    Path("a.jsonl").write_bytes(b'{"a": 1}\n{"a": \n[1]\n"x"\n{"a": "\xff"}\n{"a": 2}\nnull\n')
    Path("b.json").write_text('[{"a": 3}, 4]')
    reading = read_rows(["a.jsonl", "b.json"], "data.train")
    assert [next(reading).values["a"] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(UserError) as raised:
        next(reading)
    assert tuple(map(str, raised.value.problems)) == (
        "a.jsonl:2: broken JSON (Expecting value at column 1); each line is one row",
        "a.jsonl:3: a row must be a JSON object, found the list [1]",
        "a.jsonl:4: a row must be a JSON object, found the str 'x'",
        "a.jsonl:5: not UTF-8 (invalid start byte at byte 7); convert the file to UTF-8",
        "a.jsonl:7: a row must be a JSON object, found null",
        "b.json, row 2: a row must be a JSON object, found the int 4",
    )


def test_of_many_problems_ten_are_shown_and_the_others_counted() -> None:
    Path("a.jsonl").write_text("x\n" * 1234)
    problems = problems_of("a.jsonl")
    assert len(problems) == 11
    assert problems[-1] == "and 1,224 more such problems"


def test_the_same_problem_of_many_rows_is_said_once() -> None:
    problems = RowProblems()
    for number in range(1, 31):
        problems.add_row(Row("a.jsonl", number, {}), "no column 'x'")
    problems.add_row(Row("b.jsonl", 7, {}), "no column 'x'")
    assert list(map(str, problems.first())) == [
        "a.jsonl, rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 20 more: no column 'x'",
        "b.jsonl, row 7: no column 'x'",
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"", "data.train: a.jsonl holds no rows"),
        ("a.jsonl", b" \n\n", "data.train: a.jsonl holds no rows"),
        ("a.json", b"[]", "data.train: a.json holds no rows"),
        ("a.csv", b"text,label\n", "data.train: a.csv holds no rows"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "a.json:2: broken JSON (Expecting ':' delimiter at column 7)"),
        ("a.json", b'["\xe9"]', "a.json: not UTF-8 (invalid continuation byte at byte 2); convert the file to UTF-8"),
        ("a.csv", b"", "data.train: a.csv holds no rows"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: the first line must name each column once, found ['a', 'a']"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv, row 2 (line 3): 1 cells for 2 columns; quote commas"),
        ("a.csv", b'a,b\n"x\ny",2\n1,2,3\n', "a.csv, row 2 (line 4): 3 cells for 2 columns; quote commas"),
        ("a.csv", b"a\nx\n\xff\n", "a.csv:3: not UTF-8 (invalid start byte at byte 0); convert the file to UTF-8"),
        ("a.csv", b'a\n"x', "a.csv:2: broken CSV (unexpected end of data); fix it or use JSON lines"),
        ("a.txt", b"hello", "a.txt: neither JSON, CSV (named .csv), Parquet nor Arrow; convert it to one"),
        ("a.parquet", b"hello", "a.parquet: neither JSON, CSV (named .csv), Parquet nor Arrow; convert it to one"),
    ],
)
def test_what_a_file_lacks_is_said(name: str, content: bytes, problem: str) -> None:
    Path(name).write_bytes(content)
    assert problem in problems_of(name)


@pytest.mark.parametrize("name", ["table.parquet", "file.arrow", "stream.arrow"])
def test_a_table_that_was_cut_off_is_broken(name: str) -> None:
    WRITERS[name](Path(name))
    Path(name).write_bytes(Path(name).read_bytes()[:-200])
    assert problems_of(name)[0].startswith(f"{name}: broken after row ")


def test_a_file_that_may_not_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.jsonl").write_bytes(json_lines(ROWS))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert problems_of("a.jsonl")[0] == "a.jsonl: cannot be read (Permission denied)"


def test_the_hash_of_one_file_is_its_sha256_and_of_several_depends_on_their_order() -> None:
    Path("a.jsonl").write_bytes(b'{"a": 1}\n')
    Path("b.jsonl").write_bytes(b'{"a": 2}\n')
    one = hash_of("a.jsonl")
    assert one == "e8c628edc9968ef0c668f54e0ba2636b35503357eb1aca0ddc828aeace432f67"
    assert len({one, hash_of(["a.jsonl", "b.jsonl"]), hash_of(["b.jsonl", "a.jsonl"])}) == 3


def hash_of(source: Any) -> str:
    return hash_contents(source, "data.train").hash


def test_the_contents_of_equal_bytes_differ_where_they_are_read_differently() -> None:
    for name in ("a.csv", "a.txt", "b.txt"):
        Path(name).write_bytes(b'{"a": 1}\n')
    assert [hash_contents(name, "data.train").readers for name in ("a.csv", "a.txt")] == [("csv",), ("json_lines",)]
    assert hash_contents("a.txt", "data.train").identity == hash_contents("b.txt", "data.train").identity


def test_the_contents_of_files_that_may_not_be_read_are_a_problem_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).write_bytes(b'{"a": 1}\n')

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError) as raised:
        hash_contents(["a.jsonl", "b.jsonl"], "data.train")
    assert tuple(map(str, raised.value.problems)) == (
        "a.jsonl: cannot be read (Permission denied)",
        "b.jsonl: cannot be read (Permission denied)",
    )


DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
LONG_NUMBER = b'{"a": ' + b"9" * 5000 + b"}"
TOO_DEEP = "JSON that is nested too deeply to be read; make it flatter"
TOO_LONG = "an integer of more than 4,300 digits; write it as text"


def test_json_that_python_refuses_is_a_problem_of_its_row() -> None:
    Path("a.jsonl").write_bytes(b'{"a": 1}\n' + DEEP + b"\n" + LONG_NUMBER + b'\n{"a": 2}\n')
    reading = read_rows("a.jsonl", "data.train")
    assert [next(reading).values["a"] for _ in range(2)] == [1, 2]
    with pytest.raises(UserError) as raised:
        next(reading)
    assert tuple(map(str, raised.value.problems)) == (f"a.jsonl:2: {TOO_DEEP}", f"a.jsonl:3: {TOO_LONG}")


@pytest.mark.parametrize(("row", "problem"), [(DEEP, TOO_DEEP), (LONG_NUMBER, TOO_LONG)], ids=["deep", "number"])
def test_in_a_json_array_it_is_a_problem_of_the_file(row: bytes, problem: str) -> None:
    Path("a.json").write_bytes(b'[{"a": 1}, ' + row + b"]")
    assert problems_of("a.json")[0] == f"a.json: {problem}"


def test_a_long_cell_of_csv_is_read() -> None:
    Path("a.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert [len(row.values["text"]) for row in read_all("a.csv")] == [200_000]


@pytest.mark.slow
def test_json_lines_are_read_with_little_memory() -> None:
    line = json.dumps({"text": "x" * 1000}) + "\n"
    Path("big.jsonl").write_text(line * 20_000)
    tracemalloc.start()
    count = sum(1 for _ in read_rows("big.jsonl", "data.train"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 1_000_000


def test_objects_with_unequal_keys_come_out_of_parquet_and_arrow_as_they_went_in(tmp_path: Path) -> None:
    calls = [{"name": "weather", "arguments": {"day": "2025-08-01"}}, {"name": "time", "arguments": {"zone": None}}]
    json_type = pa.json_()
    texts = pa.ExtensionArray.from_storage(json_type, pa.array([*map(json.dumps, calls), None]))
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3]), texts)
    table = pa.table({"calls": lists, "one": texts})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("rows.parquet", "rows.arrow"):
        found = [row.values for row in read_rows(str(tmp_path / name), "data.train")]
        assert [row["calls"] for row in found] == [calls, [], [None]]
        assert [row["one"] for row in found] == [*calls, None]
        assert all(isinstance(values, ArrowValues) for values in found)


def test_a_map_of_parquet_is_an_object(tmp_path: Path) -> None:
    kind = pa.struct([("arguments", pa.map_(pa.string(), pa.string()))])
    table = pa.table({"call": pa.array([{"arguments": {"day": "2025-08-01"}}, {"arguments": None}, None], kind)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    found = [row.values["call"] for row in read_rows(str(tmp_path / "rows.parquet"), "data.train")]
    assert found == [{"arguments": {"day": "2025-08-01"}}, {"arguments": None}, None]


def test_a_value_of_arrow_that_cannot_be_read_is_named_in_each_row() -> None:
    offsets, content = pa.py_buffer(np.array([0, 1, 3, 4], "int32")), pa.py_buffer(b"a\x80\x81b")
    texts = pa.StringArray.from_buffers(3, offsets, content)
    jsons = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", "{}", "{"]))
    times = pa.array([2**62, 0, 0], pa.timestamp("us"))
    for name, column in (("text", texts), ("time", times), ("call", jsons)):
        with pa.ipc.new_file(f"{name}.arrow", pa.schema([(name, column.type)])) as writer:
            writer.write_batch(pa.record_batch({name: column}))
    problems = problems_of(["text.arrow", "time.arrow", "call.arrow"])
    assert [problem.partition(" (")[0] for problem in problems] == [
        "text.arrow, row 2: column 'text' is not UTF-8",
        "time.arrow, row 1: column 'time' holds a value of type timestamp[us] that cannot be read",
        "call.arrow, row 3: column 'call' holds a value of type extension<arrow.json> that cannot be read",
    ]


def text_of_bytes(*values: bytes) -> pa.Array:
    """Strings of these bytes, whatever they are: Arrow does not look at them when it reads."""
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value))
    buffers = [None, pa.py_buffer(b"".join(offset.to_bytes(4, "little") for offset in offsets))]
    return pa.Array.from_buffers(pa.string(), len(values), [*buffers, pa.py_buffer(b"".join(values))])


def in_list(array: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(range(len(array) + 1), pa.int32()), array)


BAD_UTF8 = text_of_bytes(b"a", b"\xff\xfe", b"c")
BEYOND = "that cannot be read ("
ODD_COLUMNS: dict[str, tuple[pa.Array, str]] = {
    "a text": (BAD_UTF8, "is not UTF-8 (invalid start byte at byte 0); convert the file to UTF-8"),
    "a text in a list": (in_list(BAD_UTF8), "is not UTF-8"),
    "a text in a mapping": (pa.StructArray.from_arrays([BAD_UTF8], ["of"]), "is not UTF-8"),
    "a late time": (pa.array([0, 10**15, 0], pa.timestamp("s")), BEYOND),
    "an early time": (pa.array([0, -(10**17), 0], pa.timestamp("us")), BEYOND),
    "a time with a zone": (pa.array([0, 10**15, 0], pa.timestamp("s", tz="UTC")), BEYOND),
    "a late date": (pa.array([0, 2**31 - 1, 0], pa.int32()).view(pa.date32()), BEYOND),
    "a long duration": (pa.array([0, 10**17, 0], pa.duration("s")), BEYOND),
}


@pytest.mark.parametrize("kind", ODD_COLUMNS)
@pytest.mark.parametrize("form", ["rows.parquet", "rows.arrow", "stream.arrow"])
def test_a_value_that_python_cannot_hold_is_named_by_row_and_column(kind: str, form: str) -> None:
    column, said = ODD_COLUMNS[kind]
    table = pa.table({"text": ["x", "y", "z"], "odd": column})
    if form == "rows.parquet":
        try:
            parquet.write_table(table, form)
        except (pa.ArrowException, ValueError) as err:
            pytest.skip(f"Parquet has no such column: {err}")
    else:
        with (pa.ipc.new_stream if form == "stream.arrow" else pa.ipc.new_file)(form, table.schema) as writer:
            writer.write_table(table)
    rows = []
    with pytest.raises(UserError) as raised:
        rows.extend(read_rows(form, "data.train"))
    (message,) = map(str, raised.value.problems)
    assert message.startswith(f"{form}, row 2: column 'odd' ")
    assert said in message
    assert [(row.number, row.values["text"]) for row in rows] == [(1, "x"), (3, "z")]


def test_two_columns_of_one_name_are_refused() -> None:
    parquet.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["text", "text"]), "rows.parquet")
    with pytest.raises(UserError, match="rows.parquet: broken after row 0 .several columns are called 'text'; rename"):
        list(read_rows("rows.parquet", "data.train"))


def test_a_file_that_changes_or_vanishes_after_it_was_hashed_is_named() -> None:
    for name in ("same.jsonl", "touched.jsonl", "changed.jsonl", "replaced.jsonl", "gone.jsonl"):
        Path(name).write_text(json.dumps({"text": name}) + "\n")
    contents = hash_contents(["same.jsonl", "touched.jsonl", "changed.jsonl", "replaced.jsonl", "gone.jsonl"], "x")
    assert list(contents.changes()) == []
    os.utime("touched.jsonl", ns=(0, 0))
    with Path("changed.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    Path("other").write_text('{"text": "replaceD.jsonl"}\n')
    Path("other").replace("replaced.jsonl")
    Path("gone.jsonl").unlink()
    again = "start again when nothing writes to it"
    assert [str(problem) for problem in contents.changes()] == [
        f"changed.jsonl: changed while it was read; {again}",
        f"replaced.jsonl: changed while it was read; {again}",
        f"gone.jsonl: cannot be read any more (No such file or directory); {again}",
    ]
