"""`debug=profile` prints a table and writes a trace of some steps."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmstune.training.debugging.profiler import Profile
from tests.conftest import Result


def train(callback: Profile, steps: int) -> None:
    args, state = SimpleNamespace(output_dir="."), SimpleNamespace(global_step=steps)
    callback.on_train_begin(args, state, None)  # type: ignore[arg-type]
    for _ in range(steps):
        torch.ones(64, 64) @ torch.ones(64, 64)
        callback.on_step_end(args, state, None)  # type: ignore[arg-type]
    callback.on_train_end(args, state, None)  # type: ignore[arg-type]


def test_a_table_is_printed_and_a_trace_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    train(Profile(skip_first=1, active=2, row_limit=5), 3)
    out = capsys.readouterr().out
    assert "aten::mm" in out and "Self CPU" in out
    assert "trace   profile/rank0.json" in out
    events = json.loads(Path("profile/rank0.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 2


def test_too_few_steps_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    train(Profile(skip_first=2, active=3), 1)
    assert capsys.readouterr().err == (
        "fmstune: note: debug=profile needs 5 steps, and the run took 1; nothing was profiled\n"
    )


@pytest.mark.parametrize("wrong", [{"skip_first": -1}, {"active": 0}, {"row_limit": 0}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="skip_first must be at least 0"):
        Profile(**wrong)


@pytest.mark.slow
def test_a_run_is_profiled(fmstune: Callable[..., Result]) -> None:
    done = fmstune("debug=profile", "data.max_rows=16", "output_dir=run")
    assert done.code == 0
    assert "Self CPU" in done.out and "trace   run/profile/rank0.json" in done.out
    names = {event.get("name") for event in json.loads(Path("run/profile/rank0.json").read_text())["traceEvents"]}
    assert "aten::linear" in names
