#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""`training.learning_rate=auto` against a grid of nine rates: how much worse its run is, and what its probes cost.

The shares and spacings of the ladder, its exponent and the error of that were fixed on runs of seed 1 alone. The other
seeds had not been looked at.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import yaml

import pairs
from results import Figure, Section, table

SEEDS: dict[str, tuple[int, ...]] = {"texts": (1,), "answers": (1, 2)}
STEPS, FACTOR, AROUND = 100, 2.2, 4
USUAL = {"lora": 5e-3, "full": 1e-3, "prompt_tuning": 3e-2}
"""The usual rates on the shipped model, which are the middle of each grid."""
TASKS = {"texts": ("data.response_template=null",), "answers": ()}
"""All tokens of the shipped rows are trained, or their labels alone, as the shipped job does."""
WORDS = (
    *("training.per_device_eval_batch_size=60", "evaluation.batch_size=60", "evaluation.base=false"),
    *("evaluation.max_new_tokens=1", "training.save_strategy=no", "training.logging_steps=10"),
    *("launcher.device=cpu", "launcher.threads=1"),
)

Point = dict[str, Any]
"""A run: its rate, held-out loss, steps, seconds, and how probes chose its rate (None of a rate of the grid)."""


class Compared(NamedTuple):
    """The run with the probed rate, against the grid."""

    regret: float
    """How much higher its held-out loss is than the best of the grid, as a share of that."""
    excess: float
    """The same in nats a token."""
    steps: float
    """Steps of the probes, as a share of those of the grid."""
    seconds: float
    """The same in seconds, building and evaluating included."""
    covered: bool
    """Whether the best rate of the grid lies in the interval of the chosen one."""


def rates(method: str) -> list[str]:
    """The grid of a method, around its usual rate."""
    return [f"{USUAL[method] * FACTOR**step:.4g}" for step in range(-AROUND, AROUND + 1)]


def record(place: Path, task: str, method: str, seed: int, steps: int = STEPS) -> list[Point]:
    """The points of one sweep, the grid's and the one with `auto`; what is in the folder is not trained again."""
    swept = f"training.learning_rate={','.join([*rates(method), 'auto'])}"
    sweep = place / f"{task}-{method}-{seed}"
    own = (f"peft={method}", f"seed={seed}", f"training.max_steps={steps}", f"output_dir={sweep}")
    words = ("-m", *own, *TASKS[task], *WORDS, swept)
    pairs.run(pairs.fmstune(*words), env={"FMSTUNE_CACHE": str(place / "cache")})
    return [_read(folder) for folder in sorted(sweep.glob("*-learning_rate=*"))]


def _read(folder: Path) -> Point:
    summary = json.loads((folder / "summary.json").read_text())
    rate = yaml.safe_load((folder / "job.yaml").read_text())["training"]["learning_rate"]
    choice = folder / "learning_rate.json"
    return {
        "rate": rate,
        "loss": summary["tuned"]["eval_loss"],
        "steps": summary["steps"],
        "seconds": summary["train_seconds"],
        "choice": json.loads(choice.read_text()) if choice.is_file() else None,
    }


def compare(points: Sequence[Point]) -> Compared:
    """The point with probes against the others."""
    (chosen,) = [one for one in points if one["choice"] is not None]
    grid = [one for one in points if one["choice"] is None]
    best = min(grid, key=lambda one: one["loss"])
    choice = chosen["choice"]
    taken = {name: sum(one[name] for one in choice["probes"]) / sum(one[name] for one in grid) for name in _COSTS}
    excess = chosen["loss"] - best["loss"]
    covered = choice["low"] <= float(best["rate"]) <= choice["high"]
    return Compared(excess / best["loss"], excess, taken["steps"], taken["seconds"], covered)


_COSTS = ("steps", "seconds")


def regrets_of_other_seeds(sweeps: Sequence[Sequence[Point]]) -> list[float]:
    """How much higher than the grid's best the loss is at the rate that is best on average of the other seeds.

    That rate has whole runs of the same job behind it: where it is not near the best either, luck decides which of
    the nine is the best.
    """
    grids = [{float(one["rate"]): one["loss"] for one in points if one["choice"] is None} for points in sweeps]
    found = []
    for number, grid in enumerate(grids):
        others = grids[:number] + grids[number + 1 :]
        rate = min(grid, key=lambda rate: sum(other[rate] for other in others))
        found.append(grid[rate] / min(grid.values()) - 1)
    return found


def measure(*, quick: bool) -> Section:
    """Regret, cost and interval by task and method, over the seeds."""
    seeds, steps = ({"texts": SEEDS["texts"][:1]}, 40) if quick else (SEEDS, STEPS)
    methods = ["lora"] if quick else [*USUAL]
    with pairs.folder("learning_rate") as place:
        made = {
            (task, method): [record(place, task, method, seed, steps) for seed in seeds[task]]
            for task in seeds
            for method in methods
        }
    return section(made, steps)


def section(made: Mapping[tuple[str, str], Sequence[Sequence[Point]]], steps: int) -> Section:
    """The figures of recorded sweeps, of each task and method one a seed."""
    figures, every = [], []
    for (task, method), sweeps in made.items():
        found = [compare(points) for points in sweeps]
        every += found
        what = f"{task}, {method}"
        figures.append(
            Figure(f"{what}: held-out loss above the grid's best", pairs.spread([o.regret for o in found]), 0.02)
        )
        if len(sweeps) > 1:
            others = pairs.spread(regrets_of_other_seeds(sweeps))
            figures.append(Figure(f"{what}: at the best rate of the other seeds", others))
        if task == "answers":
            figures.append(Figure(f"{what}: in nats a token", pairs.spread([one.excess for one in found])))
    figures.append(Figure("steps of the probes, of those of the grid", pairs.spread([o.steps for o in every]), 0.25))
    figures.append(Figure("seconds of the probes, of those of the grid", pairs.spread([o.seconds for o in every])))
    covered = pairs.Spread(mean(one.covered for one in every), 0.0, 1.0, len(every))
    figures.append(Figure("the grid's best rate lies in the interval", covered, 0.9, "mean", at_least=True))
    return Section(
        "A learning rate from probes",
        f"`training.learning_rate=auto` and a grid of {2 * AROUND + 1} rates, each {FACTOR} times the one before, "
        f"around the usual rate; {steps} steps a run. The rule is of seed 1, and only `answers` have another, seed 2. "
        "In `texts` all tokens of the shipped rows are trained; in `answers` the labels alone, as the shipped job "
        "does. A loss is that of one run, and the grid's best the lowest of nine: the line below says how far above "
        "it a run ends whose rate nine whole runs of each other seed have chosen.",
        figures,
    )


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
