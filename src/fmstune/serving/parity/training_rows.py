"""Rows of a run as training had them, and as a client would ask them: a conversation or a text."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from fmstune.config.job import Job, has_held_out
from fmstune.data import formats
from fmstune.data.dataset import load_recipes
from fmstune.data.ledger import Ledger
from fmstune.data.read import RowProblems
from fmstune.data.splits import HELD_OUT, TRAIN, FormattedRow, Recipe, draws_held_out, format_rows, split_rows
from fmstune.data.tokens import Encoded, encode_rows
from fmstune.errors import UserError, raise_if_any
from fmstune.evaluation.generate import never_empty
from fmstune.evaluation.prompts import asked_text, of_texts
from fmstune.runs.run_folder import CHAT

CONTEXT = 64
"""Tokens of a prompt that are scored too; the logits of all would be the largest tensor."""


@dataclass(frozen=True)
class TrainedRow:
    """A row that training read, and what a client sends to ask it."""

    place: str
    """Source, file and number, for the reader."""
    prompt_ids: list[int]
    answer_ids: list[int]
    """With what ends the answer."""
    prompt: str
    messages: list[dict[str, Any]] | None
    """The turns before the answer, of a conversation; else the text is asked."""
    tools: list[dict[str, Any]] | None = None

    @property
    def before(self) -> list[int]:
        """The tokens that are read, and not scored."""
        return self.prompt_ids[: max(1, len(self.prompt_ids) - CONTEXT)]

    @property
    def scored(self) -> list[int]:
        """The end of the prompt and the answer: of an answer that is certain, rounding changes nothing."""
        return [*self.prompt_ids[len(self.before) :], *self.answer_ids]


@dataclass(frozen=True)
class Chosen:
    """The rows to prove with, and which they are."""

    rows: list[TrainedRow]
    held_out: bool
    left_out: int
    """Rows that were looked at and have no prompt that can be asked as training read it."""


def choose_rows(job: Job, tokenizer: PreTrainedTokenizerBase, count: int) -> Chosen:
    """The first held-out rows of each source, in all `count` where there are as many; of a job without, training rows.

    Raises UserError where no row can be asked.
    """
    held_out = has_held_out(job.data)
    split = HELD_OUT if held_out else TRAIN
    # a streamed source is read from its first row on, too
    drawn = held_out and draws_held_out(job.data)
    recipes = [one for one in load_recipes(job.data, tokenizer) if one.trains == (drawn or not held_out)]
    each = -(-count // len(recipes))
    problems = RowProblems()
    found = [list(islice(_usable(recipe, split, job.seed, problems), each)) for recipe in recipes]
    rows = [row for of_source in found for row in of_source]
    asked = [row for row in rows if row is not None][:count]
    if not asked:
        raise_if_any(problems.first())
        what = "held-out row" if held_out else "training row"
        raise UserError("parity", f": no {what} of the run can be asked alone; give a run whose rows have answers")
    return Chosen(asked, held_out, sum(row is None for row in rows))


def _usable(recipe: Recipe, split: str, seed: int, problems: RowProblems) -> Iterator[TrainedRow | None]:
    """The rows of a source that are tokenised whole; None for one whose prompt cannot be asked alone."""
    assert recipe.tokenizer is not None
    last: FormattedRow | None = None
    # of a row that is split, the last part has the last answer
    made = format_rows(split_rows(recipe, seed)[split], recipe, Ledger(), problems)
    for one in chain(made, [None]):
        if last is not None and (one is None or one.number != last.number):
            (encoded,) = encode_rows([last.formatted], recipe.tokenizer, recipe.data.max_length)
            if encoded.answered and encoded.length <= recipe.data.max_length:
                yield _asked(recipe, last, encoded)
        last = one


def _asked(recipe: Recipe, one: FormattedRow, encoded: Encoded) -> TrainedRow | None:
    """The row as it is asked; None where that gives other tokens than training read, as at a token astride."""
    tokenizer, format = recipe.tokenizer, recipe.source.format or {}
    assert tokenizer is not None
    ids, place = never_empty(encoded.prompt_ids, tokenizer), f"row {one.number:,} of {recipe.field}"
    if format.get("_target_") == CHAT:
        settings = {name: value for name, value in format.items() if name != "_target_"}
        messages, tools, text = formats.asked_messages(one.row.values, tokenizer=tokenizer, **settings)
        same = tokenizer(text, add_special_tokens=False)["input_ids"] == encoded.prompt_ids
        return TrainedRow(place, ids, encoded.answer_ids, text, messages, tools) if same else None
    text = asked_text(one.formatted, encoded.prompt_ids, tokenizer)
    same = of_texts([text], tokenizer)[0].ids == ids
    return TrainedRow(place, ids, encoded.answer_ids, text, None) if same else None
