"""Rows that share their beginnings have the loss, the figures and the gradients of the same rows alone."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from fmstune.models import varlen
from fmstune.models.trl_internals import add_fused_lm_head, score_supervised_positions_on_cpu
from fmstune.training.collate import PADDING, Collator, SharingCollator
from fmstune.training.objectives.shared_targets import score_each_row
from fmstune.training.trainer import without_count
from tests import small
from tests.conftest import Result
from tests.training.test_packing_audit import GPT, STANDARD
from tests.training.test_trainer import trainer

Row = dict[str, list[int]]
DROPPED_OUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": STANDARD,
    "gpt_bigcode": {**GPT, **DROPPED_OUT},
    "qwen2": STANDARD,
    "gpt2": {**GPT, **DROPPED_OUT},
    "granite": {**STANDARD, "logits_scaling": 4.0},
    "qwen3": {**STANDARD, "head_dim": 8},
    "mistral": {**STANDARD, "sliding_window": 16},
}
OUTPUTS = ("log_probs", "entropy", "is_top1")


def tree(depth: int, seed: int = 0) -> list[Row]:
    """Rows of a trie of such a depth, of which every part is trained here and there, the shared ones included."""
    draw = random.Random(seed)

    def part(length: int) -> tuple[list[int], list[int]]:
        ids = [draw.randrange(2, 300) for _ in range(length)]
        return ids, [i if draw.random() < 0.4 else -100 for i in ids]

    def grow(level: int, ids: list[int], labels: list[int]) -> list[Row]:
        if level == depth:
            return [{"input_ids": ids, "labels": labels}]
        children = [part(draw.randint(3, 12)) for _ in range(2)]
        return [row for more, trained in children for row in grow(level + 1, ids + more, labels + trained)]

    start = part(20)
    rows = grow(0, *start)
    # one that is the beginning of another, and one that stands twice
    shorter = {name: values[:25] for name, values in rows[0].items()}
    rows = [*rows, shorter, rows[-1]]
    draw.shuffle(rows)
    return rows


def gradients(model: Any, batch: dict[str, Any], *, shared: bool) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    model.set_attn_implementation(varlen.VARLEN if shared else "sdpa")
    inputs, _ = without_count(batch)
    call, inputs = score_each_row(model, inputs) if shared else (model, inputs)
    outputs = call(**inputs, fused_lm_head=True)
    loss = -outputs.log_probs.sum() / outputs.label_mask.sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    figures = [getattr(outputs, name).float().sum().item() for name in OUTPUTS]
    return loss.item(), {**found, "figures": torch.tensor([*figures, float(outputs.label_mask.sum())])}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of all gradients, relative to the largest number in each."""
    assert one.keys() == other.keys()
    moved = [(one[name] - other[name]).abs().max() / (one[name].abs().max() + 1e-12) for name in one]
    return float(torch.stack(moved).max())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_loss_and_gradients_are_those_of_the_padded_rows(name: str, depth: int) -> None:
    score_supervised_positions_on_cpu()
    rows = tree(depth)
    model = small.model({"model_type": name, **SHAPES[name]})
    add_fused_lm_head(model, outputs=OUTPUTS)
    line = SharingCollator(least_saved=1)(rows)
    # what is compared is shared indeed, trained tokens too
    assert line[PADDING] < -20
    assert len(line["targets"].unique()) < len(line["targets"])
    alone_loss, alone = gradients(model, Collator(pad_token_id=1)(rows), shared=False)
    shared_loss, shared = gradients(model, line, shared=True)
    assert shared_loss == pytest.approx(alone_loss, rel=1e-5)
    assert largest_difference(alone, shared) < 1e-5


FAMILIES = [row for seed in range(4) for row in tree(2, seed)]
"""24 rows of four families."""


def trained(folder: Path, *, shares: bool, **changes: Any) -> Any:
    """A trainer after two steps of full tuning or LoRA on the same batches, in the order of the rows."""
    settings = {"max_steps": 2, "train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
    settings |= {"per_device_train_batch_size": 6, "eval_strategy": "no"}
    torch.manual_seed(0)
    made = trainer(folder, rows=FAMILIES, eval_rows=FAMILIES[:9], **{**settings, **changes})
    if shares:
        made.model.set_attn_implementation(varlen.VARLEN)
        made.share_prefixes()
    made.train()
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"peft": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")},
        {"activation_checkpointing": True},
        {"loss_type": "dft"},
    ],
    ids=["full", "accumulated", "lora", "activation checkpointing", "dft"],
)
def test_a_trainer_that_shares_takes_the_steps_of_one_that_pads(tmp_path: Path, changes: dict[str, Any]) -> None:
    alone, shared = (trained(tmp_path / str(shares), shares=shares, **changes) for shares in (False, True))
    for logged, of_rows in zip(shared.state.log_history, alone.state.log_history, strict=True):
        for name in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
            if name in of_rows:
                assert logged[name] == pytest.approx(of_rows[name], rel=1e-4), name
    assert shared.evaluate()["eval_loss"] == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-5)
    assert shared.tokens == alone.tokens > shared.positions


SHARING = (
    *("data=text", "data.train=rows.jsonl", 'data.response_template="### Answer:"', "peft=full", "evaluation=none"),
    *("training.per_device_train_batch_size=4", "training.max_steps=4", "launcher.threads=1", "data.max_length=256"),
)


@pytest.fixture
def own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 rows of four families, in a folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    texts = [f"Family {number % 4} is asked for the number {number}.\n### Answer: {number * 7}" for number in range(32)]
    Path("rows.jsonl").write_text("".join(json.dumps({"output": text}) + "\n" for text in texts))


def _metrics(run: Result) -> list[dict[str, float]]:
    assert run.code == 0, run.err
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_that_share_take_the_steps_of_two_that_pad(
    own_rows: None, fmstune: Callable[..., Result]
) -> None:
    two = ("launcher=ddp", "launcher.device=cpu", "launcher.num_processes=2", "training.logging_steps=1")
    two += ("training.train_sampling_strategy=sequential", "training.save_strategy=no")
    runs = [fmstune(*SHARING, *two, f"data.prefix_sharing={shares}") for shares in ("true", "false")]
    shared, padded = ([line for line in _metrics(run) if "loss" in line] for run in runs)
    assert len(shared) == len(padded) == 4
    for one, other in zip(shared, padded, strict=True):
        for name in ("loss", "grad_norm", "num_tokens"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    assert runs[0].summary["prefix_sharing"]["share_saved"] > 0.1


@pytest.mark.slow
def test_sharded_processes_that_share_take_the_steps_of_one_and_resume(
    own_rows: None, fmstune: Callable[..., Result]
) -> None:
    one = ("data.prefix_sharing=true", "training.train_sampling_strategy=sequential", "training.logging_steps=1")
    one += ("training.save_strategy=steps", "training.save_steps=2", "training.save_only_model=false")
    two = (*one, "launcher=fsdp", "launcher.device=cpu", "launcher.num_processes=2")
    sharded = fmstune(*SHARING, *two, "output_dir=sharded")
    alone = fmstune(*SHARING, *one, "training.gradient_accumulation_steps=2", "output_dir=alone")
    shards, whole = ([line for line in _metrics(run) if "loss" in line] for run in (sharded, alone))
    assert len(shards) == len(whole) == 4
    for of_two, of_one in zip(shards, whole, strict=True):
        for name in ("loss", "grad_norm", "num_tokens"):
            assert of_two[name] == pytest.approx(of_one[name], rel=1e-4), name
    assert sharded.summary["prefix_sharing"]["share_saved"] == alone.summary["prefix_sharing"]["share_saved"] > 0.1
    rest = fmstune(*SHARING, *two, "output_dir=rest", "training.resume=sharded/checkpoint-2")
    assert rest.code == 0, rest.err
    assert rest.summary["weights_sha256"] == sharded.summary["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("packs", "asked"), [("false", "auto"), ("true", "true")])
def test_a_resumed_run_takes_the_batches_of_one_that_was_not_stopped(
    own_rows: None, fmstune: Callable[..., Result], packs: str, asked: str
) -> None:
    words = (
        *SHARING,
        f"training.packing={packs}",
        f"data.prefix_sharing={asked}",
        "training.save_strategy=steps",
        "training.save_steps=2",
    )
    whole = fmstune(*words, "output_dir=whole")
    assert whole.code == 0, whole.err
    rest = fmstune(*words, "output_dir=rest", "training.resume=whole/checkpoint-2")
    assert rest.code == 0, rest.err
    assert rest.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert whole.summary["plan"]["total_steps"] == whole.summary["steps"] == 4
    if asked == "auto":
        chosen = whole.summary["chosen"]["data.prefix_sharing"]
        assert chosen["value"] is True and chosen["why"].endswith("% of the positions are saved")
    saved = ("positions_saved", "share_saved")
    assert [rest.summary["prefix_sharing"][name] for name in saved] == [
        whole.summary["prefix_sharing"][name] for name in saved
    ]
