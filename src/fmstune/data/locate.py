"""A source of rows (file, glob, folder, hub id, files on the hub, or a list of these) → its files."""

import glob
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fmstune.errors import Problem, UserError, one_line, raise_if_any
from fmstune.files import did_you_mean_beside, resolve, user_path

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow")
"""The files that a folder is searched for; a file that is named may have any suffix."""
NOT_ROWS = ("dataset_info.json", "state.json", "dataset_dict.json")
"""Files that `Dataset.save_to_disk` writes in addition to its Arrow files."""
SPLITS = {"data.train": ("train",), "data.eval": ("validation", "test")}
"""The split of a hub id that a field means: the first of these that exists."""
HUB = "hf://"
_FORM = re.compile(
    r"hf://datasets/(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/@]+))?(?:/(?P<path>[^@]*?))?/?"
)
"""As `huggingface_hub.HfFileSystem` reads it: a revision has slashes only in `refs/convert/…` and `refs/pr/…`."""
SHOWN = 10
"""Problems, and rows of one problem, that a message lists; more are counted."""


class File(NamedTuple):
    """A data file and the name to call it by."""

    name: str
    path: Path
    streamed: Iterable[dict[str, Any]] | None = None
    """The rows of a hub id that is streamed and has no file here."""
    lines: Iterable[dict[str, str]] | None = None
    """Its lines in its place, as `text`, where they are JSON."""


class HubFiles(NamedTuple):
    """Where files of a data set are on the hub; without a path, all of them."""

    repo: str
    revision: str | None = None
    path: str = ""

    @property
    def patterns(self) -> list[str] | None:
        """What to download, as `snapshot_download` takes it."""
        return [self.path, f"{self.path}/*"] if self.path else None


def local_files(source: Any, field: str) -> list[Path]:
    """The local files of a source in the order of reading; hub ids have none."""
    return [file.path for file in locate_files(source, field, stream=None)]


def locate_files(source: Any, field: str, *, stream: bool | None = False) -> list[File]:
    """The files of a source in the order of reading; a file that is listed twice is a problem.

    A list keeps its order, folders and globs are sorted by name. A hub id is downloaded, or streamed if `stream` is
    true, or left out if `stream` is None.
    """
    entries = source if isinstance(source, list | tuple) else [source]
    found: dict[Path, File] = {}
    problems: dict[Problem, None] = {}
    if not entries:
        problems[Problem(field, "is an empty list; name a file, glob, folder or hub id")] = None
    for entry in entries:
        try:
            for file in _files_of(entry, field, stream):
                first = found.setdefault(file.path.resolve(), file)
                if first is not file:
                    other = f", also as {file.name}" if file.name != first.name else ""
                    problems[Problem(field, f"lists the file {first.name} twice{other}; list it once")] = None
        except UserError as err:
            problems |= dict.fromkeys(err.problems)
    raise_if_any([*islice(problems, SHOWN), *more_problems(len(problems))])
    return list(found.values())


def more_problems(count: int) -> list[Problem]:
    """The number of problems that are not shown, as a last problem."""
    return [Problem("", f"and {count - SHOWN:,} more such problems")] if count > SHOWN else []


def _files_of(entry: Any, field: str, stream: bool | None) -> list[File]:
    if not isinstance(entry, str) or not entry:
        raise UserError(field, f"must name a file, glob, folder or hub id, found {entry!r}")
    try:
        path = user_path(resolve(entry))
    except UserError as err:
        raise UserError(field, f": {err}") from err
    if entry.startswith(HUB):
        files = parse_place(entry, field)
        return [] if stream is None else _downloaded(entry, _download(files, field), field)
    if path.is_file():
        return [File(entry, path)]
    if path.is_dir():
        return _in_folder(path, field)
    if any(character in entry for character in "*?["):
        matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not matches:
            raise UserError(field, f": no file matches {entry}")
        return [File(str(match), match) for match in matches]
    if is_hub_id(entry):
        return [] if stream is None else _hub_files(entry, field, streaming=stream)
    missing = "" if path.parent.is_dir() else f" (no folder {path.parent})"
    raise UserError(field, f": no file {entry}{missing}{did_you_mean_beside(path)}")


def is_hub_id(entry: str) -> bool:
    """Whether it is OWNER/NAME, and does not look like a file: by its suffix, or because its folder exists here."""
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*", entry)
    return found is not None and Path(entry).suffix not in SUFFIXES and not Path(found[1]).is_dir()


def _downloaded(entry: str, path: Path, field: str) -> list[File]:
    """The data files of what was downloaded, by their names on the hub."""
    if path.is_file():
        return [File(entry, path)]
    return [File(f"{entry.rstrip('/')}/{file.path.name}", file.path) for file in _in_folder(path, field)]


def _in_folder(folder: Path, field: str) -> list[File]:
    """The data files right in this folder: its sub-folders may be other splits, and must be named."""
    found = sorted(path for path in folder.iterdir() if _is_data(path))
    if not found:
        below = sorted({path.parent.relative_to(folder) for path in folder.rglob("*") if _is_data(path)})
        hint = f"; its folders {', '.join(map(str, below))} do: name one" if below else ""
        raise UserError(field, f": the folder {folder} holds no data file ({' '.join(SUFFIXES)}){hint}")
    return [File(str(path), path) for path in found]


def _is_data(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.startswith(".") and path.name not in NOT_ROWS and path.is_file()


def _hub_files(hub_id: str, field: str, *, streaming: bool) -> list[File]:
    """The split that the field means: downloaded as Arrow files into the cache of `datasets`, or to be streamed."""
    import datasets  # slow to import, and not needed for local files

    wanted_names = SPLITS[".".join(field.split(".")[:2])]
    try:
        splits = datasets.load_dataset(hub_id, streaming=streaming)
        name = next((name for name in wanted_names if name in splits), None)
        is_json = name is not None and splits[name].info.builder_name == "json"
        found = _json_files(hub_id, name, streaming=streaming) if name is not None and is_json else None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as err:
        reason = f"the hub has no such data set or cannot be reached ({err})"
        raise UserError(field, f": no path {hub_id} here, and {reason}") from err
    if name is None:
        others = f": {hub_id} has no split {' or '.join(wanted_names)}, only {', '.join(splits)}"
        raise UserError(field, f"{others}; download the split that you want and name its file")
    shown = f"{hub_id} ({name})"
    if found is not None:
        return [file._replace(name=shown) for file in found]
    if streaming:
        return [File(shown, Path(hub_id), splits[name])]
    return [File(shown, Path(part["filename"])) for part in splits[name].cache_files]


def _json_files(hub_id: str, split: str, *, streaming: bool) -> list[File]:
    """The files of a split that is JSON on the hub, as they are: `datasets` makes dates of text that looks like one.

    A list cannot be read line by line, so it is downloaded; `datasets` reads the whole of it for a stream, too.
    """
    import datasets

    files = list(datasets.load_dataset_builder(hub_id).config.data_files[split])
    if streaming:
        lines = datasets.load_dataset("text", data_files={split: files}, split=split, streaming=True)
        if not next((line["text"] for line in lines), "").lstrip().startswith("["):
            return [File(hub_id, Path(hub_id), lines=lines)]
    manager = datasets.DownloadManager()
    return [File(hub_id, Path(path)) for path in manager.iter_files(manager.download_and_extract(files))]


def parse_place(place: str, field: str) -> HubFiles:
    """The parts of a place that begins with `hf://`; raises UserError."""
    found = _FORM.fullmatch(place)
    if found is None or ".." in Path(found["path"] or "").parts:
        raise UserError(field, f"must be like hf://datasets/OWNER/NAME@REVISION/PATH, got {place!r}")
    return HubFiles(found["repo"], found["revision"], found["path"] or "")


def _download(files: HubFiles, field: str) -> Path:
    """The file or folder in the hub's cache, downloaded where it is not there yet; raises UserError."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            files.repo, repo_type="dataset", revision=files.revision, allow_patterns=files.patterns
        )
    except (OSError, ValueError) as err:
        raise UserError(field, f": {_url(files)} cannot be downloaded: {one_line(err)}") from err
    path = Path(folder) / files.path
    if not path.exists():
        raise UserError(field, f": the data set has no file or folder {files.path}; see {_page(files)}")
    return path


def _url(files: HubFiles) -> str:
    return f"{HUB}datasets/{files.repo}" + (f"@{files.revision}" if files.revision else "") + f"/{files.path}"


def _page(files: HubFiles) -> str:
    return f"https://huggingface.co/datasets/{files.repo}/tree/{(files.revision or 'main').replace('/', '%2F')}"
