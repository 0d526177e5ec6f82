"""A step without numbers holds what a real one holds, part by part."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from transformers import GPTBigCodeConfig, LlamaConfig, Qwen3MoeConfig

from fmstune.data.prefix_sharing.layout import lay_out, line_arguments
from fmstune.data.tokens import IGNORED
from fmstune.models.memory_count.heap import Heap
from fmstune.models.memory_count.step import (
    StepSettings,
    StepShape,
    count_phases,
    expected_bytes,
    extrapolate,
    largest_phase,
)
from fmstune.models.varlen import VARLEN

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 512}
LLAMA = LlamaConfig(**SIZES, num_hidden_layers=8, tie_word_embeddings=False)
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
SHAPE = StepShape(rows=2, positions=32, supervised=16, padded=False, packed=False, accumulated=False)
SETTINGS = StepSettings(
    weights=torch.float32,
    autocast=None,
    attention="sdpa",
    cuda=False,
    optimizer=(torch.optim.AdamW, {"lr": 1e-3}),
    checkpointing=None,
)
BLOCK = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
BASE = 2 * 512 * 64 + 8 * BLOCK + 64


SHORT = LlamaConfig(**SIZES, num_hidden_layers=2, tie_word_embeddings=False)
COUNTED: dict[str, Any] = {}
"""What was counted, by what was asked; a count takes half a second, and several tests compare with the same."""


def phases_of(config: Any, peft: Any, shape: StepShape, settings: StepSettings) -> Mapping[str, Any]:
    asked = repr((config, peft, shape, settings))
    if asked not in COUNTED:
        COUNTED[asked] = count_phases(config, peft, shape, settings)
    return COUNTED[asked]


def bytes_of(config=LLAMA, peft=None, shape=SHAPE, **settings):
    return largest_phase(phases_of(config, peft, shape, replace(SETTINGS, **settings)))


def test_full_tuning_in_float32_holds_weights_gradients_and_two_states_of_adamw() -> None:
    # with accumulation, the gradients of the batch before are there in the forward pass
    held = bytes_of(shape=replace(SHAPE, accumulated=True))
    assert held["weights"] == pytest.approx(4 * BASE, rel=0.01)
    # one number for each parameter counts the steps
    assert held["optimizer"] == pytest.approx(8 * BASE, rel=0.01)
    assert held["gradients"] == 4 * BASE


def test_an_adapter_of_all_blocks_is_counted_alike_in_a_few_and_in_each() -> None:
    # a list of all blocks is put into all of them before the model is shortened
    each = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=list(range(8))
    )
    assert phases_of(LLAMA, LORA, SHAPE, SETTINGS) == phases_of(LLAMA, each, SHAPE, SETTINGS)


@pytest.mark.parametrize(
    ("fields", "blocks"),
    [
        ({"target_modules": ["layers.6.self_attn.q_proj"]}, 1),
        ({"target_modules": r".*\.[5-7]\.self_attn\.q_proj"}, 3),
        ({"target_modules": ["q_proj"], "layers_to_transform": [4, 6]}, 2),
        ({"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}, 7),
    ],
)
def test_an_adapter_of_some_blocks_is_counted_in_those(fields: dict[str, Any], blocks: int) -> None:
    held = bytes_of(peft=LoraConfig(task_type="CAUSAL_LM", r=4, **fields), shape=replace(SHAPE, accumulated=True))
    assert held["gradients"] == 4 * blocks * 2 * 4 * 64


def test_a_rank_of_one_block_is_counted_there() -> None:
    wider = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], rank_pattern={"layers.6.self_attn.q_proj": 8}
    )
    held = bytes_of(peft=wider, shape=replace(SHAPE, accumulated=True))
    assert held["gradients"] == 4 * (7 * 4 + 8) * 2 * 64


def test_an_adapter_has_no_state_for_the_base() -> None:
    adapter = 8 * 2 * 2 * 4 * 64
    held = bytes_of(peft=LORA)
    assert held["weights"] == pytest.approx(4 * (BASE + adapter), rel=0.01)
    assert 8 * adapter <= held["optimizer"] < 8.5 * adapter


def test_sgd_keeps_no_state() -> None:
    assert bytes_of(SHORT, optimizer=(torch.optim.SGD, {"lr": 1e-3}))["optimizer"] == 0


@pytest.mark.slow
def test_blocks_that_are_equal_are_counted_from_a_few_of_them() -> None:
    def held(layers: int) -> tuple[int, int]:
        parts = bytes_of(LlamaConfig(**SIZES, num_hidden_layers=layers), LORA)
        return sum(parts.values()) - parts["fragmentation"], parts["fragmentation"]

    # up to 18 blocks are tried whole
    (four, holes), (nine, nine_holes), (forty, forty_holes) = held(4), held(9), held(40)
    assert forty - four == pytest.approx(36 / 5 * (nine - four), rel=0.01)
    assert forty_holes == pytest.approx(holes + 36 / 5 * (nine_holes - holes), rel=0.2)


def test_no_part_of_more_blocks_is_below_0() -> None:
    fewer = {"head": {"weights": 8, "activations": 40, "fragmentation": 10}}
    more = {"head": {"weights": 10, "activations": 60, "fragmentation": 4}}
    (parts,) = extrapolate(fewer, more, 5).values()
    assert {kind: size for kind, size in parts.items() if size} == {"weights": 18, "activations": 140}


def test_the_configuration_stays_as_it_is() -> None:
    bytes_of(peft=LORA)
    assert LLAMA.num_hidden_layers == 8


def test_activation_checkpointing_keeps_less() -> None:
    kept = bytes_of(peft=LORA)["activations"]
    assert bytes_of(peft=LORA, checkpointing={"use_reentrant": False})["activations"] < kept / 2


def test_dropout_is_computed_again_as_a_gpu_keeps_it() -> None:
    dropped = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
    kept = bytes_of(peft=dropped, cuda=True)["activations"]
    assert bytes_of(peft=dropped, cuda=True, checkpointing={"use_reentrant": False})["activations"] < kept / 2


def test_gradients_of_the_batch_before_fill_holes() -> None:
    """How many of them depends on the sizes: of 200 to 512 positions between none and 61 %."""
    long = replace(SHAPE, positions=400)
    alone, accumulated = (bytes_of(shape=replace(long, accumulated=one)) for one in (False, True))
    assert accumulated["gradients"] == 4 * BASE
    assert sum(accumulated.values()) - sum(alone.values()) < 0.95 * 4 * BASE


def test_what_trained_parameters_leave_keeps_holes_apart_unless_blocks_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def holes(**settings: Any) -> int:
        phases = count_phases(SHORT, None, replace(SHAPE, positions=256), replace(SETTINGS, **settings))
        return largest_phase(phases)["fragmentation"]

    again = {"checkpointing": {"use_reentrant": False}}
    left, left_again = holes(), holes(**again)
    monkeypatch.setattr(Heap, "use", lambda *_: None)
    assert holes() < left
    assert holes(**again) == left_again


def test_a_mask_of_padding_is_held_where_rows_differ_in_length() -> None:
    long = replace(SHAPE, positions=256)
    plain, padded = (bytes_of(SHORT, LORA, replace(long, padded=one))["activations"] for one in (False, True))
    # SDPA keeps one in float32; the blocks share it
    assert padded - plain > 2 * 256 * 256


def test_logits_grow_with_the_trained_tokens() -> None:
    few, many = (bytes_of(peft=LORA, shape=replace(SHAPE, supervised=n))["logits"] for n in (16, 48))
    assert 2.5 < many / few < 3.5


@pytest.mark.slow
def test_another_batch_is_expected_from_one_that_was_counted() -> None:
    """To a tenth: longer rows hold more activations, more trained tokens more logits, the weights stay."""
    phases = phases_of(LLAMA, LORA, SHAPE, SETTINGS)
    for other in (replace(SHAPE, supervised=48), replace(SHAPE, rows=4), replace(SHAPE, positions=24)):
        expected = expected_bytes(phases, SHAPE, other)
        assert expected == pytest.approx(sum(bytes_of(peft=LORA, shape=other).values()), rel=0.1)


def test_bfloat16_weights_take_half() -> None:
    whole, half = bytes_of(peft=LORA), bytes_of(peft=LORA, weights=torch.bfloat16, autocast=torch.bfloat16, cuda=True)
    assert half["weights"] < 0.6 * whole["weights"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("config", "peft"),
    [
        (GPTBigCodeConfig(n_embd=64, n_layer=3, n_head=4, n_positions=64, vocab_size=512), None),
        (LLAMA, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    ],
    ids=["gpt_bigcode", "prompt_tuning"],
)
def test_other_models_and_methods_are_counted_too(config, peft) -> None:
    held = bytes_of(config, peft)
    assert held["weights"] > 0
    assert held["activations"] > 0
    assert held["logits"] > 0


def bytes_kept(model: Any, **batch: Any) -> int:
    """Bytes that autograd keeps of a real forward pass."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(**batch, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(kept.values())


def test_what_a_real_step_holds_is_counted() -> None:
    """Of one Llama, to a seventh."""
    from transformers import AutoModelForCausalLM

    real = bytes_kept(AutoModelForCausalLM.from_config(LLAMA), input_ids=torch.ones(2, 32, dtype=torch.int64))
    sgd = (torch.optim.SGD, {"lr": 1e-3})
    assert bytes_of(optimizer=sgd, shape=replace(SHAPE, supervised=1))["activations"] == pytest.approx(real, rel=0.15)


def test_rows_that_share_a_beginning_are_counted_with_its_keys_laid_out_again_and_their_masks() -> None:
    from transformers import AutoModelForCausalLM

    beginning = list(range(192))
    rows = [{"input_ids": [*beginning, *[200 + n] * 16], "labels": [IGNORED] * 192 + [200 + n] * 16} for n in range(8)]
    layout = lay_out(rows)
    line = line_arguments(layout, rows)
    batch = {name: torch.from_numpy(one) if hasattr(one, "shape") else one for name, one in line.items()}
    given = {name: batch[name][None] for name in ("input_ids", "position_ids")}
    told = {name: batch[name] for name in batch if name.startswith(("cu_seq", "max_length", "key_"))}
    model = AutoModelForCausalLM.from_config(SHORT, attn_implementation=VARLEN)
    real = bytes_kept(model, **given, **told)
    segments = tuple((segment.length, segment.end) for segment in layout.segments)
    shape = replace(SHAPE, rows=1, positions=layout.positions, supervised=1)
    counted, plain = (
        bytes_of(SHORT, shape=replace(shape, segments=one), optimizer=(torch.optim.SGD, {"lr": 1e-3}))["activations"]
        for one in (segments, ())
    )
    assert len(segments) == 9
    assert counted == pytest.approx(real, rel=0.1)
    assert plain < 0.8 * real


def test_what_cannot_be_counted_is_raised_and_not_logged_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "callHandlers", logged.append)
    # torch computes the experts of a mixture in bfloat16 only where tensors have no numbers
    experts = Qwen3MoeConfig(
        **SIZES, head_dim=16, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, num_hidden_layers=2
    )
    with pytest.raises(RuntimeError, match="BF16"):
        count_phases(experts, LORA, SHAPE, SETTINGS)
    assert not logged
