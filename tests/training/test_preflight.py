"""What the runner checks of its surroundings; tests/bad_inputs has the messages about a job."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedConfig

from fmstune.checks.plan_inputs import Machine, Rows, Training, Work
from fmstune.checks.precision import Precision
from fmstune.config import freeze
from fmstune.config.choices import Auto, Device
from fmstune.config.job import Launcher
from fmstune.data.dataset import Prepared
from fmstune.data.prefix_sharing.saved_positions import LargestBatch, Savings
from fmstune.models import architecture, load
from fmstune.training import collate, planning
from fmstune.training.preflight import Checked, settle_sharing
from tests.checks.test_memory_plan import LLAMA_7B
from tests.config.test_freeze import tree


@pytest.mark.sampled(6)
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


@pytest.mark.sampled(2)
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
        "1 row x 16",
    ),
    "training=low_memory peft=lora": ("bfloat16 weights, float32 trained, bfloat16 autocast, TF32 for", "1 row x 16"),
    "training=fast peft=lora": (
        "bfloat16 weights, float32 trained, bfloat16 autocast, TF32 for float32",
        "16 rows x 1",
    ),
    "training=long_context peft=lora": ("bfloat16 weights, float32 trained, bfloat16 autocast", "1 row x 16"),
    "training=default peft=full": ("float32 weights, float32 trained, bfloat16 autocast, TF32 for", "4 rows x 4"),
    "training=default peft=full training.tf32=false": ("float32 trained, bfloat16 autocast; ", "4 rows x 4"),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("words", PRESETS)
def test_each_preset_has_a_plan_for_a_gpu_that_is_not_here(fmstune: Callable[..., Any], words: str) -> None:
    result = fmstune("check", "model=llama2_7b", "launcher.device=cuda", "launcher.device_gib=80", *words.split())
    assert result.code == 0, result.err
    precision, batch = PRESETS[words]
    assert precision in result.out
    assert f"{batch} accumulated" in result.out


@pytest.mark.slow
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


FAMILIES = [f"You are a clerk of the post and answer in one word.\n### Answer: {number}" for number in range(8)]
STRANGERS = [f"{number * 7919} parcels came late.\n### Answer: {number}" for number in range(8)]
AUTO = {
    "peft=lora": (FAMILIES, "true here: "),
    "peft=full training.packing=true data.max_length=256": (FAMILIES, "true here: "),
    "peft=lora evaluation=none": (STRANGERS, "false here: rows share 0.0% of their tokens, and it takes 10%"),
    "peft=prompt_tuning": (FAMILIES, "false here: each row begins with the virtual tokens of PromptTuning"),
    "peft=lora model.attention=sdpa": (FAMILIES, "false here: model.attention=sdpa cannot attend to a beginning"),
    "peft=lora data.streaming=true training.max_steps=2 data.max_length=256": (
        FAMILIES,
        "false here: data.streaming=true reads rows one",
    ),
    "peft=full model=causal_lm model.path=o/m model.architecture={model_type:mamba,vocab_size:64,hidden_size:8}": (
        FAMILIES,
        "false here: MambaForCausalLM reads a row token by token into a state",
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("words", AUTO)
def test_auto_shares_where_it_may_and_saves_enough_and_says_why(fmstune: Callable[..., Any], words: str) -> None:
    rows, says = AUTO[words]
    Path("own.jsonl").write_text("".join(json.dumps({"output": text}) + "\n" for text in rows))
    own = ("data=text", "data.train=own.jsonl", 'data.response_template="### Answer:"', "data.prefix_sharing=auto")
    result = fmstune("check", *own, *words.split())
    assert result.code == 0, result.err
    (note,) = [line for line in result.out.splitlines() if "prefix_sharing=auto is" in line]
    assert note.startswith(f"note: data.prefix_sharing=auto is {says}")
    assert ("shared beginnings once" in result.out) == says.startswith("true")
    assert ("varlen attention" in result.out) == says.startswith("true")


def test_what_auto_became_is_kept_for_the_summary_and_the_rest_of_the_run() -> None:
    auto = freeze.freeze(tree(data__prefix_sharing="auto")).job
    assert auto.data.prefix_sharing is Auto.auto
    made = Checked(PreTrainedConfig(), None, LLAMA_7B, "cpu", Precision("float32", "float32", None, ""), "sdpa")
    largest = LargestBatch(10, 10, 1)
    for shared, shares in ((90, True), (91, False)):
        rows = Rows(10, 100, 10, shared=Savings(4, 10, tokens=100, padded=100, shared=shared, largest=largest))
        settled = settle_sharing(auto, made, rows)
        assert settled.job.data.prefix_sharing is shares
        assert settled.checked.attention == ("varlen" if shares else "sdpa")
        assert settled.checked.chosen["data.prefix_sharing"]["value"] is shares
        assert (settled.rows.shared is not None) is shares
        # a settled job stays as it is
        assert settle_sharing(*settled) == settled
    refused = settle_sharing(auto, replace(made, sharing_refusal="it may not"), rows)
    assert refused.job.data.prefix_sharing is False
    assert refused.checked.notes == ("data.prefix_sharing=auto is false here: it may not",)


def test_the_check_prints_hours_and_cost_where_the_peak_is_given(fmstune: Callable[..., Any]) -> None:
    result = fmstune("check", "launcher.device_tflops=1e-4", "launcher.price_per_hour=1e5")
    assert "of steps: MFU 40.0% (assumed) of 0.0001 TFLOP/s of the device" in result.out, result.err
    assert "cost        ≈ " in result.out and ", at 100000 an hour and device" in result.out


def test_the_batches_of_packed_rows_are_of_the_packs_of_the_run() -> None:
    lengths, trained = (30, 21, 17, 16, 9, 5, 4), (1, 20, 1, 15, 8, 1, 3)
    rows = Dataset.from_list(
        [{"input_ids": [7] * n, "labels": [-100] * (n - of) + [7] * of} for n, of in zip(lengths, trained, strict=True)]
    )
    prepared = Prepared(rows, sources=(), held_out=(), mixture=(), shared=())
    job = freeze.freeze(tree(training__packing=True, data__max_length=40)).job
    of_one = Training(max_length=40, packing=True, per_device_train_batch_size=1, num_train_epochs=1)
    work = Work(LLAMA_7B, Rows(7, sum(lengths), 30), of_one, Machine("cpu", "sdpa", PRECISION))

    def found(work: Work) -> list[tuple[int, int, int]]:
        return sorted((b.rows, b.positions, b.supervised) for b in planning.find_batches(job, work, prepared))

    packs = [(len(pack), sum(label != -100 for label in pack)) for pack in collate.pack(rows, 40)["labels"]]
    assert found(work) == sorted((1, *pack) for pack in packs) == [(1, 25, 19), (1, 38, 21), (1, 39, 9)]
    # one batch of all packs: the rows stay rows, or lie end to end
    assert found(replace(work, training=replace(of_one, per_device_train_batch_size=3))) == [(3, 39, 49)]
    flat = replace(work, machine=replace(work.machine, attention="varlen"))
    assert found(replace(flat, training=replace(of_one, per_device_train_batch_size=3))) == [(1, 102, 49)]


@pytest.mark.parametrize(("summary", "mfu"), [('{"mfu": 0.125}', 0.125), ("{}", None), ("{broken", None), (None, None)])
def test_the_mfu_of_a_former_run_is_read_from_the_folder_of_this_one(
    tmp_path: Path, summary: str | None, mfu: float | None
) -> None:
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert planning.reached_mfu(str(tmp_path)) == mfu
    assert planning.reached_mfu(None) is None


PRECISION = Precision("bfloat16", "float32", "bfloat16", "because", tf32=True)


@pytest.mark.parametrize(
    ("given", "card", "precision", "peak"),
    [
        (None, "NVIDIA H100 PCIe", PRECISION, 756),
        (None, "NVIDIA H100 PCIe", replace(PRECISION, weights="float32", autocast=None), 378),
        (None, "NVIDIA H100 PCIe", replace(PRECISION, weights="float32", autocast=None, tf32=False), 51.2),
        (5.0, "NVIDIA H100 PCIe", PRECISION, 5.0),
        (None, "a card of tomorrow", PRECISION, None),
        (5.0, None, PRECISION, 5.0),
        (None, None, PRECISION, None),
    ],
)
def test_the_peak_is_that_of_the_card_in_the_dtype_that_is_computed_in_unless_it_is_given(
    given: float | None, card: str | None, precision: Precision, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    checked = Checked(PreTrainedConfig(), None, LLAMA_7B, "cuda", precision, "sdpa")
    assert planning.find_device_tflops(Launcher(device_tflops=given), checked) == peak
