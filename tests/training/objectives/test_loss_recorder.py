"""The losses that are kept by row are those of the rows alone, however rows share a batch."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig

from fmstune.data.prefix_sharing.packs import pack_shared
from fmstune.runs.row_losses import ENTRY, STATE, Entries
from fmstune.training.collate import Whose
from fmstune.training.objectives.loss_recorder import LossRecorder
from tests.training.test_trainer import IDS, trainer

LABELS = [[-100, -100, -100, 7, 8, 9, 2], [-100, -100, 16, 2], [-100] * 4 + [28, 2], [1, 3, 4, 2]]
SOURCES = [0, 0, 1, 1]
NUMBERS = [1, 2, 1, 9]
ROWS = [
    {"input_ids": ids, "labels": labels, "source": source, "number": number}
    for ids, labels, source, number in zip(IDS, LABELS, SOURCES, NUMBERS, strict=True)
]
STILL = {"learning_rate": 1e-12, "num_train_epochs": 1}
"""A rate at which the model stays as it is."""


def alone(model: Any, *, first_predicted: bool = False) -> dict[tuple[int, int], tuple[int, int, float]]:
    """Trained tokens, those that are the first choice, and the loss of each row, by itself in the model."""
    found = {}
    model.eval()
    for row in ROWS:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        before = logits.shape[0] - len(labels)
        logits, labels = (logits[before - 1 : -1], labels) if first_predicted else (logits[before:-1], labels[1:])
        trained = labels != -100
        scores = logits[trained].log_softmax(-1)
        loss = -scores.gather(1, labels[trained][:, None]).sum().item()
        correct = int((scores.argmax(1) == labels[trained]).sum())
        found[row["source"], row["number"]] = (int(trained.sum()), correct, loss)
    return found


def recorded(entries: Entries) -> dict[tuple[int, int], tuple[int, int, float]]:
    return {(int(e["source"]), int(e["number"])): (int(e["tokens"]), int(e["correct"]), e["loss"]) for e in entries}


PACKED = {"packing": True, "max_length": 12}
SHAPES: dict[str, dict[str, Any]] = {
    "padded": {},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
    "packed": PACKED,
    "packed on one line": {**PACKED, "flat": True},
    "padding_free": {"padding_free": True, "flat": True},
    "varlen": {"padding_free": True, "attention": "varlen"},
    "packed varlen": {**PACKED, "attention": "varlen"},
    "sharing": {"attention": "varlen", "shares": True},
    "packed and sharing": {"attention": "varlen", "shares": True, "pack_shared": True},
    "lora": {"peft": LoraConfig(r=2, task_type="CAUSAL_LM")},
    "prompt tuning": {"peft": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")},
    "smoothed labels": {"label_smoothing_factor": 0.1},
    "dft": {"loss_type": "dft"},
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_has_the_loss_that_it_has_alone(tmp_path: Path, shape: str) -> None:
    settings = dict(SHAPES[shape])
    shares, flat = settings.pop("shares", False), settings.pop("flat", False)
    packs, attention = settings.pop("pack_shared", False), settings.pop("attention", None)
    rows = pack_shared(Dataset.from_list(ROWS), 12, seed=0).to_list() if packs else ROWS
    made = trainer(tmp_path, rows=rows, **{**STILL, **settings})
    made.losses = LossRecorder(["one", "other"])
    base = made.model
    if attention:
        base.set_attn_implementation(attention)
        made.data_collator.segments = True
    made.data_collator.flat = flat
    if shares:
        made.share_prefixes()
    if flat:
        # sdpa finds documents by their positions
        made.look_at_batch = lambda *args: None
    made.train()
    if attention:
        base.set_attn_implementation("sdpa")
    expected = alone(base, first_predicted=shape == "prompt tuning")
    found = recorded(made.losses.entries)
    assert found.keys() == expected.keys()
    for row, (tokens, correct, loss) in expected.items():
        assert found[row][:2] == (tokens, correct)
        assert found[row][2] == pytest.approx(loss, abs=1e-4)
    assert Counter(made.losses.entries["epoch"]) == {0: 4}


def test_each_epoch_has_its_own_losses_and_the_first_step_that_trained_the_row(tmp_path: Path) -> None:
    made = trainer(tmp_path, rows=ROWS, num_train_epochs=3, learning_rate=1e-2, max_steps=5, logging_steps=2)
    made.losses = LossRecorder(["one", "other"])
    made.train()
    entries = made.losses.entries
    assert Counter(entries["epoch"]) == {0: 4, 1: 4, 2: 2}
    assert Counter(entries["step"]) == {1: 2, 2: 2, 3: 2, 4: 2, 5: 2}
    logged = [line for line in made.state.log_history if "loss" in line]
    assert {"loss_one", "loss_other"} <= set().union(*logged)


def test_a_row_without_identity_is_not_kept(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=1)
    made.losses = LossRecorder([""])
    made.train()
    assert not len(made.losses.entries)


def outputs(losses: list[list[float]]) -> SimpleNamespace:
    """What TRL's head returns of labels that are all trained."""
    log_probs = -torch.tensor(losses)
    return SimpleNamespace(
        log_probs=log_probs, label_mask=torch.ones_like(log_probs).bool(), is_top1=torch.zeros_like(log_probs).bool()
    )


def seen(recorder: LossRecorder, rows: list[list[int]], loss: float, epoch: int = 0, step: int = 1) -> None:
    """Let the recorder see a batch of rows with one trained token each."""
    whose = Whose(torch.arange(len(rows))[:, None].expand(-1, 2), torch.tensor(rows))
    recorder.watch(lambda **given: outputs([[loss]] * len(rows)), whose, epoch, step)(fused_lm_head=True)


def test_the_loss_by_source_is_a_mean_over_tokens_since_the_last_log() -> None:
    recorder = LossRecorder(["a", "b", "c"])
    seen(recorder, [[0, 1], [1, 1]], 2.0)
    seen(recorder, [[0, 2]], 4.0)
    assert recorder.losses_since_log(lambda sums: sums) == {"a": 3.0, "b": 2.0}
    seen(recorder, [[1, 1]], 8.0)
    assert recorder.losses_since_log(lambda sums: sums) == {"b": 8.0}


def test_a_resumed_recorder_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    whole, killed, resumed = (LossRecorder(["a", "b"]) for _ in range(3))
    for recorder in (whole, killed):
        seen(recorder, [[0, 1], [1, 1]], 2.0)
        recorder.collect()
    killed.save(tmp_path)
    seen(killed, [[0, 1]], 99.0, step=2)
    assert resumed.resume(tmp_path, is_main=True)
    for recorder in (whole, resumed):
        seen(recorder, [[0, 1]], 4.0, step=2)
        recorder.collect()
    assert np.array_equal(whole.entries, resumed.entries)
    assert whole.losses_since_log(lambda sums: sums) == resumed.losses_since_log(lambda sums: sums) == {"a": 3, "b": 2}


def test_another_process_takes_over_nothing_and_a_checkpoint_without_losses_says_so(tmp_path: Path) -> None:
    recorder = LossRecorder(["a"])
    assert not recorder.resume(tmp_path, is_main=True)
    seen(recorder, [[0, 1]], 2.0)
    recorder.collect()
    recorder.save(tmp_path)
    other = LossRecorder(["a"])
    assert other.resume(tmp_path, is_main=False)
    assert not len(other.entries)


def test_rows_are_known_by_the_name_of_their_source_where_a_job_resumes_on_others(tmp_path: Path) -> None:
    recorder, other = LossRecorder(["a", "gone"]), LossRecorder(["new", "a"])
    seen(recorder, [[0, 5], [1, 6]], 2.0)
    recorder.collect()
    recorder.save(tmp_path)
    assert (tmp_path / STATE).is_file()
    other.resume(tmp_path, is_main=True)
    expected = np.array([(1, 5, 0, 1, 1, 0, 2.0)], ENTRY)
    assert np.array_equal(other.entries, expected)
    assert other.losses_since_log(lambda sums: sums) == {"a": 2.0}
