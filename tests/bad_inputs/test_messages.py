# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md quotes messages that fmstune really gives."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests import ROOT
from tests.bad_inputs.test_bad_inputs import CASES

PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^> `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
ANSWERS = {message for case in CASES for message in case.says}
"""What tests/bad_inputs/test_bad_inputs.py gets for wrong inputs; `…` stands for words that are not fixed there."""
FIXED = 20
"""Letters that a text of the source has beside what is filled in, to be taken for a message."""


def texts() -> Iterator[str]:
    """Every text of the source, with `…` for what is filled in."""
    for path in sorted((ROOT / "src" / "fmstune").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXTS = {text for text in texts() if len(text.replace("…", "")) >= FIXED}


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
    return any(covers(message, answer) for answer in ANSWERS) or any(
        covers(message, text) or covers(text, message) for text in TEXTS
    )


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_given(message: str) -> None:
    assert len(message.replace("…", "")) >= FIXED
    assert is_given(message)


def test_the_page_quotes_many_messages_most_of_which_a_tested_command_gets() -> None:
    assert len(QUOTED) >= 50
    tested = [message for message in QUOTED if any(covers(message, answer) for answer in ANSWERS)]
    assert len(tested) >= 40


def test_an_invented_message_is_found_out() -> None:
    assert not is_given("data.train: the file … is too old; buy a new one")
    assert not is_given("data.train: no file …; look behind the sofa")
