"""Row → segments of text, each trained or not: pure functions, one a format.

A new format is one function, here or in a package of your own, that takes a row and its settings and
returns segments; `data.format` names it: `{_target_: my_package.my_format, any_setting: value}`.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from fmstune.errors import UserError, did_you_mean, raise_if_any


class Segment(NamedTuple):
    """A piece of a row's text; the model learns to write the trained ones and only reads the others."""

    text: str
    trained: bool


Format = Callable[[Mapping[str, Any]], list[Segment]]


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


def load(format: Mapping[str, Any]) -> Format:
    """The function that `data.format` names, its settings bound; raises UserError when the two do not fit."""
    settings = {name: value for name, value in format.items() if name != "_target_"}
    function = _function(format.get("_target_"))
    raise_if_any(_misfits(function, settings))
    return partial(function, **settings)


def segments(format: Format, values: Mapping[str, Any]) -> list[Segment]:
    """The row's segments, checked, since a format may be anybody's and not every string can be tokenised."""
    made = format(values)
    if not isinstance(made, list) or not all(isinstance(segment, Segment) for segment in made):
        raise RowProblem(f"the format must return a list of fmstune.formats.Segment, found {made!r:.80}")
    try:
        for segment in made:
            segment.text.encode()
    except UnicodeEncodeError as err:
        half = f"\\u{ord(err.object[err.start]):04x}"
        raise RowProblem(f"the text holds half a character ({half}, a lone surrogate); remove it") from err
    return made


def source_file(format: Mapping[str, Any]) -> str | None:
    """The file that defines the format; None when it was not written in Python."""
    try:
        return inspect.getsourcefile(_function(format.get("_target_")))
    except TypeError:
        return None


def _function(target: Any) -> Callable[..., list[Segment]]:
    module_name, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if not module_name:
        raise UserError(f"data.format._target_ must be like fmstune.formats.text, found {target!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as err:
        raise UserError(f"data.format._target_: cannot import {module_name} ({err})") from err
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        hint = did_you_mean(name, known)
        raise UserError(f"data.format._target_: {module_name} has no function {name!r}{hint}")
    return function  # type: ignore[no-any-return]


def _misfits(function: Callable[..., Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """How the settings differ from what the function takes after the row."""
    name = getattr(function, "__name__", repr(function))
    parameters = list(inspect.signature(function).parameters.values())[1:]
    takes = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for setting, value in settings.items():
        if setting not in takes:
            if not takes_any:
                yield f"data.format.{setting}: {name} has no such setting{did_you_mean(setting, takes)}"
        elif takes[setting].annotation in (str, str | None) and not isinstance(value, takes[setting].annotation):
            yield f"data.format.{setting} must be a string, found {_in_words(value)}"
    for setting, parameter in takes.items():
        if parameter.default is parameter.empty and setting not in settings:
            yield f"data.format.{setting} is missing; {name} needs it"


def _column(row: Mapping[str, Any], name: str) -> str:
    """The text in this column; how a number is written as text is the user's choice, so none is converted."""
    if name not in row:
        columns = ", ".join(map(repr, row))
        raise RowProblem(f"no column {name!r}{did_you_mean(name, row)}; its columns are {columns}")
    value = row[name]
    if not isinstance(value, str):
        raise RowProblem(f"column {name!r} must hold a string, found {_in_words(value)}; write it as text")
    return value


def _in_words(value: Any) -> str:
    return "null" if value is None else f"the {type(value).__name__} {value!r:.40}"
