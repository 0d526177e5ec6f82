"""Files → rows: JSON, JSON lines, CSV, Parquet and Arrow, one row after the other, each with its place."""

import codecs
import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fmstune.data.locate import SHOWN, File, locate_files, more_problems
from fmstune.errors import Problem, in_words, one_line, raise_if_any


class ArrowValues(dict[str, Any]):
    """A row of Arrow or Parquet, where a nested null may stand for a key that only other rows have."""


class Row(NamedTuple):
    """A row and its place: `number` counts from 1, and is the line in JSON lines."""

    file: str
    number: int
    values: dict[str, Any]


class FileState(NamedTuple):
    """A file as it was when it was hashed; one with the same state is taken to be the same."""

    name: str
    path: Path
    sha256: str
    size: int
    mtime_ns: int
    inode: int


class Contents(NamedTuple):
    """The identity of a source's files."""

    hash: str
    """SHA-256 of a single file's bytes, as `sha256sum` prints it; of several, over their digests in order."""
    readers: tuple[str, ...]
    """The reader of each file: the same bytes are other rows in a file with the suffix .csv."""
    files: tuple[FileState, ...] = ()

    @property
    def identity(self) -> tuple[str, tuple[str, ...]]:
        """What decides about the rows: bytes and readers, wherever they are."""
        return self.hash, self.readers

    def changes(self) -> Iterator[Problem]:
        """Yield a problem for each file that is not as it was when it was hashed."""
        for file in self.files:
            again = "start again when nothing writes to it"
            try:
                with file.path.open("rb") as content:
                    found = os.fstat(content.fileno())
                    same = (found.st_size, found.st_mtime_ns, found.st_ino) == file[-3:]
                    if not same and hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                        yield Problem(file.name, f": changed while it was read; {again}")
            except OSError as err:
                yield Problem(file.name, f": cannot be read any more ({err.strerror or err}); {again}")


Item = Row | Problem
"""A row, or the problem of one that cannot be read."""


@dataclass
class RowProblems:
    """Problems of many rows: a problem that several rows of a file share is one message, with the rows' numbers."""

    found: dict[Problem, list[int]] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        """Note a problem of a whole file."""
        self.found.setdefault(problem, [])

    def add_row(self, row: Row, text: str) -> None:
        """Note a problem of one row."""
        self.found.setdefault(Problem(row.file, f": {text}"), []).append(row.number)

    def first(self) -> list[Problem]:
        """The first problems, and how many more there are."""
        shown = []
        for problem, numbers in islice(self.found.items(), SHOWN):
            listed = ", ".join(map(str, numbers[:SHOWN]))
            more = f" and {len(numbers) - SHOWN:,} more" if len(numbers) > SHOWN else ""
            rows = f", row{'' if len(numbers) == 1 else 's'} {listed}{more}" if numbers else ""
            shown.append(Problem(f"{problem.field}{rows}", problem.text))
        return [*shown, *more_problems(len(self.found))]


def read_rows(source: Any, field: str, max_rows: int | None = None, *, stream: bool = False) -> Iterator[Row]:
    """All rows of a source in order, with the memory of one batch; a hub id is downloaded unless it is streamed.

    Rows that cannot be read raise one UserError after the last row, so that a caller who reads to the end misses none.
    """
    problems, count = RowProblems(), 0
    for file in locate_files(source, field, stream=stream):
        before = count
        for item in islice(_items(file), None if max_rows is None else max_rows - count):
            count += 1
            if isinstance(item, Row):
                yield item
            else:
                problems.add(item)
        if count == max_rows:
            break
        if count == before:
            problems.add(Problem(field, f": {file.name} holds no rows"))
    raise_if_any(problems.first())


def hash_contents(source: Any, field: str) -> Contents:
    """The hash of the source's files, without parsing them; raises UserError for those that cannot be read."""
    digests, readers, states, problems = [], [], [], []
    for file in locate_files(source, field):
        try:
            readers.append(_reader(file).__name__.removeprefix("_"))
            with file.path.open("rb") as content:
                found = os.fstat(content.fileno())
                digests.append(hashlib.file_digest(content, "sha256"))
            facts = (digests[-1].hexdigest(), found.st_size, found.st_mtime_ns, found.st_ino)
            states.append(FileState(file.name, file.path, *facts))
        except OSError as err:
            problems.append(_refused(file, err))
    raise_if_any(problems)
    several = hashlib.sha256(b"".join(digest.digest() for digest in digests))
    return Contents((digests[0] if len(digests) == 1 else several).hexdigest(), tuple(readers), tuple(states))


def _items(file: File) -> Iterator[Item]:
    if file.streamed is not None:
        yield from (Row(file.name, number, ArrowValues(row)) for number, row in enumerate(file.streamed, start=1))
        return
    if file.lines is not None:
        lines = ((number, line["text"]) for number, line in enumerate(file.lines, start=1))
        yield from (_json_line(file, number, line) for number, line in lines if line.strip())
        return
    try:
        yield from _reader(file)(file)
    except OSError as err:
        yield _refused(file, err)


def _refused(file: File, err: OSError) -> Problem:
    return Problem(file.name, f": cannot be read ({err.strerror or err})")


def _reader(file: File) -> Callable[[File], Iterable[Item]]:
    """Content decides, since JSON lines are often called .json; the suffix only tells what CSV is."""
    with file.path.open("rb") as content:
        head = content.read(4096).removeprefix(codecs.BOM_UTF8)
    start, suffix = head.lstrip(), file.path.suffix
    if head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        return _arrow
    if suffix == ".csv":
        return _csv
    if start.startswith(b"["):
        return _json_array
    if start.startswith(b"{") or suffix in (".json", ".jsonl", ".ndjson") or not head:
        return _json_lines
    return _unknown


def _unknown(file: File) -> Iterator[Item]:
    yield Problem(file.name, ": neither JSON, CSV (named .csv), Parquet nor Arrow; convert it to one")


def _json_lines(file: File) -> Iterator[Item]:
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if content.strip():
                yield _json_line(file, number, content)


def _json_line(file: File, number: int, line: bytes | str) -> Item:
    try:
        values = json.loads(line if isinstance(line, str) else line.decode("utf-8"))
    except (RecursionError, ValueError) as err:
        return _json_problem(file, err, number)
    return _json_row(file, number, values, ":")


def _json_array(file: File) -> Iterator[Item]:
    try:
        rows = json.loads(file.path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except (RecursionError, ValueError) as err:
        yield _json_problem(file, err)
        return
    for number, values in enumerate(rows, start=1):
        yield _json_row(file, number, values, ", row ")


def _json_row(file: File, number: int, values: Any, separator: str) -> Item:
    if isinstance(values, dict):
        return Row(file.name, number, values)
    return Problem(f"{file.name}{separator}{number}", f": a row must be a JSON object, found {in_words(values)}")


def _json_problem(file: File, err: RecursionError | ValueError, line: int | None = None) -> Problem:
    """The message about JSON lines, in which `line` is broken, or about a JSON array."""
    place = f"{file.name}:{line}" if line else file.name
    if isinstance(err, UnicodeDecodeError):
        return Problem(place, f": {_not_utf8(err)}")
    if isinstance(err, json.JSONDecodeError):
        advice = "; each line is one row" if line else ""
        place = place if line else f"{place}:{err.lineno}"
        return Problem(place, f": broken JSON ({err.msg} at column {err.colno}){advice}")
    if isinstance(err, RecursionError):
        return Problem(place, ": JSON that is nested too deeply to be read; make it flatter")
    return Problem(place, f": an integer of more than {sys.get_int_max_str_digits():,} digits; write it as text")


def _csv(file: File) -> Iterator[Item]:
    csv.field_size_limit(2**31 - 1)  # the most that fits a C long everywhere; csv's own is 131,072
    with file.path.open("rb") as lines:
        # line by line, so that a byte that is not UTF-8 is found in its line
        reader = csv.reader(
            (line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(lines)), strict=True
        )
        try:
            columns = next(reader, [])
            if len(set(columns)) < len(columns) or "" in columns:
                yield Problem(f"{file.name}:1", f": the first line must name each column once, found {columns}")
                return
            for number, cells in enumerate((cells for cells in reader if cells), start=1):
                if len(cells) == len(columns):
                    yield Row(file.name, number, dict(zip(columns, cells, strict=True)))
                else:
                    place = f"{file.name}, row {number} (line {reader.line_num})"
                    yield Problem(place, f": {len(cells)} cells for {len(columns)} columns; quote commas")
        except UnicodeDecodeError as err:
            yield Problem(f"{file.name}:{reader.line_num + 1}", f": {_not_utf8(err)}")
        except csv.Error as err:
            yield Problem(f"{file.name}:{reader.line_num}", f": broken CSV ({err}); fix it or use JSON lines")


def _not_utf8(err: UnicodeDecodeError) -> str:
    return f"not UTF-8 ({err.reason} at byte {err.start}); convert the file to UTF-8"


def _arrow(file: File) -> Iterator[Item]:
    """The rows of a Parquet file, of an Arrow file, or of the Arrow stream that `datasets` writes."""
    import pyarrow as pa  # a quarter of a second, and most data is JSON

    number = 0
    try:
        for number, values in enumerate((row for b in _batches(file.path) for row in _batch_rows(b)), start=1):
            if isinstance(values, str):
                yield Problem(f"{file.name}, row {number}", f": {values}")
            else:
                yield Row(file.name, number, values)
    except (pa.ArrowException, OSError, *_UNREADABLE) as err:
        yield Problem(file.name, f": broken after row {number} ({one_line(err)})")


_UNREADABLE = (ValueError, OverflowError, LookupError, RecursionError)
"""What a value without a like in Python raises: bytes that are not UTF-8, the year 30000, an unknown time zone."""


def _batch_rows(batch: Any) -> Iterator[ArrowValues | str]:
    """The rows of a batch; JSON in a column of that type is parsed, a map is an object; of a wrong row, the problem."""
    names = batch.schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several columns are called {twice[0]!r}; rename them")
    decoders = {field.name: decode for field in batch.schema if (decode := _decoder(field.type)) is not None}
    try:
        found = [
            ArrowValues({name: decoders[name](one) if name in decoders else one for name, one in row.items()})
            for row in batch.to_pylist()
        ]
    except _UNREADABLE:
        # bytes that are not UTF-8, a time that Python has no date for, JSON that is none: in which row and column?
        yield from (_batch_row(batch, decoders, number) for number in range(batch.num_rows))
    else:
        yield from found


def _batch_row(batch: Any, decoders: Mapping[str, Callable[[Any], Any]], number: int) -> ArrowValues | str:
    found = ArrowValues()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            found[name] = decoders.get(name, _same)(column[number].as_py())
        except UnicodeDecodeError as err:
            return f"column {name!r} is {_not_utf8(err)}"
        except _UNREADABLE as err:
            kind = f"a value of type {column.type} that cannot be read ({one_line(err)})"
            return f"column {name!r} holds {kind}; write it as text, or leave the column out"
    return found


def _decoder(kind: Any) -> Callable[[Any], Any] | None:
    """What makes JSON's value of a value of this Arrow type; None where it is one already."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        # so `datasets` keeps objects with unequal keys
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_map(kind):
        item = _decoder(kind.item_type) or _same
        return lambda value: None if value is None else {key: item(one) for key, one in value}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = _decoder(kind.value_type)
        return element and (lambda value: None if value is None else [element(one) for one in value])
    if not pa.types.is_struct(kind):
        return None
    fields = {field.name: decode for field in kind if (decode := _decoder(field.type)) is not None}
    return (lambda value: value and value | {name: fields[name](value[name]) for name in fields}) if fields else None


def _same(value: Any) -> Any:
    return value


def _batches(path: Path) -> Iterator[Any]:
    """The batches, read and not mapped: in the end, all of a mapped file would count as the process's memory."""
    import pyarrow as pa
    from pyarrow import parquet

    with pa.OSFile(str(path)) as content:
        magic = content.read(6)
        content.seek(0)
        if magic.startswith(b"PAR1"):
            yield from parquet.ParquetFile(content).iter_batches(batch_size=1000)
        elif magic == b"ARROW1":
            reader = pa.ipc.open_file(content)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(content)
