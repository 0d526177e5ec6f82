"""`debug=nan` names the first module whose output or gradient is not finite, with the step and the rows."""

import re
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn

from fmstune.errors import UserError
from fmstune.training.debugging.nan import FindNan
from tests import ROOT
from tests.conftest import Result

ROWS = Dataset.from_dict({"input_ids": [[1, 2], [3, 4], [5, 6]]})


class Root(torch.autograd.Function):
    """The root, whose gradient at 0 is infinite."""

    @staticmethod
    def forward(context: Any, given: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(given)
        return given.sqrt()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] / (2 * context.saved_tensors[0].sqrt())


class Scale(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        if self.how == "overflow":
            return given * float("inf")
        zero = given * 0
        return Root.apply(zero) if self.how == "root" else given


class Model(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.scale, self.head = nn.Embedding(8, 4), Scale(how), nn.Linear(4, 1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.scale(self.embed(input_ids))).sum()


def begun(model: nn.Module, **args: bool) -> FindNan:
    callback, state = FindNan(), SimpleNamespace(global_step=6)
    loader = SimpleNamespace(dataset=ROWS)
    callback.on_train_begin(SimpleNamespace(**args), state, None, model=model, train_dataloader=loader)  # type: ignore[arg-type]
    callback.on_step_begin(None, state, None)  # type: ignore[arg-type]
    return callback


def test_the_first_module_is_named_with_step_and_rows() -> None:
    model = Model("overflow").train()
    begun(model)
    with pytest.raises(UserError) as stopped:
        model(input_ids=torch.tensor([[3, 4], [5, 6]]))
    said = str(stopped.value)
    assert said.startswith("step 7 (training rows 1, 2): the output of scale (Scale) holds ")
    assert "16 numbers; it is the first of its step. lower training.learning_rate" in said


def test_a_gradient_that_is_not_finite_is_found_in_the_backward_pass() -> None:
    model = Model("root").train()
    begun(model)
    loss = model(input_ids=torch.tensor([[1, 2]]))
    with pytest.raises(
        UserError, match=r"^step 7 \(training rows 0\): in the backward pass, the gradient of the output"
    ):
        loss.backward()


def test_weights_that_are_broken_before_the_first_step_are_named() -> None:
    model = Model("")
    model.head.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"^before the first step: the weights head\.weight hold a NaN or an infinity"):
        begun(model)


def test_weights_that_the_optimizer_breaks_are_named() -> None:
    model = Model("").train()
    callback = begun(model)
    model(input_ids=torch.tensor([[1, 2]]))
    callback.on_optimizer_step(None, None, None, model=model)  # type: ignore[arg-type]
    model.head.bias.data[0] = torch.inf
    with pytest.raises(UserError, match=r"the optimizer's step makes the weights head\.bias NaN or infinite"):
        callback.on_optimizer_step(None, None, None, model=model)  # type: ignore[arg-type]


def test_packed_rows_are_not_told_apart() -> None:
    model = Model("overflow").train()
    begun(model, packing=True)
    with pytest.raises(UserError, match=r"^step 7 \(packed rows\)"):
        model(input_ids=torch.tensor([[1, 2]]))


def test_a_model_that_is_well_is_left_as_it_was() -> None:
    model = Model("").train()
    callback = begun(model)
    model(input_ids=torch.tensor([[1, 2]])).backward()
    callback.on_train_end(None, None, None)  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in model.modules())
    assert not model._forward_pre_hooks


@pytest.mark.slow
def test_a_run_whose_numbers_overflow_ends_with_the_module_and_the_rows(fmstune: Callable[..., Result]) -> None:
    shutil.copytree(ROOT / "src/fmstune/assets/tiny_llama", "m")
    weights = load_file("m/model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"].fill_(1e38)
    save_file(weights, "m/model.safetensors", metadata={"format": "pt"})
    words = ("model=causal_lm", "model.path=m", "debug=nan", "data.max_rows=8", "training.max_steps=2")
    done = fmstune(*words, "evaluation=none", "training.save_strategy=no", "output_dir=run")
    assert done.code == 2
    error = done.err.splitlines()[-1]
    where = r"the output of model\.layers\.0\.mlp\.up_proj \(Linear\) holds "
    assert re.match(rf"fmstune: error: step 1 \(training rows \d.*\): {where}", error), error
