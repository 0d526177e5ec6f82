"""What the translations of old commands share: words → flags with their values, and values → words of today."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from fmstune.errors import Problem, UserError
from fmstune.migrate.flags import TUNING, Fate, Flag, Kind, of_tuning, unknown
from fmstune.migrate.shell import UNSET

TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
"""Words for switches, as transformers' HfArgumentParser takes them."""


class Became(Enum):
    """What became of a flag, in the order in which it is shown."""

    kept = "kept"
    renamed = "renamed"
    set = "set"
    """An early default that is written out."""
    dropped = "dropped"
    changed = "changed"


@dataclass(frozen=True)
class Note:
    """What became of one flag, or what a user has to know beside."""

    became: Became
    old: str
    new: str = ""
    why: str = ""


@dataclass
class Translated:
    """A translation while it is made: words of today by field, notes, and problems."""

    fields: dict[str, str] = field(default_factory=dict)
    """Each field, group or flag with its word as it is typed, such as `"\\n### Label:"` in Hydra's quotes."""
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_flags(words: Sequence[str], flags: Mapping[str, Flag]) -> tuple[dict[str, list[str]], list[str]]:
    """The flags that these words give, each with its words; and the words from the first that belongs to none on.

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
            # behind a launcher's switch may stand the script
            values = [rest.pop(0)] if rest and not rest[0].startswith("-") and not rest[0].endswith(".py") else []
        elif kind in (None, Kind.words):
            values = []
            # the script after a launcher's flags is no value of theirs
            while rest and not rest[0].startswith("--") and not rest[0].endswith(".py"):
                values.append(rest.pop(0))
        else:
            values = [rest.pop(0)] if rest and not rest[0].startswith("--") else []
        found[name] = values
    return found, rest


def moves(name: str, values: Sequence[str], flags: Mapping[str, Flag], out: Translated) -> Flag | None:
    """The flag where it moves; else a problem, or a note on what is dropped, is added."""
    flag = of_tuning(name) if flags is TUNING else flags.get(name)
    if flag is None:
        out.problems.append(unknown(name, flags))
    elif flag.fate is Fate.refused and not is_off(values):
        out.problems.append(Problem(f"--{name}", f": {flag.why}"))
    elif flag.fate is not Fate.moved:
        # a secret is not repeated
        old = f"--{name}" if "token" in name and "hub" in name else shown(name, values)
        out.notes.append(Note(Became.dropped, old, why=flag.why))
    else:
        return flag
    return None


def shown(name: str, values: Sequence[str]) -> str:
    """The flag as the note on it shows it."""
    return readable(" ".join([f"--{name}", *values])).replace("\n", r"\n")


def readable(text: str) -> str:
    """The text with variables without a value under their names."""
    # as it stands, and within a repr
    mark = rf"(?:{UNSET}|\\x00)"
    return re.sub(rf"{mark}(\w+?){mark}", r"$\1", text)


def switch(name: str, values: Sequence[str]) -> bool:
    """What a switch says; alone it says true. Raises UserError where it is neither."""
    word = values[0].lower() if values else "true"
    if word not in (*TRUE, *FALSE):
        raise UserError(f"--{name}", f"must be True or False, got {values[0]!r}")
    return word in TRUE


def is_off(values: Sequence[str]) -> bool:
    """Whether this says that something is not wanted."""
    return [value.lower() for value in values] in ([word] for word in ("no", "false", "none"))


def single(name: str, values: Sequence[str]) -> str:
    """The one word after a flag; raises UserError where there is none, or more."""
    if len(values) != 1:
        raise UserError(f"--{name}", f"takes one value, got {' '.join(values) if values else 'none'}")
    return values[0]


def typed(value: str, kind: Kind = Kind.text) -> str:
    r"""A value as Hydra reads it on a command line: in double quotes unless it is a plain word.

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
    # those before the closing quote
    value = re.sub(r"\\+$", lambda found: found[0] * 2, value)
    return f'"{value}"'


def typed_list(values: Sequence[str]) -> str:
    """Several values as Hydra reads a list."""
    return f"[{','.join(typed(value) for value in values)}]"


def by_word(name: str, flag: Flag, word: str) -> str:
    """Today's word for an early one; raises UserError with the words that there are."""
    if word not in flag.values:
        raise UserError(f"--{name}", f"must be one of {', '.join(flag.values)}; got {word!r}")
    return flag.values[word]


def moved(name: str, field: str) -> Became:
    """Whether a flag has kept its name."""
    return Became.kept if field.lstrip("-").rpartition(".")[2] == name else Became.renamed
