"""Files → rows: JSON, JSON lines, CSV, Parquet and Arrow, one row after the other, each with its place.

Neither torch nor datasets is imported here, so that the check before a run can look at the files.
"""

import codecs
import csv
import glob
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fmstune import files as package_files
from fmstune.errors import Problem, UserError, raise_if_any

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow")
"""What a folder is searched for; a file that is named is read whatever its suffix, by its content."""
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
NOT_ROWS = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What `Dataset.save_to_disk` writes beside its Arrow files."""
SPLITS = {"data.train": ("train",), "data.eval": ("validation", "test")}
"""The split of a hub id that a field means: the first of these that there is."""
CSV_CELL = 2**31 - 1
"""Characters in a cell at most, the most that fits a C long everywhere; csv's own limit is 131,072."""
SHOWN = 10
"""Problems, and rows of one problem, that a message lists; more are counted."""


class Row(NamedTuple):
    """A row and its place: `number` counts from 1, and is the line in JSON lines."""

    file: str
    number: int
    values: dict[str, Any]


class Unreadable(NamedTuple):
    """A problem in the place of a row."""

    problem: Problem


class File(NamedTuple):
    """A data file and the name to call it by."""

    name: str
    path: Path
    streamed: Iterable[dict[str, Any]] | None = None
    """The rows of a hub id that is read as it comes, without a file here."""


class Contents(NamedTuple):
    """What a source holds."""

    hash: str
    """SHA-256 of a single file's bytes, as `sha256sum` prints it; of several, over their digests in order."""
    readers: tuple[str, ...]
    """How each file is read: the same bytes are other rows when they are called CSV."""


Item = Row | Unreadable


@dataclass
class Problems:
    """What is wrong with many rows: the same words about one file are said once, with the rows' numbers."""

    found: dict[Problem, list[int]] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        """Note a problem of a whole file."""
        self.found.setdefault(problem, [])

    def add_row(self, row: Row, text: str) -> None:
        """Note a problem of one row."""
        self.found.setdefault(Problem(row.file, f": {text}"), []).append(row.number)

    def first(self) -> list[Problem]:
        """The first problems, and how many more there are."""
        shown = [_with_rows(*item) for item in islice(self.found.items(), SHOWN)]
        more = len(self.found) - len(shown)
        return [*shown, Problem("", f"and {more:,} more such problems")] if more else shown


def read(source: Any, field: str, max_rows: int | None = None, *, stream: bool = False) -> Iterator[Row]:
    """All rows of a file, glob, folder, hub id or a list of these, in order, with the memory of one batch.

    A hub id is downloaded first, unless it is to be streamed.

    What cannot be read is left out until the end, where one UserError tells of all of it: whoever reads to
    the end cannot miss a row.
    """
    problems, count = Problems(), 0
    for file in _unique(source, field, _hub_stream) if stream else locate(source, field):
        before = count
        for item in islice(_items(file), None if max_rows is None else max_rows - count):
            count += 1
            if isinstance(item, Row):
                yield item
            else:
                problems.add(item.problem)
        if count == max_rows:
            break
        if count == before:
            problems.add(Problem(field, f": {file.name} holds no rows"))
    raise_if_any(problems.first())


def files(source: Any, field: str) -> list[Path]:
    """The local files of a source in the order of reading; hub ids have none."""
    return [file.path for file in _unique(source, field, lambda hub_id, field: [])]


def contents(source: Any, field: str) -> Contents:
    """What the source's files hold, without making rows of them; raises UserError for those that cannot be read."""
    digests, readers, problems = [], [], []
    for file in locate(source, field):
        try:
            readers.append(_reader(file, _head(file)).__name__.removeprefix("_"))
            with file.path.open("rb") as content:
                digests.append(hashlib.file_digest(content, "sha256"))
        except OSError as err:
            problems.append(_refused(file, err))
    raise_if_any(problems)
    if len(digests) == 1:
        return Contents(digests[0].hexdigest(), tuple(readers))
    return Contents(hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest(), tuple(readers))


def locate(source: Any, field: str) -> list[File]:
    """The files of a source; those of a hub id are downloaded into the cache of `datasets`."""
    return _unique(source, field, _hub_files)


def _unique(source: Any, field: str, hub_files: Callable[[str, str], list[File]]) -> list[File]:
    """A list keeps its order, folders and globs are sorted by name; a file that comes twice is a problem."""
    entries = source if isinstance(source, list | tuple) else [source]
    found: dict[Path, File] = {}
    problems = Problems()
    if not entries:
        problems.add(Problem(field, "is an empty list; name a file, glob, folder or hub id"))
    for entry in entries:
        try:
            for file in _files_of(entry, field, hub_files):
                first = found.setdefault(file.path.resolve(), file)
                if first is not file:
                    problems.add(_twice(field, first, file))
        except UserError as err:
            for problem in err.problems:
                problems.add(problem)
    raise_if_any(problems.first())
    return list(found.values())


def _twice(field: str, first: File, again: File) -> Problem:
    other = f", also as {again.name}" if again.name != first.name else ""
    return Problem(field, f"lists the file {first.name} twice{other}; list it once, or make it two files")


def _files_of(entry: Any, field: str, hub_files: Callable[[str, str], list[File]]) -> list[File]:
    if not isinstance(entry, str) or not entry:
        raise UserError(field, f"must name a file, glob, folder or hub id, found {entry!r}")
    try:
        path = Path(package_files.resolve(entry)).expanduser()
    except UserError as err:
        raise UserError(field, f": {err}") from err
    if path.is_file():
        return [File(entry, path)]
    if path.is_dir():
        return _in_folder(path, field)
    if any(character in entry for character in "*?["):
        matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not matches:
            raise UserError(field, f": no file matches {entry}")
        return [File(str(match), match) for match in matches]
    if _may_be_hub_id(entry):
        return hub_files(entry, field)
    missing = "" if path.parent.is_dir() else f" (there is no folder {path.parent})"
    raise UserError(field, f": no file {entry}{missing}{package_files.did_you_mean_beside(path)}")


def _in_folder(folder: Path, field: str) -> list[File]:
    """The data files right in this folder: its sub-folders may be other splits, and must be named."""
    found = sorted(path for path in folder.iterdir() if _is_data(path))
    if not found:
        below = sorted({path.parent.relative_to(folder) for path in folder.rglob("*") if _is_data(path)})
        hint = f"; its folders {', '.join(map(str, below))} do: name one" if below else ""
        raise UserError(field, f": the folder {folder} holds no data file ({' '.join(SUFFIXES)}){hint}")
    return [File(str(path), path) for path in found]


def _is_data(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix in SUFFIXES and path.is_file() and not hidden and path.name not in NOT_ROWS


def _may_be_hub_id(entry: str) -> bool:
    """`owner/name`, unless it looks like a file: by its suffix, or because its folder exists here."""
    parts = re.fullmatch(r"([A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*", entry)
    return parts is not None and Path(entry).suffix not in SUFFIXES and not Path(parts[1]).is_dir()


def _hub_files(hub_id: str, field: str) -> list[File]:
    """The Arrow files that `datasets` makes of the split that the field means."""
    name, split = _hub_split(hub_id, field, streaming=False)
    return [File(f"{hub_id} ({name})", Path(part["filename"])) for part in split.cache_files]


def _hub_stream(hub_id: str, field: str) -> list[File]:
    """The split that the field means, read from the hub as it comes."""
    name, split = _hub_split(hub_id, field, streaming=True)
    return [File(f"{hub_id} ({name})", Path(hub_id), split)]


def _hub_split(hub_id: str, field: str, *, streaming: bool) -> tuple[str, Any]:
    """The split that the field means, with its name."""
    import datasets  # slow to import, and not needed for local files

    try:
        splits = datasets.load_dataset(hub_id, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as err:
        raise UserError(field, f": no path {hub_id} here, and the hub does not give it ({err})") from err
    wanted_names = SPLITS[".".join(field.split(".")[:2])]
    name = next((name for name in wanted_names if name in splits), None)
    if name is None:
        wanted, there = " or ".join(wanted_names), ", ".join(splits)
        raise UserError(
            field, f": {hub_id} has no split {wanted}, only {there}; download what you mean and name its file"
        )
    return name, splits[name]


def _items(file: File) -> Iterator[Item]:
    if file.streamed is not None:
        yield from (Row(file.name, number, values) for number, values in enumerate(file.streamed, start=1))
        return
    try:
        yield from _reader(file, _head(file))(file)
    except OSError as err:
        yield Unreadable(_refused(file, err))


def _head(file: File) -> bytes:
    with file.path.open("rb") as content:
        return content.read(4096).removeprefix(codecs.BOM_UTF8)


def _refused(file: File, err: OSError) -> Problem:
    return Problem(file.name, f": cannot be read ({err.strerror or err})")


def _reader(file: File, head: bytes) -> Callable[[File], Iterable[Item]]:
    """Content decides, since JSON lines are often called .json; the suffix only tells what CSV is."""
    start, suffix = head.lstrip(), file.path.suffix
    if head.startswith(b"PAR1"):
        return _parquet
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return _arrow
    if suffix == ".csv":
        return _csv
    if start.startswith(b"["):
        return _json_array
    if start.startswith(b"{") or suffix in JSON_SUFFIXES:
        return _json_lines
    return _no_rows if not head else _unknown


def _no_rows(file: File) -> Iterator[Item]:
    return iter(())


def _unknown(file: File) -> Iterator[Item]:
    yield Unreadable(Problem(file.name, ": neither JSON, CSV (named .csv), Parquet nor Arrow; convert it to one"))


def _json_lines(file: File) -> Iterator[Item]:
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines):
            content = _without_bom(number, line)
            if content.strip():
                yield _json_line(file, number + 1, content)


def _json_line(file: File, number: int, content: bytes) -> Item:
    place = f"{file.name}:{number}"
    try:
        values = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as err:
        return Unreadable(Problem(place, f": {_not_utf8(err)}"))
    except json.JSONDecodeError as err:
        return Unreadable(Problem(place, f": broken JSON ({err.msg} at column {err.colno}); each line is one row"))
    except (RecursionError, ValueError) as err:
        return Unreadable(Problem(place, f": {_beyond_python(err)}"))
    if not isinstance(values, dict):
        return Unreadable(Problem(place, f": a row must be a JSON object, found type {type(values).__name__}"))
    return Row(file.name, number, values)


def _json_array(file: File) -> Iterator[Item]:
    try:
        rows = json.loads(file.path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as err:
        yield Unreadable(Problem(file.name, f": {_not_utf8(err)}"))
        return
    except json.JSONDecodeError as err:
        yield Unreadable(Problem(f"{file.name}:{err.lineno}", f": broken JSON ({err.msg} at column {err.colno})"))
        return
    except (RecursionError, ValueError) as err:
        yield Unreadable(Problem(file.name, f": {_beyond_python(err)}"))
        return
    for number, values in enumerate(rows, start=1):
        if isinstance(values, dict):
            yield Row(file.name, number, values)
        else:
            kind = type(values).__name__
            yield Unreadable(Problem(f"{file.name}, row {number}", f": a row must be a JSON object, found type {kind}"))


def _csv(file: File) -> Iterator[Item]:
    csv.field_size_limit(CSV_CELL)
    with file.path.open("rb") as lines:
        # line by line, so that a byte that is not UTF-8 is found in its line
        reader = csv.reader((_without_bom(n, line).decode() for n, line in enumerate(lines)), strict=True)
        try:
            columns = next(reader, [])
            if len(set(columns)) < len(columns) or "" in columns:
                yield Unreadable(Problem(f"{file.name}:1", f": must name the columns, each once, found {columns}"))
                return
            for number, cells in enumerate((cells for cells in reader if cells), start=1):
                if len(cells) == len(columns):
                    yield Row(file.name, number, dict(zip(columns, cells, strict=True)))
                else:
                    place = f"{file.name}, row {number} (line {reader.line_num})"
                    yield Unreadable(Problem(place, f": {len(cells)} cells for {len(columns)} columns; quote commas"))
        except UnicodeDecodeError as err:
            yield Unreadable(Problem(f"{file.name}:{reader.line_num + 1}", f": {_not_utf8(err)}"))
        except csv.Error as err:
            yield Unreadable(
                Problem(f"{file.name}:{reader.line_num}", f": broken CSV ({err}); mend it or use JSON lines")
            )


def _without_bom(number: int, line: bytes) -> bytes:
    return line.removeprefix(codecs.BOM_UTF8) if number == 0 else line


def _not_utf8(err: UnicodeDecodeError) -> str:
    return f"not UTF-8 ({err.reason} at byte {err.start}); convert the file to UTF-8"


def _beyond_python(err: RecursionError | ValueError) -> str:
    """Why good JSON is refused: Python limits the depth, and the digits of an integer."""
    if isinstance(err, RecursionError):
        return "JSON that is nested too deeply to be read; make it flatter"
    return f"an integer of more than {sys.get_int_max_str_digits():,} digits; write it as text"


def _parquet(file: File) -> Iterator[Item]:
    from pyarrow import parquet

    return _rows_of_batches(file, lambda: parquet.ParquetFile(file.path).iter_batches(batch_size=1000))


def _arrow(file: File) -> Iterator[Item]:
    return _rows_of_batches(file, lambda: _arrow_batches(file))


def _arrow_batches(file: File) -> Iterator[Any]:
    """The batches of an Arrow file, or of the Arrow stream that `datasets` writes.

    They are read and not mapped: all of a mapped file counts as the process's memory in the end.
    """
    import pyarrow as pa

    with pa.OSFile(str(file.path)) as content:
        if content.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(content)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            content.seek(0)
            yield from pa.ipc.open_stream(content)


def _rows_of_batches(file: File, batches: Callable[[], Iterator[Any]]) -> Iterator[Item]:
    import pyarrow as pa  # a quarter of a second, and most data is JSON

    number = 0
    try:
        for batch in batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(file.name, number, values)
    except (pa.ArrowException, OSError) as err:
        yield Unreadable(Problem(file.name, f": broken after row {number} ({err})"))


def _with_rows(problem: Problem, numbers: list[int]) -> Problem:
    if not numbers:
        return problem
    shown, more = numbers[:SHOWN], len(numbers) - SHOWN
    listed = ", ".join(map(str, shown)) + (f" and {more:,} more" if more > 0 else "")
    return Problem(f"{problem.field}, {'row' if len(numbers) == 1 else 'rows'} {listed}", problem.text)
