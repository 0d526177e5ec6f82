"""A run that was killed goes on where it was, in its own folder; checkpoints are complete or not there."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from fmstune.flatten import flatten
from fmstune.runs import checkpoints, differences
from fmstune.runs.checkpoints import CheckpointFacts
from tests.bad_inputs.cases import Saying
from tests.conftest import Result
from tests.fixtures import forked

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
QUICK = (
    "training.max_steps=4",
    "training.save_strategy=steps",
    "training.save_steps=1",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=1",
    "launcher.threads=1",
    "data.max_rows=16",
    "evaluation.max_rows=2",
    "evaluation.max_new_tokens=4",
    "peft=lora",
)


MADE: list[tuple[Path, Result]] = []


@pytest.fixture
def finished(fmstune: Run, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished run of QUICK in the folder `run`; trained once, and copied from then on."""
    if not MADE:
        run = fmstune(*QUICK, "output_dir=run")
        assert run.code == 0, run.err
        kept = tmp_path_factory.mktemp("finished") / "run"
        MADE.append((Path("run").rename(kept), run))
    kept, run = MADE[0]
    shutil.copytree(kept, "run")
    return run


def interrupted_after(step: int) -> None:
    """Make of a finished run one that was killed after this step."""
    for path in Path("run").glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    shutil.rmtree("run/model")
    summary = json.loads(Path("run/summary.json").read_text())
    kept = {key: summary[key] for key in ("name", "plan", "base")}
    Path("run/summary.json").write_text(json.dumps({**kept, "status": "running", "error": None}))


TIMED = re.compile(r".*(seconds|bytes|per_second|runtime).*|tflops_per_device|legs|steps_here")
"""Figures that no two runs share: time, memory, and how often the run was resumed."""


def figures() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the lines of metrics.jsonl, without those figures."""
    summary = flatten(json.loads(Path("run/summary.json").read_text()))
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in one.items() if not TIMED.fullmatch(key)} for one in (summary, *lines)]
    return kept[0], kept[1:]


def test_every_figure_of_a_resumed_run_is_of_the_whole_run(fmstune: Run, finished: Result) -> None:
    before, legs = figures(), finished.summary["legs"]
    assert {"train_loss", "tokens_trained_on", "positions", "padding_share", "weights_sha256"} <= {
        name.partition(".")[0] for name in before[0]
    }
    interrupted_after(2)
    again = fmstune(*QUICK, "output_dir=run")
    assert again.code == 0, again.err
    assert figures() == before
    assert differences.compare_results(MADE[0][0], Path("run")).equal
    rows = [parquet.read_table(place / "rows.parquet").to_pylist() for place in (MADE[0][0], Path("run"))]
    assert rows[0] == rows[1]
    assert [(row["row"], row["epoch"]) for row in rows[0]] == [(number, 1) for number in range(1, 17)]
    assert "resuming from run/checkpoint-2, after step 2" in again.err
    assert "evaluating the base model" in finished.err and "evaluating the base model" not in again.err
    assert "4 steps in " in again.out and " s (resumed after step 2), " in again.out
    summary = again.summary
    assert (summary["steps"], summary["steps_here"]) == (4, 2)
    first, second = summary["legs"]
    assert [(leg["from_step"], leg["to_step"]) for leg in (*legs, first, second)] == [(0, 4), (0, 2), (2, 4)]
    for name in ("train_seconds", "step_seconds", "preparation_seconds", "load_seconds"):
        assert first[name] > 0 and second[name] > 0
        assert summary[name] == round(first[name] + second[name], 3)
    assert summary["peak_memory_bytes"] == max(leg["peak_memory_bytes"] for leg in (first, second))
    assert summary["data"]["from_cache"] is first["from_cache"] is False


def test_a_damaged_checkpoint_and_damaged_files_are_named_and_nothing_is_lost(fmstune: Run, finished: Result) -> None:
    before = figures()
    interrupted_after(3)
    content = bytearray(Path("run/checkpoint-3/optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    Path("run/checkpoint-3/optimizer.pt").write_bytes(content)
    for name in ("summary.json", "samples.json", "metrics.jsonl"):
        Path("run", name).write_bytes(b"\x80\x81\n")
    shutil.rmtree("run/loss.png", ignore_errors=True)
    again = fmstune(*QUICK, "output_dir=run")
    assert again.code == 0, again.err
    assert [line for line in again.err.splitlines() if line.startswith("fmstune: note: run")] == [
        Saying("fmstune: note: run/summary.json was renamed to summary.json.damaged, and is written anew: cannot …"),
        Saying("fmstune: note: run/samples.json was renamed to samples.json.damaged, and is written anew: cannot …"),
        "fmstune: note: run/checkpoint-3 is damaged and passed over: "
        "optimizer.pt has changed since it was saved (its checksum differs)",
        "fmstune: note: run/metrics.jsonl: 1 lines that hold no metrics were removed",
        "fmstune: note: run/metrics.jsonl: 2 of 2 lines up to step 2 were lost; the history of the checkpoint has "
        "restored them",
    ]
    assert figures() == before
    assert checkpoints.choose_whole(Path("run")) == (Path("run/checkpoint-4"), ())


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(fmstune: Run, finished: Result) -> None:
    interrupted_after(2)
    Path("run/checkpoint-1/scheduler.pt").unlink()
    os.truncate("run/checkpoint-2/adapter_model.safetensors", 100)
    again = fmstune(*QUICK, "output_dir=run")
    assert again.code == 2
    assert "Traceback" not in again.err
    assert again.err == Saying(
        "…fmstune: error: output_dir: no checkpoint in run is whole, so the run cannot be resumed (checkpoint-2: "
        "adapter_model.safetensors has 100 bytes and not …; checkpoint-1: scheduler.pt is missing); remove these "
        "folders to start again at step 0, or choose another output_dir\n"
    )
    assert again.summary["status"] == "failed"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_file_that_no_manifest_guards_and_no_library_can_load_is_one_message(
    fmstune: Run, finished: Result, name: str
) -> None:
    """Whole as an archive, and of another model; under a plain name, as a checkpoint of another program."""
    interrupted_after(2)
    checkpoint = Path("run/checkpoint-2").rename("other")
    (checkpoint / checkpoints.MARKER).unlink()
    if name.endswith("safetensors"):
        (key, *_) = load_file(checkpoint / name)
        save_file({key: torch.zeros(3)}, checkpoint / name)
    else:
        torch.save({"state": 3}, checkpoint / name)
    again = fmstune(*QUICK, "output_dir=new", "training.resume=other")
    assert again.code == 2, again.err
    assert "Traceback" not in again.err
    assert "fmstune: note: other has no checksums, so its files were opened and not compared" in again.err
    assert "fmstune: error: training.resume: the checkpoint's " in again.err
    assert again.err.endswith("; give another checkpoint\n")


def test_a_finished_run_is_said_to_be_so_and_not_touched(fmstune: Run, finished: Result) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.name != "job.yaml"}
    again = fmstune(*QUICK, "output_dir=run", "training.resume=auto")
    assert again.code == 0
    assert "this run is finished already, and nothing is left to do" in again.err
    assert "finished: run" in again.out
    after = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.name != "job.yaml"}
    assert after == before


def test_without_a_complete_checkpoint_it_starts_afresh_in_place(fmstune: Run, finished: Result) -> None:
    weights = Path("run/model/adapter_model.safetensors").read_bytes()
    interrupted_after(1)
    Path("run/checkpoint-1", checkpoints.MARKER).unlink()
    (Path("run") / checkpoints.SAVING / "checkpoint-2").mkdir(parents=True)
    again = fmstune(*QUICK, "output_dir=run")
    assert again.code == 0, again.err
    assert again.summary["steps_here"] == 4
    assert not (Path("run") / checkpoints.SAVING).exists()
    assert Path("run/model/adapter_model.safetensors").read_bytes() == weights


def test_a_run_that_was_killed_after_its_last_step_takes_no_further_one(fmstune: Run, finished: Result) -> None:
    weights = Path("run/model/adapter_model.safetensors").read_bytes()
    interrupted_after(4)
    again = fmstune(*QUICK, "output_dir=run")
    assert again.code == 0, again.err
    assert (again.summary["steps"], again.summary["steps_here"]) == (4, 0)
    assert Path("run/model/adapter_model.safetensors").read_bytes() == weights


def test_another_job_is_refused_and_the_difference_named(fmstune: Run, finished: Result) -> None:
    other = fmstune(*QUICK, "output_dir=run", "training.learning_rate=1e-4", "seed=1")
    assert other.code == 2
    assert "which is never overwritten; choose another (seed is 1 here and 42 there and 1 more)" in other.err


def test_other_rows_a_step_are_refused_and_as_many_are_not(fmstune: Run, finished: Result) -> None:
    interrupted_after(2)
    more = fmstune(*QUICK, "output_dir=run", "training.gradient_accumulation_steps=2")
    assert more.code == 2
    assert "was made with 4 rows a step on 1 processes, and this job has 8 on 1" in more.err
    as_many = ("training.gradient_accumulation_steps=2", "training.per_device_train_batch_size=2")
    assert fmstune(*QUICK, "output_dir=run", *as_many).code == 0


def test_an_optimizer_of_fsdp_is_not_for_one_process() -> None:
    made, here = CheckpointFacts(2, 2, 8, sharded=True), CheckpointFacts(0, 1, 8, sharded=False)
    (problem,) = map(str, checkpoints.checkpoint_mismatches(Path("checkpoint-2"), made, here))
    assert problem.startswith("launcher: checkpoint-2 was made with FSDP") and problem.endswith("launcher=fsdp")


def test_retention_keeps_the_newest_complete_ones(fmstune: Run) -> None:
    run = fmstune(*QUICK, "output_dir=run", "training.save_total_limit=2")
    assert run.code == 0, run.err
    assert sorted(path.name for path in Path("run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert checkpoints.newest_checkpoint(Path("run")) == Path("run/checkpoint-4")
    assert checkpoints.read_checkpoint_facts(Path("run/checkpoint-3")) == CheckpointFacts(3, 1, 4, sharded=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs root: {mounted.stderr.strip()}")
    yield disk
    # lazily, as what failed may hold a file open
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize(
    ("filled", "steps", "said"),
    [
        (0, 4, "step 3: the checkpoint cannot be saved, as the disk of disk/run is full; checkpoint-2 is whole; "),
        # two checkpoints find room, and the model does not
        (3_200_000, 2, "the disk of disk/run is full; checkpoint-2 is whole; free space, and start the same command"),
    ],
)
def test_a_full_disk_is_named_and_the_former_checkpoint_is_whole(
    fmstune: Run, small_disk: Path, filled: int, steps: int, said: str
) -> None:
    (small_disk / "filler").write_bytes(bytes(filled))
    given = [*(word for word in QUICK if word != "peft=lora"), f"training.max_steps={steps}", "evaluation=none"]
    done = fmstune(*given, "output_dir=disk/run")
    assert done.code == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    run = small_disk / "run"
    assert json.loads((run / "checkpoint-2" / checkpoints.MARKER).read_text())["step"] == 2
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    left = [path.name for path in run.iterdir()]
    assert "checkpoint-2" in left
    assert not [name for name in left if name.startswith((checkpoints.SAVING, ".model", "model"))]


def test_kills_at_random_moments_change_nothing() -> None:
    """One process, and from two to one; `make soak` does it 20 times, also under FSDP and with the other methods."""
    names = ["full", "changing"]
    done = forked.run([sys.executable, "-m", "tools.soak", "--kills=2", "--steps=5", *names], timeout=500)
    assert done.returncode == 0, done.stdout[-40_000:] + done.stderr[-2000:]
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if line.endswith(": the same")] == names
