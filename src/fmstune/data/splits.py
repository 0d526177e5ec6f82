"""The rows of a source → those to train on and those to hold out, formatted, each accounted for."""

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fmstune.config.job import Data, Source, Untrainable
from fmstune.data import formats
from fmstune.data import read as rows
from fmstune.data.format_loading import Format, format_row
from fmstune.data.ledger import Ledger
from fmstune.data.read import Problems, Row
from fmstune.data.tokens import Formatted, RowProblem, TemplateMissing
from fmstune.errors import UserError

TRAIN = "train"
HELD_OUT = "held_out"


class Place(NamedTuple):
    """One source of the job, and the field that names it."""

    source: Source
    field: str
    """`data.train`, or `data.train.NAME` of several."""

    @property
    def trains(self) -> bool:
        return self.field.split(".")[1] == TRAIN


class FormattedRow(NamedTuple):
    """A row, its place in the split counted from 1, and what the format made of it."""

    number: int
    row: Row
    formatted: Formatted


def held_out_numbers(count: int, eval_fraction: float, seed: int) -> frozenset[int]:
    """Which of so many rows are held out, counted from 0 in reading order: exactly the rounded share.

    Only count, share and seed decide, so the same file gives the same split anywhere; rows that are
    dropped later are missing from the split that they fell into.
    """
    share = round(eval_fraction * count)
    if not 0 < share < count:
        raise UserError(
            "data.eval_fraction",
            f"={eval_fraction:g} holds {share} of {count} rows out, "
            "and both splits need one; change it or set data.eval",
        )
    return frozenset(random.Random(seed).sample(range(count), share))


def splits(place: Place, data: Data, seed: int) -> dict[str, Iterable[Row]]:
    """The rows of a source to train on and to hold out; files are read again for each, so that memory stays flat."""

    def read() -> Iterator[Row]:
        return rows.read(place.source.path, place.field, place.source.max_rows)

    if not place.trains:
        return {HELD_OUT: read()}
    if not draws(data):
        return {TRAIN: read()}
    chosen = held_out_numbers(sum(1 for _ in read()), data.eval_fraction, seed)
    return {
        TRAIN: (row for number, row in enumerate(read()) if number not in chosen),
        HELD_OUT: (row for number, row in enumerate(read()) if number in chosen),
    }


def draws(data: Data) -> bool:
    """Whether training sources give some of their rows to be held out."""
    return data.eval is None and data.eval_fraction > 0


def formatted(
    split: Iterable[Row], place: Place, format: Format, data: Data, ledger: Ledger, problems: Problems
) -> Iterator[FormattedRow]:
    """The rows that have an answer; the others are counted, and are problems unless they may be dropped.

    What cannot be read is a problem, too, once the others have been read.
    """
    strict = data.untrainable is Untrainable.error
    template = (place.source.format or {}).get("response_template")
    for row in _readable(split, problems):
        ledger.rows_read += 1
        try:
            made = _made(row, format)
        except TemplateMissing as err:
            ledger.rows_without_template += 1
            if strict:
                problems.add_row(row, f"{err}; mend it, set data.response_template or data.untrainable=drop")
        except RowProblem as err:
            problems.add_row(row, str(err))
        else:
            ledger.rows_formatted += 1
            if template and isinstance(made, list) and formats.repeats_template(made, template):
                ledger.rows_with_several_templates += 1
            if formats.has_answer(made):
                yield FormattedRow(ledger.rows_read, row, made)
                continue
            ledger.rows_without_answer += 1
            if strict:
                problems.add_row(row, "the answer is empty; mend it, or set data.untrainable=drop")


def _readable(split: Iterable[Row], problems: Problems) -> Iterator[Row]:
    try:
        yield from split
    except UserError as err:
        for problem in err.problems:
            problems.add(problem)


def _made(row: Row, format: Format) -> Formatted:
    try:
        return format_row(format, row.values)
    except (RowProblem, UserError):
        raise
    except Exception as err:
        err.add_note(f"while formatting {row.file}, row {row.number}")
        raise
