"""`debug=smoke`: the whole way of a job in small, a stage at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.cli import smoke
from fmstune.cli.smoke import Result, Stage, is_smoke, smoke_job
from fmstune.config import freeze
from fmstune.config.job import Job, sources
from tests.composing import composed_tree
from tests.conftest import Result as Done

Run = Callable[..., Done]


def job(*words: str) -> Job:
    return freeze.freeze(composed_tree("debug=smoke", *words)).job


def test_a_small_job_keeps_launcher_method_and_batches() -> None:
    given = job("peft=lora", "launcher=fsdp", "launcher.num_processes=2", "training.gradient_accumulation_steps=3")
    small = smoke_job(given, Path("x-smoke"))
    assert is_smoke(given) and is_smoke(small)
    assert (small.launcher, small.peft, small.objective, small.data.format) == (
        *(given.launcher, given.peft, given.objective),
        given.data.format,
    )
    assert small.training == {**given.training, "resume": None}
    assert small.training["max_steps"] == 2


def test_a_small_job_has_a_model_and_a_folder_of_its_own() -> None:
    small = smoke_job(job("model=llama2_7b", "output_dir=x"), Path("x-smoke"))
    assert small.output_dir == "x-smoke/run"
    assert small.model.path == str(Path("x-smoke/two_layers").absolute())
    assert (small.model.tokenizer, small.model.architecture) == ("meta-llama/Llama-2-7b-hf", None)


def test_rows_are_enough_for_the_steps_and_no_more() -> None:
    def rows(*words: str) -> tuple[int | None, int | None]:
        small = smoke_job(job(*words), Path("x-smoke"))
        return tuple(sources(small.data, part)[""].max_rows for part in ("train", "eval"))  # type: ignore[return-value]

    assert rows() == (64, 8)
    assert rows("data.max_rows=10") == (10, 8)
    assert rows("training.gradient_accumulation_steps=3", "launcher=ddp", "launcher.num_processes=2") == (192, 8)


def test_nothing_is_tracked_or_stopped_and_evaluations_come_at_each_step() -> None:
    words = ("tracking=tensorboard", "callbacks=early_stopping", "training.eval_strategy=epoch")
    small = smoke_job(job(*words, "callbacks.stop_when='loss < 9'"), Path("x-smoke"))
    assert (small.tracking, small.callbacks.early_stopping, small.callbacks.stop_when) == ({}, None, None)
    assert (small.training["eval_strategy"], small.training["eval_steps"]) == ("steps", 1)
    assert list(small.callbacks.others) == ["debug"]


def test_the_small_job_can_be_written_and_read(tmp_path: Path) -> None:
    small = smoke_job(job("peft=lora"), Path("x-smoke"))
    freeze.write(small, tmp_path / "job.yaml")
    assert freeze.read(tmp_path / "job.yaml").job == small


def test_the_table_names_what_failed_and_what_was_not_run() -> None:
    stages = [Stage("train", "one", Result.failed, 1.24, 2), Stage("resume", "two", Result.not_run)]
    assert smoke.render_stages(stages).splitlines() == [
        "stage   result   seconds  what",
        "─" * 30,
        "train   failed       1.2  one",
        "resume  not run        -  two",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model.adapter=package:tiny_llama", "peft=lora"), "model.adapter has all layers, and debug=smoke takes two"),
        (("launcher=slurm",), "launcher.slurm debug=smoke runs on this machine and submits nothing"),
        (("launcher=ddp", "launcher.num_machines=2"), "debug=smoke runs on one machine; set launcher.num_machines=1"),
        (("-m", "seed=1,2"), "debug=smoke tries one job, and not the points of a sweep; leave out -m"),
    ],
)
def test_jobs_that_cannot_be_tried_in_small_are_refused(fmstune: Run, words: tuple[str, ...], said: str) -> None:
    done = fmstune("debug=smoke", "output_dir=x", *words)
    assert done.code == 2
    assert said in done.err
    assert not Path("x-smoke").exists()


def test_a_folder_of_somebody_else_is_never_removed(fmstune: Run) -> None:
    Path("x-smoke").mkdir()
    Path("x-smoke/mine").touch()
    done = fmstune("debug=smoke", "output_dir=x")
    assert done.code == 2
    assert "x-smoke, where debug=smoke would work, is there and not its own; move it away" in done.err
    assert Path("x-smoke/mine").exists()


@pytest.mark.slow
def test_a_job_goes_its_whole_way_and_leaves_nothing(fmstune: Run) -> None:
    done = fmstune("debug=smoke", "peft=lora", "output_dir=runs/x", "launcher.threads=1")
    assert done.code == 0, done.err
    table = [line.split()[:2] for line in done.out.splitlines()[-4:]]
    assert table == [[name, "passed"] for name in ("model", "train", "resume", "generate")]
    assert "model      llama of 2 layers" in done.out
    assert "resuming from runs/x-smoke/run/checkpoint-1, after step 1" in done.err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_stage_that_fails_is_named_below_its_message(fmstune: Run, rows_file: Callable[..., Path]) -> None:
    rows = rows_file([{"text": "a", "output": "b"}])
    done = fmstune("debug=smoke", "data=alpaca", f"data.train={rows}", "output_dir=x", "launcher.threads=1")
    assert done.code == 2
    assert "row 1: no column 'instruction'" in done.err
    assert (
        "debug=smoke failed in the stage train (exit code 2); its message stands above, and x-smoke is kept" in done.err
    )
    assert [line.split()[1] for line in done.out.splitlines()[-4:]] == ["passed", "failed", "not", "not"]
    assert not Path("x").exists()
