"""A run folder is claimed by one process and given back without touching what was there before."""

import dataclasses
from pathlib import Path

import pytest

from fmstune.cli import claim_folder
from fmstune.config import freeze
from fmstune.config.job import Job
from fmstune.errors import UserError
from fmstune.runs import run_folder
from tests.config.test_freeze import TREE


def job(output_dir: str | None) -> Job:
    return dataclasses.replace(freeze.freeze(TREE).job, output_dir=output_dir)


def test_a_claimed_folder_holds_the_job_with_its_own_name() -> None:
    claimed = claim_folder.claim_folder(job("a/b"))
    assert claimed.folder == Path("a/b")
    assert freeze.read(Path("a/b/job.yaml")).job == claimed.job == job("a/b")


def test_without_a_name_each_run_gets_a_folder_of_its_own() -> None:
    folders = [claim_folder.claim_folder(job(None)).folder for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.parts[0] == "runs" for folder in folders)


def test_a_folder_is_never_claimed_by_another_job() -> None:
    claim_folder.claim_folder(job("a"))
    with pytest.raises(UserError, match=r"output_dir: a holds another run .* \(seed is 7 here and 42 there\)"):
        claim_folder.claim_folder(dataclasses.replace(job("a"), seed=7))


def test_the_same_job_goes_on_in_its_folder_and_release_leaves_it() -> None:
    first = claim_folder.claim_folder(job("a"))
    two = dataclasses.replace(job("a").launcher, threads=2)
    again = claim_folder.claim_folder(dataclasses.replace(job("a"), launcher=two))
    assert (first.resumed, again.resumed) == (False, True)
    assert freeze.read(Path("a/job.yaml")).job.launcher.threads == 2
    claim_folder.release_folder(again)
    assert [path.name for path in Path("a").iterdir()] == ["job.yaml"]


def test_a_folder_with_a_run_but_without_its_job_is_refused() -> None:
    Path("a").mkdir()
    Path("a/metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"output_dir: a holds another run .*\(it has no job.yaml\)"):
        claim_folder.claim_folder(job("a"))


@pytest.mark.parametrize(("status", "finished"), [("finished", True), ("running", False), ("failed", False)])
def test_only_a_finished_run_has_nothing_left_to_do(status: str, finished: bool) -> None:
    claim_folder.claim_folder(job("a"))
    run_folder.update_summary(Path("a"), {"status": status})
    assert claim_folder.is_finished(claim_folder.claim_folder(job("a"))) is finished


def test_release_takes_away_what_claiming_made() -> None:
    Path("there").mkdir()
    claim_folder.release_folder(claim_folder.claim_folder(job("there/a/b")))
    assert [str(path) for path in Path().rglob("*")] == ["there"]


def test_release_leaves_folders_that_were_there_before() -> None:
    Path("mine/empty").mkdir(parents=True)
    claim_folder.release_folder(claim_folder.claim_folder(job("mine/empty")))
    assert Path("mine/empty").is_dir()
    assert list(Path("mine/empty").iterdir()) == []


def test_release_leaves_what_somebody_else_put_there() -> None:
    claimed = claim_folder.claim_folder(job("a/b"))
    Path("a/notes.txt").write_text("mine")
    claim_folder.release_folder(claimed)
    assert [str(path) for path in Path().rglob("*")] == ["a", "a/notes.txt"]


def test_a_folder_below_a_file_cannot_be_made() -> None:
    Path("file").write_text("")
    with pytest.raises(UserError, match="output_dir: file/a cannot be made"):
        claim_folder.claim_folder(job("file/a"))


def test_a_folder_that_the_system_refuses_is_said_to_be_so() -> None:
    with pytest.raises(UserError, match="output_dir: /proc/x cannot be made"):
        claim_folder.claim_folder(job("/proc/x"))


def test_a_trained_model_is_not_trained_again_because_its_summary_is_damaged() -> None:
    claim_folder.claim_folder(job("a"))
    Path("a/model").mkdir()
    Path("a/summary.json").write_text("garbage")
    with pytest.raises(UserError) as raised:
        claim_folder.claim_folder(job("a"))
    assert str(raised.value) == (
        "output_dir: a/summary.json: cannot be read (Expecting value: line 1 column 1 (char 0)), and a holds a trained "
        "model and no checkpoint; remove the file to train again from the start, or choose another output_dir"
    )
    assert Path("a/summary.json").read_text() == "garbage"
    Path("a/checkpoint-2").mkdir()
    marker = '{"step": 2, "processes": 1, "rows_per_step": 8, "sharded": false}'
    Path("a/checkpoint-2/complete.json").write_text(marker)
    assert claim_folder.claim_folder(job("a")).resumed
    assert Path("a/summary.json.damaged").read_text() == "garbage"
