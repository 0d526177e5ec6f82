#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Every benchmark, one after the other, and RESULTS.md; `--quick` tries them out and prints the page."""

import argparse
import os
import sys
from pathlib import Path

import first_step
import packed_rows
import pairs
import preparation
import startup
import step
from results import Section, document, table

BENCHMARKS = (startup, first_step, step, preparation, packed_rows)
RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pairs and tiny sizes; prints, and writes nothing")
    names = {benchmark.__name__: benchmark for benchmark in BENCHMARKS}
    parser.add_argument(
        "--only", nargs="+", choices=names, default=list(names), metavar="NAME", help="with --quick: these"
    )
    options = parser.parse_args()
    if options.quick:
        pairs.fork_children()
    load = os.getloadavg()[0]
    sections: list[Section] = []
    for name in options.only if options.quick else names:
        sections.append(names[name].measure(quick=options.quick))
        print(table(sections[-1]), end="\n\n", file=sys.stderr, flush=True)
    text = document(sections, load=load, quick=options.quick)
    if options.quick:
        print(text)
    else:
        RESULTS.write_text(text, encoding="utf-8")
        print(f"wrote {RESULTS.name}")


if __name__ == "__main__":
    main()
