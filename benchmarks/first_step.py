#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""From the start of the process to the end of the first optimizer step, against a minimal SFTTrainer script."""

import sys
import tempfile
from pathlib import Path

import pairs
import subjects
from results import Figure, Section, seconds, table


def measure(*, quick: bool) -> Section:
    """Seconds to the first step, with tokens in the cache and without."""
    with tempfile.TemporaryDirectory() as place:
        subject = subjects.tiny(Path(place), batch=16)
        figures = [_compare(subject, warm=warm, count=1 if quick else 5) for warm in (True, False)]
    return Section(
        "Time to the first step",
        "`fmstune` (parent, checks, plan, data, model, step) against a script that gives SFTTrainer the same model and "
        "the tokens of the same 480 rows, from an Arrow file.",
        figures,
    )


def _compare(subject: subjects.Subject, *, warm: bool, count: int) -> Figure:
    def first(side: str) -> float:
        with tempfile.TemporaryDirectory() as cache:
            env = {} if warm else {"FMSTUNE_CACHE": cache}
            return subjects.run(side, subject, "full", steps=1, env=env).lines[0]

    made = pairs.interleave(lambda: first("fmstune"), lambda: first("sft"), count)
    note = f"{seconds([a for a, _ in made])} against {seconds([b for _, b in made])}"
    what = "tokens in the cache" if warm else "nothing in the cache"
    return Figure(what, pairs.spread([a / b for a, b in made]), bar=1.15, note=note)


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
