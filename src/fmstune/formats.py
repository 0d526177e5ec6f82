"""Row → segments of text, each trained or not: pure functions, one a format.

A new format is one function, here or in a package of your own, that takes a row and its settings and
returns segments; `data.format` names it: `{_target_: my_package.my_format, any_setting: value}`.
`fmstune.format_loading` finds it. This package is trusted whatever a job says, so nothing here imports, opens or runs
what it is given.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fmstune.errors import did_you_mean

FORMATS = ("text", "alpaca", "labelled_text")
"""The functions of this module that a job may name: all else here is not meant to be given rows."""


class Segment(NamedTuple):
    """A piece of a row's text; the model learns to write the trained ones and only reads the others."""

    text: str
    trained: bool


class RowProblem(Exception):
    """What is wrong with a row; the caller, who knows them, adds the file and the row's number."""


class TemplateMissing(RowProblem):
    """The row lacks the response template, so nothing says where its answer begins."""


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


def text(row: Mapping[str, Any], *, text_field: str, response_template: str | None) -> list[Segment]:
    """One column holds the prompt, the response template and the answer; without a template all is trained.

    The template is looked for in characters, since its tokens depend on what stands around it. Its last
    occurrence counts, as in the collator of the early tool: a prompt may quote the template, and what
    follows the last one is the answer under every reading.
    """
    whole = _column(row, text_field)
    if response_template is None:
        return [Segment(whole, trained=True)]
    template = unescape(response_template)
    start = whole.rfind(template)
    if start < 0:
        raise TemplateMissing(f"column {text_field!r} does not contain the response template {template!r}")
    end = start + len(template)
    return [Segment(whole[:end], trained=False), Segment(whole[end:], trained=True)]


def alpaca(row: Mapping[str, Any]) -> list[Segment]:
    """Stanford Alpaca's prompts, as they were published; a row without `input` has a prompt of its own."""
    has_input = row.get("input", "") not in ("", None)
    if has_input:
        values = {"instruction": _column(row, "instruction"), "input": _column(row, "input")}
        prompt = ALPACA_WITH_INPUT.format_map(values)
    else:
        prompt = ALPACA_WITHOUT_INPUT.format_map({"instruction": _column(row, "instruction")})
    return [Segment(prompt, trained=False), Segment(f" {_column(row, 'output')}", trained=True)]


def labelled_text(row: Mapping[str, Any], *, text_field: str, label_field: str) -> list[Segment]:
    """The twitter-complaints shape, made of a column of text and a column with its label in words."""
    prompt = f"### Text: {_column(row, text_field)}\n\n### Label:"
    return [Segment(prompt, trained=False), Segment(f" {_column(row, label_field)}", trained=True)]


def unescape(typed: str) -> str:
    r"""Make what a shell hands over as the two characters `\n` (`\t`, `\r`, `\\`) the one that is meant.

    Nothing else changes: Python's `unicode_escape` would turn é into Ã©.
    """
    meant = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
    return re.sub(r"\\[ntr\\]", lambda found: meant[found[0]], typed)


def repeats_template(segments: list[Segment], response_template: str) -> bool:
    """Whether the template also stands before the place where the answer begins."""
    template = unescape(response_template)
    prompt = "".join(segment.text for segment in segments if not segment.trained)
    return prompt.find(template) != prompt.rfind(template)


def has_answer(segments: list[Segment]) -> bool:
    """Whether there is something to learn: trained text that is not blank."""
    return any(segment.trained and segment.text.strip() for segment in segments)


def in_words(value: Any) -> str:
    """The value and its type, as a message names them."""
    return "null" if value is None else f"the {type(value).__name__} {value!r:.40}"


def _column(row: Mapping[str, Any], name: str) -> str:
    """The text in this column; how a number is written as text is the user's choice, so none is converted."""
    if name not in row:
        columns = ", ".join(map(repr, row))
        raise RowProblem(f"no column {name!r}{did_you_mean(name, row)}; its columns are {columns}")
    value = row[name]
    if not isinstance(value, str):
        raise RowProblem(f"column {name!r} must hold a string, found {in_words(value)}; write it as text")
    return value
