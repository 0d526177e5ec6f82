"""What a format makes of a row: text in segments, trained or only read, or tokens that are ready."""

from typing import Any, NamedTuple


class Segment(NamedTuple):
    """A piece of a row's text; the model learns to write the trained ones and only reads the others."""

    text: str
    trained: bool


class Plain(NamedTuple):
    """Text to which the tokenizer adds its special tokens; it is closed with end-of-sequence."""

    segments: list[Segment]


class Templated(NamedTuple):
    """Text that holds its special tokens already, as a chat template writes them."""

    segments: list[Segment]


class TokenRow(NamedTuple):
    """Token ids, and a label for each: the id to be written there, or -100 where the token is only read."""

    input_ids: list[int]
    labels: list[int]


Formatted = Plain | Templated | TokenRow


class RowProblem(Exception):
    """What is wrong with a row; the caller, who knows them, adds the file and the row's number."""


class TemplateMissing(RowProblem):
    """The row lacks the response template, so nothing says where its answer begins."""


def in_words(value: Any) -> str:
    """The value and its type, as a message names them."""
    return "null" if value is None else f"the {type(value).__name__} {value!r:.40}"
