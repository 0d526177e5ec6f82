# SPDX-License-Identifier: Apache-2.0
"""What was prepared is known again while model and rows are the same, and forgotten with the tokens."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fmstune import cache
from fmstune.cli import main
from fmstune.config import freeze
from fmstune.config.job import Job
from fmstune.data import preparation
from fmstune.data.preparation import mark_prepared, was_prepared
from fmstune.launch import subprocesses
from tests.config.test_freeze import TREE, tree


@pytest.fixture
def job() -> Job:
    """A job with a model folder, rows, held-out rows by a pattern, and a template."""
    Path("model").mkdir()
    for name in ("model/config.json", "rows.jsonl", "held_1.jsonl", "row.jinja"):
        Path(name).write_text("{}\n")
    return freeze.freeze(changed(train="rows.jsonl", eval="held_*.jsonl")).job


def changed(**data: Any) -> dict[str, Any]:
    format = {"_target_": "fmstune.data.formats.template", "template_file": "row.jinja"}
    return tree(model={**TREE["model"], "path": "model"}, data={**TREE["data"], "format": format, **data})


def test_it_is_known_once_it_was_done(job: Job) -> None:
    assert not was_prepared(job)
    mark_prepared(job)
    assert was_prepared(job)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"output_dir": "elsewhere"},
        {"training": {"learning_rate": 1.0}},
        {"peft": {"_target_": "peft.LoraConfig"}},
    ],
)
def test_how_it_is_trained_and_where_does_not_matter(job: Job, change: dict[str, Any]) -> None:
    mark_prepared(job)
    assert was_prepared(dataclasses.replace(job, **change))


def append(name: str) -> None:
    with Path(name).open("a") as file:
        file.write("more\n")


def touch_later(name: str) -> None:
    time = Path(name).stat().st_mtime_ns + 1_000_000
    os.utime(name, ns=(time, time))


@pytest.mark.parametrize(
    "change",
    [
        lambda: append("rows.jsonl"),
        lambda: touch_later("rows.jsonl"),
        lambda: append("held_1.jsonl"),
        lambda: append("held_2.jsonl"),
        lambda: append("row.jinja"),
        lambda: append("model/config.json"),
        lambda: append("model/tokenizer.json"),
        lambda: Path("rows.jsonl").unlink(),
        cache.clear,
    ],
)
def test_a_file_that_changed_is_seen(job: Job, change: Callable[[], object]) -> None:
    mark_prepared(job)
    change()
    assert not was_prepared(job)


def test_other_rows_another_model_and_another_seed_are_not_known(job: Job) -> None:
    mark_prepared(job)
    other_data = dataclasses.replace(job.data, max_length=99)
    other_model = dataclasses.replace(job.model, special_tokens={"pad_token": "<pad>"})
    for change in ({"data": other_data}, {"model": other_model}, {"seed": 7}):
        assert not was_prepared(dataclasses.replace(job, **change))


def test_other_versions_prepare_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    mark_prepared(job)
    monkeypatch.setattr(preparation, "version", lambda name: "0")
    assert not was_prepared(job)


def test_a_format_of_the_users_own_is_never_known() -> None:
    data = {**TREE["data"], "format": {"_target_": "mine.reviews"}}
    own = freeze.freeze(tree(data=data), trusted=["mine"]).job
    mark_prepared(own)
    assert not was_prepared(own)


def test_a_cache_that_cannot_be_written_into_is_left_alone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("FMSTUNE_CACHE", "file/cache")
    mark_prepared(job)
    assert not was_prepared(job)


def test_a_file_whose_name_looks_like_a_pattern_is_seen_to_change(job: Job) -> None:
    Path("rows[1].jsonl").write_text("{}\n")
    named = dataclasses.replace(job, data=dataclasses.replace(job.data, train="rows[1].jsonl"))
    mark_prepared(named)
    assert was_prepared(named)
    append("rows[1].jsonl")
    assert not was_prepared(named)


def test_texts_that_are_no_paths_do_no_harm() -> None:
    for template in ("### Label:", "*" * 3, "[", "x" * 5000, "nul\0"):
        mark_prepared(freeze.freeze(tree(data={**TREE["data"], "response_template": template})).job)


@pytest.mark.slow
def test_ranks_start_at_once_where_the_job_was_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def start(argv: Sequence[str], env: Mapping[str, str]) -> int:
        started.append(argv[2] + (" --prepare" if "--prepare" in argv else ""))
        mark_prepared(freeze.read(Path(argv[3])).job)
        return 0

    monkeypatch.setattr(subprocesses, "start", start)
    for _ in range(2):
        main.run_command(["launcher=ddp", "launcher.device=cpu", "launcher.num_processes=2", "output_dir=run"])
    assert started == ["fmstune.runner --prepare", "fmstune.launch.agent", "fmstune.launch.agent"]
