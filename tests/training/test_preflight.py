"""What the runner checks of its surroundings; tests/bad_inputs has the messages about a job."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.choices import Device
from fmstune.models import architecture, load


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "words",
    [
        ("peft=lora", "peft.rank_pattern={q_proj: 4}", "peft.alpha_pattern={layers.0.self_attn.v_proj: 4}"),
        ("peft=lora", "peft.trainable_token_indices=[1,2]", "peft.layers_to_transform=[0,1]"),
        ("peft=lora", "peft.init_lora_weights=pissa_niter_4", "evaluation.base=false"),
        ("peft=lora", "peft.init_lora_weights=gaussian"),
        ("peft=prompt_tuning", "peft.token_dim=96", "peft.num_transformer_submodules=1"),
        ("training.torch_compile_backend=eager", "training.torch_compile_mode=default"),
        ("training.metric_for_best_model=entropy", "training.greater_is_better=false", "training.eval_strategy=epoch"),
        ("training.save_strategy=best", "training.metric_for_best_model=loss", "training.eval_strategy=epoch"),
        ("training.eval_packing=true", "training.eval_strategy=steps"),
        ("training.dataloader_drop_last=true", "training.per_device_train_batch_size=4", "data.max_rows=4"),
        ("model.special_tokens.extra_special_tokens=['<user>']",),
    ],
)
def test_what_can_be_done_is_not_refused(fmstune: Callable[..., Any], words: tuple[str, ...]) -> None:
    result = fmstune("check", *words)
    assert result.code == 0, result.err
    assert result.out.endswith("no problems found\n")


@pytest.mark.parametrize(("tokens", "noted"), [("[]", True), ("['<|im_end|>']", False)])
def test_an_end_of_a_turn_that_is_no_token_is_noted(fmstune: Callable[..., Any], tokens: str, noted: bool) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    Path("chats.jsonl").write_text(json.dumps({"messages": turns}))
    words = ["data=chat", "data.train=chats.jsonl", "model.chat_template=package:chatml.jinja"]
    result = fmstune("check", *words, f"model.special_tokens.extra_special_tokens={tokens}")
    assert result.code == 0, result.err
    note = "the chat template ends an answer with <|im_end|>, which the tokenizer has no token for"
    assert (note in result.out + result.err) == noted


@pytest.mark.slow
def test_a_check_without_a_gpu_does_not_pass_what_needs_one(
    fmstune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "find_device", lambda asked: asked.value if asked is not Device.auto else "cpu")
    refused = fmstune("check", "launcher=fsdp1", "launcher.num_processes=2")
    assert (refused.code, refused.out) == (2, "")
    assert "launcher=fsdp1 needs GPUs, and the device is cpu; choose launcher=fsdp, or plan for GPUs" in refused.err
    assert fmstune("check", "launcher=fsdp1", "launcher.num_processes=2", "launcher.device=cuda").code == 0
    assert fmstune("check", "launcher=slurm", "launcher.fsdp_version=1", "launcher.num_processes=2").code == 0


def test_a_check_builds_the_model_without_numbers_once(
    fmstune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, built = architecture.build_empty, []
    monkeypatch.setattr(architecture, "build_empty", lambda *given: built.append(given) or build(*given))
    result = fmstune("check", "peft=lora")
    assert result.code == 0, result.err
    assert len(built) == 1


PRESETS = {
    # preset and method → what the plan and the job say of it
    "training=low_memory peft=full": (
        "bfloat16 weights, bfloat16 trained, no autocast, TF32 for float32",
        "1 rows x 16",
    ),
    "training=low_memory peft=lora": ("bfloat16 weights, float32 trained, bfloat16 autocast, TF32 for", "1 rows x 16"),
    "training=fast peft=lora": (
        "bfloat16 weights, float32 trained, bfloat16 autocast, TF32 for float32",
        "16 rows x 1",
    ),
    "training=long_context peft=lora": ("bfloat16 weights, float32 trained, bfloat16 autocast", "1 rows x 16"),
    "training=default peft=full": ("float32 weights, float32 trained, bfloat16 autocast, TF32 for", "4 rows x 4"),
    "training=default peft=full training.tf32=false": ("float32 trained, bfloat16 autocast; ", "4 rows x 4"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("words", PRESETS)
def test_each_preset_has_a_plan_for_a_gpu_that_is_not_here(fmstune: Callable[..., Any], words: str) -> None:
    result = fmstune("check", "model=llama2_7b", "launcher.device=cuda", "launcher.device_gib=80", *words.split())
    assert result.code == 0, result.err
    precision, batch = PRESETS[words]
    assert precision in result.out
    assert f"{batch} accumulated" in result.out


def test_the_presets_for_memory_take_less_of_it_than_the_default(fmstune: Callable[..., Any]) -> None:
    def planned(preset: str) -> float:
        words = ["model=llama2_7b", "peft=full", "launcher.device=cuda", f"training={preset}"]
        (line,) = [line for line in fmstune("check", *words).out.splitlines() if line.startswith("memory")]
        size, unit = line.split()[1:3]
        return float(size.replace(",", "")) * {"GiB,": 1, "TiB,": 1024}[unit]

    assert planned("low_memory") < planned("default") / 2.9
    assert planned("long_context") < planned("default")


def test_the_saving_of_shared_beginnings_is_said_also_without_a_seed_of_the_data(fmstune: Callable[..., Any]) -> None:
    result = fmstune("check", "data.prefix_sharing=true", "training.data_seed=null", "data.max_rows=32")
    assert result.code == 0, result.err
    assert "positions an epoch for" in result.out
