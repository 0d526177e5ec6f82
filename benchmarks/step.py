#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time of a step and peak memory, against a bare PyTorch loop on the same batches; plain SFTTrainer beside."""

import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pairs
import subjects
from pairs import Child
from results import Figure, Section, mebibytes, seconds, table

MEMORY_BAR = 1.15
SIDES = ("fmstune", "bare", "sft")
Round = dict[str, Child]


def measure(*, quick: bool) -> Section:
    """Ratios of steady steps, and of the peak memory of the whole process."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as place:
        tiny = subjects.tiny(Path(place), batch=16)
        figures += _figures("tiny_llama", tiny, bar=1.2, memory_bar=None, steps=6 if quick else 60, quick=quick)
        if not quick:
            large = subjects.llama_135m(Path(place), batch=4)
            figures += _figures("135M Llama", large, bar=1.05, memory_bar=MEMORY_BAR, steps=9, quick=quick)
    return Section(
        "Step time and memory",
        "A step on the shipped rows (35 tokens each, 2 to 3 of them trained) against a bare loop with the same model, "
        "batches, AdamW, clipping and schedule, and logits of supervised positions only. The first third of the steps "
        "is left out. Memory is the peak of resident memory of the whole process, loading and saving included.",
        figures,
    )


def _figures(
    name: str, subject: subjects.Subject, *, bar: float, memory_bar: float | None, steps: int, quick: bool
) -> Iterator[Figure]:
    for method in ("full",) if quick else ("full", "lora"):
        rounds = [_round(subject, method, steps, number) for number in range(1 if quick else 5)]
        yield _ratio(f"{name}, {method}: step", rounds, "fmstune", bar)
        yield _ratio(f"{name}, {method}: step of plain SFTTrainer", rounds, "sft", None)
        peaks = {side: [float(r[side].peak) for r in rounds] for side in SIDES}
        for side, limit in (("fmstune", memory_bar), ("sft", None)):
            values = [ours / theirs for ours, theirs in zip(peaks[side], peaks["bare"], strict=True)]
            note = f"{mebibytes(peaks[side])} against {mebibytes(peaks['bare'])}"
            whose = " of plain SFTTrainer" if side == "sft" else ""
            yield Figure(f"{name}, {method}: memory{whose}", pairs.spread(values), limit, note)


def _round(subject: subjects.Subject, method: str, steps: int, number: int) -> Round:
    """One run of each side; who goes first changes from round to round."""
    order = SIDES[number % len(SIDES) :] + SIDES[: number % len(SIDES)]
    return {side: subjects.run(side, subject, method, steps=steps) for side in order}


def _ratio(what: str, rounds: list[Round], side: str, bar: float | None) -> Figure:
    times = [(_steady(r[side]), _steady(r["bare"])) for r in rounds]
    note = f"{seconds([a for a, _ in times])} against {seconds([b for _, b in times])}"
    return Figure(what, pairs.spread([a / b for a, b in times]), bar, note)


def _steady(child: Child) -> float:
    """Seconds of a step after the first third, the median."""
    ends = child.lines[len(child.lines) // 3 :]
    return statistics.median(after - before for before, after in pairwise(ends))


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
