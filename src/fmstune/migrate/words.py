"""Shared by all translations: old words → flags, values → words of today, and the command that is made of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import chain, takewhile
from typing import Any

from fmstune.errors import Problem, UserError, collect_problems
from fmstune.migrate.flags import Fate, Flag, Kind, find_flag, unknown_flag
from fmstune.migrate.shell import UNSET

Given = dict[str, list[str]]
"""Flags with their values."""


class Became(Enum):
    """What became of a flag, in the order in which notes are printed."""

    kept = "kept"
    renamed = "renamed"
    set = "set"
    """An early default that differs from fmstune's and is written out."""
    dropped = "dropped"
    changed = "changed"


@dataclass(frozen=True)
class Note:
    """What became of one flag, or a difference that the user has to know."""

    became: Became
    old: str
    new: str = ""
    why: str = ""


@dataclass
class Translation:
    """One command of today, in the making."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set before the command."""
    verb: tuple[str, ...] = ()
    """The first words after `fmstune`."""
    fields: dict[str, str] = field(default_factory=dict)
    """Each field, group or flag with its word as it is typed, such as `"\\n### Label:"` in Hydra's quotes."""
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def words(self) -> tuple[str, ...]:
        """The words after `fmstune`; the name of a variable without a value is between two UNSET."""
        return (*self.verb, *chain.from_iterable(self.lines()))

    def lines(self) -> list[tuple[str, ...]]:
        """The words of each field, group or flag."""
        return [(name, word) if name.startswith("--") else (f"{name}={word}",) for name, word in self.fields.items()]

    @property
    def unset(self) -> list[str]:
        """Names of variables without a value."""
        return list(dict.fromkeys(re.findall(f"{UNSET}(\\w+){UNSET}", " ".join(self.words))))

    def note(self, became: Became, old: str, new: str = "", why: str = "") -> None:
        """Add a note."""
        self.notes.append(Note(became, old, new, why))

    def drop(self, old: str, why: str) -> None:
        """Add a note on a flag that is left out."""
        self.note(Became.dropped, old, why=why)

    def problem(self, name: str, text: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(name, text))

    def set(self, old: str, name: str, value: str, why: str = "", became: Became | None = None) -> None:
        """Set a field or flag, and note which old flag it comes from."""
        self.fields[name] = value
        joined = f"{name} {value}" if name.startswith("--") else f"{name}={value}"
        self.note(became or kept_or_renamed(old, name), old, joined, why)

    def attempt(self, translate: Callable[..., None], *args: Any) -> None:
        """Call the function, and add the problems of a UserError that it raises."""
        with collect_problems(self.problems):
            translate(*args)


def kept_or_renamed(old: str, name: str) -> Became:
    """Whether `--flag value` has kept its name in a field or flag of today."""
    return Became.kept if old.partition(" ")[0] == f"--{name.lstrip('-').rpartition('.')[2]}" else Became.renamed


def read_flags(words: Sequence[str], flags: Mapping[str, Flag]) -> tuple[Given, list[str]]:
    """The flags at the start of these words, each with its values, and the remaining words; `-` in a name is `_`."""
    found: Given = {}
    rest = list(words)
    while rest and rest[0].startswith("--"):
        name, equals, value = rest.pop(0)[2:].partition("=")
        name = name.replace("-", "_")
        flag = find_flag(name, flags)
        kind = Kind.words if flag is None else flag.kind
        values = list(takewhile(partial(_is_value, kind), rest[: None if kind is Kind.words else 1]))
        found[name] = [value] if equals else values
        rest = rest if equals else rest[len(values) :]
    return found, rest


def _is_value(kind: Kind, word: str) -> bool:
    """Whether the word is a value of the flag before it; the script after a launcher's flags is none."""
    if kind in (Kind.text, Kind.plain):
        return not word.startswith("--")
    return not word.endswith(".py") and re.match(r"-\D", word) is None


def moved_flag(name: str, values: Sequence[str], flags: Mapping[str, Flag], out: Translation) -> Flag | None:
    """The flag's entry if it has a field today; otherwise add a problem, or a note that it is dropped."""
    flag = find_flag(name, flags)
    is_off = [value.lower() for value in values] in (["no"], ["false"], ["none"])
    if flag is None:
        out.problems.append(unknown_flag(name, flags))
    elif flag.fate is Fate.refused and not is_off:
        out.problem(f"--{name}", f": {flag.why}")
    elif flag.fate is not Fate.moved:
        # a note never shows a secret
        out.drop(f"--{name}" if "token" in name and "hub" in name else old_flag(name, values), flag.why)
    else:
        return flag
    return None


def old_flag(name: str, values: Sequence[str]) -> str:
    """The flag with its values, as a note shows it."""
    return readable(" ".join([f"--{name}", *values])).replace("\n", r"\n")


def readable(text: str) -> str:
    """The text with `$NAME` for each variable without a value."""
    # UNSET itself, and UNSET within a repr
    mark = rf"(?:{UNSET}|\\x00)"
    return re.sub(rf"{mark}(\w+?){mark}", r"$\1", text)


def switch_value(name: str, values: Sequence[str]) -> bool:
    """The value of a switch, true if it has none, as transformers' HfArgumentParser reads it; raises UserError."""
    true, false = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
    word = values[0].lower() if values else "true"
    if word not in (*true, *false):
        raise UserError(f"--{name}", f"must be True or False, got {values[0]!r}")
    return word in true


def single_value(name: str, values: Sequence[str]) -> str:
    """The value of a flag that takes exactly one."""
    if len(values) != 1:
        raise UserError(f"--{name}", f"takes one value, got {' '.join(values) if values else 'none'}")
    return values[0]


def hydra_word(value: str, kind: Kind = Kind.text) -> str:
    r"""A value for Hydra's command line, in double quotes unless it is a plain word; `\n` stands for a line break."""
    number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value, re.IGNORECASE) is not None
    word = re.fullmatch(rf"[\w./{UNSET}][\w./:{UNSET}+-]*", value) is not None
    needs_quotes = kind is Kind.text and (number or value.lower() in ("true", "false", "null", "inf", "nan"))
    if (number or word) and not needs_quotes:
        return value
    value = value.replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r")
    value = re.sub(r'(\\*)"', lambda found: found[1] * 2 + '\\"', value)
    # backslashes before the closing quote
    return '"' + re.sub(r"\\+$", lambda found: found[0] * 2, value) + '"'


def hydra_list(values: Sequence[str]) -> str:
    """Several values as a list for Hydra's command line."""
    return f"[{','.join(hydra_word(value) for value in values)}]"


def todays_value(name: str, flag: Flag, values: Sequence[str]) -> str:
    """The value in today's words, for Hydra's command line; "" if nothing needs to be set."""
    if flag.kind is Kind.words:
        names = [word for value in values for word in value.split()]
        if not names:
            raise UserError(f"--{name}", "takes at least one value, got none")
        return names[0] if names == ["all-linear"] else hydra_list(names)
    if flag.kind is Kind.switch:
        word = "true" if switch_value(name, values) else "false"
        return flag.values.get(word, word)
    value = single_value(name, values)
    return flag.values.get(value.lower(), hydra_word(value, flag.kind))


def todays_word(name: str, flag: Flag, word: str) -> str:
    """Today's word for an early one; raises UserError with the early words that exist."""
    if word not in flag.values:
        raise UserError(f"--{name}", f"must be one of {', '.join(flag.values)}; got {word!r}")
    return flag.values[word]
