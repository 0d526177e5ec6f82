# SPDX-License-Identifier: Apache-2.0
"""Every message is plain English that names a field or a file; docs/troubleshooting.md quotes real ones."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache

import pytest

from tests import ROOT
from tests.bad_inputs import (
    test_cli,
    test_config,
    test_data,
    test_evaluation,
    test_migrate,
    test_models,
    test_runs,
    test_training,
)

PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^> `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
ROOMS = (test_cli, test_config, test_data, test_evaluation, test_migrate, test_models, test_runs, test_training)
CASES = [case for room in ROOMS for case in room.CASES]
ANSWERS = {message for case in CASES for message in case.says}
"""What the other modules of this folder get for wrong inputs; `…` stands for words that are not fixed there."""
FIXED = 20
"""Letters that a message of the source has beside what is filled in, to be compared with a quoted one."""


def pattern(node: ast.expr, names: Mapping[str, str] = {}) -> str:
    """A text of the source, with `…` for what is filled in; `names` are the texts of local names."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(pattern(part, names) for part in node.values))
    if isinstance(node, ast.FormattedValue):
        return pattern(node.value, names)
    return names.get(node.id, "…") if isinstance(node, ast.Name) else "…"


@cache
def nodes_of_source() -> list[list[ast.AST]]:
    """All that each module of the source is made of."""
    paths = sorted((ROOT / "src" / "fmstune").rglob("*.py"))
    return [[*ast.walk(ast.parse(path.read_text(encoding="utf-8")))] for path in paths]


def messages() -> Iterator[str]:
    """Every message of the source, where its Problem or UserError is made."""
    for module in nodes_of_source():
        names: dict[str, str] = {}
        nodes = [node for node in module if hasattr(node, "lineno")]
        for node in sorted(nodes, key=lambda node: node.lineno):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names[node.targets[0].id] = pattern(node.value, names)
            elif isinstance(node, ast.FunctionDef):
                names = {}
            elif isinstance(node, ast.Call) and len(node.args) == 2:
                field, text = (pattern(argument, names) for argument in node.args)
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in ("Problem", "UserError", "problem"):
                    yield field + ("" if not field or text.startswith((":", "=", "…")) else " ") + text
                elif isinstance(node.func, ast.Attribute) and node.func.attr == "add_row":
                    yield f"…: {text}"


def notes() -> Iterator[str]:
    """Every other text of the source that is filled in or long enough to be a sentence: notes, and ends of messages."""
    for module in nodes_of_source():
        for node in module:
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                yield pattern(node)


@cache
def all_messages() -> list[str]:
    return sorted({message for message in messages() if len(message.replace("…", "")) >= FIXED})


@cache
def all_notes() -> set[str]:
    return {note for note in notes() if len(note.replace("…", "")) >= 2 * FIXED}


def covers(general: str, text: str) -> bool:
    """Whether `general`, with anything for each of its `…`, is this text; a regular expression would take minutes."""
    first, *rest = general.split("…")
    if not rest:
        return general == text
    *middle, last = rest
    if not text.startswith(first):
        return False
    at = len(first)
    for piece in middle:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return text.endswith(last) and len(text) - len(last) >= at


def is_given(message: str) -> bool:
    """Whether a tested command is answered by it, or the source fills it in so."""
    if len(message.replace("…", "")) < FIXED:
        return False
    source = any(covers(message, text) or covers(text, message) for text in (*all_messages(), *all_notes()))
    return source or any(covers(message, answer) for answer in ANSWERS)


UNCLEAR = re.compile(
    r"^What\b|\b(?:beside|goes on|go on|gone on|comes to|came to|is no|apart|at hand|nobody|whoever|those of)\b"
)
"""Words that a message is clearer without."""
NAMED = re.compile(
    r"…|--?\w|\w[./=]\w|^(?:name|seed|output_dir|compare_by|direction|launcher|peft|data|model|training)\b"
)
"""A field, a flag, a file, or a value that is filled in."""


def test_every_message_is_plain_english_and_names_what_it_is_about() -> None:
    assert len(all_messages()) >= 480
    assert [message for message in all_messages() if UNCLEAR.search(message) or not NAMED.search(message)] == []


@pytest.mark.parametrize(
    "message",
    ["What is read goes on", "the file is no model", "a table is written beside it", "the row comes to nothing"],
)
def test_an_unclear_message_is_found_out(message: str) -> None:
    assert UNCLEAR.search(message)
    assert not NAMED.search(message)


def test_the_specification_keeps_its_size() -> None:
    assert len(CASES) >= 497


def test_every_quoted_message_is_given() -> None:
    assert [message for message in QUOTED if not is_given(message)] == []


def test_the_page_quotes_many_messages_most_of_which_a_tested_command_gets() -> None:
    assert len(QUOTED) >= 50
    tested = [message for message in QUOTED if any(covers(message, answer) for answer in ANSWERS)]
    assert len(tested) >= 40


@pytest.mark.parametrize(
    "message",
    [
        "data.train: the file … is too old; buy a new one",
        "data.train: no file …; look behind the sofa",
        "model.path: the model … cannot be loved: …",
        "training.resume: …; …",
    ],
)
def test_an_invented_message_is_found_out(message: str) -> None:
    assert not is_given(message)
