# SPDX-License-Identifier: Apache-2.0
"""The losses of held-out rows that Trainer's evaluation keeps are those of a pass of their own, without that pass."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig

from fmstune.config import freeze
from fmstune.config.job import Evaluation
from fmstune.evaluation.held_out import row_likelihoods
from fmstune.runs.looks import RowLosses
from fmstune.training.objectives.held_out_losses import HeldOutLosses, name_by_place
from fmstune.training.objectives.sft import Sft
from tests.config.test_freeze import tree
from tests.training.objectives.test_loss_recorder import LABELS
from tests.training.test_trainer import IDS, trainer

FIRST = Dataset.from_list([{"input_ids": ids, "labels": own} for ids, own in zip(IDS, LABELS, strict=True)])
OTHER = FIRST.select([2, 0, 1])
"""A second set, with rows of the first."""
SHAPES: dict[str, dict[str, Any]] = {
    "padded": {},
    "one at a time": {"per_device_eval_batch_size": 1},
    "grouped by length": {"train_sampling_strategy": "group_by_length", "per_device_eval_batch_size": 2},
    "packed": {"eval_packing": True, "max_length": 12},
    "lora": {"peft": LoraConfig(r=2, task_type="CAUSAL_LM")},
    "prompt tuning": {"peft": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")},
    "dft": {"loss_type": "dft"},
    "filled up": {"per_device_eval_batch_size": 3, "dataloader_drop_last": True},
}


def watched(folder: Path, *sets: Dataset, **changes: Any) -> Any:
    """A trainer that keeps the losses of these sets."""
    made = trainer(folder, eval_rows=[{"input_ids": [1, 2], "labels": [1, 2]}], **changes)
    prepared = [
        made._prepare_dataset(name_by_place(rows, number), None, made.args, bool(made.args.eval_packing))
        for number, rows in enumerate(sets)
    ]
    made.eval_dataset = prepared[0] if len(sets) == 1 else {str(number): one for number, one in enumerate(prepared)}
    made.evaluated = HeldOutLosses(sets)
    return made


def scored(made: Any, *sets: Dataset, max_rows: int | None = None) -> RowLosses:
    """The losses of these rows in a pass of their own."""
    how = Evaluation(max_rows=max_rows, batch_size=2)
    pad = made.processing_class.pad_token_id
    found = [one for rows in sets for one in row_likelihoods(made.model, rows, how, pad_token_id=pad)]
    return RowLosses([-one.log_likelihood for one in found], [one.tokens for one in found])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("shape", SHAPES)
def test_an_evaluation_keeps_the_losses_of_a_pass_of_their_own(tmp_path: Path, shape: str) -> None:
    made = watched(tmp_path, FIRST, **SHAPES[shape])
    made.evaluate()
    found, expected = made.evaluated.read(0, None), scored(made, FIRST)
    assert found.tokens == expected.tokens == [4, 2, 2, 3]
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)


def test_of_several_sets_the_first_rows_of_each_count(tmp_path: Path) -> None:
    made = watched(tmp_path, FIRST, OTHER)
    made.evaluate()
    found, expected = made.evaluated.read(0, 2), scored(made, FIRST, OTHER, max_rows=2)
    assert found.tokens == expected.tokens == [4, 2, 2, 4]
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)


def test_another_step_or_a_row_that_was_not_evaluated_gives_nothing(tmp_path: Path) -> None:
    made = watched(tmp_path, FIRST)
    made.eval_dataset = made.eval_dataset.select([0, 1, 2])
    assert made.evaluated.read(0, None) is None
    made.evaluate()
    assert made.evaluated.read(1, 3) is None
    assert made.evaluated.read(0, None) is None
    assert len(made.evaluated.read(0, 3).losses) == 3


def test_a_row_that_is_seen_again_counts_once(tmp_path: Path) -> None:
    made = watched(tmp_path, FIRST)
    made.eval_dataset = made.eval_dataset.select([0, 1, 2, 3, 0, 0])
    made.evaluate()
    found, expected = made.evaluated.read(0, None), scored(made, FIRST)
    assert found.tokens == expected.tokens
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)


def test_each_evaluation_begins_anew(tmp_path: Path) -> None:
    made = watched(tmp_path, FIRST, learning_rate=0.1, max_steps=1)
    made.evaluate()
    before = made.evaluated.read(0, None)
    made.train()
    made.evaluate()
    after = made.evaluated.read(1, None)
    assert after.losses == pytest.approx(scored(made, FIRST).losses, rel=1e-5)
    assert after.losses != pytest.approx(before.losses, rel=1e-3)


def test_rows_that_were_evaluated_are_not_scored_again(tmp_path: Path) -> None:
    objective = Sft(freeze.freeze(tree(sweep={"stop_losers": True, "points": 2})).job)
    made = watched(tmp_path, FIRST)
    passes: list[None] = []
    made.model.register_forward_hook(lambda *_: passes.append(None))
    made.evaluate()
    own = len(passes)
    found = objective.row_losses(made, {"": FIRST})
    assert len(passes) == own == 1
    made.state.global_step = 1
    assert objective.row_losses(made, {"": FIRST}).losses == pytest.approx(found.losses, rel=1e-5)
    assert len(passes) == own + 1


def test_only_a_sweep_that_stops_losers_names_held_out_rows() -> None:
    plain, stops = (Sft(freeze.freeze(tree(sweep=how)).job) for how in ({}, {"stop_losers": True, "points": 2}))
    assert plain.held_out_rows(FIRST, 1).column_names == ["input_ids", "labels"]
    named = stops.held_out_rows(FIRST.add_column("number", [7, 8, 9, 10]), 1)
    assert (named["source"][:], named["number"][:]) == ([1, 1, 1, 1], [1, 2, 3, 4])
