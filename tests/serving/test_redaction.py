"""Nothing about this machine and no secret is in what is shared, and the list names all that was left out."""

from pathlib import Path
from typing import Any

import pytest

from fmstune.serving.redaction import Redactor, change_lines, is_path, short

TOKEN = "hf_" + "x" * 30


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("/home/me/rows.jsonl", True),
        ("/data/my rows/*.jsonl", True),
        ("~/rows.jsonl", True),
        ("~you/rows.jsonl", True),
        ("file:///home/me/rows.jsonl", True),
        (r"C:\Users\me\rows.jsonl", True),
        ("rows.jsonl", False),
        ("data/rows.jsonl", False),
        ("package:complaints/train.jsonl", False),
        ("hf://datasets/me/rows", False),
        ("meta-llama/Llama-2-13b-hf", False),
        ("/think", False),
        ("\n### Label:", False),
        ("/a\n/b", False),
    ],
)
def test_a_path_that_means_nothing_elsewhere_is_told_from_other_texts(value: str, is_one: bool) -> None:
    assert is_path(value) is is_one


def test_a_path_becomes_its_name_and_the_model_of_a_run_keeps_the_name_of_the_run() -> None:
    assert [short(path) for path in ("/home/me/rows.jsonl", "/runs/first/model", r"C:\rows\a.csv")] == [
        "rows.jsonl",
        "first/model",
        "a.csv",
    ]


def shared(tree: dict[str, Any], base: str | None = None) -> tuple[dict[str, Any], list[str]]:
    redactor = Redactor()
    return redactor.job(tree, "job.yaml", base), change_lines(redactor.changes)


def test_what_is_about_this_machine_alone_is_left_out_of_a_job_and_listed() -> None:
    job = {
        "output_dir": "/home/me/runs/first",
        "tracking": {"wandb": {"api_key": "secret"}},
        "launcher": {"slurm": {"account": "us"}, "main_process_ip": "10.0.0.7", "num_processes": 2},
        "training": {"resume": None, "max_steps": 3},
    }
    found, listed = shared(job)
    assert found == {
        "output_dir": None,
        "tracking": {},
        "launcher": {"slurm": None, "main_process_ip": None, "num_processes": 2},
        "training": {"resume": None, "max_steps": 3},
    }
    about = "left out: it is about this machine"
    fields = ("output_dir", "tracking", "launcher.slurm", "launcher.main_process_ip")
    assert listed == [f"job.yaml  {field}: {about}" for field in fields]
    assert "secret" not in str(listed)


def test_paths_become_names_wherever_a_job_has_them() -> None:
    job = {"data": {"train": {"a": {"path": ["/d/a.jsonl", "/d/b.jsonl"]}, "b": "hf://datasets/me/c"}, "eval": "e.csv"}}
    found, listed = shared(job)
    assert found == {
        "data": {"train": {"a": {"path": ["a.jsonl", "b.jsonl"]}, "b": "hf://datasets/me/c"}, "eval": "e.csv"}
    }
    assert listed == [
        "job.yaml  data.train.a.path[0]: /d/a.jsonl → a.jsonl",
        "job.yaml  data.train.a.path[1]: /d/b.jsonl → b.jsonl",
    ]


def test_a_text_of_a_format_that_begins_with_a_slash_stays(tmp_path: Path) -> None:
    own = tmp_path / "row.jinja"
    own.touch()
    format = {"response_template": "/answer/is", "template_file": str(own)}
    found, _ = shared({"data": {"format": format}, "model": {"special_tokens": {"eos_token": "/end/of"}}})
    assert found["data"]["format"] == {"response_template": "/answer/is", "template_file": "row.jinja"}
    assert found["model"]["special_tokens"] == {"eos_token": "/end/of"}


@pytest.mark.parametrize("name", ["api_key", "wandb_api_key", "password", "token", "hub_token", "client_secret"])
def test_a_secret_by_its_name_is_left_out_and_not_shown(name: str) -> None:
    found, listed = shared({"callbacks": {"mine": {name: "abcdef"}}})
    assert found == {"callbacks": {"mine": {name: None}}}
    assert listed == [f"job.yaml  callbacks.mine.{name}: left out: a secret"]


def test_a_secret_by_its_form_is_left_out_wherever_it_stands_and_not_shown() -> None:
    found, listed = shared({"callbacks": {"mine": {"at": f"https://me:pass@host/x?t={TOKEN}"}}, "name": TOKEN})
    assert found == {"callbacks": {"mine": {"at": "https://…@host/x?t=hf_…"}}, "name": "hf_…"}
    assert len(listed) == 2 and TOKEN not in str(listed) and "pass@" not in str(listed)


def test_the_hub_id_of_the_base_takes_the_place_of_its_folder() -> None:
    found, listed = shared({"model": {"path": "models/llama", "revision": None}}, base="meta-llama/Llama-2-7b")
    assert found["model"]["path"] == "meta-llama/Llama-2-7b"
    assert listed == ["job.yaml  model.path: models/llama → meta-llama/Llama-2-7b"]


def test_files_of_one_name_are_still_told_apart() -> None:
    redactor = Redactor()
    files = {"/d/a/rows.jsonl": "1", "/d/b/rows.jsonl": "2"}
    assert redactor.tree({"data_files": files}, "lock.json") == {
        "data_files": {"a/rows.jsonl": "1", "b/rows.jsonl": "2"}
    }
    assert change_lines(redactor.changes) == ["lock.json  data_files: 2 paths → names of files"]


def test_a_command_keeps_its_words_without_the_folders_of_its_files() -> None:
    command = (
        f"fmstune --config-dir=/gpfs/me/conf data.train=/gpfs/me/rows.jsonl url=https://x.org/a/b token={TOKEN} a/b"
    )
    found = Redactor().command(command, "lock.json", "command")
    assert found == "fmstune --config-dir=conf data.train=rows.jsonl url=https://x.org/a/b token=hf_… a/b"


def test_a_card_loses_the_paths_of_this_machine_and_of_the_job_and_keeps_what_only_looks_like_one(
    tmp_path: Path,
) -> None:
    redactor = Redactor()
    redactor.job({"output_dir": "/gpfs/me/runs/first", "data": {"train": "/gpfs/me/rows.jsonl"}}, "job.yaml", None)
    card = (
        f"`/gpfs/me/rows.jsonl` to /gpfs/me/runs/first; {tmp_path}/x.txt; https://hf.co/a/b and/or /v1/chat/completions"
    )
    found = redactor.text(card, "README.md")
    assert found == "`rows.jsonl` to first; x.txt; https://hf.co/a/b and/or /v1/chat/completions"
