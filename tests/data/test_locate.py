"""A file, folder, glob or hub id names files; every source that names none, or one twice, is a problem."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from fmstune.data.locate import HubFiles, local_files, parse_place
from fmstune.data.read import Row, read_rows
from fmstune.errors import UserError
from tests.data.test_read import ROWS, json_lines, problems_of, read_all


@pytest.fixture
def three_files() -> None:
    for name in ("b", "a", "c"):
        Path(f"folder/{name}.jsonl").parent.mkdir(exist_ok=True)
        Path(f"folder/{name}.jsonl").write_text(json.dumps({"from": name}) + "\n")


def origins(source: Any) -> list[str]:
    return [row.values["from"] for row in read_all(source)]


@pytest.mark.usefixtures("three_files")
def test_folders_and_globs_are_sorted_and_lists_keep_their_order() -> None:
    assert origins("folder") == ["a", "b", "c"]
    assert origins("folder/[bc].jsonl") == ["b", "c"]
    assert origins("**/*.jsonl") == ["a", "b", "c"]
    assert origins(["folder/c.jsonl", "folder/a.jsonl"]) == ["c", "a"]


@pytest.mark.usefixtures("three_files")
def test_a_file_that_is_listed_twice_is_a_problem_under_whatever_name() -> None:
    assert problems_of(["folder/c.jsonl", "folder/[bc].jsonl", "folder/../folder/b.jsonl", "folder/c.jsonl"]) == (
        "data.train lists the file folder/c.jsonl twice; list it once",
        "data.train lists the file folder/b.jsonl twice, also as folder/../folder/b.jsonl; list it once",
    )
    with pytest.raises(UserError, match="lists the file folder/a.jsonl twice"):
        local_files(["folder", "folder/a.jsonl"], "data.train")


@pytest.mark.usefixtures("three_files")
def test_files_are_listed_without_being_read() -> None:
    Path("folder/a.jsonl").write_text("broken")
    assert local_files(["folder", "owner/name"], "data.train") == [Path(f"folder/{n}.jsonl") for n in "abc"]


def test_what_save_to_disk_writes_is_read_without_its_metadata() -> None:
    Dataset.from_list(ROWS).save_to_disk("saved")
    assert [row.values for row in read_all("saved")] == ROWS


def test_rows_that_ship_with_fmstune_have_a_name() -> None:
    first = next(read_rows("package:complaints/train.jsonl", "data.train"))
    assert (first.file, first.number) == ("package:complaints/train.jsonl", 1)
    assert first.values.keys() >= {"text", "label", "output"}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("rwos.jsonl", "data.train: no file rwos.jsonl; did you mean 'rows.jsonl'?"),
        ("below/x.jsonl", "data.train: no file below/x.jsonl (no folder below)"),
        ("nothing*.jsonl", "data.train: no file matches nothing*.jsonl"),
        ("empty", "data.train: the folder empty holds no data file (.json .jsonl .ndjson .csv .parquet .arrow)"),
        ("splits", "data.train: the folder splits holds no data file (.json .jsonl .ndjson .csv .parquet .arrow)"),
        (None, "data.train must name a file, glob, folder or hub id, found None"),
        ([], "data.train is an empty list; name a file, glob, folder or hub id"),
        (["rows.jsonl", 3], "data.train must name a file, glob, folder or hub id, found 3"),
        ("package:complaints/tain.jsonl", "data.train: package:complaints/tain.jsonl: no such file ships with fmstune"),
    ],
)
def test_a_source_without_files_is_a_problem(source: Any, problem: str) -> None:
    Path("rows.jsonl").write_bytes(json_lines(ROWS))
    for folder in ("empty", "splits/train", "splits/test"):
        Path(folder).mkdir(parents=True)
        if folder != "empty":
            Path(folder, "rows.jsonl").write_bytes(json_lines(ROWS))
    with pytest.raises(UserError) as raised:
        local_files(source, "data.train")
    assert str(raised.value).startswith(problem)


def test_the_folders_below_are_named_and_not_mixed() -> None:
    for folder in ("splits/train", "splits/test"):
        Path(folder).mkdir(parents=True)
        Path(folder, "rows.jsonl").write_bytes(json_lines(ROWS))
    assert problems_of("splits")[0].endswith("; its folders test, train do: name one")


def test_all_entries_of_a_list_that_are_missing_are_named() -> None:
    assert len(problems_of(["a.jsonl", "b.jsonl"])) == 2


def on_the_hub(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A hub whose one data set has these splits, each of one row that holds its name."""
    DatasetDict({name: Dataset.from_list([{"from": name}]) for name in names}).save_to_disk("hub")
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id, streaming: datasets.load_from_disk("hub"))


@pytest.mark.parametrize(
    ("field", "splits", "read"),
    [
        ("data.train", ("test", "train", "validation"), "train"),
        ("data.eval", ("train", "test", "validation"), "validation"),
        ("data.eval", ("train", "test"), "test"),
    ],
)
def test_a_hub_id_gives_the_split_that_the_field_means(
    field: str, splits: tuple[str, ...], read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_hub(monkeypatch, *splits)
    assert list(read_rows("owner/name", field)) == [Row(f"owner/name ({read})", 1, {"from": read})]


@pytest.mark.parametrize(
    ("field", "splits", "problem"),
    [
        ("data.eval", ("train", "dev"), "data.eval: owner/name has no split validation or test, only train, dev; "),
        ("data.train", ("all",), "data.train: owner/name has no split train, only all; "),
    ],
)
def test_a_hub_id_without_that_split_is_a_problem_that_names_the_others(
    field: str, splits: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_hub(monkeypatch, *splits)
    with pytest.raises(UserError) as raised:
        list(read_rows("owner/name", field))
    assert str(raised.value) == f"{problem}download the split that you want and name its file"


def test_a_hub_that_cannot_be_reached_is_one_clear_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (problem,) = problems_of("owner/name")
    assert problem.startswith(
        "data.train: no path owner/name here, and the hub has no such data set or cannot be reached ("
    )


@pytest.mark.sampled(4)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("is_list", [False, True])
def test_json_of_the_hub_is_read_as_it_is_and_not_as_datasets_guesses(
    streaming: bool, is_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"day": "2025-08-01", "turns": [{"role": "tool"}, {"role": "user", "name": None}]}, {"day": "2025-08-02"}]
    Path("rows.json").write_bytes(json.dumps(rows).encode() if is_list else json_lines(rows))
    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, partial(loaded, getattr(datasets, name)))
    split = datasets.load_dataset("owner/name", streaming=streaming)["train"]
    assert isinstance(next(iter(split))["day"], datetime)
    found = [row.values for row in read_rows("owner/name", "data.train", stream=streaming)]
    assert found == rows


def loaded(load: Callable[..., Any], name: str, **more: Any) -> Any:
    """What `datasets` loads, with rows.json in place of the data set owner/name."""
    return load("json", data_files={"train": "rows.json"}, **more) if name == "owner/name" else load(name, **more)


def test_what_looks_like_a_file_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    Path("data").mkdir()
    for path in ("data/rows", "other/rows.jsonl"):
        assert "no file" in problems_of(path)[0]


def test_the_check_before_a_run_needs_neither_torch_nor_datasets() -> None:
    code = (
        "import sys; from fmstune.data import locate, read;"
        "locate.local_files('package:complaints/train.jsonl', 'data.train');"
        "print(sorted({'torch', 'datasets', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("hf://datasets/owner/name", HubFiles("owner/name")),
        ("hf://datasets/owner/name/", HubFiles("owner/name")),
        ("hf://datasets/owner/name/data/train.jsonl", HubFiles("owner/name", None, "data/train.jsonl")),
        ("hf://datasets/owner/name@v1.0/data", HubFiles("owner/name", "v1.0", "data")),
        (
            "hf://datasets/ought/raft@refs/convert/parquet/twitter_complaints/train",
            HubFiles("ought/raft", "refs/convert/parquet", "twitter_complaints/train"),
        ),
        ("hf://datasets/owner/name@refs/pr/3", HubFiles("owner/name", "refs/pr/3")),
    ],
)
def test_a_place_on_the_hub_has_a_repository_a_revision_and_a_path(place: str, files: HubFiles) -> None:
    assert parse_place(place, "data.train") == files


@pytest.mark.parametrize(
    "place",
    [
        "hf://x",
        "hf://datasets/x",
        "hf://owner/name",
        "hf://datasets/a/b@",
        "hf://datasets/a/b/../c",
        "hf://datasets/a b/c",
    ],
)
def test_another_form_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="data.train must be like hf://datasets/OWNER/NAME@REVISION/PATH, got "):
        parse_place(place, "data.train")
