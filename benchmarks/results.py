# SPDX-License-Identifier: Apache-2.0
"""Figures as tables, with what they were measured on."""

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

from pairs import Spread, threads

PACKAGES = ("fmstune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "hydra-core")


class Figure(NamedTuple):
    """One measured figure."""

    what: str
    value: Spread
    bar: float | None = None
    """What it should not be above; None for a figure that only stands beside."""
    note: str = ""
    at_least: bool = False
    """Whether the bar is a floor."""

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value.median >= self.bar if self.at_least else self.value.median <= self.bar


class Section(NamedTuple):
    """One benchmark: what it compares, and its figures."""

    title: str
    about: str
    figures: list[Figure]


def table(section: Section) -> str:
    """The figures of one benchmark as Markdown."""
    lines = [
        f"## {section.title}",
        "",
        section.about,
        "",
        "| what | median | range | runs | bar | met | |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
        *map(_row, section.figures),
    ]
    return "\n".join(lines)


def _row(figure: Figure) -> str:
    value = figure.value
    bar = "" if figure.bar is None else f"{'≥' if figure.at_least else '≤'} {figure.bar:g}"
    met = {None: "", True: "yes", False: "**no**"}[figure.met]
    return (
        f"| {figure.what} | {value.median:.3f} | {value.low:.3f} to {value.high:.3f} | {value.count} "
        f"| {bar} | {met} | {figure.note} |"
    )


def dated(section: Section, load: float) -> str:
    """The figures of one benchmark, and when they were measured."""
    return f"{table(section)}\n\nMeasured on {datetime.now(UTC):%Y-%m-%d}; load {load:.1f} before the first run.\n"


def document(sections: Iterable[str]) -> str:
    """RESULTS.md: what was measured where and with what, then the tables."""
    return "\n".join([head(), *sections])


def head() -> str:
    """What all figures of the page have in common."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. A ratio is fmstune's figure over the other side's, of pairs of processes that",
        "alternate; the median of the pairs counts, and the range shows how far they lie apart.",
        "Both sides have the same threads and `OMP_WAIT_POLICY=passive`.",
        "",
        f"- machine: {machine()}; {threads()} threads",
        f"- Python {platform.python_version()}; {versions}",
    ]
    return "\n".join(lines) + "\n"


def sections_of(page: str) -> dict[str, str]:
    """The dated tables of a page by title; raises ValueError where it was measured on or with something else."""
    first, *tables = page.split("\n## ")
    if first != head():
        raise ValueError("the other figures were measured on another machine or with other versions; measure all")
    return {one.partition("\n")[0]: f"## {one}" for one in tables}


def machine() -> str:
    """What kind of machine this is; nothing that names it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.system()} {platform.machine()}, {_processor()}{os.cpu_count()} cores, {memory:.0f} GiB of memory"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        return ""
    return f"{names[0]}, " if names else ""


def seconds(values: Sequence[float]) -> str:
    """A median for a note."""
    middle = sorted(values)[len(values) // 2]
    return f"{middle:.2f} s" if middle >= 0.1 else f"{middle * 1000:.1f} ms"


def mebibytes(values: Sequence[float]) -> str:
    """A median of bytes for a note."""
    return f"{sorted(values)[len(values) // 2] / 2**20:,.0f} MiB"
