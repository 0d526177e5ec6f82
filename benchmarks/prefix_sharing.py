#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Rows that share their beginnings: gradients against the padded batch, and speed against padding and packing."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pairs
from results import Figure, Section, seconds, table

GRADIENTS = 1e-5


def measure(*, quick: bool) -> Section:
    """Relative differences of gradients, and CPU seconds of a step in pairs."""
    with tempfile.TemporaryDirectory() as place:
        rows = Path(place) / "rows.jsonl"
        pairs.run(pairs.python("make_rows.py", 64, rows))
        figures = [*_gradients(), *_speeds(rows, quick=quick)]
    return Section(
        "Shared beginnings",
        "Forward and backward pass on the same rows. Gradients in float32, two branches at each level, depth 1 to 4, "
        "trained tokens in shared parts. Speed in CPU seconds, LoRA r 8, shape of SmolLM2-135M with random weights; "
        "rows of alpaca's lengths and rows that share nothing (on six of its layers) against one pack under varlen.",
        figures,
    )


def _gradients() -> Iterator[Figure]:
    for line in pairs.run(pairs.python("share_beginnings.py", "gradients", 1)).out.splitlines():
        found = json.loads(line)
        what = f"{found['shape']}: largest difference of a gradient / 1e-5"
        yield Figure(what, pairs.spread([value / GRADIENTS for value in found["differences"]]), 1.0)


def _speeds(rows: Path, *, quick: bool) -> Iterator[Figure]:
    kinds = {
        "apart": ("rows that share nothing: rows/s by packed", 0.98, 5),
        "alpaca": ("rows of alpaca's lengths: rows/s by packed", 1.15, 5),
        "beginnings": ("16 rows of 256 shared and 32 own tokens: rows/s by padded", 4.0, 3),
    }
    for kind, (what, bar, rounds) in kinds.items():
        if quick and kind == "beginnings":
            continue
        out = pairs.run(pairs.python("share_beginnings.py", kind, 1 if quick else rounds, rows)).out
        took = [json.loads(line) for line in out.splitlines()]
        note = f"{seconds([one['shared'] for one in took])} against {seconds([one['beside'] for one in took])}"
        ratios = [one["beside"] / one["shared"] for one in took]
        yield Figure(what, pairs.spread(ratios), bar, note, at_least=True)


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
