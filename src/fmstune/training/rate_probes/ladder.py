"""Which rates are probed, for how many steps, and what the losses say of the best one (decision 0035)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fmstune.config.renamed_fields import USUAL_RATE
from fmstune.errors import UserError

Losses = Mapping[float, Sequence[float] | None]
"""The losses of the held-out rows at the end of each probe, by its rate; None where the training broke."""

LEAST_STEPS = 40
"""Steps of a run below which its probes would have too few to learn anything."""
_COARSE, _FINE, _MOST = 1 / 20, 1 / 5, 1.25
"""Steps of the probes, and of all of them together, as shares of the run's: with the run, a quarter of nine runs."""
_WIDE, _NARROW = math.sqrt(10), 2.0
"""From one rate of the coarse and of the fine probes to the next."""
_REACH, _AROUND = 2, 1
"""Coarse and fine probes on either side of the middle one."""
EXPONENT, EXPONENT_ERROR = 0.5, 0.3
"""How the best rate falls with the steps, and the standard deviation of that.

A half is the theory's (Schaipp and others, "The surprising agreement between convex optimization theory and
learning-rate scheduling for large model training", 2025). Sweeps measured 0.3 to 1.1 (decision 0035).
"""
_SAMPLES, _SURE = 2000, 0.9


class Chosen(NamedTuple):
    """The rate of the run, and the interval in which the best one lies."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Ladder:
    """The steps of probes: short ones find where the best rate lies, longer ones look closer."""

    total: int
    """Steps of the run."""
    coarse: int
    fine: int
    most: int
    """Steps of all probes together, at most."""

    def line(self) -> str:
        """What the probes take, before they start."""
        coarse, fine = f"{2 * _REACH + 1} probes of {self.coarse:,} steps", f"{2 * _AROUND + 1} of {self.fine:,}"
        share = self.most / self.total
        return (
            f"learning_rate=auto: at least {coarse} and {fine}; at most {self.most:,} steps, {share:.2f} of the run's"
        )

    def next_coarse(self, coarse: Losses, usual: float) -> float | None:
        """The next rate to probe for few steps; None where the best one lies between two others."""
        return next_rate(coarse, usual, _WIDE, _REACH, more=self._left(coarse, {}) >= self.coarse)

    def next_fine(self, coarse: Losses, fine: Losses) -> float | None:
        """The next rate to probe for more steps; None where the best one lies between two others."""
        middle = best_rate(coarse) * (self.coarse / self.fine) ** EXPONENT
        return next_rate(fine, middle, _NARROW, _AROUND, more=self._left(coarse, fine) >= self.fine)

    def _left(self, coarse: Losses, fine: Losses) -> int:
        """Steps that are left for further probes, once those are done that every ladder has."""
        own = max(len(coarse), 2 * _REACH + 1) * self.coarse + max(len(fine), 2 * _AROUND + 1) * self.fine
        return self.most - own


def plan_ladder(total: int) -> Ladder:
    """Return the ladder of a run with so many steps; raises UserError where these are too few to learn from."""
    if total < LEAST_STEPS:
        text = f"=auto: a run of {total:,} steps is too short for probes, which need {LEAST_STEPS}; give a number"
        raise UserError("training.learning_rate", text)
    return Ladder(total, max(round(total * _COARSE), 3), round(total * _FINE), math.floor(total * _MOST))


def next_rate(found: Losses, middle: float, spacing: float, reach: int, *, more: bool) -> float | None:
    """Return the next rate of a row around the middle, longer by one where the best is at its end and `more` may be."""
    steps = sorted(range(-reach, reach + 1), key=abs)
    for rate in (middle * spacing**step for step in steps):
        if not any(math.isclose(rate, one) for one in found):
            return rate
    if not more:
        return None
    rates = sorted(found)
    best = min(rates, key=lambda rate: _mean(found[rate]))
    beyond = {rates[0]: rates[0] / spacing, rates[-1]: rates[-1] * spacing}
    return beyond.get(best)


def best_rate(found: Losses) -> float:
    """Return the rate at which a parabola through the best loss and those beside it is lowest, in logarithms of both.

    Raises UserError where no training went through.
    """
    return _lowest({rate: _mean(losses) for rate, losses in found.items()})


def choose(ladder: Ladder, fine: Losses) -> Chosen:
    """Return the rate of the run by its longest probes, with the range of nine tenths of samples.

    A sample draws the held-out rows anew, the same ones for all rates, and the power of the steps. Beside a rate at the
    end of the row none was tried, and the range reaches as far as the next would have been.
    """
    rates = [rate for rate, losses in fine.items() if losses is not None]
    best = best_rate(fine)
    losses = np.array([fine[rate] for rate in rates])
    rows, random = losses.shape[1], np.random.default_rng(0)
    counts = random.multinomial(rows, np.full(rows, 1 / rows), size=_SAMPLES)
    broken = {rate: math.inf for rate in fine if rate not in rates}
    samples = (counts @ losses.T / rows).tolist()
    lowest = np.array([_lowest({**broken, **dict(zip(rates, means, strict=True))}) for means in samples])
    tails = [(1 - _SURE) / 2, (1 + _SURE) / 2]
    first, last = np.quantile(lowest, tails)
    share = ladder.fine / ladder.total
    low, high = np.quantile(lowest * share ** random.normal(EXPONENT, EXPONENT_ERROR, _SAMPLES), tails)
    low, high = low / (_NARROW if first <= min(fine) else 1), high * (_NARROW if last >= max(fine) else 1)
    rate = best * share**EXPONENT
    return Chosen(rate, float(min(low, rate)), float(max(high, rate)))


def _mean(losses: Sequence[float] | None) -> float:
    return math.inf if losses is None else math.fsum(losses) / len(losses)


def _lowest(means: Mapping[float, float]) -> float:
    rates = sorted(means)
    best = min(rates, key=lambda rate: means[rate])
    if not math.isfinite(means[best]):
        hint = f"lower training.{USUAL_RATE}, or set model.dtype=float32"
        raise UserError("training.learning_rate", f"=auto: training broke at each rate from {rates[0]:.2g} on; {hint}")
    at = rates.index(best)
    beside = rates[max(at - 1, 0) : at + 2]
    if len(beside) < 3:
        return best  # at the end of the row
    x = [math.log(rate / best) for rate in beside]
    # as far above the best as a broken training may be drawn, and not so far that it decides
    y = [math.log(max(min(means[rate], 10 * means[best]), _TINY) / max(means[best], _TINY)) for rate in beside]
    left, right = y[0] / x[0], y[2] / x[2]  # slopes of the two chords
    curvature = (right - left) / (x[2] - x[0])
    if curvature <= 0:
        return best
    lowest = -(left - curvature * x[0]) / (2 * curvature)
    return best * math.exp(min(max(lowest, x[0] / 2), x[2] / 2))


_TINY = 1e-12
"""A loss, so that its logarithm is finite."""
