"""When a point of a sweep is stopped: another point is better on the same held-out rows (decision 0028)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmstune.config.job import Sweep
from fmstune.runs.looks import Curve, Look


@dataclass(frozen=True)
class Rule:
    """How sure a stop must be; the risk is shared out among all comparisons of a point."""

    risk: float
    """Chance that the best point is stopped, over the whole sweep."""
    warm_up: float
    """Share of the steps before a point can be stopped."""
    patience: int
    """Looks in a row at which the other point must be ahead; the newest alone must be sure."""
    rivals: int
    """Points that a point is compared with."""
    looks: int
    """Looks at a point after its warm-up."""

    @property
    def threshold(self) -> float:
        """What `evidence` of one comparison must reach, by a union bound over rivals and looks."""
        return math.sqrt(2 * math.log(max(self.rivals * self.looks, 1) / self.risk))

    @property
    def least_rows(self) -> int:
        """Held-out rows without which no difference could be large enough, as `evidence` is at most their root."""
        return math.ceil(self.threshold**2)


@dataclass(frozen=True)
class Better:
    """A point that is better than the one that is looked at."""

    point: str
    """Name of its folder."""
    share: float
    """Share of the steps at which both were looked at."""
    loss: float
    """Its held-out loss there."""
    own: float
    """The same of the one that is looked at."""


def what_stops(sweep: Sweep) -> tuple[str, str] | None:
    """The field by which points are stopped early, and its value; None where all are trained to the end."""
    if sweep.stop_losers:
        return "sweep.stop_losers", "true"
    return ("hydra.sweeper.pruner", sweep.pruner) if sweep.pruner is not None else None


def is_watched(sweep: Sweep) -> bool:
    """Whether each held-out row of this run is looked at while it trains: it is a point that may be stopped."""
    return what_stops(sweep) is not None and sweep.points is not None


def rule_of(sweep: Sweep, *, rivals: int, evaluations: int) -> Rule:
    """Return the rule for a point with so many rivals that is evaluated so often in all."""
    after = math.ceil(round(evaluations * (1 - sweep.warm_up), 6))
    return Rule(sweep.risk, sweep.warm_up, sweep.patience, max(rivals, 1), max(after, 1))


def evidence(differences: Sequence[float]) -> float:
    """Return the sum of paired differences over the root of the sum of their squares.

    For differences that are symmetric around a mean of at most 0, it reaches x with a chance of at most exp(-x²/2),
    whatever their scale (Efron 1969; de la Peña, Klass and Lai 2004, theorem 2.1).
    """
    squares = math.fsum(one * one for one in differences)
    return math.fsum(differences) / math.sqrt(squares) if squares else 0.0


def find_better(rule: Rule, own: Curve, rivals: Mapping[str, Curve]) -> Better | None:
    """Return the rival that is better than this point, by the most evidence; None where the point may be the best."""
    found = []
    for name, curve in rivals.items():
        shares = [share for share in own if share in curve and curve[share].rows == own[share].rows]
        last = shares[-rule.patience :]
        earlier = [share for share in shares if last and share <= last[-1] - _TREND]
        if len(last) < rule.patience or not (earlier and rule.warm_up <= last[0] and last[-1] < 1):
            continue
        newest = last[-1]
        before, now = (_differences(own[share], curve[share]) for share in (earlier[-1], newest))
        at_the_end = _continued(before, now, (1 - newest) / (newest - earlier[-1]))
        least = min(evidence(now), evidence(at_the_end))
        if least >= rule.threshold and all(own[share].loss > curve[share].loss for share in last):
            found.append((least, Better(name, newest, curve[newest].loss, own[newest].loss)))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _differences(own: Look, rival: Look) -> list[float]:
    return [a - b for a, b in zip(own.losses, rival.losses, strict=True)]


def _continued(before: Sequence[float], now: Sequence[float], ahead: float) -> Sequence[float]:
    """The differences so many times further on, where they shrink as they did until now; else as they are."""
    if math.fsum(now) >= math.fsum(before):
        return now
    return [last + ahead * (last - first) for first, last in zip(before, now, strict=True)]


_TREND = 0.1 - 1e-9
"""Share of the steps over which it is seen how fast differences shrink, at least."""


def chance_best(ends: Mapping[str, Sequence[float]], best: str) -> float:
    """Return the share of bootstrap samples of the held-out rows in which no point has a lower mean than this one.

    The rows are drawn once for all points, so that points are compared on the same ones (Efron and Tibshirani 1993).
    """
    import numpy as np  # takes a tenth of a second, and most commands need none

    names = list(ends)
    losses = np.array([ends[name] for name in names])
    rows = losses.shape[1]
    counts = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=_SAMPLES)
    means = counts @ losses.T / rows
    return float((means[:, names.index(best)] <= means.min(axis=1)).mean())


_SAMPLES = 4000
