"""The subclass changes how fast the loss is computed and what is counted, and not the loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from fmstune.checks.plan_inputs import ModelFlops, PassFlops
from fmstune.config.job import Model
from fmstune.errors import UserError
from fmstune.launch import preemption
from fmstune.models import load, shapes
from fmstune.models.architecture import build_empty
from fmstune.models.flop_count.batch import BatchFlops
from fmstune.training.legs import Begun
from fmstune.training.objectives.sft import SftTrainer

TINY = Model(path="package:tiny_llama")
IDS = [[1, 5, 6, 7, 8, 9, 2], [1, 15, 16, 2], [1, 25, 26, 27, 28, 2], [1, 3, 4, 2]]
ROWS = [{"input_ids": ids, "labels": [-100] * (len(ids) - 2) + ids[-2:]} for ids in IDS]


def trainer(
    folder: Path,
    cls: type[SFTTrainer] = SftTrainer,
    *,
    rows: Any = ROWS,
    eval_rows: Any = None,
    peft: PeftConfig | None = None,
    **changes: object,
) -> Any:
    tokenizer = load.load_tokenizer(TINY)
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "max_length": None,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    base = load.load_model(TINY, tokenizer, dtype="float32", attention="sdpa")
    made = cls(
        model=base if peft is None else get_peft_model(base, peft),
        args=SFTConfig(**{**settings, **changes}),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
        processing_class=tokenizer.tokenizer,
    )
    made.remove_callback(PrinterCallback)
    return made


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "predicted"),
    [(PromptTuningConfig, "every token"), (PrefixTuningConfig, "all but the first")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_loss_under_virtual_tokens_is_the_mean_over_what_pefts_forward_pass_predicts(
    tmp_path: Path, method: Any, predicted: str
) -> None:
    """Rows without a begin-of-sequence token that are trained whole: a prompt predicts their first token."""
    rows = [{"input_ids": ids[1:], "labels": ids[1:]} for ids in IDS[:2]]
    config = method(task_type="CAUSAL_LM", num_virtual_tokens=3)
    made = trainer(tmp_path, rows=rows, peft=config, max_steps=1, learning_rate=1e-9)
    made.train()
    first = 0 if predicted == "every token" else 1
    losses = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            logits = made.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
            # of a prompt, the logits of its virtual tokens come first
            before = logits[-len(ids[0]) - 1 :] if first == 0 else logits
            losses += [-before[place - first, ids[0, place]] for place in range(first, len(ids[0]))]
    (logged,) = [line["loss"] for line in made.state.log_history if "loss" in line]
    assert logged == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def adapted(folder: Path, *, ratio: float | None = None, quantised: bool = False, **changes: object) -> SftTrainer:
    """A trainer of LoRA on queries and on the embedding."""
    tokenizer = load.load_tokenizer(TINY)
    base = load.load_model(TINY, tokenizer, dtype="float32", attention="sdpa")
    # the mark that transformers leaves on a base of bitsandbytes, and that TRL looks for
    base.is_loaded_in_4bit = quantised
    torch.manual_seed(0)
    return SftTrainer(
        model=get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])),
        args=SFTConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            max_length=None,
            report_to="none",
            activation_checkpointing=False,
            **changes,
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer.tokenizer,
        loraplus_lr_ratio=ratio,
    )


def rates(made: SftTrainer) -> dict[str, float]:
    """The learning rate of each trained parameter, by the name of its matrix."""
    optimizer = made.create_optimizer()
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = [(name, p) for name, p in made.model.named_parameters() if p.requires_grad]
    assert len(of) == len(named) == 2 * 6
    return {name.split(".")[-3]: of[id(p)] for name, p in named}


def test_lora_plus_trains_b_at_a_multiple_of_the_rate_of_a(tmp_path: Path) -> None:
    made = adapted(tmp_path, ratio=16.0, learning_rate=1e-4, weight_decay=0.1, optim="adamw_torch")
    assert rates(made) == {"lora_A": pytest.approx(1e-4), "lora_B": pytest.approx(1.6e-3)}
    assert type(made.optimizer) is torch.optim.AdamW
    assert {group["weight_decay"] for group in made.optimizer.param_groups if group["params"]} == {0.1}


def test_without_a_ratio_both_are_trained_alike(tmp_path: Path) -> None:
    assert rates(adapted(tmp_path, learning_rate=1e-4)) == {"lora_A": 1e-4, "lora_B": 1e-4}


def test_the_schedule_moves_both_rates_of_lora_plus(tmp_path: Path) -> None:
    made = adapted(tmp_path, ratio=4.0, learning_rate=1e-3, max_steps=2, lr_scheduler_type="linear", logging_steps=1)
    made.train()
    moved = [group["lr"] for group in made.optimizer.param_groups if group["params"]]
    assert moved == [0.0, 0.0]
    logged = [entry["learning_rate"] for entry in made.state.log_history if "learning_rate" in entry]
    assert logged == [pytest.approx(1e-3), pytest.approx(5e-4)]


def test_the_adapter_of_a_quantised_base_stays_float32_to_the_bit(tmp_path: Path) -> None:
    plain, quantised = (adapted(tmp_path, quantised=quantised).model for quantised in (False, True))
    trained = [p for p in quantised.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    for one, other in zip((p for p in plain.parameters() if p.requires_grad), trained, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def as_trl_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the mend back when the test is over, so that both ways can be compared in one process."""
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", trl.kernels.chunked_logprob._use_triton)


@pytest.mark.usefixtures("as_trl_has_it")
def test_losses_and_weights_are_those_of_sft_trainer(tmp_path: Path) -> None:
    stock = trainer(tmp_path / "stock", SFTTrainer)
    stock.train()
    ours = trainer(tmp_path / "ours")
    ours.train()
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (stock, ours)]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for theirs, mine in zip(stock.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("as_trl_has_it")
def test_only_supervised_positions_reach_the_head_on_a_cpu(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    seen: list[int] = []
    apply = trl.trainer.utils._ChunkedLogProbFunction.apply

    class Spy:
        @staticmethod
        def apply(hidden: torch.Tensor, *rest: object) -> object:
            seen.append(hidden.shape[0])
            return apply(hidden, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Spy)
        ours.train()
    assert seen == [4, 4, 4, 4]  # two rows a batch, two supervised tokens each


def test_tokens_and_positions_are_counted(tmp_path: Path) -> None:
    ours = trainer(tmp_path, num_train_epochs=1, per_device_train_batch_size=4)
    ours.train()
    assert ours.tokens == sum(len(ids) for ids in IDS) == 21
    assert ours.positions == 4 * 7
    logs = [log for log in ours.state.log_history if "loss" in log]
    assert all(log["tokens_per_second"] > 0 for log in logs)
    assert ours.clock.seconds > 0


def test_model_flops_and_the_speed_of_a_device_are_counted(tmp_path: Path) -> None:
    ours = trainer(tmp_path, num_train_epochs=1)
    taken = ModelFlops(PassFlops(position=10**9), PassFlops())
    of = shapes.dimensions(build_empty(ours.model.config), None)
    ours.batch_flops, ours.begun = BatchFlops(replace(of, flops=taken)), Begun(device_tflops=2.0)
    ours.train()
    # as many as tokens, in two steps
    assert (ours.flops, ours.clock.steps) == (21e9, 2)
    logs = [log for log in ours.state.log_history if "loss" in log]
    for log in logs:
        assert log["tflops_per_device"] == pytest.approx(log["tokens_per_second_per_device"] * 1e-3, rel=1e-3)
        assert log["mfu"] == pytest.approx(log["tflops_per_device"] / 2.0, rel=0.01, abs=1e-5)
    (leg,) = ours.legs()
    # the second step alone
    assert leg.warm.flops == leg.warm.tokens * 1e9 and 0 < leg.warm.tokens < 21
    assert 0 < leg.warm.seconds < ours.clock.seconds


@pytest.mark.slow
def test_batch_times_accumulation_gives_the_same_weights(tmp_path: Path) -> None:
    """Tokens are averaged over the whole update, so how it is cut into batches does not matter."""
    # plain gradients: Adam would blow the rounding of a gradient near zero up to a whole step
    plain = {"optim": "sgd", "learning_rate": 0.1}
    whole = trainer(tmp_path / "a", per_device_train_batch_size=4, gradient_accumulation_steps=1, **plain)
    parts = trainer(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4, **plain)
    whole.train()
    parts.train()
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_no_model_card_is_written_into_the_run_folder(tmp_path: Path) -> None:
    ours = trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    ours.train()
    assert (tmp_path / "checkpoint-1").is_dir()
    assert not list(tmp_path.rglob("README.md"))


@pytest.mark.parametrize("trained", [6, 7])
def test_the_loss_of_an_evaluation_is_the_mean_over_tokens(tmp_path: Path, trained: int) -> None:
    """A row's loss weighs as many tokens as are predicted: a label on the first of 7 tokens counts for nothing."""
    uneven = [
        {"input_ids": ids, "labels": [-100] * (len(ids) - wide) + ids[-wide:]}
        for ids, wide in zip(IDS, (trained, 1, 1, 1), strict=True)
    ]
    ours = trainer(tmp_path, per_device_eval_batch_size=1)
    rows = Dataset.from_list(uneven)
    whole = ours.evaluate(rows)["eval_loss"]
    each = [ours.evaluate(rows.select([i]))["eval_loss"] for i in range(4)]
    assert whole == pytest.approx((6 * each[0] + each[1] + each[2] + each[3]) / 9, rel=1e-5)
    assert whole != pytest.approx(sum(each) / 4, rel=1e-3)


@pytest.mark.slow
def test_a_run_that_is_resumed_from_its_last_checkpoint_takes_no_further_step(tmp_path: Path) -> None:
    """As after a kill; an epoch has 2 steps, so that the checkpoint is in the middle of one."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    first = trainer(tmp_path, **settings)
    first.train()
    again = trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert (again.state.global_step, again.clock.steps) == (3, 0)
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_one_notice_among_all_processes_saves_a_checkpoint_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preemption, "given", lambda: True)
    noticed = trainer(tmp_path, max_steps=3)
    noticed.train()
    assert noticed.stops
    assert noticed.state.global_step == 1
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()


def test_without_a_notice_a_run_takes_all_its_steps(tmp_path: Path) -> None:
    ours = trainer(tmp_path, max_steps=3)
    ours.train()
    assert not ours.stops
    assert ours.state.global_step == 3
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_change(tmp_path: Path) -> None:
    ours = trainer(tmp_path, logging_nan_inf_filter=False)
    with torch.no_grad():
        next(ours.model.parameters()).fill_(float("nan"))
    with pytest.raises(
        UserError, match=r"step 1 \(training rows 2, 3\): loss is nan; lower training.learning_rate \(now 0.001\)$"
    ):
        ours.train()
