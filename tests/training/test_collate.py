"""Packing loses nothing and mixes nothing: documents, labels, losses and gradients are those of the rows alone."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fmstune.errors import UserError
from fmstune.training import collate
from fmstune.training.collate import DOCUMENTS, Collator, LengthGrouped, PrefixGrouped, SharingCollator
from tests import small
from tests.training.test_trainer import IDS, ROWS, trainer

Row = dict[str, list[int]]
PAD = 1


def rows(lengths: Sequence[int], seed: int = 0) -> list[Row]:
    """Rows of random tokens, of which about a third is trained, the last one always."""
    draw = random.Random(seed)
    ids = [[draw.randrange(2, 300) for _ in range(length)] for length in lengths]
    return [{"input_ids": i, "labels": [-100 if draw.random() < 0.6 else x for x in i[:-1]] + i[-1:]} for i in ids]


def documents(packed: Dataset) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The documents of packed rows with their labels, as a multiset."""
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for row in packed:
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            end = start + length
            found[tuple(row["input_ids"][start:end]), tuple(row["labels"][start:end])] += 1
            start = end
        assert start == len(row["input_ids"]) == len(row["labels"])
    return found


# what is packed


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=60), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_every_document_comes_out_whole_and_once_with_its_labels(lengths: list[int], seed: int) -> None:
    given_rows = Dataset.from_list(rows(lengths, seed))
    packed = collate.pack(given_rows, 40)
    assert documents(packed) == documents(given_rows)
    assert max(collate.lengths(packed)) <= 40


def test_a_document_that_would_be_cut_is_an_error() -> None:
    with pytest.raises(UserError, match=r"2 documents of 15 tokens went in and 2 of 13 came out; the longest has 12"):
        collate.pack(Dataset.from_list(rows([3, 12])), 10)


def test_a_document_without_a_token_would_be_lost_and_is_an_error() -> None:
    with pytest.raises(UserError, match=r"2 documents of 3 tokens went in and 1 of 3 came out"):
        collate.pack(Dataset.from_list([*rows([3]), {"input_ids": [], "labels": []}]), 10)


def test_more_than_a_thousand_rows_are_packed_together() -> None:
    """TRL alone would leave a row of each thousand half full."""
    lengths = [10] * 1003 * 3
    packed = collate.pack(Dataset.from_list(rows(lengths)), 100)
    assert len(packed) == -(-len(lengths) // 10)


def test_lengths_are_those_of_the_rows_in_their_order() -> None:
    made = Dataset.from_list(rows([5, 2, 9, 4]))
    assert collate.lengths(made).tolist() == [5, 2, 9, 4]
    assert collate.lengths(made.select([2, 0])).tolist() == [9, 5]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shuffles", [False, True])
@pytest.mark.parametrize("packs", ["packing", "eval_packing", "neither"])
def test_the_trainer_gets_every_row(tmp_path: Path, packs: str, shuffles: bool) -> None:
    """SFTTrainer's own preparation drops a row without labels where `eval_packing` alone asks for a length."""
    settings = {} if packs == "neither" else {packs: True, "max_length": 8}
    masked = {"input_ids": [1, 2, 3], "labels": [-100] * 3}
    made = trainer(
        tmp_path, rows=[*ROWS, masked], eval_rows=ROWS, shuffle_dataset=shuffles, eval_strategy="epoch", **settings
    )
    assert documents(made.train_dataset) == documents(Dataset.from_list([*ROWS, masked]))
    assert documents(made.eval_dataset) == documents(Dataset.from_list(ROWS))
    assert ("seq_lengths" in made.train_dataset.column_names) == (packs == "packing")
    assert ("seq_lengths" in made.eval_dataset.column_names) == (packs != "neither")


# batches


def test_packed_rows_stay_rows_whose_positions_begin_again_with_each_document() -> None:
    examples = [
        {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "seq_lengths": [2, 2]},
        {"input_ids": [9, 9, 9], "labels": [-100, 9, 9], "seq_lengths": [3]},
    ]
    batch = Collator(pad_token_id=PAD)(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 9, 9, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8], [-100, 9, 9, -100]]
    assert batch["padding"] == 1
    assert "attention_mask" not in batch


@pytest.mark.parametrize(("multiple", "width", "padding"), [(None, 7, 0), (8, 8, 1)])
def test_for_kernels_that_read_ends_rows_are_laid_end_to_end_as_trl_does(
    multiple: int | None, width: int, padding: int
) -> None:
    examples = [{**row, "seq_lengths": [2, len(row["input_ids"]) - 2]} for row in rows([4, 3])]
    theirs = DataCollatorForLanguageModeling(PAD, padding_free=True, pad_to_multiple_of=multiple)(examples)
    ours = Collator(PAD, flat=True, pad_to_multiple_of=multiple)(examples)
    assert ours.pop("padding") == padding
    assert ours["input_ids"].shape == (1, width)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key])), key


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("multiple", "more"), [(None, []), (8, [1])])
def test_a_line_of_segments_says_where_documents_begin(packed: bool, multiple: int | None, more: list[int]) -> None:
    examples: list[dict[str, Any]] = [*rows([4, 3])]
    if packed:
        examples = [{**row, "seq_lengths": lengths} for row, lengths in zip(examples, ([1, 3], [3]), strict=True)]
    collator = Collator(PAD, flat=True, segments=True, padding_free=True, pad_to_multiple_of=multiple)
    batch = collator(examples)
    lengths = [*([1, 3, 3] if packed else [3, 4]), *more]
    assert batch["input_ids"][0, : lengths[0]].tolist() == examples[0 if packed else 1]["input_ids"][: lengths[0]]
    assert batch["cu_seq_lens_q"].tolist() == [0, *np.cumsum(lengths)]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["cu_seq_lens_k"] is batch["cu_seq_lens_q"]
    assert (batch["max_length_q"], batch["max_length_k"]) == (max(lengths), max(lengths))
    assert batch["position_ids"].tolist() == [[place for length in lengths for place in range(length)]]
    assert "cu_seq_lens_q" not in Collator(PAD, segments=True)(rows([4, 3]))


def test_rows_that_are_not_packed_are_padded_with_a_mask() -> None:
    batch = Collator(PAD)(rows([4, 2]))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert "padding" not in batch


def test_a_row_is_as_wide_as_a_multiple_that_is_asked_for() -> None:
    batch = Collator(PAD, pad_to_multiple_of=8)([{**rows([5])[0], "seq_lengths": [2, 3]}])
    assert batch["input_ids"].shape == (1, 8)
    assert batch["padding"] == 3


# documents do not see each other


def losses(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The summed loss of the trained tokens."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "padding")}
    logits = model(**inputs, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def gradients(model: torch.nn.Module, batches: Sequence[dict[str, Any]]) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of batches together."""
    model.zero_grad()
    total = sum(losses(model, batch) for batch in batches)
    assert isinstance(total, torch.Tensor)
    total.backward()
    return total.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("architecture", [small.LLAMA, small.BIGCODE], ids=["llama", "gpt_bigcode"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("flat", [False, True], ids=["rows", "flat"])
def test_losses_and_gradients_of_packed_documents_are_those_of_the_documents_alone(
    architecture: dict[str, Any], attention: str, method: str, flat: bool
) -> None:
    model = small.model(architecture, attention=attention)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights="gaussian"))
    given_rows = rows([9, 14, 5, 20, 3, 8, 11])
    packed = collate.pack(Dataset.from_list(given_rows), 24)
    assert len(packed) == 3
    # segments lie on one line, which a multiple may fill up
    segments = {"flat": True, "segments": True, "pad_to_multiple_of": 1 if flat else 32}
    batch = Collator(PAD, **(segments if attention == "varlen" else {"flat": flat}))(list(packed))
    alone = [{key: torch.tensor([value]) for key, value in row.items()} for row in given_rows]

    expected_loss, expected = gradients(model, alone)
    loss, found = gradients(model, [batch])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    # and the comparison can fail: without positions nothing tells the documents apart
    joined = {key: batch[key] for key in ("input_ids", "labels")}
    loss, found = gradients(model, [joined])
    assert loss != pytest.approx(expected_loss, rel=1e-4)
    assert any(not torch.allclose(one, other, rtol=1e-2) for one, other in zip(found, expected, strict=True))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("packs", [{"packing": True}, {"packing": False, "eval_packing": True}])
def test_the_loss_of_an_evaluation_does_not_depend_on_packing(tmp_path: Path, packs: dict[str, bool]) -> None:
    """With `eval_packing` alone, TRL's own batches have a mask of ones, and packed rows see each other."""
    plain = trainer(tmp_path / "a").evaluate(Dataset.from_list(ROWS))["eval_loss"]
    packed = trainer(tmp_path / "b", max_length=16, **packs).evaluate(Dataset.from_list(ROWS))["eval_loss"]
    assert packed == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"padding_free": True}, {"packing": False, "eval_packing": True, "max_length": 8}]
)
def test_a_last_batch_that_is_left_out_of_training_is_evaluated(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The same rows fill up the last batches of several processes: tests/end_to_end/test_fsdp.py."""
    held_out = Dataset.from_list(ROWS)
    whole = trainer(tmp_path / "a", per_device_eval_batch_size=3, **settings).evaluate(held_out)
    left = trainer(tmp_path / "b", per_device_eval_batch_size=3, dataloader_drop_last=True, **settings).evaluate(
        held_out
    )
    for name in ("eval_loss", "eval_mean_token_accuracy", "eval_entropy"):
        assert left[name] == pytest.approx(whole[name], rel=1e-5), name


def test_rows_that_fill_up_a_batch_have_nothing_to_learn() -> None:
    named = Dataset.from_list([{**row, "source": 0, "number": number} for number, row in enumerate(rows([9, 1, 5]), 1)])
    packed = collate.pack(named, 10)
    for given_rows in (named, packed):
        args = TrainingArguments("unused", per_device_eval_batch_size=4, dataloader_drop_last=True)
        filled = collate.fill_up(given_rows, args)
        assert len(filled) == 4 and filled.features == given_rows.features
        assert filled.select(range(len(given_rows))).to_list() == given_rows.to_list()
        added = filled.select(range(len(given_rows), 4)).to_list()
        assert {label for row in added for label in row["labels"]} == {-100}
        batch = Collator(PAD)(list(filled))
        trained = sum(label != -100 for row in named for label in row["labels"][1:])
        assert int((batch["labels"][:, 1:] != -100).sum()) == trained
        assert collate.fill_up(filled, args) is filled
    assert collate.fill_up(named, TrainingArguments("unused", per_device_eval_batch_size=4)) is named


@pytest.mark.sampled(2)
@pytest.mark.parametrize("settings", [{"packing": True, "max_length": 16}, {"padding_free": True}])
def test_an_update_is_that_of_padded_rows(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = {"per_device_train_batch_size": 4, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}
    padded, packed = trainer(tmp_path / "a", **plain), trainer(tmp_path / "b", **plain, **settings)
    padded.train()
    packed.train()
    for one, other in zip(padded.model.parameters(), packed.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_positions_and_tokens_of_packed_batches_are_counted(tmp_path: Path) -> None:
    made = trainer(tmp_path, packing=True, max_length=8, per_device_train_batch_size=4, num_train_epochs=1)
    made.train()
    assert made.tokens == sum(map(len, IDS)) == 21
    # 7; 5; 4 + 4
    assert made.positions == 3 * 8
    assert made.state.log_history[0]["num_tokens"] == 21


# padding


def alpaca_like(count: int) -> list[int]:
    """Lengths like those of alpaca's rows: most near 90 tokens, some near a thousand."""
    draw = np.random.default_rng(0)
    return np.clip(draw.lognormal(4.5, 0.55, count), 20, 1500).astype(int).tolist()


def share_of_tokens(batches: Sequence[dict[str, Any]], tokens: int) -> float:
    return tokens / sum(batch["input_ids"].numel() for batch in batches)


@pytest.mark.slow
def test_packing_rows_like_alpacas_leaves_less_than_two_percent_of_padding() -> None:
    lengths = alpaca_like(5000)
    made = Dataset.from_list([{"input_ids": [5] * n, "labels": [5] * n} for n in lengths])
    packed = list(collate.pack(made, 2048).shuffle(seed=0))
    batches = [Collator(PAD)(packed[i : i + 4]) for i in range(0, len(packed), 4)]
    assert share_of_tokens(batches, sum(lengths)) >= 0.98
    padded = [Collator(PAD)([{"input_ids": [5] * n} for n in lengths[i : i + 4]]) for i in range(0, len(lengths), 4)]
    assert share_of_tokens(padded, sum(lengths)) < 0.75


def test_rows_of_like_length_together_pad_less() -> None:
    lengths = alpaca_like(2000)
    order = list(LengthGrouped(lengths, 16, seed=1))
    assert sorted(order) == list(range(2000))

    def positions(order: Sequence[int]) -> int:
        return sum(4 * max(lengths[i] for i in order[start : start + 4]) for start in range(0, 2000, 4))

    assert sum(lengths) / positions(order) > 0.9
    assert sum(lengths) / positions(range(2000)) < 0.75


def test_the_order_is_that_of_seed_and_epoch_whatever_was_drawn_before() -> None:
    lengths = alpaca_like(100)
    one, other = LengthGrouped(lengths, 4, seed=1), LengthGrouped(lengths, 4, seed=1)
    first = list(one)
    torch.rand(3)
    assert list(one) == first
    one.set_epoch(1)
    second = list(one)
    assert second != first
    other.set_epoch(1)
    assert list(other) == second
    assert list(LengthGrouped(lengths, 4, seed=2)) != first


# what shares its beginning


def test_rows_that_share_are_one_line_with_the_labels_of_all_rows() -> None:
    batch = SharingCollator(least_saved=1)(
        [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5, 6], "labels": [5, 6]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2]]
    # after one that none predicts, which Trainer leaves out of its count
    assert batch["labels"].tolist() == [[-100, 6, 7, 6]]
    assert batch["targets"].tolist() == [0, 1, 0]
    assert batch["padding"] == -2
    assert (batch["max_length_q"], batch["max_length_k"]) == (2, 3)


def test_documents_of_packs_that_share_are_the_line_of_the_same_rows() -> None:
    documents = [{"input_ids": [*range(30), own], "labels": [-100] * 30 + [own]} for own in (41, 42, 43, 44)]
    packs = [
        {name: one[name] + other[name] for name in one} | {DOCUMENTS: [31, 31]}
        for one, other in (documents[:2], documents[2:])
    ]
    alone, packed = SharingCollator()(documents), SharingCollator()(packs)
    assert packed.keys() == alone.keys()
    assert all(torch.equal(torch.as_tensor(packed[name]), torch.as_tensor(alone[name])) for name in alone)
    assert packed["input_ids"].numel() == 29 + 4 * 2


def test_the_sampler_of_shared_beginnings_has_an_order_for_each_epoch_and_the_same_one_again() -> None:
    given_rows = Dataset.from_list(rows([20] * 40))
    one, other = (PrefixGrouped(given_rows, 4, seed=1) for _ in range(2))
    first = list(one)
    assert sorted(first) == list(range(40)) and len(one) == 40
    one.set_epoch(1)
    assert list(one) != first
    other.set_epoch(1)
    assert list(one) == list(other)
    assert list(PrefixGrouped(given_rows, 4, seed=2)) != first


def test_rows_that_share_nothing_are_segments_without_keys_elsewhere() -> None:
    given_rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    batch = SharingCollator()(given_rows)
    assert "key_index" not in batch
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 2, 5]
    with_one_more = [*given_rows, {"input_ids": [8, 9, 4], "labels": [8, 9, 4]}]
    assert "key_index" in SharingCollator(least_saved=1)(with_one_more)
    # two tokens in common by chance are not worth keys elsewhere
    assert "key_index" not in SharingCollator()(with_one_more)
