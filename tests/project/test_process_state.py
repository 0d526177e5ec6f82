"""A run in the test's own process leaves the process as it was, so that no test depends on those before it."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Result
from tests.fixtures import process_state

CHANGED_BY_TRAINING = {
    "signal handlers",
    "warning filters",
    "loggers",
    "logging.raiseExceptions",
    "Python's random numbers",
    "numpy's random numbers",
    "torch's random numbers",
    "torch's threads",
    "retries of the hub",
    "transformers.utils.logging._tqdm_active",
    "datasets.utils.tqdm._hf_datasets_progress_bars_disabled",
    "trl.trainer.utils._use_triton",
    "accelerate.state.PartialState._shared_state",
    "accelerate.state.AcceleratorState._shared_state",
    "accelerate.state.GradientState._shared_state",
    "command line",
}
"""Some of what a run sets in its process; the test would prove nothing if the run set none of it."""


def differing(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    assert before.keys() <= after.keys()
    return {name for name, value in before.items() if after[name] != value}


@pytest.mark.slow
def test_a_run_leaves_the_process_as_it_was(fmstune: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from trl import SFTTrainer

    from fmstune.training import library_noise

    assert library_noise.__name__ in sys.modules
    torch.set_num_threads(2)
    inside: dict[str, Any] = {}
    train = SFTTrainer.train

    def spy(*args: Any, **kwargs: Any) -> Any:
        done = train(*args, **kwargs)
        inside.update(process_state.read())
        return done

    monkeypatch.setattr(SFTTrainer, "train", spy)
    before = process_state.read()
    run = fmstune("training.max_steps=1", "data.max_rows=8", "evaluation=none", "training.save_strategy=no")
    assert run.code == 0, run.err
    assert differing(before, inside) >= CHANGED_BY_TRAINING
    assert differing(before, process_state.read()) == set()


def test_a_command_that_only_composes_leaves_the_process_as_it_was(fmstune: Callable[..., Result]) -> None:
    before = process_state.read()
    assert fmstune("--cfg", "job").code == 0
    assert fmstune("peft=none_such").code == 2
    assert differing(before, process_state.read()) == set()


@pytest.mark.parametrize("state", process_state.STATES, ids=lambda state: state.name)
def test_every_state_can_be_read_and_put_back(state: process_state.State) -> None:
    import hydra._internal.hydra
    import transformers.utils.logging
    import trl.trainer.utils

    from fmstune.launch import preemption

    assert {hydra._internal.hydra, transformers.utils.logging, trl.trainer.utils, preemption}
    before = state.read()
    state.restore(before)
    assert state.read() == before
