#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Every benchmark, or those named, one after the other, and RESULTS.md; `--quick` tries them out and prints them."""

import argparse
import os
import sys
from pathlib import Path

import first_step
import launching
import learning_rate
import packed_rows
import pairs
import planned_memory
import planted_causes
import prefix_sharing
import preparation
import recording
import results
import startup
import step
import stop_losers
import stopped_sweeps
import suspects
import sweep
import varlen

_MODULES = (
    *(startup, first_step, launching, step, recording, preparation),
    *(packed_rows, varlen, prefix_sharing, planned_memory, sweep, stop_losers, stopped_sweeps),
    *(learning_rate, suspects),
    planted_causes,
)
BENCHMARKS = {module.__name__: module for module in _MODULES}
RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pairs and tiny sizes; prints, and writes nothing")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; the others stay")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    if options.quick:
        pairs.fork_children()
    made = results.sections_of(RESULTS.read_text(encoding="utf-8")) if options.names and not options.quick else {}
    for name in options.names or BENCHMARKS:
        load = os.getloadavg()[0]
        section = BENCHMARKS[name].measure(quick=options.quick)
        made[section.title] = results.dated(section, load)
        print(made[section.title], file=sys.stdout if options.quick else sys.stderr, flush=True)
    if not options.quick:
        RESULTS.write_text(results.document(made.values()), encoding="utf-8")
        print(f"wrote {RESULTS.name}")


if __name__ == "__main__":
    main()
