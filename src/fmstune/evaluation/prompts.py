"""Texts and rows → prompts in tokens, as the rows of training began: what stood before the answer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from fmstune.data import formats
from fmstune.data.chat import chat_segments, check_messages, check_tools, render_question
from fmstune.data.format_loading import Format, format_row, load_format
from fmstune.data.read import Row, RowProblems
from fmstune.data.tokens import Formatted, RowProblem, Segment, Templated, Texts, TokenRow, encode_rows
from fmstune.errors import UserError, raise_if_any
from fmstune.evaluation import generate

ANSWER = "a"
"""In place of an answer that is not there. Where it follows a space, nearly every vocabulary of English has a token of
the two, as of a real answer, and the space is not a token of the prompt."""

_UNCUT = 2**31


class Prompt(NamedTuple):
    """A prompt as text and as tokens."""

    text: str
    ids: list[int]


def of_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The texts as they are, with the special tokens that the tokenizer puts before a text."""
    encoded = encode_rows([[Segment(text, trained=False)] for text in texts], tokenizer, _UNCUT)
    # the last one is end-of-sequence, which is for whole rows
    return [
        Prompt(text, row.input_ids[:-1] or [generate.begin(tokenizer)])
        for text, row in zip(texts, encoded, strict=True)
    ]


def of_rows(found: Sequence[Row], format: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of rows in a data format; answers may be missing, and are left out where they are not.

    Raises UserError with all rows that are not of this format.
    """
    make = _format(format, tokenizer)
    problems = RowProblems()
    formatted: list[Formatted] = []
    for row in found:
        try:
            formatted.append(_prompt(make, row.values, format, tokenizer))
        except RowProblem as err:
            problems.add_row(row, str(err))
    raise_if_any(problems.first())
    encoded = encode_rows(formatted, tokenizer, _UNCUT)
    return [
        Prompt(_text(made, row.prompt_ids, tokenizer), row.prompt_ids or [generate.begin(tokenizer)])
        for made, row in zip(formatted, encoded, strict=True)
    ]


def rows_of_texts(texts: Sequence[str], file: str, format: Mapping[str, Any]) -> list[Row]:
    """Rows that hold the texts where the format has its question; raises UserError where that is not known."""
    column = _question(format)
    if column is None:
        raise UserError(
            "--format", f": what a text is to {format['_target_']} is not known; give rows with --rows_file"
        )
    return [Row(file, number, column(text)) for number, text in enumerate(texts, start=1)]


def _question(format: Mapping[str, Any]) -> Any:
    """Where each format of fmstune's own has its question; None where that is up to the user."""
    own = {
        "text": lambda text: {format["text_field"]: text + formats.unescape(format["response_template"] or "")},
        "alpaca": lambda text: {"instruction": text},
        "labelled_text": lambda text: {format["text_field"]: text},
        "input_output": lambda text: {format["input_field"]: text},
        "chat": lambda text: {format.get("messages_field", "messages"): [{"role": "user", "content": text}]},
    }
    return own.get(_own_name(format))


def _own_name(format: Mapping[str, Any]) -> str:
    module, _, name = str(format["_target_"]).rpartition(".")
    return name if module == formats.__name__ else ""


def _answer_field(format: Mapping[str, Any]) -> str | None:
    """The column that a row to be asked with need not have."""
    own = {
        "alpaca": "output",
        "labelled_text": format.get("label_field"),
        "input_output": format.get("output_field"),
    }
    return own.get(_own_name(format))


def _format(format: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Format:
    if _own_name(format) == "chat" and tokenizer.chat_template is None:
        raise UserError("--format", "chat: the model has no chat template; one that was tuned on chat has its own")
    try:
        return load_format(format, tokenizer)
    except UserError as err:
        raise UserError.of(problem.moved("data.format", "--format") for problem in err.problems) from err


def _prompt(
    make: Format,
    values: Mapping[str, Any],
    format: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> Formatted:
    """A row with an answer, real or not, at its end."""
    if _own_name(format) == "chat":
        return _conversation(values, format, tokenizer)
    answer = _answer_field(format)
    given = {**values, answer: values.get(answer) or ANSWER} if answer is not None else values
    made = format_row(make, given)
    if isinstance(made, TokenRow | Texts):
        return made
    if _own_name(format) != "text":
        return made
    if format["response_template"] is None:
        # all of it was trained, and the model continues it
        return [segment._replace(trained=False) for segment in made]
    *before, last = made
    return [*before, last if last.text.strip() else Segment(last.text + ANSWER, trained=True)]


def _conversation(
    values: Mapping[str, Any], format: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Templated:
    """The turns before the last answer, and the words of the template that ask for it."""
    field, tools_field = format.get("messages_field", "messages"), format.get("tools_field", "tools")
    if field not in values:
        raise RowProblem(f"no column {field!r}; its columns are {', '.join(map(repr, values))}")
    turns = check_messages(values[field], field)
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    tools = check_tools(values.get(tools_field), tools_field)
    return Templated([Segment(render_question(turns, tools, tokenizer), trained=False)])


def _text(made: Formatted, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as text: up to the answer, without white space that is part of the answer's first token."""
    decoded = str(tokenizer.decode(ids, skip_special_tokens=True))
    if isinstance(made, TokenRow | Texts):
        return decoded
    segments = list(made)
    while segments and segments[-1].trained:
        segments.pop()
    text = "".join(segment.text for segment in segments)
    return text if decoded[-1:].isspace() else text.rstrip()


def turn_ends(format: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer besides end-of-sequence: the special token of a chat template's turn."""
    if _own_name(format) != "chat":
        return []
    turns = [{"role": "user", "content": ANSWER}, {"role": "assistant", "content": ANSWER}]
    last = encode_rows([chat_segments(turns, None, tokenizer)], tokenizer, _UNCUT)[0].answer_ids[-1:]
    return [token for token in last if token in set(tokenizer.all_special_ids)]


def lines(text: str) -> list[str]:
    """The prompts of a file, one a line, without white space around them; an empty line is none."""
    return [line.strip() for line in text.split("\n") if line.strip()]
