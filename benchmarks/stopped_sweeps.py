#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Sweeps that stop losers, as a user runs them, against the whole sweeps of the same seeds."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pairs
import stop_losers
from fmstune.runs.looks import Curve
from results import Figure, Section, seconds, table
from stop_losers import RECORD, WORDS, Replay

SEEDS = (11, 12, 13)
"""None of those on which the rule was chosen, or replayed by `stop_losers.py`."""
RATES = (3e-3, 1e-2, 1e-3, 3e-2, 3e-4, 1e-1)
"""As a user would write them: those near the usual one first."""
GRID = (f"training.learning_rate={','.join(map(str, RATES))}", "peft.r=4,16")


class Compared(NamedTuple):
    """A sweep that stopped losers, against the whole one of its seed."""

    replay: Replay
    elsewhere: int
    """Points that ended at another step than where the rule ends them on the whole sweep's losses."""
    train_seconds: tuple[float, float]
    """Of all points, of both sweeps."""
    cpu: tuple[float, float]
    """CPU seconds of both commands."""


def measure(*, quick: bool) -> Section:
    """Steps, winners and seconds of real sweeps."""
    seeds, words = (SEEDS[:1], stop_losers.QUICK) if quick else (SEEDS, GRID)
    with pairs.folder("stopped_sweeps") as place:
        compared = [_compare(place, seed, words) for seed in seeds]
    return section(compared)


def _compare(place: Path, seed: int, words: Sequence[str]) -> Compared:
    """Run both sweeps of a seed; one that is in the folder already is not run again."""
    cpu = (_run(place / f"{seed}-whole", seed, (*words, *RECORD)), _run(place / f"{seed}-stops", seed, words))
    whole, stops = (place / f"{seed}-whole", place / f"{seed}-stops")
    train_seconds = (_train_seconds(whole), _train_seconds(stops))
    return compare(stop_losers.read(whole), stop_losers.read(stops), train_seconds, cpu)


def _run(folder: Path, seed: int, words: Sequence[str]) -> float:
    """The CPU seconds of the command; a sweep that was interrupted is run again, as its seconds count."""
    known = folder.with_suffix(".json")
    if not known.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        argv = pairs.fmstune("-m", *WORDS, *words, f"seed={seed}", f"output_dir={folder}")
        taken = pairs.run(argv, env={"FMSTUNE_CACHE": str(folder.parent / "cache")})
        known.write_text(json.dumps(taken.cpu))
    return float(json.loads(known.read_text()))


def _train_seconds(sweep: Path) -> float:
    """Seconds of training of all points, evaluations included."""
    return sum(json.loads(path.read_text())["train_seconds"] for path in sweep.glob("*/summary.json"))


def compare(
    whole: Sequence[Curve], stops: Sequence[Curve], train_seconds: tuple[float, float], cpu: tuple[float, float]
) -> Compared:
    """The sweep that stopped losers against the whole one; both train a point alike until it is stopped."""
    expected = stop_losers.seen_in_turn(whole, stop_losers.rule(len(whole)))
    elsewhere = sum(max(a) != max(b) for a, b in zip(expected, stops, strict=True))
    return Compared(stop_losers.compared(whole, stops), elsewhere, train_seconds, cpu)


def section(made: Sequence[Compared]) -> Section:
    """The figures of the sweeps."""
    worse = [float(not (one.replay.same or one.replay.noise)) for one in made]
    both = list(zip(*(one.cpu for one in made), strict=True))
    note = f"{seconds(both[1])} against {seconds(both[0])}"
    return Section(
        "Sweeps that stop losers, as run",
        "`fmstune -m … sweep.stop_losers=true`, points one after the other, against the whole sweep of the same seed, "
        "which looks at the held-out rows too. Points, steps and words are those of the replayed sweeps, the usual "
        f"rates first; {len(made)} seeds that these have not.",
        [
            Figure("steps, of those of the whole sweep", pairs.spread([one.replay.steps for one in made]), 0.5),
            Figure("seconds of training", pairs.spread([b / a for a, b in (one.train_seconds for one in made)])),
            Figure(
                "CPU seconds of the command", pairs.spread([b / a for a, b in (one.cpu for one in made)]), None, note
            ),
            Figure("sweeps with a winner that is worse by more than the noise", pairs.average(worse), 0.05, "mean"),
            Figure("sweeps with the same winner", pairs.average([one.replay.same for one in made]), None, "mean"),
            Figure("held-out loss of the winner above the best, nats", pairs.spread([one.replay.loss for one in made])),
            Figure("points that ended elsewhere than replayed", pairs.spread([one.elsewhere for one in made]), 0),
        ],
    )


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
