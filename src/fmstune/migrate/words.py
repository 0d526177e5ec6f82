"""Shared by all translations: old words → flags, values → words of today, and a translation in the making."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from fmstune.errors import Problem, UserError
from fmstune.migrate.flags import TUNING, Fate, Flag, Kind, tuning_flag, unknown_flag
from fmstune.migrate.shell import UNSET

TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
"""Words for switches, as transformers' HfArgumentParser takes them."""


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
class Translated:
    """A translation in the making."""

    fields: dict[str, str] = field(default_factory=dict)
    """Each field, group or flag with its word as it is typed, such as `"\\n### Label:"` in Hydra's quotes."""
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

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

    @contextmanager
    def collect_problems(self) -> Iterator[None]:
        """Add the problems of a UserError that is raised inside, and continue after the block."""
        try:
            yield
        except UserError as err:
            self.problems += err.problems


def kept_or_renamed(old: str, name: str) -> Became:
    """Whether `--flag value` has kept its name in a field or flag of today."""
    return Became.kept if old.partition(" ")[0] == f"--{name.lstrip('-').rpartition('.')[2]}" else Became.renamed


def read_flags(words: Sequence[str], flags: Mapping[str, Flag]) -> tuple[dict[str, list[str]], list[str]]:
    """The flags at the start of these words, each with its values; and the remaining words.

    `--a=b` and `--a b` are the same, and so are `-` and `_` in a name.
    """
    found: dict[str, list[str]] = {}
    rest = list(words)
    while rest and rest[0].startswith("--"):
        name, equals, value = rest.pop(0)[2:].partition("=")
        name = name.replace("-", "_")
        kind = flags[name].kind if name in flags else None
        if equals:
            values = [value]
        elif kind is Kind.switch:
            # a launcher's switch may be followed by the script
            values = [rest.pop(0)] if rest and not rest[0].startswith("-") and not rest[0].endswith(".py") else []
        elif kind in (None, Kind.words):
            values = []
            # the script after a launcher's flags is not one of their values
            while rest and not rest[0].startswith("--") and not rest[0].endswith(".py"):
                values.append(rest.pop(0))
        else:
            values = [rest.pop(0)] if rest and not rest[0].startswith("--") else []
        found[name] = values
    return found, rest


def moved_flag(name: str, values: Sequence[str], flags: Mapping[str, Flag], out: Translated) -> Flag | None:
    """The flag's entry if it has a field today; otherwise add a problem, or a note that it is dropped."""
    flag = tuning_flag(name) if flags is TUNING else flags.get(name)
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
    """The value of a switch, true if it has none; raises UserError if it is neither true nor false."""
    word = values[0].lower() if values else "true"
    if word not in (*TRUE, *FALSE):
        raise UserError(f"--{name}", f"must be True or False, got {values[0]!r}")
    return word in TRUE


def single_value(name: str, values: Sequence[str]) -> str:
    """The value of a flag that takes exactly one."""
    if len(values) != 1:
        raise UserError(f"--{name}", f"takes one value, got {' '.join(values) if values else 'none'}")
    return values[0]


def hydra_word(value: str, kind: Kind = Kind.text) -> str:
    r"""A value for Hydra's command line: in double quotes unless it is a plain word.

    A line break is written `\n`, which fmstune reads as one in a template.
    """
    if value.startswith(UNSET) and value.endswith(UNSET) and value.count(UNSET) == 2:
        return value
    number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value, re.IGNORECASE) is not None
    if number and kind is not Kind.text:
        return value
    word = re.fullmatch(rf"[\w./{UNSET}][\w./:{UNSET}+-]*", value) is not None
    as_text = number or value.lower() in ("true", "false", "null", "inf", "nan")
    if word and not (as_text and kind is Kind.text):
        return value
    value = value.replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r")
    value = re.sub(r'(\\*)"', lambda found: found[1] * 2 + '\\"', value)
    # backslashes before the closing quote
    value = re.sub(r"\\+$", lambda found: found[0] * 2, value)
    return f'"{value}"'


def hydra_list(values: Sequence[str]) -> str:
    """Several values as a list for Hydra's command line."""
    return f"[{','.join(hydra_word(value) for value in values)}]"


def todays_word(name: str, flag: Flag, word: str) -> str:
    """Today's word for an early one; raises UserError with the early words that exist."""
    if word not in flag.values:
        raise UserError(f"--{name}", f"must be one of {', '.join(flag.values)}; got {word!r}")
    return flag.values[word]
