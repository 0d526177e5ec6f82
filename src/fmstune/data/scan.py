"""Rows counted and checked without a tokenizer: their characters, and all their problems."""

from dataclasses import dataclass, field, replace

from fmstune.config.job import Data
from fmstune.data.dataset import hash_sources, load_recipes
from fmstune.data.ledger import Ledger
from fmstune.data.read import RowProblems
from fmstune.data.splits import HELD_OUT, TRAIN, format_rows, split_rows
from fmstune.data.tokens import IGNORED, Formatted, Texts, TokenRow
from fmstune.errors import Problem, collect_problems, raise_if_any

CHARACTERS_PER_TOKEN = 3.6
"""English text under Llama 2's tokenizer, roughly: 3.6 on the alpaca rows' kind of text. Marked as an estimate."""


@dataclass
class Scan:
    """Counts of one split; characters are those of the `rows`, which would be trained."""

    ledger: Ledger = field(default_factory=Ledger)
    rows: int = 0
    held_out_rows: int = 0
    characters_total: int = 0
    characters_trained: int = 0
    characters_longest: int = 0

    def add(self, formatted: Formatted) -> None:
        """Count a row that would be trained."""
        length, trained = _characters(formatted)
        self.rows += 1
        self.characters_total += length
        self.characters_trained += trained
        self.characters_longest = max(self.characters_longest, length)


def scan_data(data: Data, seed: int) -> Scan:
    """Read and format all rows, of a streamed source the first ones; raises UserError with all their problems."""
    problems: list[Problem] = []
    scans = {TRAIN: Scan(), HELD_OUT: Scan()}
    recipes = load_recipes(data, None)
    hash_sources(recipes)
    for recipe in recipes:
        found = RowProblems()
        with collect_problems(problems):
            for name, split in split_rows(recipe.sample(), seed).items():
                for row in format_rows(split, recipe, scans[name].ledger, found):
                    scans[name].add(row.formatted)
        problems += found.first()
    raise_if_any(problems)
    return replace(scans[TRAIN], held_out_rows=scans[HELD_OUT].rows)


def _characters(formatted: Formatted) -> tuple[int, int]:
    """Characters of a row, and how many of them are trained; a token counts CHARACTERS_PER_TOKEN."""
    if isinstance(formatted, Texts):
        counts = [_characters(text) for text in formatted.values()]
        return sum(length for length, _ in counts), sum(trained for _, trained in counts)
    if isinstance(formatted, TokenRow):
        trained = sum(label != IGNORED for label in formatted.labels)
        return round(len(formatted.labels) * CHARACTERS_PER_TOKEN), round(trained * CHARACTERS_PER_TOKEN)
    return sum(len(s.text) for s in formatted), sum(len(s.text) for s in formatted if s.trained)
