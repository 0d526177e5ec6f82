"""What a model's forward and backward pass take, by a formula, against what torch counts of real models."""

from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from fmstune.checks.plan_inputs import ModelFlops
from fmstune.models.architecture import build_empty
from fmstune.models.experts import find_experts
from fmstune.models.flop_count.layers import ABSENT, count_model_flops, layer_windows
from tests import small

MIXTRAL = {**small.LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
GROUPED = {**small.LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True}
BIGCODE = {**small.BIGCODE, "multi_query": True}
MODELS = {"llama": small.LLAMA, "grouped, tied": GROUPED, "bigcode": BIGCODE, "mixtral": MIXTRAL}

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINEAR = {"bigcode": ["c_attn", "c_proj", "c_fc"], "mixtral": ALL[:4]}


def lora(name: str, **more: Any) -> PeftConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=LINEAR.get(name, ALL), **more)


def prompt(name: str) -> PeftConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


METHODS = {"full": lambda name: None, "lora": lora, "prompt tuning": prompt}


def made(architecture: dict[str, Any], config: PeftConfig | None) -> tuple[torch.nn.Module, ModelFlops]:
    """A model that computes every pair of positions in two products, with its adapter."""
    model = small.model(architecture, attention="eager").train()
    # torch counts no product of groups
    model.set_experts_implementation("eager")
    experts = find_experts(model)
    adapted = model if config is None else get_peft_model(model, config)
    return adapted, count_model_flops(adapted, model.config, experts)


def counted(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """What torch counts of the forward and of the backward pass."""
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        loss = model(**batch, use_cache=False).logits.float().sum()
    with backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def rows(count: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 300, (count, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def of(flops: ModelFlops, count: int, length: int, *, keys: int | None = None) -> tuple[float, float]:
    """What the formula has for rows whose pairs are all computed and whose positions are all scored."""
    whole = flops.total(count * length, count * length, [count * length * (keys or length)])
    alone = flops.total(count * length, count * length, [count * length * (keys or length)], frozen_copies=1) - whole
    return alone, whole - alone


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward_pass_take_what_torch_counts(name: str, method: str) -> None:
    model, flops = made(MODELS[name], METHODS[method](name))
    virtual = 3 if method == "prompt tuning" else 0
    assert counted(model, rows(2, 7)) == of(flops, 2, 7 + virtual)


TASK = {"task_type": "CAUSAL_LM"}
ADAPTERS: dict[str, PeftConfig] = {
    "the last block alone": LoraConfig(**TASK, r=4, target_modules=ALL, layers_to_transform=[1]),
    "the layers that read": LoraConfig(**TASK, r=1, target_modules=ALL[:3]),
    "the mlp": LoraConfig(**TASK, r=4, target_modules=ALL[4:]),
    "with the output layer": LoraConfig(**TASK, r=4, target_modules=ALL, modules_to_save=["lm_head"]),
    "the embedding": LoraConfig(**TASK, r=4, target_modules=["embed_tokens"]),
    "rows of the embedding": LoraConfig(**TASK, r=4, target_modules=["down_proj"], trainable_token_indices=[5]),
    "ia3": IA3Config(**TASK, target_modules=[*ALL[:3], "down_proj"], feedforward_modules=["down_proj"]),
    "norms": LNTuningConfig(**TASK, target_modules=["input_layernorm"]),
}


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # PEFT's, of a norm
@pytest.mark.parametrize("name", ADAPTERS)
def test_only_what_is_above_the_lowest_trained_parameter_has_a_gradient(name: str) -> None:
    model, flops = made(small.LLAMA, ADAPTERS[name])
    assert counted(model, rows(2, 7)) == of(flops, 2, 7)


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (LoraConfig(**TASK, r=4, target_modules=["q_proj", "v_proj"]), 7),
        (PrefixTuningConfig(**TASK, num_virtual_tokens=3), 10),
    ],
    ids=["keys are frozen", "queries are frozen"],
)
def test_of_the_lowest_attention_all_four_products_of_the_backward_pass_count(config: PeftConfig, keys: int) -> None:
    """As in a fused kernel; torch needs one less, of 2 for each of 32 numbers of a query and a pair."""
    model, flops = made(small.LLAMA, config)
    forward, backward = of(flops, 2, 7, keys=keys)
    assert counted(model, rows(2, 7)) == (forward, backward - 2 * 32 * 2 * 7 * keys)


def test_doras_own_product_is_not_the_models() -> None:
    plain, dora = (made(small.LLAMA, lora("llama", use_dora=use))[1] for use in (False, True))
    assert plain == dora


def test_layers_of_a_window_are_counted_apart() -> None:
    gemma = {**small.LLAMA, "model_type": "gemma2", "sliding_window": 4, "head_dim": 16, "query_pre_attn_scalar": 8}
    flops = made(gemma, None)[1]
    # two products of four heads of 16 in each layer
    assert (flops.windows, flops.forward.pair) == ((4, None), (2 * 2 * 4 * 16,) * 2)
    assert flops.backward.pair == (4 * 2 * 4 * 16,) * 2


@pytest.mark.parametrize(
    ("values", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 8, "num_hidden_layers": 2}, [8, 8]),
        ({"model_type": "llama", "num_hidden_layers": 2}, [None, None]),
        ({"model_type": "mamba", "num_hidden_layers": 2}, [ABSENT, ABSENT]),
        (
            {"model_type": "granitemoehybrid", "num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
            [ABSENT, None],
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_the_window_of_each_layer_is_read_from_the_configuration(
    values: dict[str, Any], windows: list[int | None]
) -> None:
    assert layer_windows(AutoConfig.for_model(**values)) == windows


def test_a_part_for_pictures_takes_nothing_of_text() -> None:
    text = {**small.LLAMA, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 4}
    sight = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    both = {"model_type": "gemma3", "text_config": text, "vision_config": {**sight, "image_size": 28, "patch_size": 14}}
    empty = [build_empty(AutoConfig.for_model(**values)) for values in (text, both)]
    assert count_model_flops(empty[0], empty[0].config, None) == count_model_flops(empty[1], empty[1].config, None)
