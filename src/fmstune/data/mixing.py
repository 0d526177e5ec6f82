"""Several sources → the rows of one epoch: how many of each, and which."""

import random
from collections.abc import Mapping
from typing import NamedTuple

from fmstune.config.job import StoppingStrategy
from fmstune.errors import UserError

MOST_REPEATS = 1000
"""Beyond this a weight is a slip: the epoch would hold little but copies."""


class Share(NamedTuple):
    """What one source gives to an epoch."""

    name: str
    rows: int
    """Rows that it has."""
    taken: int
    """Rows of it in an epoch: more than it has where some come again, fewer where some are left out."""
    weight: float | None


def shares(
    sizes: Mapping[str, int], weights: Mapping[str, float | None], stopping: StoppingStrategy
) -> tuple[Share, ...]:
    """How many rows of each source make an epoch: all of them once, or in the proportions of the weights.

    `all_exhausted` takes every row at least once, and repeats rows of the sources that have too few;
    `first_exhausted` takes no row twice, and leaves out rows of the sources that have too many.
    """
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return tuple(Share(name, size, size, None) for name, size in sizes.items())
    rows_per_weight = [sizes[name] / weight for name, weight in given.items()]
    scale = (max if stopping is StoppingStrategy.all_exhausted else min)(rows_per_weight)
    found = tuple(Share(name, sizes[name], max(1, round(weight * scale)), weight) for name, weight in given.items())
    for share in found:
        if share.taken > MOST_REPEATS * share.rows:
            raise UserError(
                f"data.train.{share.name}",
                f": weight {share.weight:g} takes each of its {share.rows:,} rows {share.taken // share.rows:,} times "
                "an epoch; lower it, or set data.stopping_strategy=first_exhausted",
            )
    return found


def chosen(share: Share, seed: int) -> list[int]:
    """The rows of a source in an epoch, by number from 0: whole passes, and a rest that the seed draws."""
    passes, rest = divmod(share.taken, share.rows)
    drawn = random.Random(f"{seed} {share.name}").sample(range(share.rows), rest)
    return [*(list(range(share.rows)) * passes), *sorted(drawn)]


def lines(found: tuple[Share, ...]) -> list[str]:
    """The mixture as it is printed."""
    total = sum(share.taken for share in found)
    width = max(len(share.name) for share in found)
    return [
        f"        {share.name:<{width}}  {share.taken:,} of {total:,} rows an epoch ({share.taken / total:.1%})"
        + (f", from {share.rows:,} rows, weight {share.weight:g}" if share.weight is not None else "")
        for share in found
    ]
