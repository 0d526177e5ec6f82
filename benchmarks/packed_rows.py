#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""How many positions of a batch hold a token, with packing and without, on rows of Alpaca's lengths."""

import json
import sys
import tempfile
from pathlib import Path

import pairs
from results import Figure, Section, table


def measure(*, quick: bool) -> Section:
    """Tokens over positions in one epoch of batches, as the trainer makes them."""
    rows = 300 if quick else 20_000
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pairs.run(pairs.python("make_model.py", "tiny_llama", place / "model"))
        pairs.run(pairs.python("make_rows.py", rows, place / "rows.jsonl"))
        argv = pairs.python("count_positions.py", place / "rows.jsonl", place / "model", place / "run")
        made = json.loads(pairs.run(argv, env={"FMSTUNE_CACHE": str(place / "cache")}).out)
    about = f"{rows:,} synthetic rows in the Alpaca shape, at most 2,048 tokens, 4 to a batch."
    packed, padded = (pairs.spread([made[kind]]) for kind in ("packed", "padded"))
    return Section(
        "Positions that hold a token",
        about,
        [
            Figure("tokens over positions, packed", packed, 0.98, at_least=True),
            Figure("tokens over positions, padded", padded),
        ],
    )


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
