"""Texts and rows → prompts in tokens, as the rows of training began: what stood before the answer."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from fmstune.data import formats
from fmstune.data.chat_template import answer_ends
from fmstune.data.format_loading import format_row, load_format, question_row
from fmstune.data.read import Row, RowProblems
from fmstune.data.tokens import Formatted, RowProblem, Rows, Segment, Templated, Texts, TokenRow, encode_rows
from fmstune.errors import UserError, naming_flag, raise_if_any
from fmstune.evaluation import generate

_UNCUT = 2**31
_named_as_flag = partial(naming_flag, "--format", ["data.format"])


class Prompt(NamedTuple):
    """A prompt as text and as tokens."""

    text: str
    ids: list[int]


def of_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The texts as they are, with the special tokens that the tokenizer puts before a text."""
    encoded = encode_rows([[Segment(text, trained=False)] for text in texts], tokenizer, _UNCUT)
    # the last one is end-of-sequence, which is for whole rows
    pairs = zip(texts, encoded, strict=True)
    return [Prompt(text, generate.never_empty(row.input_ids[:-1], tokenizer)) for text, row in pairs]


def of_rows(found: Sequence[Row], format: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of rows in a data format, without answers; raises UserError with all rows of another format."""
    if format["_target_"] == f"{formats.__name__}.chat" and tokenizer.chat_template is None:
        raise UserError("--format", "chat: the model has no chat template; one that was tuned on chat has its own")
    with _named_as_flag():
        make = load_format(format, tokenizer, asking=True)
    problems = RowProblems()
    formatted: list[Formatted] = []
    for row in found:
        try:
            made = format_row(make, row.values)
            formatted += made if isinstance(made, Rows) else [made]
        except RowProblem as err:
            problems.add_row(row, str(err))
    raise_if_any(problems.first())
    encoded = encode_rows(formatted, tokenizer, _UNCUT)
    return [
        Prompt(asked_text(one, row.prompt_ids, tokenizer), generate.never_empty(row.prompt_ids, tokenizer))
        for one, row in zip(formatted, encoded, strict=True)
    ]


def rows_of_texts(texts: Sequence[str], file: str, format: Mapping[str, Any]) -> list[Row]:
    """Rows that hold the texts where the format has its question; raises UserError where that is not known."""
    rows = []
    for number, text in enumerate(texts, start=1):
        with _named_as_flag():
            values = question_row(format, text)
        if values is None:
            text = f": what a text is to {format['_target_']} is not known; give rows with --rows_file"
            raise UserError("--format", text)
        rows.append(Row(file, number, values))
    return rows


def asked_text(made: Formatted, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as text: up to the answer, without white space that is part of the answer's first token."""
    decoded = str(tokenizer.decode(ids, skip_special_tokens=True))
    if isinstance(made, TokenRow | Texts):
        return decoded
    segments = list(made)
    while segments and segments[-1].trained:
        segments.pop()
    text = "".join(segment.text for segment in segments)
    return text if decoded[-1:].isspace() else text.rstrip()


class Stops(NamedTuple):
    """What ends an answer besides end-of-sequence."""

    tokens: list[int]
    texts: list[str]
    """Ends that the tokenizer would write out as a part of the answer."""


def turn_ends(format: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Stops:
    """Return what ends an answer in a chat template, for a format of templated texts."""
    asked = question_row(format, formats.ANSWER)
    if asked is None or not isinstance(load_format(format, tokenizer, asking=True)(asked), Templated):
        return Stops([], [])
    ends = answer_ends(tokenizer)
    written = [end.decoded for end in ends if end.token not in tokenizer.all_special_ids]
    return Stops([end.token for end in ends if end.token is not None], written)


def json_prompts_in(text: str) -> list[str]:
    """The prompts of a file of JSON lines, each a text that may have line breaks; ValueError for another line."""
    found: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                prompt = json.loads(line)
            except ValueError:
                prompt = None
            if not isinstance(prompt, str):
                raise ValueError(f"line {number} is not a text in JSON")
            found.append(prompt)
    return found


def prompts_in(text: str) -> list[str]:
    """The prompts of a file, one a line, without white space around them; an empty line is none."""
    return [line.strip() for line in text.split("\n") if line.strip()]
