"""Which of Liger's kernels a model gets; the package needs Triton, so a stand-in records what it is asked for."""

import sys
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune.errors import UserError
from fmstune.models import liger


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Liger's function for Llama is called with."""
    calls: list[dict[str, Any]] = []

    def apply_liger_kernel_to_llama(
        rope: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        model: Any = None,
    ) -> None:
        calls.append(dict(locals()))

    module = ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply_liger_kernel_to_llama}  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def small(model_type: str) -> Any:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))


def test_norms_rotary_positions_and_gated_layers_are_liger_s_and_the_loss_stays_trl_s(asked: list[Any]) -> None:
    model = small("llama")
    liger.use_liger(model)
    (call,) = asked
    assert call.pop("model") is model
    on = {"rope": True, "rms_norm": True, "swiglu": True}
    assert {name: value for name, value in call.items() if name != "calls"} == {
        **on,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }


def test_an_architecture_that_liger_does_not_name_is_refused_by_name(asked: list[Any]) -> None:
    with pytest.raises(UserError, match="model.kernels=liger: Liger has no kernels for gpt2; set it to none"):
        liger.use_liger(small("gpt2"))
    assert asked == []
