"""What a chat template reads: its variables, its names of roles, and calls in the form that it is written for."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jinja2 import Environment, meta
from jinja2.exceptions import TemplateError

from fmstune.data.messages import Message, Tools, Turn
from fmstune.data.templates import Generation, limited
from fmstune.data.tokens import RowProblem
from fmstune.errors import Problem, did_you_mean, raise_if_any

GIVEN = ("messages", "tools", "add_generation_prompt")
"""The variables that a row and what is done with it decide."""
SAME_ROLES = (("system", "developer"), ("tool", "ipython", "observation"))
"""Names that templates have for one role, the most usual first."""
Write = Callable[[Sequence[Turn], Tools], str]
"""What a template writes for turns and tools."""
_CHANGE = "choose a template that writes it (model.chat_template), or take it out of the row"
_PROBE = "probe7f3a9c"
"""A name that no row has."""
_CALL = {"name": "probe", "arguments": {"key": "value"}}


def check_variables(template: str, given: Mapping[str, Any]) -> None:
    """Raise UserError for each of `data.format.template_kwargs` that the template does not read."""
    reads = variables(template)
    raise_if_any(
        Problem(f"data.format.template_kwargs.{name}", _unread(name, reads))
        for name in given
        if name in GIVEN or name not in reads
    )


def _unread(name: str, reads: frozenset[str]) -> str:
    if name in GIVEN:
        return ": the row decides this variable; remove it"
    others = sorted(reads - {*GIVEN})
    what = f"; it reads {', '.join(others)}" if others else "; it reads none"
    return f": the chat template reads no such variable{did_you_mean(name, others) or what}"


@lru_cache(maxsize=16)
def variables(template: str) -> frozenset[str]:
    """The variables that the template reads and does not set before; empty if it cannot be compiled."""
    # transformers renders chat templates with these two
    environment = Environment(extensions=[Generation, "jinja2.ext.loopcontrols"], autoescape=False)
    try:
        with limited(template):
            read = meta.find_undeclared_variables(environment.parse(template))
        return frozenset(read) - {"raise_exception", "strftime_now"}
    except TemplateError:
        return frozenset()


def fitted(turns: Sequence[Turn], template: str) -> list[Turn]:
    """The turns with the role's name that the template has, and calls as it writes them.

    A template that tests for `system` alone would leave a turn of the developer out.
    """
    roles = _names_of_roles(template)
    found = [
        replace(turn, message={**turn.message, "role": roles[turn.role]}) if turn.role in roles else turn
        for turn in turns
    ]
    if not any("tool_calls" in turn.message for turn in turns):
        return found
    return [replace(turn, message=_fitted_call(turn.message, template)) for turn in found]


@lru_cache(maxsize=16)
def _names_of_roles(template: str) -> dict[str, str]:
    """Roles by another name that the template tests for, where it does not test for their own."""
    tested = set(re.findall(r"""['"](\w+)['"]""", template))
    return {
        role: next(name for name in names if name in tested)
        for names in SAME_ROLES
        for role in names
        if role not in tested and tested & set(names)
    }


def _fitted_call(message: Message, template: str) -> Message:
    if "tool_calls" not in message:
        return message
    takes_text, wants_content = _takes_calls(template)
    message = {"content": "", **message} if wants_content else message
    if not takes_text:
        return message
    return {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}


def _with_text(call: Message) -> Message:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


@lru_cache(maxsize=16)
def _takes_calls(template: str) -> tuple[bool, bool]:
    """Whether the template takes arguments as text alone, and whether it fails on a call without content."""
    tries = [(text, content) for content in (False, True) for text in (False, True)]
    return next((one for one in tries if _writes_call(template, *one)), (False, False))


def _writes_call(template: str, as_text: bool, content: bool) -> bool:
    """Whether the template writes a call in this form, and not Python's notation for its arguments."""
    from transformers.utils.chat_template_utils import render_jinja_template

    call: Message = {"id": "probe0000", "type": "function", "function": _CALL}
    message = {"role": "assistant", "tool_calls": [_with_text(call) if as_text else call]}
    asked = [{"role": "user", "content": "probe"}, {"content": "", **message} if content else message]
    try:
        with limited(template):
            texts, _ = render_jinja_template([asked], chat_template=template, bos_token="", eos_token="")
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError):
        return False
    escaped = as_text and r"{\"key\"" in str(texts[0])
    return not escaped and str(_CALL["arguments"]) not in str(texts[0])


def check_written(turns: Sequence[Turn], tools: Tools, text: str, write: Write) -> None:
    """Raise RowProblem where the text lacks a turn, a call or a tool, which a template can leave out without a word."""
    for number, turn in enumerate(turns):
        if turn.content.rpartition("</think>")[2].strip() not in text and _says_nothing(turns, number, tools, write):
            raise RowProblem(f"the chat template leaves out what turn {number + 1} ({turn.role}) says; {_CHANGE}")
    calls = [
        (number, place, call)
        for number, turn in enumerate(turns)
        for place, call in enumerate(turn.message.get("tool_calls", ()))
    ]
    if not calls and not tools:
        return
    # the name of a tool can stand in the text for its call, and the other way round
    renamed = [_with_calls(turn, f"{_PROBE}{number}c") for number, turn in enumerate(turns)]
    probes = [_renamed(tool, f"{_PROBE}t{number}x") for number, tool in enumerate(tools or ())]
    try:
        found = write(renamed, probes or None)
    except RowProblem:
        return
    for number, place, call in calls:
        if f"{_PROBE}{number}c{place}x" not in found:
            named = f"the call of {call['function']['name']!r} in turn {number + 1}"
            raise RowProblem(f"the chat template leaves out {named}; {_CHANGE}")
    for tool, probe in zip(tools or (), probes, strict=True):
        if probe["function"]["name"] not in found:
            raise RowProblem(f"the chat template leaves out the tool {tool['function']['name']!r}; {_CHANGE}")


def _says_nothing(turns: Sequence[Turn], number: int, tools: Tools, write: Write) -> bool:
    """Whether the conversation is the same without the words of this turn; a template may have rewritten them."""
    silent = replace(turns[number], message={**turns[number].message, "content": ""})
    try:
        return write(turns, tools) == write([*turns[:number], silent, *turns[number + 1 :]], tools)
    except RowProblem:
        return False


def _with_calls(turn: Turn, name: str) -> Turn:
    """The turn with its calls under names that begin so, each with its own."""
    if "tool_calls" not in turn.message:
        return turn
    calls = [_renamed(call, f"{name}{place}x") for place, call in enumerate(turn.message["tool_calls"])]
    return replace(turn, message={**turn.message, "tool_calls": calls})


def _renamed(given: Message, name: str) -> Message:
    return {**given, "function": {**given["function"], "name": name}}
