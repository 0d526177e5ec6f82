r"""Shell text → the commands in it, each with its environment; a pure function that runs no shell.

Read are quotes, comments, `\` at the end of a line, `VAR=value`, `export`, `$VAR`, `${VAR}` and command separators.
Unlike a shell, a `\` that is followed by spaces continues the line, because the early README has such lines.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fmstune.errors import UserError

UNSET = "\x00"
"""Written before and after the name of a variable without a value, in place of `$NAME`."""

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=")
_WORD = r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.?|[^'"\\\s;&|<>])+"""
_TOKEN = re.compile(
    r"(?P<end>\n|;|&&|\|\|?|&)"
    rf"|(?:[ \t\r]+|#[^\n]*|[0-9]?(?:>>|>&|>|<)(?:&?[0-9]|[ \t]*(?:{_WORD})?))"
    rf"|(?P<word>{_WORD})|(?P<open>.)",
    re.DOTALL,
)
"""The end of a command; spaces, a comment, or a redirection with its file; a word; a quote that does not end."""
_PART = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.?)|([^'"\\]+)""", re.DOTALL)
_EXPANDED = re.compile(r'\\([$`"\\])|\$(?:(\w+)|\{(\w+)\})|(`|\$[({])')
"""An escaped sign, a variable, or the start of `$(…)`, of a command in backticks, or of `${NAME…}` with an operator."""


class Command(NamedTuple):
    """One command, its words as a shell would pass them."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    """Variables that are set before its first word, and variables that were exported earlier."""


def shell_commands(text: str, known: Mapping[str, str]) -> list[Command]:
    """The commands of a text, in order; raises UserError on an open quote and on `$(…)`, which needs a shell."""
    values, exported = dict(known), dict[str, str]()
    found: list[Command] = []
    for words in _lines(re.sub(r"\\[ \t]*\r?\n", " ", text), values):
        own, rest = _assignments(words)
        if rest and rest[0] == "export":
            given, names = _assignments(rest[1:])
            values |= given
            exported |= given | {name: values[name] for name in names if name in values}
        elif rest:
            found.append(Command(tuple(rest), {**exported, **own}))
        else:
            values |= own
    return found


def _assignments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The `NAME=value` words at the start, and the other words; `env`, `nohup` and `time` are skipped."""
    own: dict[str, str] = {}
    for place, word in enumerate(words):
        if match := _ASSIGNMENT.match(word):
            own[match[1]] = word[match.end() :]
        elif word not in ("env", "nohup", "time"):
            return own, words[place:]
    return own, []


def _lines(text: str, values: Mapping[str, str]) -> Iterator[list[str]]:
    """The words of each command; the caller may add to `values` between two commands."""
    words = list[str]()
    for token in _TOKEN.finditer(text):
        if token["open"]:
            start = text[token.start() :].split("\n")[0][:40]
            hint = "put the whole command into single quotes, or into a file"
            raise UserError("", f"the quote at {start} does not end; {hint}")
        if token["end"]:
            yield words
            words = []
        elif token["word"]:
            parts = _PART.findall(token["word"])
            words.append("".join(one + escape + _expanded(two + plain, values) for one, two, escape, plain in parts))
    yield words


def _expanded(text: str, values: Mapping[str, str]) -> str:
    """The text with the value of each variable; a variable without a value becomes its name between two UNSET."""

    def value(found: re.Match[str]) -> str:
        escaped, plain, braced, command = found.groups()
        if command:
            raise UserError("", f"{text.strip()[:60]}: only a shell can run this; write its result")
        name = plain or braced
        return escaped or values.get(name, f"{UNSET}{name}{UNSET}")

    return _EXPANDED.sub(value, text)
