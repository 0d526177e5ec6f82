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

_NAME = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=")
_ENDS = re.compile(r"\n|;|&&|\|\|?|&")
_REDIRECTION = re.compile(r"[0-9]?(?:>>|>&|>|<)(?:&?[0-9])?")


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
    rest = list(words)
    while rest:
        match = _ASSIGNMENT.match(rest[0])
        if match is not None:
            own[match[1]] = rest.pop(0)[match.end() :]
        elif rest[0] in ("env", "nohup", "time"):
            rest.pop(0)
        else:
            break
    return own, rest


def _lines(text: str, values: Mapping[str, str]) -> Iterator[list[str]]:
    """The words of each command; the caller may add to `values` between two commands."""
    place, words = 0, list[str]()
    while place < len(text):
        rest = text[place:]
        redirected = _REDIRECTION.match(rest)
        if end := _ENDS.match(rest):
            yield words
            words, place = [], place + end.end()
        elif text[place] in " \t\r":
            place += 1
        elif text[place] == "#":
            place += len(rest.partition("\n")[0])
        elif redirected:
            place += redirected.end()
            if not redirected[0][-1].isdigit():
                target = len(text) - len(text[place:].lstrip(" \t"))
                place = _word(text, target, values)[1]
        else:
            word, place = _word(text, place, values)
            words.append(word)
    yield words


def _word(text: str, place: int, values: Mapping[str, str]) -> tuple[str, int]:
    """One word and the place after it."""
    parts = list[str]()
    while place < len(text) and text[place] not in " \t\r\n;&|<>":
        sign = text[place]
        if sign in "'\"":
            end = _closing(text, place)
            inside = text[place + 1 : end]
            parts.append(inside if sign == "'" else _expanded(re.sub(r'\\([$`"\\])', _escaped, inside), values))
            place = end + 1
        elif sign == "\\":
            parts.append(text[place + 1 : place + 2])
            place += 2
        else:
            # up to the next quote, escape or end
            plain = re.match(r"[^'\"\\ \t\r\n;&|<>]+", text[place:])
            assert plain is not None
            parts.append(_expanded(plain[0], values))
            place += plain.end()
    return "".join(parts), place


def _closing(text: str, place: int) -> int:
    """The place of the closing quote for the quote at `place`."""
    pattern = r"'[^']*'" if text[place] == "'" else r'"(?:\\.|[^"\\])*"'
    found = re.compile(pattern, re.DOTALL).match(text, place)
    if found is None:
        start = text[place:].split("\n")[0][:40]
        hint = "put the whole command into single quotes, or into a file"
        raise UserError("", f"the quote at {start} does not end; {hint}")
    return found.end() - 1


_ESCAPED_DOLLAR = "\x01"


def _escaped(found: re.Match[str]) -> str:
    return _ESCAPED_DOLLAR if found[1] == "$" else found[1]


def _expanded(text: str, values: Mapping[str, str]) -> str:
    """The text with the value of each variable; a variable without a value becomes its name between two UNSET."""
    # $(…), `…` and ${NAME…} with an operator
    if "`" in text or re.search(r"\$\(|\$\{(?!\w+\})", text):
        raise UserError("", f"{text.strip()[:60]}: only a shell can run this; write its result")

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return values.get(name, f"{UNSET}{name}{UNSET}")

    return _NAME.sub(value, text).replace(_ESCAPED_DOLLAR, "$")
