"""The rows of a source → rows to train on and rows to hold out, formatted and counted."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from fmstune.config.choices import Untrainable
from fmstune.config.job import Data, Source, sources
from fmstune.data.format_loading import Format, format_row
from fmstune.data.formats import has_answer, repeats_template
from fmstune.data.ledger import Ledger
from fmstune.data.read import Row, RowProblems, read_rows
from fmstune.data.tokens import Formatted, PreTrainedTokenizerBase, RowProblem, Rows, Templated, TemplateMissing
from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any
from fmstune.files import absent, user_path
from fmstune.tables import count_of

TRAIN = "train"
HELD_OUT = "held_out"

SAMPLE = 1000
"""Rows of each streamed source that are looked at before the run."""


class Placed(NamedTuple):
    """A row and its place among all rows of its source, from 1 in the order in which they are read."""

    number: int
    row: Row


class Recipe(NamedTuple):
    """One source of the job, and all that its tokens depend on."""

    source: Source
    field: str
    """Names the source: `data.train`, or `data.train.NAME` of several."""
    data: Data
    format: Format
    tokenizer: PreTrainedTokenizerBase | None
    """None where rows are formatted and not tokenised."""
    texts: tuple[str, ...] = ()
    """Columns for texts of their own, by the names that the format returns them by."""
    quarantined: frozenset[int] = frozenset()
    """Numbers of rows that are left out, and counted."""

    @property
    def name(self) -> str:
        """The source's name; "" for the only one."""
        return ".".join(self.field.split(".")[2:])

    @property
    def trains(self) -> bool:
        """Whether the rows are in `data.train`."""
        return self.field.split(".")[1] == TRAIN

    @property
    def streamed(self) -> bool:
        """Whether its rows are read while the model trains."""
        return self.data.streaming and self.trains

    def sample(self) -> "Recipe":
        """The first rows of a streamed source, which are looked at before the run; of another source, all rows."""
        if not self.streamed:
            return self
        return self._replace(source=replace(self.source, max_rows=min(SAMPLE, self.source.max_rows or SAMPLE)))

    def rows(self) -> Iterator[Placed]:
        """Read the source from its first row on; raises UserError at the end for a quarantined row that it lacks.

        Of rows after `max_rows` nothing is known, and they are left out in any case.
        """
        number = 0
        rows = read_rows(self.source.path, self.field, self.source.max_rows, stream=self.streamed)
        for number, row in enumerate(rows, start=1):
            yield Placed(number, row)
        beyond = sorted(one for one in self.quarantined if one > number)
        if beyond and number != self.source.max_rows:
            text = f"names row {beyond[0]:,} of {self.field}, which has {count_of(number, 'row')}; correct its number"
            raise UserError("data.quarantine", text + (f" ({len(beyond):,} such rows)" if beyond[1:] else ""))


class FormattedRow(NamedTuple):
    """A row, its number in the source from 1, and what the format made of it."""

    number: int
    row: Row
    formatted: Formatted


def read_quarantine(data: Data) -> dict[str, frozenset[int]]:
    """The numbers of the rows that `data.quarantine` leaves out, by source; raises UserError with all its problems.

    The file is of JSON lines with `source` (not needed where there is one) and `row`; `why` is for the reader.
    """
    if data.quarantine is None:
        return {}
    raise_if_any(absent("data.quarantine", data.quarantine))
    problems: list[Problem] = []
    found: dict[str, dict[int, int]] = {name: {} for name in sources(data, TRAIN)}
    path = user_path(data.quarantine)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UserError("data.quarantine", f": {path} cannot be read as text ({err})") from err
    for place, line in enumerate(lines, start=1):
        if line.strip():
            problems += (Problem(f"{path}:{place}", f": {text}") for text in _add_quarantined(found, place, line))
    raise_if_any(problems)
    return {name: frozenset(rows) for name, rows in found.items()}


def _add_quarantined(found: dict[str, dict[int, int]], place: int, line: str) -> Iterator[str]:
    """Add the row of a line to those of its source; yield what is wrong with the line."""
    form = 'a line must be like {"source": "NAME", "row": 17}'
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as err:
        yield f"broken JSON ({err}); {form}"
        return
    if not isinstance(values, dict) or "row" not in values:
        yield f"{form}, got {line.strip()[:80]}"
        return
    for key in values.keys() - {"source", "row", "why"}:
        yield f"unknown key {key!r}{did_you_mean(key, ('source', 'row', 'why'))}; {form}"
    source, row = values.get("source", "" if "" in found else None), values["row"]
    if source not in found:
        known = ", ".join(found) if "" not in found else "the only one has no name: leave source out"
        yield f"no source {source!r} in data.train ({known})" if source is not None else f"names no source ({known})"
    elif not isinstance(row, int) or isinstance(row, bool) or row < 1:
        yield f"row must be a whole number from 1 on, got {row!r}"
    elif row in found[source]:
        yield f"row {row:,} stands in line {found[source][row]} already; remove one of them"
    else:
        found[source][row] = place


def held_out_numbers(count: int, eval_fraction: float, seed: int) -> frozenset[int]:
    """The numbers, from 0 in reading order, of the rows that are held out: exactly the rounded share.

    Only count, share and seed decide, so the same file gives the same split on every machine; a row that is dropped
    later is missing from its split.
    """
    share = round(eval_fraction * count)
    if not 0 < share < count:
        held = f"={eval_fraction:g} holds {share} of {count} rows out"
        raise UserError("data.eval_fraction", f"{held}, and both splits need one; change it or set data.eval")
    return frozenset(random.Random(seed).sample(range(count), share))


def split_rows(recipe: Recipe, seed: int) -> dict[str, Iterable[Placed]]:
    """The rows of a source to train on and to hold out; files are read again for each, so that memory stays flat."""
    if not recipe.trains:
        return {HELD_OUT: recipe.rows()}
    if not draws_held_out(recipe.data):
        return {TRAIN: recipe.rows()}
    chosen = held_out_numbers(sum(1 for _ in recipe.rows()), recipe.data.eval_fraction, seed)
    return {
        TRAIN: (placed for placed in recipe.rows() if placed.number - 1 not in chosen),
        HELD_OUT: (placed for placed in recipe.rows() if placed.number - 1 in chosen),
    }


def draws_held_out(data: Data) -> bool:
    """Whether training sources give some of their rows to be held out."""
    return data.eval is None and data.eval_fraction > 0


def format_rows(
    split: Iterable[Placed], recipe: Recipe, ledger: Ledger, problems: RowProblems
) -> Iterator[FormattedRow]:
    """The rows that have an answer; the others are counted, and are problems unless they may be dropped."""
    strict = recipe.data.untrainable is Untrainable.error
    template = (recipe.source.format or {}).get("response_template")
    for number, row in _readable(split, problems):
        ledger.rows_read += 1
        if number in recipe.quarantined:
            ledger.rows_quarantined += 1
            continue
        try:
            made = format_row(recipe.format, row.values)
        except TemplateMissing as err:
            ledger.rows_without_template += 1
            if strict:
                problems.add_row(row, f"{err}; fix the row, set data.response_template or data.untrainable=drop")
        except RowProblem as err:
            problems.add_row(row, str(err))
        except Exception as err:
            err.add_note(f"while formatting {row.file}, row {row.number}")
            raise
        else:
            ledger.rows_formatted += 1
            parts: Sequence[Formatted] = made if isinstance(made, Rows) else [made]
            if template and isinstance(parts[0], list) and repeats_template(parts[0], template):
                ledger.rows_with_several_templates += 1
            ledger.rows_split += len(parts) > 1
            ledger.rows_added += len(parts) - 1
            answered = [part for part in parts if has_answer(part)]
            yield from (FormattedRow(number, row, part) for part in answered)
            ledger.rows_without_answer += len(parts) - len(answered)
            if strict and len(answered) < len(parts):
                problems.add_row(row, f"{_untrainable(parts[0])}; fix the row, or set data.untrainable=drop")


def _untrainable(made: Formatted) -> str:
    """Why nothing of the row is trained."""
    if isinstance(made, Templated) and not any(segment.trained for segment in made):
        return "no turn is trained: the assistant has none, or flags and data.format.train leave all of them out"
    return "the answer is empty"


def _readable(split: Iterable[Placed], problems: RowProblems) -> Iterator[Placed]:
    """All rows that can be read; the problems of the others are known after the last row."""
    try:
        yield from split
    except UserError as err:
        for problem in err.problems:
            problems.add(problem)
