"""Numbers and settings as the cells of a report's tables."""

import json
from typing import Any, NamedTuple

from fmstune.config.compare_by import is_number

MISSING = "–"
"""Shown in place of a missing number."""


class Cell(NamedTuple):
    """A cell of a table; a number is aligned to the right and sorted by its value."""

    text: str
    value: float | None = None


def number_cell(value: float | None, form: str = "") -> Cell:
    """Show a number: with commas if it is whole or large, else with four digits; a dash if there is none."""
    if not is_number(value):
        return Cell(MISSING)
    if form:
        return Cell(f"{value:{form}}", value)
    whole = isinstance(value, int) or abs(value) >= 1000
    return Cell(f"{value:,.0f}" if whole else f"{value:.4g}", value)


def change_cell(before: float | None, after: float | None) -> Cell:
    """Show the difference of two numbers with its sign; a dash if one of them is missing."""
    if not is_number(before) or not is_number(after) or not is_number(after - before):
        return Cell(MISSING)
    change = after - before
    return Cell(f"{change:+,.0f}" if abs(change) >= 1000 else f"{change:+.4g}", change)


def setting_cell(value: Any) -> Cell:
    """Show the value of a field; numbers are sorted as numbers."""
    return Cell(show_value(value), float(value) if is_number(value) else None)


def show_value(value: Any) -> str:
    r"""Return a field's value in one line, as it is typed in a shell: a line break is `\n`."""
    if isinstance(value, str):
        return value.replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r")
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
