#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""`fmstune --cfg job` against a process that only imports Hydra and OmegaConf."""

import sys

import pairs
from results import Figure, Section, seconds, table


def measure(*, quick: bool) -> Section:
    """Seconds of a whole process."""
    made = pairs.interleave(
        lambda: pairs.run(pairs.fmstune("--cfg", "job")),
        lambda: pairs.run([sys.executable, "-c", "import hydra, omegaconf"]),
        2 if quick else 15,
    )
    wall = [(ours.wall, theirs.wall) for ours, theirs in made]
    note = f"{seconds([a for a, _ in wall])} against {seconds([b for _, b in wall])}"
    ratio = Figure("wall clock", pairs.spread([a / b for a, b in wall]), bar=3.0, note=note)
    cpu = Figure("CPU time", pairs.spread([ours.cpu / theirs.cpu for ours, theirs in made]))
    return Section("Start", "`fmstune --cfg job` against `python -c 'import hydra, omegaconf'`.", [ratio, cpu])


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
