#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""`training.learning_rate=auto` against a grid of nine rates: how much worse its run is, and what its probes cost.

`python benchmarks/learning_rate.py FOLDER` keeps the runs in FOLDER and goes on there. The ladder's shares and spacings
were fixed, and its exponent checked, on runs of seed 1 alone; seeds 2 and 3 had not been looked at.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import pairs
from results import Figure, Section, table

SEEDS = (1, 2, 3)
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


def rates(method: str) -> list[str]:
    """The grid of a method, around its usual rate."""
    return [f"{USUAL[method] * FACTOR**step:.4g}" for step in range(-AROUND, AROUND + 1)]


def record(place: Path, task: str, method: str, seed: int, steps: int = STEPS) -> list[dict[str, Any]]:
    """The points of one sweep, the grid's and the one with `auto`; what is in the folder is not trained again."""
    swept = f"training.learning_rate={','.join([*rates(method), 'auto'])}"
    sweep = place / f"{task}-{method}-{seed}"
    own = (f"peft={method}", f"seed={seed}", f"training.max_steps={steps}", f"output_dir={sweep}")
    words = ("-m", *own, *TASKS[task], *WORDS, swept)
    pairs.run(pairs.fmstune(*words), env={"FMSTUNE_CACHE": str(place / "cache")})
    return [_read(folder) for folder in sorted(sweep.glob("*-learning_rate=*"))]


def _read(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    rate = yaml.safe_load((folder / "job.yaml").read_text())["training"]["learning_rate"]
    probes = folder / "learning_rate.json"
    return {
        "rate": rate,
        "loss": summary["tuned"]["eval_loss"],
        "steps": summary["steps"],
        "seconds": summary["train_seconds"],
        "probes": json.loads(probes.read_text())["probes"] if probes.is_file() else None,
    }


def compare(points: Sequence[dict[str, Any]]) -> Compared:
    """The point with probes against the others."""
    (chosen,) = [one for one in points if one["probes"] is not None]
    grid = [one for one in points if one["probes"] is None]
    best = min(one["loss"] for one in grid)
    taken = {name: sum(one[name] for one in chosen["probes"]) / sum(one[name] for one in grid) for name in _COSTS}
    return Compared(chosen["loss"] / best - 1, chosen["loss"] - best, taken["steps"], taken["seconds"])


_COSTS = ("steps", "seconds")


def measure(*, quick: bool, place: Path | None = None) -> Section:
    """Regret and cost by task and method, over the seeds."""
    seeds, steps, tasks = (SEEDS[:1], 40, ["texts"]) if quick else (SEEDS, STEPS, [*TASKS])
    methods = ["lora"] if quick else [*USUAL]
    with tempfile.TemporaryDirectory() as name:
        made = {
            (task, method): [compare(record(place or Path(name), task, method, seed, steps)) for seed in seeds]
            for task in tasks
            for method in methods
        }
    return section(made, steps)


def section(made: dict[tuple[str, str], list[Compared]], steps: int) -> Section:
    """The figures of recorded sweeps."""
    every = [one for found in made.values() for one in found]
    figures = []
    for (task, method), found in made.items():
        regret, excess = [one.regret for one in found], [one.excess for one in found]
        if task == "texts":
            figures.append(Figure(f"{task}, {method}: held-out loss above the grid's best", pairs.spread(regret), 0.02))
        else:
            figures.append(Figure(f"{task}, {method}: the same", pairs.spread(regret)))
            figures.append(Figure(f"{task}, {method}: in nats a token", pairs.spread(excess)))
    figures.append(Figure("steps of the probes, of those of the grid", pairs.spread([o.steps for o in every]), 0.25))
    figures.append(Figure("seconds of the probes, of those of the grid", pairs.spread([o.seconds for o in every])))
    return Section(
        "A learning rate from probes",
        f"`training.learning_rate=auto` and a grid of {2 * AROUND + 1} rates, each {FACTOR} times the one before, "
        f"around the usual rate; {steps} steps a run, seeds {', '.join(map(str, SEEDS))} (the rule is of seed 1). "
        "In `texts` all tokens of the shipped rows are trained; in `answers` the labels alone, as the shipped job "
        "does: their loss is near 0 at the end, so that a ratio says little.",
        figures,
    )


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:] if not word.startswith("--")]
    print(table(measure(quick="--quick" in sys.argv, place=given[0] if given else None)))
