"""What a report says, apart from how it looks: sections of texts, commands, tables, pictures and examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """A cell of a table; numbers stand right and are sorted by their value."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False
    first: bool = False
    """The first row is the one to look at."""


@dataclass(frozen=True)
class Text:
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Command:
    """A line for a shell."""

    text: str


@dataclass(frozen=True)
class Charts:
    """Pictures beside each other, as SVG; `files` are those of the folder that a text can show instead."""

    pictures: Sequence[str]
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Example:
    """A prompt with what was expected and what models made of it, each under its name."""

    title: str
    parts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class More:
    """What few readers want: closed until it is asked for."""

    title: str
    blocks: Sequence["Block"]


Block = Table | Text | Command | Charts | Example | More


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    title: str
    status: str
    """One word, shown beside the title."""
    place: str
    """The folder that it is about."""
    sections: Sequence[Section] = field(default_factory=tuple)


def number(value: float | None, form: str = "") -> Cell:
    """A number as a reader wants it: whole ones with commas, others with four digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return Cell("–")
    if form:
        return Cell(f"{value:{form}}", value)
    whole = isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000)
    return Cell(f"{value:,.0f}" if whole or abs(value) >= 1000 else f"{value:.4g}", value)


def change(value: float | None) -> Cell:
    """A difference with its sign."""
    if value is None or not math.isfinite(value):
        return Cell("–")
    return Cell(f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.4g}", value)


def word(text: object) -> Cell:
    """A text, or a value as it stands."""
    return Cell(str(text), float(text) if isinstance(text, int | float) and not isinstance(text, bool) else None)
