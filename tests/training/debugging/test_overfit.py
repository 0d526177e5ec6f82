"""`debug=overfit` stops when one batch is learnt, and otherwise says what keeps the loss up."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fmstune.errors import UserError
from fmstune.training.debugging.overfit import Overfit, loss_floor
from tests.conftest import Result

GOOD = {"input_ids": [[1, 2, 3], [4, 5, 6]], "labels": [[-100, 2, 3], [-100, -100, 6]]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.drop = nn.Linear(2, 1), nn.Linear(2, 1), nn.Dropout(0.0)


def ended(
    losses: list[float], rows: Any = None, model: Model | None = None, steps: int | None = None
) -> SimpleNamespace:
    """The control of a training with these losses, each of a step; raises what the callback raises."""
    model, callback = model or Model(), Overfit()
    args, control = SimpleNamespace(learning_rate=1e-5), SimpleNamespace(should_training_stop=False)
    for step, loss in enumerate(losses, start=1):
        state = SimpleNamespace(global_step=step, max_steps=steps or len(losses), is_world_process_zero=True)
        for weight in model.used.parameters():
            weight.grad = torch.ones_like(weight)
        callback.on_pre_optimizer_step(args, state, control, model=model)  # type: ignore[arg-type]
        callback.on_log(args, state, control, logs={"loss": loss})  # type: ignore[arg-type]
        if control.should_training_stop:
            break
    loader = SimpleNamespace(dataset=rows or GOOD)
    callback.on_train_end(args, state, control, model=model, train_dataloader=loader)  # type: ignore[arg-type]
    return control


def said(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(UserError) as refused:
        ended(*args, **kwargs)
    return [str(problem) for problem in refused.value.problems]


def test_it_stops_when_the_batch_is_learnt(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended([1.0, 0.5, 0.009, 0.001]).should_training_stop
    assert capsys.readouterr().err == (
        "overfit after step 3: loss 0.009 is below 0.01, so rows, masks, rate and weights work together\n"
    )


def test_a_run_that_was_stopped_before_its_last_step_is_not_judged() -> None:
    assert not ended([1.0, 0.9], steps=100).should_training_stop


def test_weights_without_a_gradient_and_frozen_ones_are_named() -> None:
    model = Model()
    model.used.bias.requires_grad = False
    head, *others = said([1.0, 0.5], model=model)
    assert head == "debug=overfit: after 2 steps the loss of one batch is 0.5, not below 0.01"
    assert "peft: 5 of 6 parameters are trained; try more of them, or peft=full" in others
    assert "peft: no gradient ever reached idle.bias, idle.weight; they are trained and not used" in others


def test_dropout_and_coarse_numbers_are_named() -> None:
    model = Model().to(torch.bfloat16)
    model.drop.p = 0.1
    found = said([1.0, 0.5], model=model)
    assert "dropout is on in 1 modules (p=0.1 in drop); set it to 0 for this test" in found
    assert any(one.startswith("model.dtype: trained weights are bfloat16") for one in found)


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([2.0 - step / 100 for step in range(80)], "the loss is still falling"),
        ([1.0] * 40, "the loss falls no more (1, then 1); raise training.learning_rate (now 1e-05)"),
        ([1.0, *[3.0] * 40], "the loss jumps or rises (1 first, 3 lately); lower training.learning_rate (now 1e-05)"),
        ([1.0, *[0.05, 0.9] * 20], "the loss jumps or rises"),
    ],
)
def test_the_course_of_the_loss_speaks_of_the_rate(losses: list[float], says: str) -> None:
    assert any(one.startswith(says) for one in said(losses))


def test_rows_that_train_nothing_or_contradict_each_other_are_named() -> None:
    rows = {"input_ids": [[1, 2], [1, 3], [7, 8]], "labels": [[-100, 2], [-100, 3], [-100, -100]]}
    found = said([1.0, 0.7], rows)
    assert "data: rows 2 train no token; fmstune show-data shows their masks" in found
    assert any(one.startswith("data: equal beginnings are followed by different answers") for one in found)


def test_the_floor_is_the_entropy_of_what_follows_equal_beginnings() -> None:
    rows = [[1, 2, 5], [1, 3, 5]]
    # the first token is a coin, the second is known by the first
    assert loss_floor(rows, [[-100, 2, 5], [-100, 3, 5]]) == pytest.approx(math.log(2) / 2)
    assert loss_floor(rows, [[-100, -100, 5], [-100, -100, 5]]) == 0.0
    assert loss_floor([], []) == 0.0


@pytest.mark.slow
def test_the_shipped_job_overfits_its_batch_and_a_rate_that_is_too_small_is_named(
    fmstune: Callable[..., Result],
) -> None:
    done = fmstune("debug=overfit", "output_dir=good")
    assert done.code == 0
    assert "so rows, masks, rate and weights work together" in done.err
    done = fmstune("debug=overfit", "training.learning_rate=1e-6", "training.max_steps=4", "output_dir=slow")
    assert done.code == 2
    assert "debug=overfit: after 4 steps the loss of one batch is " in done.err
    assert "raise training.learning_rate (now 1e-06)" in done.err
