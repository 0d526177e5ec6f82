"""What a batch takes: positions without padding, pairs within each document, and what rows share once."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fmstune.checks.plan_inputs import ModelFlops, PassFlops, pairs_of_row
from fmstune.models.flop_count.batch import BatchFlops
from fmstune.training import collate
from tests.checks.test_memory_plan import LLAMA_7B

ROWS = [{"input_ids": list(range(5, 5 + n)), "labels": [-100] * (n - 2) + [1, 2]} for n in (3, 7, 4)]
SHARED = [{"input_ids": [1, 2, 3, own, own], "labels": [-100] * 4 + [own]} for own in (8, 9)]
POSITIONS, SCORED, PAIRS = 10**12, 10**6, 1


def flops(batch: dict[str, Any], *, virtual: int = 0, prefix: int = 0, window: int | None = None) -> str:
    """Positions, those that are scored, and pairs, as the digits of one number."""
    taken = ModelFlops(PassFlops(POSITIONS, SCORED, (PAIRS,)), PassFlops(0, 0, (0,)), (window,))
    of = replace(LLAMA_7B, virtual_tokens=virtual, prefix_tokens=prefix, flops=taken)
    found = f"{BatchFlops(of)({k: v for k, v in batch.items() if k != 'padding'}, batch.get('padding', 0)):.0f}"
    return f"{int(found[:-12])} {int(found[-12:-6])} {int(found[-6:])}"


def padded() -> dict[str, Any]:
    return dict(collate.Collator(pad_token_id=0)([dict(row) for row in ROWS]))


def packed(**how: bool) -> dict[str, Any]:
    """Two packs, one of them of two documents, and four positions of padding where they stay rows."""
    packs = [
        {"input_ids": [5] * 10, "labels": [-100, 1, 2] + [-100] * 5 + [1, 2], "seq_lengths": [3, 7]},
        {"input_ids": [5] * 4, "labels": [-100, -100, 1, 2], "seq_lengths": [4]},
    ]
    return dict(collate.Collator(pad_token_id=0, pad_to_multiple_of=14, **how)(packs))


# 3, 7 and 4 tokens: 6 + 28 + 10 pairs, and two trained tokens of each row
EVERY = "14 6 44"


@pytest.mark.parametrize(
    "batch",
    [padded, packed, lambda: packed(flat=True), lambda: packed(segments=True)],
    ids=["padded", "packed, in rows", "packed, flat", "packed, varlen"],
)
def test_padding_takes_nothing_and_documents_see_themselves_alone(batch: Any) -> None:
    assert flops(batch()) == EVERY


def test_a_beginning_that_rows_share_is_computed_once() -> None:
    # 1 2 3, then twice a branch of two tokens, which see the beginning: 6 + 2 * (4 + 5) pairs
    assert flops(collate.SharingCollator(least_saved=1)(SHARED)) == "7 2 24"


def test_virtual_tokens_are_positions_and_predict_the_first_token() -> None:
    rows = [{**row, "labels": row["input_ids"]} for row in ROWS]
    batch = dict(collate.Collator(pad_token_id=0)(rows))
    # rows of 5, 9 and 6 positions
    assert flops(batch, virtual=2) == "20 14 81"
    assert flops(batch) == "14 11 44"


def test_keys_of_prefix_tuning_are_seen_by_each_token() -> None:
    assert flops(padded(), virtual=2, prefix=2) == f"14 6 {44 + 2 * 14}"


@pytest.mark.parametrize("batch", [padded, packed], ids=["padded", "packed"])
def test_a_window_bounds_what_a_position_sees(batch: Any) -> None:
    assert flops(batch(), window=3) == f"14 6 {6 + 6 + 4 * 3 + 6 + 3}"


@pytest.mark.parametrize("labels", [{}, {"labels": torch.ones(2)}], ids=["none", "one a row"])
def test_rows_without_labels_of_tokens_are_scored_everywhere(labels: dict[str, Any]) -> None:
    assert flops({"input_ids": torch.ones(2, 3, dtype=torch.long), **labels}) == "6 6 12"


def test_a_frozen_copy_computes_a_forward_pass_more() -> None:
    one, two = (
        BatchFlops(replace(LLAMA_7B, flops=ModelFlops(PassFlops(2), PassFlops(3))), copies) for copies in (0, 1)
    )
    assert (one(padded(), 0), two(padded(), 0)) == (14 * 5, 14 * 7)


@pytest.mark.parametrize(("length", "window", "pairs"), [(5, None, 15), (5, 2, 9), (5, 9, 15), (0, None, 0)])
def test_each_position_of_a_row_sees_itself_and_those_before_it(length: int, window: int | None, pairs: int) -> None:
    assert pairs_of_row(length, window) == pairs == sum(min(place + 1, window or length) for place in range(length))
