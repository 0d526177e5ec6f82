"""Fingerprints of the first steps: what is recorded, what is not, and whether a planted change is found."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama

from fmstune.runs.fingerprints import SAMPLES, STEPS, Departure, StepPrint, first_departure, read_fingerprints
from fmstune.training.debugging.fingerprints import Fingerprints, Samples
from tests import small

ROWS = torch.arange(24).reshape(2, 12) % 300
Change = Callable[[nn.Module], object]


def train(folder: Path, model: nn.Module, *, steps: int = STEPS, first: int = 0, **how: Any) -> tuple[StepPrint, ...]:
    """As Trainer calls it: two batches a step, with plain gradient descent."""
    callback = Fingerprints(folder, **how)
    at: Any = SimpleNamespace(global_step=first)
    callback.on_train_begin(None, at, None, model=model)  # type: ignore[arg-type]
    for _ in range(steps):
        callback.on_step_begin(None, at, None, model=model)  # type: ignore[arg-type]
        for rows in (ROWS, ROWS + 1):
            model.train()
            model(input_ids=rows, labels=rows).loss.backward()
        callback.on_pre_optimizer_step(None, at, None, model=model)  # type: ignore[arg-type]
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.1 * weight.grad  # type: ignore[operator]
                weight.grad = None
        at.global_step += 1
        callback.on_step_end(None, at, None, model=model)  # type: ignore[arg-type]
    callback.on_train_end(None, at, None, model=model)  # type: ignore[arg-type]
    return read_fingerprints(folder)


@pytest.fixture
def departure(tmp_path: Path) -> Callable[[Change], Departure | None]:
    """Where a model with a change departs from one without."""

    def compare(change: Change) -> Departure | None:
        found = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            model = small.model()
            if name == "b":
                change(model)
            found.append(train(tmp_path / name, model))
        return first_departure(*found)

    return compare


def test_the_first_steps_are_recorded_with_loss_modules_and_gradients(tmp_path: Path) -> None:
    model = small.model()
    steps = train(tmp_path, model, steps=STEPS + 2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [step.step for step in steps] == [0, 1, 2]
    first = steps[0]
    assert first.loss is not None and first.loss > 5
    names = [one.module for one in first.modules]
    assert names[0] == "model.embed_tokens" and names[-1] == ""
    assert names.index("model.layers.0.self_attn.o_proj") < names.index("model.layers.0.self_attn")
    # one batch of each step
    assert len(names) == len({*names})
    assert first.modules[0].given is not None
    # 0 to 23 with weights from 1 to 2
    assert first.modules[0].given == (276.0, pytest.approx(464.0), 276.0, "int64 2x12")
    assert first.gradients["lm_head"] > 0 and len(first.gradients) == 21


def test_equal_runs_have_equal_files(tmp_path: Path, departure: Callable[[Change], Departure | None]) -> None:
    assert departure(lambda model: None) is None
    assert (tmp_path / "a/fingerprints.json").read_bytes() == (tmp_path / "b/fingerprints.json").read_bytes()


def nudge(name: str) -> Change:
    def change(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[3, 5] += 1e-6

    return change


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.v_proj", "lm_head"])
def test_one_weight_that_differs_is_found_in_its_module(
    departure: Callable[[Change], Departure | None], name: str
) -> None:
    found = departure(nudge(f"{name}.weight"))
    assert found is not None
    assert (found.step, found.module) == (0, name)


def test_another_attention_kernel_is_found_in_the_attention(
    departure: Callable[[Change], Departure | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(model: nn.Module) -> None:
        eager = modeling_llama.eager_attention_forward

        def other(*args: Any, **kwargs: Any) -> Any:
            output, _ = eager(*args, **kwargs)
            return output * (1 + 1e-6), None

        layer: Any = model.get_submodule("model.layers.1.self_attn")
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(modeling_llama.ALL_ATTENTION_FUNCTIONS, "get_interface", lambda *_: other)
                return own(*args, **kwargs)

        layer.forward = forward

    found = departure(change)
    assert found is not None and (found.step, found.module) == (0, "model.layers.1.self_attn")


def test_another_dtype_is_found_where_it_begins(departure: Callable[[Change], Departure | None]) -> None:
    found = departure(lambda model: model.to(torch.bfloat16))
    assert found is not None and found.module == "model.embed_tokens"
    assert "float32 2x12x32 in A and bfloat16 2x12x32 in B" in found.text


def test_another_update_is_found_in_the_gradients_or_the_step_after(
    departure: Callable[[Change], Departure | None],
) -> None:
    found = departure(lambda model: model.get_parameter("model.norm.weight").register_hook(lambda grad: grad * 2))
    assert found is not None and (found.step, found.module) == (0, "model.norm")
    assert "the gradient of model.norm departs" in found.text


def test_activations_that_are_computed_again_are_recorded_once(tmp_path: Path) -> None:
    plain = train(tmp_path, small.model())
    model: Any = small.model()
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert [one.module for one in train(tmp_path, model)[0].modules] == [one.module for one in plain[0].modules]


def test_an_evaluation_is_not_recorded(tmp_path: Path) -> None:
    model, callback = small.model(), Fingerprints(tmp_path)
    at: Any = SimpleNamespace(global_step=0)
    callback.on_train_begin(None, at, None, model=model)  # type: ignore[arg-type]
    callback.on_step_begin(None, at, None, model=model)  # type: ignore[arg-type]
    model.eval()(input_ids=ROWS)
    at.global_step = 1
    callback.on_step_end(None, at, None, model=model)  # type: ignore[arg-type]
    callback.on_train_end(None, at, None, model=model)  # type: ignore[arg-type]
    assert read_fingerprints(tmp_path)[0].modules == ()


def test_a_resumed_run_keeps_the_record_of_its_beginning(tmp_path: Path) -> None:
    train(tmp_path, small.model())
    former = (tmp_path / "fingerprints.json").read_bytes()
    train(tmp_path, small.model(), first=4)
    assert (tmp_path / "fingerprints.json").read_bytes() == former


def test_modules_are_left_out_where_they_are_compiled(tmp_path: Path) -> None:
    steps = train(tmp_path, small.model(), modules=False)
    assert steps[0].modules == () and steps[0].loss is not None and steps[0].gradients
    assert "modules: their blocks are compiled" in (tmp_path / "fingerprints.json").read_text()


class Wide(nn.Module):
    """One tensor with more numbers than are looked at, of which one differs."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1000))
        self.place = place

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        wide = self.scale.expand(SAMPLES // 100, 1000).clone()
        wide[:, self.place] += 1e-5
        return {"loss": wide.sum(), "wide": wide}


def test_of_a_large_tensor_each_place_of_the_last_axis_is_looked_at(tmp_path: Path) -> None:
    found = []
    for place in (0, 1, 517, 999):
        model, callback = Wide(place), Fingerprints(tmp_path)
        at: Any = SimpleNamespace(global_step=0)
        callback.on_train_begin(None, at, None, model=model)  # type: ignore[arg-type]
        callback.on_step_begin(None, at, None, model=model)  # type: ignore[arg-type]
        model(ROWS, ROWS)
        at.global_step = 1
        callback.on_step_end(None, at, None, model=model)  # type: ignore[arg-type]
        callback.on_train_end(None, at, None, model=model)  # type: ignore[arg-type]
        found.append(read_fingerprints(tmp_path)[0].modules[0].output)
    assert len({one.weighted for one in found}) == 4


def test_sums_that_are_added_up_together_are_those_of_each_tensor() -> None:
    samples = Samples()
    tensors = [torch.full((3 + number % 2,), float(number), dtype=torch.float32) for number in range(70)]
    tensors.append(torch.tensor([[1, -2], [3, -4]]))
    assert [samples.take(tensor) for tensor in tensors] == list(range(71))
    tensors[0].fill_(99.0)  # what a later module does to it is not seen
    found = samples.read()
    assert found[:4] == [[0.0, 0.0, 0.0], [4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [12.0, 18.0, 12.0]]
    assert found[69] == [69.0 * 4, 69.0 * 6, 69.0 * 4]
    assert found[70] == pytest.approx([-2.0, 1 - 2 * 4 / 3 + 3 * 5 / 3 - 8, 10.0])


def test_a_tensor_that_several_modules_take_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.Size] = []
    take = Samples.take

    def counted(self: Samples, tensor: torch.Tensor) -> int:
        taken.append(tensor.shape)
        return take(self, tensor)

    monkeypatch.setattr(Samples, "take", counted)
    (step,) = train(tmp_path, small.model(), steps=1)
    # q, k and v take the same input, and what a module gives is what the next one takes
    assert len(taken) < 1.4 * len(step.modules)
    given = {one.module: one.given for one in step.modules}
    queries, keys, values = (given[f"model.layers.0.self_attn.{name}_proj"] for name in "qkv")
    assert queries is not None and queries == keys == values


def test_a_run_records_them(recorded_run: Path) -> None:
    steps = read_fingerprints(recorded_run)
    assert [step.step for step in steps] == [0, 1]
    assert any(one.module.endswith("lora_A.default") for one in steps[0].modules)
    assert any(name.endswith("lora_B.default") for name in steps[0].gradients)
