#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Sweeps that stop losers: the steps that they save and the winners that they keep, replayed on recorded curves.

Stopping does not change a curve, so each sweep is trained whole once, with the loss of each held-out row at each look
and the rule is replayed on it.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import pairs
from fmstune.config.job import Sweep
from fmstune.runs import looks, losers
from fmstune.runs.looks import Curve, Look
from fmstune.runs.losers import Rule
from results import Figure, Section, table

SEEDS = tuple(range(1, 11))
STEPS, EVERY = 50, 5
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GRID = ("peft.r=4,16", f"training.learning_rate={','.join(map(str, RATES))}")
USUAL = 5e-3
"""The usual rate of LoRA on the shipped model."""
QUICK = ("training.learning_rate=3e-3,1e-1", "training.max_steps=4", "training.eval_steps=1")
DEFAULTS = Sweep()
WORDS = (
    *("peft=lora", f"training.max_steps={STEPS}", "training.eval_strategy=steps", f"training.eval_steps={EVERY}"),
    *("training.per_device_eval_batch_size=60", "evaluation.batch_size=60", "evaluation.base=false"),
    *("evaluation.max_new_tokens=1", "training.save_strategy=no", "training.logging_steps=10"),
    *("sweep.stop_losers=true", "launcher.device=cpu"),
)
RECORD = ("sweep.warm_up=1",)
"""Looks at all points, and stops none."""


class Replay(NamedTuple):
    """A sweep with the rule, against the whole one."""

    steps: float
    """Share of the steps of the whole sweep."""
    same: bool
    """The winner is that of the whole sweep."""
    noise: bool
    """Or it is not worse by more than two standard errors of the paired differences of the rows at the end."""
    loss: float
    """How much higher its held-out loss is, in nats a token."""


def rule(points: int, sweep: Sweep = DEFAULTS) -> Rule:
    """The rule of a sweep of so many points, as a run makes it."""
    return losers.rule_of(sweep, rivals=points - 1, evaluations=STEPS // EVERY)


def replay(curves: Sequence[Curve], by: Rule) -> Replay:
    """Look at the points in turn, each with what the earlier ones have left."""
    return compared(curves, seen_in_turn(curves, by))


def seen_in_turn(curves: Sequence[Curve], by: Rule) -> list[Curve]:
    """What is seen of each point where they run one after the other."""
    seen: dict[str, Curve] = {}
    for number, curve in enumerate(curves):
        own: dict[float, Look] = {}
        for share, look in curve.items():
            own[share] = look
            if losers.find_better(by, own, seen) is not None:
                break
        seen[str(number)] = own
    return list(seen.values())


def replay_side_by_side(curves: Sequence[Curve], by: Rule) -> Replay:
    """Look at all points at the same time, as where each has a process of its own."""
    seen: list[dict[float, Look]] = [{} for _ in curves]
    running = set(range(len(curves)))
    for share in curves[0]:
        for number in running:
            seen[number][share] = curves[number][share]
        others = {number: {str(one): seen[one] for one in running - {number}} for number in running}
        running -= {number for number in running if losers.find_better(by, seen[number], others[number]) is not None}
    return compared(curves, seen)


def compared(curves: Sequence[Curve], seen: Sequence[Curve]) -> Replay:
    """The sweep of which this much was seen, against the whole one."""
    finished = [number for number, curve in enumerate(seen) if 1.0 in curve]
    ends = [curve[1.0].losses for curve in curves]
    best, winner = (min(among, key=lambda one: mean(ends[one])) for among in (range(len(curves)), finished))
    gaps = [a - b for a, b in zip(ends[winner], ends[best], strict=True)]
    excess = mean(gaps)
    error = (sum((gap - excess) ** 2 for gap in gaps) / (len(gaps) * (len(gaps) - 1))) ** 0.5
    return Replay(mean(map(max, seen)), winner == best, excess <= 2 * error, excess)


def record(place: Path, seeds: Sequence[int], words: Sequence[str] = GRID) -> list[list[Curve]]:
    """The curves of the points of each seed's sweep; sweeps that are in the folder are not trained again."""
    for seed in seeds:
        grid = ("-m", *WORDS, *RECORD, *words, f"seed={seed}", f"output_dir={place / str(seed)}")
        pairs.run(pairs.fmstune(*grid), env={"FMSTUNE_CACHE": str(place / "cache")})
    return [read(place / str(seed)) for seed in seeds]


def read(sweep: Path) -> list[Curve]:
    """The curves of a sweep's points, in the order of the points."""
    curves = looks.read_curves(sweep)
    return [curves[name] for name in sorted(curves, key=lambda name: int(name.partition("-")[0]))]


def measure(*, quick: bool) -> Section:
    """Steps, winners and losses of the sweeps with the rule, over the seeds."""
    seeds, words = (SEEDS[:1], QUICK) if quick else (SEEDS, GRID)
    with pairs.folder("stop_losers") as place:
        return section(record(place, seeds, words))


def likely_first(curves: Sequence[Curve]) -> list[Curve]:
    """The points in the order of how far their rate is from the usual one, as a user would write them."""
    far = [abs(math.log(RATES[number % len(RATES)] / USUAL)) for number in range(len(curves))]
    return [curve for _, curve in sorted(zip(far, curves, strict=True), key=lambda pair: pair[0])]


def section(sweeps: Sequence[Sequence[Curve]]) -> Section:
    """The figures of recorded sweeps."""
    by = rule(len(sweeps[0]))
    together = [replay_side_by_side(curves, by) for curves in sweeps]
    likely = [replay(likely_first(curves), by) for curves in sweeps]
    ascending = [replay(curves, by) for curves in sweeps]
    every = [*together, *likely, *ascending]
    return Section(
        "Sweeps that stop losers",
        f"{len(sweeps[0])} points with LoRA on the shipped model and rows, {STEPS} steps each, evaluated at each "
        f"{EVERY}th step, {len(sweeps)} seeds. Each sweep is trained whole once; `sweep.stop_losers=true` with its "
        "defaults is replayed on the recorded losses of the held-out rows. The noise is two standard errors of the "
        "paired differences at the end.",
        [
            Figure("steps, of those of the whole sweep: points side by side", _spread(together), 0.5),
            Figure("one after the other, the usual rates first", _spread(likely), 0.5),
            Figure("one after the other, the lowest rates first", _spread(ascending)),
            Figure("sweeps with a winner that is worse by more than the noise", _share(every), 0.05, "mean"),
            Figure("held-out loss of the winner above the best, nats", pairs.spread([one.loss for one in every])),
        ],
    )


def _spread(made: Sequence[Replay]) -> pairs.Spread:
    return pairs.spread([one.steps for one in made])


def _share(made: Sequence[Replay]) -> pairs.Spread:
    return pairs.average([float(not (one.same or one.noise)) for one in made])


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
