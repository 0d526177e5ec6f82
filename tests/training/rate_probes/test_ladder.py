# SPDX-License-Identifier: Apache-2.0
"""Rates are probed around the usual one until the best lies between two others; a parabola says where."""

import math
from collections.abc import Callable

import pytest

from fmstune.errors import UserError
from fmstune.training.rate_probes.ladder import Ladder, best_rate, choose, next_rate, plan_ladder

Losses = dict[float, list[float] | None]

WHOLE = Ladder(total=20, coarse=5, fine=20, most=25)
"""Of probes as long as the run: their rates are not moved, and the held-out rows alone make the interval."""


def valley(lowest: float, rows: int = 8) -> Callable[[float], list[float]]:
    """Losses of rows that are lowest at this rate, each row at a slightly other one."""
    return lambda rate: [math.exp(math.log(rate / (lowest * 1.02 ** (row - rows / 2))) ** 2 / 8) for row in range(rows)]


def walk(loss: Callable[[float], list[float] | None], middle: float, *, more: int = 9) -> Losses:
    """All probes of one row of rates, in the order in which they are made."""
    found: Losses = {}
    while (rate := next_rate(found, middle, 2.0, 1, more=len(found) < 3 + more)) is not None:
        found[rate] = loss(rate)
    return found


def test_the_row_goes_on_where_the_best_is_at_its_end_and_stops_when_it_lies_between_two_others() -> None:
    assert list(walk(valley(1.0), 1.0)) == [1.0, 0.5, 2.0]
    assert list(walk(valley(7.0), 1.0)) == [1.0, 0.5, 2.0, 4.0, 8.0, 16.0]
    assert list(walk(valley(0.1), 1.0)) == [1.0, 0.5, 2.0, 0.25, 0.125, 0.0625]
    assert list(walk(valley(7.0), 1.0, more=1)) == [1.0, 0.5, 2.0, 4.0]


def test_the_best_rate_is_the_lowest_point_of_a_parabola_between_the_rates() -> None:
    assert best_rate(walk(valley(1.3), 1.0)) == pytest.approx(1.3, rel=0.05)
    chosen = choose(WHOLE, walk(valley(1.3), 1.0))
    assert 1.0 < chosen.low < 1.3 < chosen.high < 1.6


def test_a_training_that_broke_bounds_the_rates_from_above() -> None:
    found = walk(lambda rate: None if rate > 1.5 else valley(1.5)(rate), 1.0)
    assert list(found) == [1.0, 0.5, 2.0] and found[2.0] is None
    assert 0.7 < best_rate(found) < 1.0
    chosen = choose(WHOLE, found)
    assert chosen.low <= chosen.rate == best_rate(found) <= chosen.high < 2.0


def test_beside_the_last_rate_the_interval_reaches_as_far_as_the_next_would_have_been() -> None:
    found = walk(valley(50.0), 1.0, more=1)
    assert best_rate(found) == 4.0
    assert choose(WHOLE, found) == (4.0, 4.0, 8.0)


def test_the_rate_falls_with_the_root_of_the_steps_and_the_interval_reaches_from_no_power_to_one() -> None:
    found, run = walk(valley(1.0), 1.0), plan_ladder(100)
    probed, chosen = choose(WHOLE, found), choose(run, found)
    assert chosen.rate == pytest.approx(probed.rate / math.sqrt(5))
    assert chosen.low == pytest.approx(probed.rate / 5, rel=0.1)
    assert chosen.high == pytest.approx(probed.rate, rel=0.1)


def test_where_each_training_broke_a_lower_rate_is_asked_for() -> None:
    with pytest.raises(UserError, match="training broke at each rate from 0.25 on"):
        best_rate({1.0: None, 0.5: None, 0.25: None})


@pytest.mark.parametrize(
    ("total", "coarse", "fine", "most"), [(40, 3, 8, 50), (100, 5, 20, 125), (3000, 150, 600, 3750)]
)
def test_the_probes_and_the_run_take_a_quarter_of_nine_runs_at_most(
    total: int, coarse: int, fine: int, most: int
) -> None:
    ladder = plan_ladder(total)
    assert (ladder.coarse, ladder.fine, ladder.most) == (coarse, fine, most)
    short: Losses = {}
    while (rate := ladder.next_coarse(short, 1e-3)) is not None:
        short[rate] = [rate, rate]
    long: Losses = {}
    while (rate := ladder.next_fine(short, long)) is not None:
        long[rate] = [rate, rate]
    assert len(short) >= 5 and len(long) >= 3
    assert len(short) * coarse + len(long) * fine + total <= 9 * total / 4


def test_the_longer_probes_begin_lower_than_the_best_short_one() -> None:
    ladder = plan_ladder(400)
    short = {rate: valley(1.0)(rate) for rate in (0.1, 1.0, 10.0)}
    first = ladder.next_fine(short, {})
    assert first == pytest.approx(0.5, rel=0.05)


def test_a_short_run_is_refused() -> None:
    with pytest.raises(UserError, match="a run of 39 steps is too short for probes, which need 40; give a number"):
        plan_ladder(39)
