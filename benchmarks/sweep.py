#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""A sweep of eight points against eight separate runs, and against the seconds that the points train."""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import pairs
from results import Figure, Section, seconds, table

Words = tuple[str, ...]

RATES = ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3", "1e-2", "2e-2")
"""Each point is the shipped job with LoRA as it is, 150 steps: on two cores a minute and more of training in all."""


def measure(*, quick: bool) -> Section:
    """Ratios of whole sweeps to whole runs, and to the `train_seconds` of their points."""
    rates, words = (RATES[:2], ("training.max_steps=1",)) if quick else (RATES, ())
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sides = {"sweep": partial(_sweep, place, rates, words), "runs": partial(_runs, place, rates, words)}
        # the rows are tokenised before either side is timed
        _run(place / "first" / "run", rates[:1], ("training.max_steps=1",))
        made = pairs.rounds(sides, 1 if quick else 2)
    sweeps, runs = [one["sweep"] for one in made], [one["runs"] for one in made]
    walls, training = [wall for wall, _ in sweeps], [trained for _, trained in sweeps]
    over_training = pairs.spread([wall / trained for wall, trained in sweeps])
    over_runs = pairs.spread([one / other for one, (other, _) in zip(walls, runs, strict=True)])
    return Section(
        "Sweeps",
        f"`fmstune -m peft=lora training.learning_rate=…` of {len(rates)} points on the shipped model and rows, "
        "150 steps each, without evaluation, from the start of the command to its end: against the sum of the "
        "`train_seconds` of its points, and against one command for each point. The rows are tokenised before.",
        [
            Figure("a sweep, over the training of its points", over_training, 1.25, _against(walls, training)),
            Figure("a sweep, over separate runs", over_runs, note=_against(walls, [wall for wall, _ in runs])),
        ],
    )


def _against(one: list[float], other: list[float]) -> str:
    return f"{seconds(one)} against {seconds(other)}"


def _sweep(place: Path, rates: Words, more: Words) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        return _run(Path(folder) / "sweep", rates, more)


def _runs(place: Path, rates: Words, more: Words) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        each = [_run(Path(folder) / rate, (rate,), more) for rate in rates]
    return sum(wall for wall, _ in each), sum(trained for _, trained in each)


def _run(folder: Path, rates: Words, more: Words) -> tuple[float, float]:
    """Seconds of the whole command, and those in which it trained; one rate is a plain run."""
    words = ["-m"] if len(rates) > 1 else []
    words += ["peft=lora", f"training.learning_rate={','.join(rates)}", *more]
    words += ["evaluation=none", f"output_dir={folder}", "launcher.device=cpu"]
    child = pairs.run(pairs.fmstune(*words), env={"FMSTUNE_CACHE": str(folder.parent.parent / "cache")})
    summaries = [json.loads(file.read_text(encoding="utf-8")) for file in folder.rglob("summary.json")]
    return child.wall, sum(one["train_seconds"] for one in summaries)


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
