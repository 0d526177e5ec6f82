#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Wrong labels among the first suspects of `fmstune rows`, and what leaving these out does to the held-out rows."""

import json
import random
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import pairs
from results import Figure, Section, table

SEEDS = tuple(range(10))
SHARE = 0.05
"""Labels that are flipped."""
MARK = "### Label: "
OTHER = {"complaint": "no complaint", "no complaint": "complaint"}
EXPERIMENT = """# @package _global_
seed: {seed}
data:
  train: {rows}
  quarantine: {quarantine}
evaluation:
  base: false
"""


def measure(*, quick: bool) -> Section:
    """Shares of flipped rows among as many suspects, and macro F1 with and without these, by seed."""
    seeds = SEEDS[:1] if quick else SEEDS
    words = ("training.max_steps=1", "evaluation.max_rows=4") if quick else ()
    with pairs.folder("suspects") as place:
        place.mkdir(parents=True, exist_ok=True)
        flipped = {seed: _flip(place / f"{seed}.jsonl", seed) for seed in seeds}
        with_all = _sweep(place, "all", seeds, words)
        found = {seed: _suspects(with_all[seed], place / f"{seed}.left_out", len(flipped[seed])) for seed in seeds}
        without = _sweep(place, "without", seeds, words, left_out=True)
        shares = [len(flipped[seed] & found[seed]) / len(flipped[seed]) for seed in seeds]
        gains = [_macro_f1(without[seed]) - _macro_f1(with_all[seed]) for seed in seeds]
    note = f"mean of {', '.join(f'{share:.2f}' for share in shares)}"
    right, better = pairs.average(shares), pairs.average(gains)
    return Section(
        "Rows that hurt",
        f"The shipped job with {SHARE:.0%} of its 480 labels flipped at random, {len(seeds)} seeds of flips and of the "
        "job. `fmstune rows` names as many suspects as labels were flipped; a second run leaves these out.",
        [
            Figure("flipped rows among the first suspects", right, 0.8, note, at_least=True),
            Figure("macro F1 without the suspects, less that with all", better, 0.0, "mean", at_least=True),
        ],
    )


def _flip(path: Path, seed: int) -> set[int]:
    """Write the shipped rows with some labels flipped; the numbers of these, from 1."""
    shipped = files("fmstune") / "assets/complaints/train.jsonl"
    rows = [json.loads(line) for line in shipped.read_text(encoding="utf-8").splitlines()]
    chosen = set(random.Random(seed).sample(range(1, len(rows) + 1), round(SHARE * len(rows))))
    for number in chosen:
        text, label = rows[number - 1]["output"].split(MARK)
        rows[number - 1]["output"] = text + MARK + OTHER[label.strip()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return chosen


def _sweep(
    place: Path, name: str, seeds: Sequence[int], words: Sequence[str], *, left_out: bool = False
) -> dict[int, Path]:
    """Run the job of each seed as a point of one sweep; the folders by seed."""
    group = place / f"conf_{name}" / "experiment"
    group.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        quarantine = place / f"{seed}.left_out" if left_out else "null"
        text = EXPERIMENT.format(seed=seed, rows=place / f"{seed}.jsonl", quarantine=quarantine)
        (group / f"seed_{seed}.yaml").write_text(text, encoding="utf-8")
    points = ",".join(f"seed_{seed}" for seed in seeds)
    given = (f"--config-dir={group.parent}", f"experiment={points}", "training.save_strategy='no'", *words)
    flags = ("-m",) if len(seeds) > 1 else ()
    pairs.run(pairs.fmstune(*flags, *given, f"output_dir={place / name}"))
    runs = sorted(path.parent for path in (place / name).rglob("summary.json"))
    return {json.loads((run / "lock.json").read_text())["seed"]: run for run in runs}


def _suspects(run: Path, left_out: Path, count: int) -> set[int]:
    """The numbers of the first suspects of a run, which are written as a quarantine too."""
    pairs.run(pairs.fmstune("rows", str(run), "--rows", str(count), "--quarantine", str(left_out)))
    return {json.loads(line)["row"] for line in left_out.read_text(encoding="utf-8").splitlines()}


def _macro_f1(run: Path) -> float:
    found: float = json.loads((run / "summary.json").read_text())["tuned"]["macro_f1"]
    return found


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
