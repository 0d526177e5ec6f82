"""Blocks compiled in place: the same numbers under the same names, once compiled for all blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

from fmstune.models import compiled
from tests import small


@pytest.mark.parametrize(
    ("training", "asked"),
    [
        ({}, False),
        ({"torch_compile": False}, False),
        ({"torch_compile": True}, True),
        ({"torch_compile_mode": "default"}, True),
    ],
)
def test_a_backend_or_a_mode_asks_for_it_too(training: dict[str, Any], asked: bool) -> None:
    assert compiled.asks_compiled(training) is asked


# torch itself looks at it while it compiles
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_all_blocks_are_compiled_once_and_compute_what_they_did_under_the_names_they_had() -> None:
    model = get_peft_model(small.model(), LoraConfig(target_modules="all-linear"))
    ids = torch.arange(12).reshape(1, 12)
    names, before = list(model.state_dict()), model(input_ids=ids, use_cache=False).logits
    counter = CompileCounterWithBackend("eager")
    assert compiled.compile_blocks(model, {"torch_compile": True, "torch_compile_backend": counter}) > 1
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before)
    assert list(model.state_dict()) == names and not any("_orig_mod" in name for name in names)
    assert counter.frame_count >= 1
    with compiled.uncompiled():
        counter.frame_count = 0
        model(input_ids=ids[:, :5], use_cache=True)
    assert counter.frame_count == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_run_is_resumed_to_the_same_weights(fmstune: Callable[..., Any], tmp_path: Path) -> None:
    steps = ["peft=lora", "training.max_steps=2", "training.save_strategy=steps", "training.save_steps=1"]
    words = [*steps, "evaluation=none", "training.torch_compile_backend=aot_eager", "training.logging_steps=2"]
    words.append("training.gradient_accumulation_steps=1")
    for name, more in {"whole": [], "resumed": [f"training.resume={tmp_path}/whole/checkpoint-1"]}.items():
        result = fmstune("train", *words, *more, f"output_dir={tmp_path / name}")
        assert result.code == 0, result.err
    whole, resumed = (
        load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("whole", "resumed")
    )
    assert whole.keys() == resumed.keys() and not any("_orig_mod" in name for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
