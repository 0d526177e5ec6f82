"""Row → segments of text, each trained or not: one function a format.

A new format is one function, here or in a package of your own, that takes a row and its settings and returns segments;
`data.format` names it: `{_target_: my_package.my_format, any_setting: value}`. A parameter `tokenizer` is given the
model's, or None for a scan. A parameter `asking` is true where `fmstune generate` asks: the answer may be missing then.
`asked_with` says which row asks a text. A job may name these functions without `--trust`, so none imports or runs what
it is given; templates are rendered in a sandbox.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fmstune.data.chat import chat_question, chat_rows
from fmstune.data.chat_template import chat_template
from fmstune.data.messages import Columns, Conversation, Message, Tools, read_conversation
from fmstune.data.read import ArrowValues
from fmstune.data.reasoning import place_thoughts
from fmstune.data.template_inputs import check_written, fitted
from fmstune.data.templates import render_row
from fmstune.data.tokens import Formatted, RowProblem, Rows, Segment, Templated, TemplateMissing, Texts, TokenRow
from fmstune.errors import UserError, did_you_mean, in_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FORMATS",
    "RowProblem",
    "Rows",
    "Segment",
    "TemplateMissing",
    "Templated",
    "Texts",
    "TokenRow",
    "asked_with",
]

FORMATS = ("text", "alpaca", "labelled_text", "input_output", "template", "chat", "tokenized")
"""The functions of this module that a job may name; its other functions take no rows."""

ANSWER = "a"
"""In place of an answer that is missing. Where it follows a space, nearly every vocabulary of English has a token of
the two, as of a real answer, and the space is not a token of the prompt."""

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

Function = TypeVar("Function", bound=Callable[..., Any])


def asked_with(question_row: Callable[..., dict[str, Any]]) -> Callable[[Function], Function]:
    """Let `fmstune generate --text` ask in this format: `question_row` takes the text and the format's settings."""

    def mark(format: Function) -> Function:
        vars(format)["question_row"] = question_row
        return format

    return mark


@asked_with(lambda text, *, text_field, response_template: {text_field: text + unescape(response_template or "")})
def text(
    row: Mapping[str, Any], *, text_field: str, response_template: str | None, asking: bool = False
) -> list[Segment]:
    """One column holds the prompt, the response template and the answer; without a template all is trained.

    The template is found in characters, since its tokens depend on the text around it. The last occurrence counts,
    as in the collator of the early tool: a prompt may quote the template.
    """
    whole = _column(row, text_field)
    if response_template is None:
        return [Segment(whole, trained=not asking)]
    template = unescape(response_template)
    start = whole.rfind(template)
    if start < 0:
        raise TemplateMissing(f"column {text_field!r} does not contain the response template {template!r}")
    end = start + len(template)
    answer = whole[end:]
    if asking and not answer.strip():
        answer += ANSWER
    return [Segment(whole[:end], trained=False), Segment(answer, trained=True)]


@asked_with(lambda text: {"instruction": text})
def alpaca(row: Mapping[str, Any], *, asking: bool = False) -> list[Segment]:
    """Stanford Alpaca's prompts, as they were published; a row without `input` has a prompt of its own."""
    has_input = row.get("input", "") not in ("", None)
    columns = ("instruction", "input") if has_input else ("instruction",)
    shape = ALPACA_WITH_INPUT if has_input else ALPACA_WITHOUT_INPUT
    prompt = shape.format_map({name: _column(row, name) for name in columns})
    return [Segment(prompt, trained=False), Segment(f" {_answer(row, 'output', asking)}", trained=True)]


@asked_with(lambda text, *, text_field, **_: {text_field: text})
def labelled_text(
    row: Mapping[str, Any],
    *,
    text_field: str,
    label_field: str,
    class_field: str | None = None,
    classes: Sequence[str | None] = (),
    asking: bool = False,
) -> list[Segment]:
    """The twitter-complaints shape, made of a column of text and a column with its label in words.

    Rows without that column have their label as a number in `class_field`, which counts the `classes` from 0.
    """
    prompt = f"### Text: {_column(row, text_field)}\n\n### Label:"
    if class_field is not None and label_field not in row and class_field in row:
        row = {**row, label_field: None if asking else _class_name(row[class_field], class_field, classes)}
    return [Segment(prompt, trained=False), Segment(f" {_answer(row, label_field, asking)}", trained=True)]


@asked_with(lambda text, *, input_field, **_: {input_field: text})
def input_output(
    row: Mapping[str, Any], *, input_field: str, output_field: str, separator: str = "", asking: bool = False
) -> list[Segment]:
    """A column that is read and a column that is trained, with nothing between them but the separator."""
    prompt = _column(row, input_field) + unescape(separator)
    return [Segment(prompt, trained=False), Segment(_answer(row, output_field, asking), trained=True)]


def template(row: Mapping[str, Any], *, template_file: str) -> list[Segment]:
    """A Jinja file makes the text; what stands in `{% generation %}` … `{% endgeneration %}` is trained."""
    return render_row(template_file, row)


@asked_with(lambda text, *, messages_field="messages", **_: {messages_field: [{"role": "user", "content": text}]})
def chat(
    row: Mapping[str, Any],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    messages_field: str = "messages",
    tools_field: str = "tools",
    system_field: str = "system",
    functions_field: str = "functions",
    train: Literal["all", "last", "marked"] = "all",
    reasoning: Literal["train", "mask", "drop"] = "train",
    split_turns: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
    asking: bool = False,
) -> Templated | Rows:
    """A conversation under the model's chat template; the assistant's turns and what ends each are trained.

    Thoughts are trained, masked or dropped. Where the template rewrites earlier turns, it is split into several rows.
    """
    columns = Columns(messages_field, tools_field, system_field, functions_field)
    turns, tools = _turns(row, columns, train)
    if tokenizer is None:
        return chat_rows(turns, tools, None, reasoning=reasoning)
    template = chat_template(tokenizer, tools, template_kwargs)
    turns = fitted(turns, template.source)
    if asking:
        before = turns[:-1] if turns[-1].role == "assistant" else turns
        return chat_question(before, tools, template, reasoning)
    made = chat_rows(turns, tools, template, reasoning=reasoning, split_turns=split_turns)
    text = "".join(segment.text for part in (made if isinstance(made, Rows) else [made]) for segment in part)
    check_written(turns, tools, text, lambda *said: template.write(*said).text)
    return made


def asked_messages(
    row: Mapping[str, Any],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    messages_field: str = "messages",
    tools_field: str = "tools",
    system_field: str = "system",
    functions_field: str = "functions",
    train: Literal["all", "last", "marked"] = "all",
    reasoning: str = "train",
    template_kwargs: Mapping[str, Any] | None = None,
    **_: Any,
) -> tuple[list[Message], Tools, str]:
    """What a client sends to be given the last trained answer of the row: turns and tools; and what `chat` reads then.

    It takes the settings of `chat`.
    """
    turns, tools = _turns(row, Columns(messages_field, tools_field, system_field, functions_field), train)
    template = chat_template(tokenizer, tools, template_kwargs)
    turns = fitted(turns, template.source)
    last = max((number for number, turn in enumerate(turns) if turn.trains), default=len(turns))
    before = place_thoughts(turns[:last], template, reasoning)
    return [turn.message for turn in before], tools, template.write(before, tools, asks=True).text


def _turns(row: Mapping[str, Any], columns: Columns, train: str) -> Conversation:
    """The turns and tools of the row, of ShareGPT's column too where it has no other."""
    if columns.messages == "messages" and "messages" not in row and "conversations" in row:
        columns = columns._replace(messages="conversations")
    _any_column(row, columns.messages)
    return read_conversation(row, columns, train, nulls=not isinstance(row, ArrowValues))


def tokenized(
    row: Mapping[str, Any], *, tokenizer: "PreTrainedTokenizerBase | None" = None, labels_field: str = "labels"
) -> TokenRow:
    """Token ids as they are: `input_ids`, with `labels` (-100 is only read) or without, which trains all."""
    ids = _ids(row, "input_ids", least=0)
    labels = _ids(row, labels_field, least=-100) if row.get(labels_field) is not None else ids
    if len(labels) != len(ids):
        raise RowProblem(f"column {labels_field!r} has {len(labels):,} numbers for {len(ids):,} in 'input_ids'")
    if any(-100 < label < 0 for label in labels):
        raise RowProblem(f"column {labels_field!r} holds a negative number that is not -100")
    if tokenizer is not None and ids and (highest := max(*ids, *labels)) >= len(tokenizer):
        raise RowProblem(f"token {highest} is above the ids of the tokenizer, which end at {len(tokenizer) - 1:,}")
    return TokenRow(ids, labels)


def unescape(typed: str) -> str:
    r"""The text with `\n`, `\t`, `\r` and `\\`, as a shell passes them, made one character each.

    Python's `unicode_escape` would turn é into Ã©.
    """
    meant = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
    return re.sub(r"\\[ntr\\]", lambda found: meant[found[0]], typed)


def repeats_template(segments: list[Segment], response_template: str) -> bool:
    """Whether the prompt holds the template more than once."""
    template = unescape(response_template)
    prompt = "".join(segment.text for segment in segments if not segment.trained)
    return prompt.find(template) != prompt.rfind(template)


def has_answer(formatted: Formatted) -> bool:
    """Whether trained text is not blank, or a token is trained."""
    if isinstance(formatted, TokenRow):
        return any(label != -100 for label in formatted.labels)
    if isinstance(formatted, Texts):
        return all(map(has_answer, formatted.values()))
    return any(segment.trained and segment.text.strip() for segment in formatted)


def _any_column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        columns = ", ".join(map(repr, row))
        raise RowProblem(f"no column {name!r}{did_you_mean(name, row)}; its columns are {columns}")
    return row[name]


def _ids(row: Mapping[str, Any], name: str, least: int) -> list[int]:
    """Whole numbers in this column, of which none is below `least`."""
    values = _any_column(row, name)
    if not isinstance(values, list) or not values:
        raise RowProblem(f"column {name!r} must hold a list of token ids, found {in_words(values)}")
    for place, value in enumerate(values, start=1):
        if type(value) is not int or value < least:
            raise RowProblem(f"column {name!r}: number {place} must be a token's id, found {in_words(value)}")
    return values


def _class_name(number: Any, field: str, classes: Sequence[str | None]) -> str:
    """The name of a class by its number; null stands for rows without a label."""
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        raise UserError("data.format.classes", f"must be a list of names, found {in_words(classes)}")
    if type(number) is not int or not 0 <= number < len(classes):
        few = f"{len(classes)} classes are given"
        raise RowProblem(f"column {field!r} must hold the number of a class, and {few}; found {in_words(number)}")
    if (name := classes[number]) is None:
        raise RowProblem(f"column {field!r} says that the row has no label ({number}); leave such rows out")
    return name


def _answer(row: Mapping[str, Any], name: str, asking: bool) -> str:
    """The text in the column of the answer, or ANSWER where a model is asked and the column is empty."""
    return ANSWER if asking and not row.get(name) else _column(row, name)


def _column(row: Mapping[str, Any], name: str) -> str:
    """The text in this column; how a number is written as text is the user's choice, so none is converted."""
    value = _any_column(row, name)
    if not isinstance(value, str):
        raise RowProblem(f"column {name!r} must hold a string, found {in_words(value)}; write it as text")
    return value
