"""How many rows of each source make an epoch, and which: by the weights, without loss, the same each time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.choices import StoppingStrategy
from fmstune.data.mixing import Share, chosen_rows, mixture_lines, mixture_shares
from fmstune.errors import UserError

ALL, FIRST = StoppingStrategy.all_exhausted, StoppingStrategy.first_exhausted


def taken(sizes: dict[str, int], weights: dict[str, float | None], stopping: StoppingStrategy = ALL) -> dict[str, int]:
    return {share.name: share.taken for share in mixture_shares(sizes, weights, stopping)}


def test_without_weights_every_row_comes_once() -> None:
    assert taken({"a": 5, "b": 3}, {"a": None, "b": None}) == {"a": 5, "b": 3}


@pytest.mark.parametrize(
    ("weights", "stopping", "expected"),
    [
        ({"a": 1.0, "b": 1.0}, ALL, {"a": 100, "b": 100}),
        ({"a": 1.0, "b": 1.0}, FIRST, {"a": 30, "b": 30}),
        ({"a": 3.0, "b": 1.0}, ALL, {"a": 100, "b": 33}),
        ({"a": 30.0, "b": 10.0}, ALL, {"a": 100, "b": 33}),
        ({"a": 1.0, "b": 3.0}, ALL, {"a": 100, "b": 300}),
        ({"a": 0.001, "b": 1.0}, FIRST, {"a": 1, "b": 30}),
    ],
)
def test_the_proportions_are_those_of_the_weights(
    weights: dict[str, float | None], stopping: StoppingStrategy, expected: dict[str, int]
) -> None:
    assert taken({"a": 100, "b": 30}, weights, stopping) == expected


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.5, 5), min_size=4, max_size=4),
)
def test_no_row_is_lost_or_repeated_where_that_is_promised(sizes: list[int], weights: list[float]) -> None:
    named = {str(n): size for n, size in enumerate(sizes)}
    weighed: dict[str, float | None] = {name: weights[int(name)] for name in named}
    for share in mixture_shares(named, weighed, ALL):
        numbers = chosen_rows(share, seed=1)
        assert len(numbers) == share.taken and set(numbers) == set(range(share.rows))
    for share in mixture_shares(named, weighed, FIRST):
        numbers = chosen_rows(share, seed=1)
        assert len(numbers) == len(set(numbers)) == share.taken <= share.rows


def test_the_rest_is_drawn_by_seed_and_source() -> None:
    share = Share("a", 10, 14, 1.0)
    assert chosen_rows(share, 1) == chosen_rows(share, 1)
    assert chosen_rows(share, 1) != chosen_rows(share, 2)
    assert chosen_rows(share, 1) != chosen_rows(share._replace(name="b"), 1)
    assert chosen_rows(share, 1)[:10] == list(range(10))


def test_a_weight_that_makes_an_epoch_of_copies_is_refused() -> None:
    with pytest.raises(UserError) as raised:
        taken({"a": 100_000, "b": 10}, {"a": 1.0, "b": 1.0})
    assert str(raised.value) == (
        "data.train.b: weight 1 takes each of its 10 rows 10,000 times an epoch; lower it, "
        "or set data.stopping_strategy=first_exhausted"
    )


def test_the_mixture_is_printed_with_its_shares() -> None:
    assert mixture_lines(mixture_shares({"a": 40, "bb": 11}, {"a": 3.0, "bb": 1.0}, ALL)) == [
        "        a   40 of 53 rows an epoch (75.5%), from 40 rows, weight 3",
        "        bb  13 of 53 rows an epoch (24.5%), from 11 rows, weight 1",
    ]
