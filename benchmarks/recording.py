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
"""A short run, as fingerprints cost the same for a longer one."""
WHAT = {"rows": "losses of rows", "fingerprints": "fingerprints"}
Round = dict[str, tuple[float, float]]
"""Seconds and CPU seconds by what is recorded."""


def measure(*, quick: bool) -> Section:
    """Ratios of the seconds of a training, with over without."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tiny = ("launcher.device=cpu", "evaluation=none", "training.save_strategy=no", f"output_dir={place / 'run'}")
        for method in ("lora",) if quick else ("lora", "full"):
            words = (*tiny, f"peft={method}", f"training.max_steps={3 if quick else STEPS}")
            figures += _figures(f"the shipped job, {method}", _rounds(1 if quick else 8, words))
        if not quick:
            words = subjects.words(subjects.llama_135m(place, batch=4), "lora", STEPS, place / "large")
            figures += _figures("135M Llama, lora, batches of 4", _rounds(2, words))
    return Section(
        "Recording",
        f"{STEPS} steps in one process with `rows.parquet` or `fingerprints.json` over the same steps with neither, in "
        "turn, from the same weights. Logs and writing the files are counted, loading is not.",
        figures,
    )


def _rounds(count: int, words: Sequence[str]) -> list[Round]:
    out = pairs.run(pairs.python("record_steps.py", count, *words)).out
    return [json.loads(line) for line in out.splitlines() if line.startswith('{"')]


def _figures(name: str, rounds: Sequence[Round]) -> Iterator[Figure]:
    for side, what in WHAT.items():
        wall, cpu = ([one[side][at] / one["nothing"][at] for one in rounds] for at in (0, 1))
        yield Figure(f"{name}: {what}", pairs.spread(wall), 1.02)
        yield Figure(f"{name}: {what}, CPU seconds", pairs.spread(cpu))


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
