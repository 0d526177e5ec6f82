"""What sharing saves is a share of the positions, and a sentence."""

import pytest

from fmstune.data.prefix_sharing.saved_positions import ENOUGH, LITTLE, LargestBatch, Savings


def savings(shared: int, packs: int | None = None) -> Savings:
    return Savings(4, 10, tokens=1000, padded=1200, shared=shared, largest=LargestBatch(10, 10, 1), packs=packs)


@pytest.mark.parametrize(("shared", "share"), [(1000, 0.0), (900, 0.1), (250, 0.75)])
def test_the_share_is_of_the_positions_that_the_tokens_take_alone(shared: int, share: float) -> None:
    assert savings(shared).share == share


def test_rows_that_share_enough_share_more_than_a_little() -> None:
    assert savings(900).share >= ENOUGH > LITTLE
    assert savings(901).share < ENOUGH


def test_the_sentence_says_where_sharing_is_not_worth_it() -> None:
    assert savings(700).line().endswith("in batches of 4 (30.0% saved; 1,200 positions padded)")
    assert savings(990).line().endswith("data.prefix_sharing=false or training.packing=true is as fast")
    assert (
        savings(990, packs=1)
        .line()
        .endswith("in 1 pack (1.0% saved); rows share too little: data.prefix_sharing=false is as fast")
    )


def test_rows_without_a_token_share_nothing() -> None:
    assert Savings(1, 0, tokens=0, padded=0, shared=0, largest=LargestBatch(0, 0, 0)).share == 0
