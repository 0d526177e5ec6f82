"""`fmstune launcher=…` as a user has it: one process prepares, ranks start, and all of them end together."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet

from fmstune import runner
from fmstune.config import freeze
from fmstune.config.job import Job
from fmstune.launch import subprocesses
from fmstune.runs import checkpoints
from tests.cli.test_main import SCRIPT, alive, wait_for
from tests.config.test_freeze import tree
from tests.conftest import Result
from tests.fixtures import forked

pytestmark = pytest.mark.slow

TWO = ("launcher.device=cpu", "launcher.num_processes=2", "launcher.threads=1", "evaluation=none", "output_dir=run")
QUICK = ("training.max_steps=2", "training.save_strategy=no", "data.max_rows=16")
LONG = ("launcher=fsdp", *TWO, "training.max_steps=100000", "training.save_strategy=no", "data.max_rows=32")
Run = Callable[..., Result]


@pytest.fixture
def prepared(two_processes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of LONG are tokenised already, as another run has them."""
    monkeypatch.setenv("FMSTUNE_CACHE", str(two_processes / "cache"))


def summary() -> dict[str, Any]:
    return json.loads(Path("run/summary.json").read_text())


def frozen(fmstune: Run, *words: str) -> Job:
    """The job that these words come to, in the run folder, as docs/launch.md says."""
    printed = fmstune("--cfg", "job", "--resolve", *words).out
    Path("run").mkdir()
    job = freeze.freeze(yaml.safe_load(printed)).job
    freeze.write(job, Path("run/job.yaml"))
    return job


def test_fsdp_trains_from_the_command_line_and_speaks_once(two_processes: Path) -> None:
    """That its weights are right is shown in tests/end_to_end/test_fsdp.py."""
    out, err = ((two_processes / name).read_text() for name in ("OUT", "ERR"))
    made = json.loads((two_processes / "run/summary.json").read_text())
    assert made["processes"] == 2
    assert len(set(made["weight_bytes_by_rank"])) == 1
    assert made["data"]["train"]["rows_trained"] == 32
    assert out.count("parameters  base") == 1
    assert out.count("finished: run") == 1
    assert err.count("data tokenised") == 1
    assert "Warning" not in err
    rows = parquet.read_table(two_processes / "run/rows.parquet").to_pylist()
    assert [(row["row"], row["epoch"]) for row in rows] == [(n, e) for n in range(1, 33) for e in range(1, 7)]
    assert sum(row["tokens"] for row in rows) == 6 * made["data"]["train"]["tokens_trained"]


def test_two_shards_attend_within_documents_as_one_process_does_under_a_mask(fmstune: Run) -> None:
    words = ("peft=lora", "peft.lora_dropout=0", "training.packing=true", "data.max_length=128", "data.max_rows=24")
    words += ("training.max_steps=2", "training.logging_steps=1", "training.save_strategy=no", "evaluation=none")
    words += ("training.train_sampling_strategy=sequential", "model.special_tokens={}", "launcher.device=cpu")
    words += ("training.gradient_accumulation_steps=1", "launcher.threads=1")
    one = ("model.attention=sdpa", "training.per_device_train_batch_size=2", "output_dir=one")
    two = ("model.attention=varlen", "training.per_device_train_batch_size=1", "output_dir=two")
    for more in (one, (*two, "launcher=fsdp", "launcher.num_processes=2")):
        done = fmstune("train", *words, *more)
        assert done.code == 0, done.err
    masked, sharded = (
        [line for line in map(json.loads, Path(name, "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        for name in ("one", "two")
    )
    assert len(masked) == len(sharded) == 2
    for alone, shard in zip(masked, sharded, strict=True):
        for name in ("loss", "grad_norm", "num_tokens"):
            assert shard[name] == pytest.approx(alone[name], rel=1e-5), name


def test_accelerate_starts_the_frozen_job_too(fmstune: Run, tmp_path: Path) -> None:
    """As torchrun does in tests/end_to_end/test_fsdp.py: for clusters that start processes themselves."""
    frozen(fmstune, "launcher=fsdp", *TWO, *QUICK)
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nmixed_precision: 'no'\n"
        "num_machines: 1\nnum_processes: 2\nuse_cpu: true\n"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}", "--main_process_port=0"]
    done = forked.run([*launcher, "-m", "fmstune.runner", "run/job.yaml"])
    assert done.returncode == 0, done.stderr
    assert summary()["status"] == "finished"
    assert len(set(summary()["weight_bytes_by_rank"])) == 1


def test_a_job_for_one_process_is_not_run_by_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    freeze.write(freeze.freeze(tree(output_dir=".")).job, Path("job.yaml"))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert runner.main(["job.yaml"]) == 2
    assert (
        "launcher: the job is for one process (launcher=local), and 2 were started; freeze" in capsys.readouterr().err
    )


def test_what_is_wrong_is_found_before_a_rank_starts_and_leaves_nothing(fmstune: Run) -> None:
    Path("rows.jsonl").write_text('{"output": "no template here"}\n')
    done = fmstune("launcher=ddp", *TWO, "data=text", "data.train=rows.jsonl", 'data.response_template="Label:"')
    assert done.code == 2
    assert done.err.count("fmstune: error:") == 1
    assert "response_template" in done.err
    assert not Path("run").exists()


def test_an_error_of_the_ranks_is_shown_once_on_top(fmstune: Run) -> None:
    """Below a parent in this process: the agent and the ranks are processes."""
    diverging = ("training.learning_rate=9", "training.max_grad_norm=0", "training.max_steps=20")
    done = fmstune("launcher=fsdp", *TWO, *QUICK, *diverging)
    assert done.code == 2, done.err
    assert done.err.count("lower training.learning_rate") == 1
    assert "Traceback" not in done.err
    assert summary()["status"] == "failed"
    assert summary()["error"]["kind"] == "user"


def children(pid: int) -> list[int]:
    """The processes that any thread of this one has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def ranks_of(parent: int) -> list[int]:
    """The two ranks below a parent and its agent."""
    ranks = [rank for agent in children(parent) for rank in children(agent)]
    assert len(ranks) == 2
    return ranks


def started(argv: Sequence[str | Path]) -> forked.Started:
    """A long run that has logged its first step."""
    process = forked.Started(argv, session=True)
    wait_for(lambda: Path("run/metrics.jsonl").exists() or process.poll() is not None, "the first step", 150)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGQUIT, marks=pytest.mark.soak)])
def test_an_interruption_ends_every_rank_in_order(prepared: None, number: signal.Signals) -> None:
    process = started([SCRIPT, *LONG])
    ranks = ranks_of(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert not [pid for pid in ranks if alive(pid)]
    assert "interrupted: run" in out
    assert "Traceback" not in err
    assert summary()["status"] == "interrupted"


def test_no_rank_outlives_a_killed_parent(prepared: None) -> None:
    process = started([SCRIPT, *LONG])
    ranks = ranks_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not [pid for pid in ranks if alive(pid)], "the ranks' end")
    assert summary()["status"] == "interrupted"


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_killed_rank_ends_the_others_and_is_named(fmstune: Run, prepared: None, rank: int) -> None:
    job = frozen(fmstune, *LONG)
    process = started([*subprocesses.agent_command(job.launcher, Path("run/job.yaml")), "--"])
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[rank], signal.SIGKILL)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert not [pid for pid in ranks if alive(pid)]
    assert "died of SIGKILL" in err
    assert "Traceback" not in err
    assert summary()["status"] == "failed"
    assert "died of SIGKILL" in summary()["error"]["message"]


def test_a_notice_reaches_every_rank_and_all_stop_after_the_same_step(prepared: None) -> None:
    process = started([SCRIPT, *LONG])
    ranks = ranks_of(process.pid)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 75, err
    assert not [pid for pid in ranks if alive(pid)]
    (checkpoint,) = Path("run").glob("checkpoint-*")
    assert checkpoints.read_checkpoint_facts(checkpoint) == checkpoints.CheckpointFacts(
        summary_step(out), 2, 32, sharded=True
    )
    assert summary()["status"] == "interrupted"
    assert err.count("preempted; a checkpoint was saved at step") == 1
    assert "Traceback" not in err


def test_a_notice_before_there_are_ranks_waits_for_them_and_for_the_first_step(fmstune: Run) -> None:
    job = (*LONG, "data.max_rows=16")
    assert fmstune("show-data", *job).code == 0
    process = forked.Started([SCRIPT, *job])
    wait_for(Path("run/job.yaml").exists, "the run folder")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 75, err
    assert "a checkpoint was saved at step 1," in out


def test_a_notice_before_anything_is_trained_leaves_nothing() -> None:
    process = forked.Started([SCRIPT, *LONG, "data.max_rows=17"])
    wait_for(Path("run/job.yaml").exists, "the run folder")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 75, err
    assert err.endswith("fmstune: stopped at a notice, before anything was trained; the same command starts again\n")
    assert not Path("run").exists()


def summary_step(out: str) -> int:
    """The step that the report names."""
    return int(out.partition("a checkpoint was saved at step ")[2].partition(",")[0])
