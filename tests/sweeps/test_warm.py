"""Points of a sweep that fork from one warm process: the same runs, and a crash or a kill ends one point alone."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmstune.runs import sweep_folder
from fmstune.sweeps import warm
from tests.cli.test_main import SCRIPT, alive, wait_for
from tests.conftest import Result
from tests.fixtures import forked

SMALL = (
    "peft=lora",
    "training.gradient_accumulation_steps=1",
    "training.per_device_train_batch_size=4",
    "training.logging_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=1",
    "training.save_total_limit=2",
    "evaluation=none",
    "data.max_rows=16",
)
SWEEP = ("-m", *SMALL, "seed=1,2,3", "training.max_steps=12", "output_dir=sweep")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="points are forked on Linux only")


def summary(point: str) -> dict[str, Any]:
    return json.loads(Path("sweep", point, "summary.json").read_text())


def steps(point: str) -> int:
    file = Path("sweep", point, "metrics.jsonl")
    return file.read_text().count("\n") if file.exists() else 0


def children(pid: int) -> list[int]:
    """Processes of this process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_killed_point_ends_alone_and_a_killed_sweep_goes_on(fmstune: Callable[..., Result]) -> None:
    process = forked.Started([SCRIPT, *SWEEP])
    wait_for(lambda: steps("1-seed=2") > 1, "the second point")
    (server,) = children(process.pid)
    (point,) = children(server)
    os.kill(point, signal.SIGKILL)
    wait_for(lambda: steps("2-seed=3") > 1, "the third point")
    # imported once, and one thread only, as a fork takes no other along
    assert children(process.pid) == [server]
    assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1
    (last,) = children(server)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(server) and not alive(last), "the end of both")
    assert [summary(name)["status"] for name in ("0-seed=1", "1-seed=2", "2-seed=3")] == [
        "finished",
        "failed",
        "interrupted",
    ]
    assert summary("1-seed=2")["error"] == {"kind": "signal", "message": "the runner died of SIGKILL"}
    # tokenised once
    assert [summary("0-seed=1")["data"]["from_cache"]] == [False]

    again = fmstune("--resume", "sweep")
    assert again.code == 0, again.err
    assert "1 of 3 points had ended already" in again.err
    assert [point.status for point in sweep_folder.read_points(Path("sweep"))] == ["finished"] * 3
    assert [point.skipped for point in sweep_folder.read_points(Path("sweep"))] == [True, False, False]
    for name in ("1-seed=2", "2-seed=3"):
        assert 0 < summary(name)["steps_here"] < summary(name)["steps"] == 12
        assert summary(name)["data"]["from_cache"] is True

    # the weights and the figures of a run alone, and the sweep is ranked by them
    alone = fmstune(*SMALL, "seed=2", "training.max_steps=12", "output_dir=alone")
    assert alone.code == 0, alone.err
    weights = "model/adapter_model.safetensors"
    assert Path("sweep/1-seed=2", weights).read_bytes() == Path("alone", weights).read_bytes()
    undisturbed = json.loads(Path("alone", "summary.json").read_text())
    for figure in ("train_loss", "tokens_trained_on", "positions", "padding_share"):
        assert summary("1-seed=2")[figure] == undisturbed[figure]
    point = sweep_folder.read_points(Path("sweep"))[1]
    assert (point.compare_by, point.metrics["train_loss"]) == ("train_loss", undisturbed["train_loss"])


def test_what_is_no_runner_gets_a_process_of_its_own() -> None:
    assert warm.start_forked([sys.executable, "-c", "raise SystemExit(3)"], {**os.environ}) == 3
    assert warm._servers == []


def test_a_warm_process_that_cannot_start_is_a_failure_and_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_SERVER", [sys.executable, "-c", "raise SystemExit(4)"])
    argv = [sys.executable, "-m", "fmstune.runner", "job.yaml"]
    assert warm.start_forked(argv, {**os.environ}) == 4
    warm.close()
