#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What recording costs: the loss of each training row at each step, and the fingerprints of the first three steps."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pairs
import subjects
from results import Figure, Section, table

STEPS = 12
Round = dict[str, tuple[float, float]]
"""Seconds of the training, and of recording in it, by what is recorded."""


def measure(*, quick: bool) -> Section:
    """The seconds of recording, of those of the training."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tiny = ("launcher.device=cpu", "evaluation=none", "training.save_strategy=no", f"output_dir={place / 'run'}")
        for method in ("lora",) if quick else ("lora", "full"):
            words = (*tiny, f"peft={method}", f"training.max_steps={3 if quick else STEPS}")
            figures += _figures(f"the shipped job, {method}", _rounds(1 if quick else 8, words), 3 if quick else STEPS)
        if not quick:
            words = subjects.words(subjects.llama_135m(place, batch=4), "lora", STEPS, place / "large")
            figures += _figures("135M Llama, lora, batches of 4", _rounds(4, words), STEPS)
    return Section(
        "Recording",
        f"{STEPS} steps in one process with `rows.parquet`, with `fingerprints.json` and with neither, in turn, from "
        "the same weights. The seconds are those in the code that records, hooks and files included: of the "
        "losses of rows as a share of the training; of the fingerprints, which are taken once a run, as steps of it.",
        figures,
    )


def _rounds(count: int, words: Sequence[str]) -> list[Round]:
    out = pairs.run(pairs.python("record_steps.py", count, *words)).out
    return [json.loads(line) for line in out.splitlines() if line.startswith('{"')]


def _figures(name: str, rounds: Sequence[Round], steps: int) -> Iterator[Figure]:
    shares = {
        side: [one[side][1] / (one[side][0] - one[side][1]) for one in rounds] for side in ("rows", "fingerprints")
    }
    yield Figure(f"{name}: losses of rows, share of the training", pairs.spread(shares["rows"]), 0.02)
    yield Figure(
        f"{name}: fingerprints, in steps", pairs.spread([steps * share for share in shares["fingerprints"]]), 2
    )
    whole = [one["rows"][0] / one["nothing"][0] for one in rounds]
    yield Figure(f"{name}: training with losses of rows by training without", pairs.spread(whole))


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
