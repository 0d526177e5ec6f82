"""Words → a composed job with its values; checked, shown and trained by the command."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from fmstune import tables
from fmstune.cli.python.command import ShownError, call_command
from fmstune.cli.python.run import Run, run_of
from fmstune.cli.python.values import Values, unchangeable
from fmstune.errors import Problem
from fmstune.launch import caller

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class Plan:
    """What `fmstune check` has found."""

    text: str
    """What the command prints."""
    values: Values
    """Those of `plan` in `summary.json`: `plan.values.total_steps`."""

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


class Job:
    """A composed job. Its fields are attributes (`job.training.learning_rate`); `compose` makes it, nothing changes it.

    It takes relative paths as the command does: from the working directory when it is checked or trained.
    """

    def __init__(self, words: Sequence[str], flags: Sequence[str], text: str, sources: Mapping[str, str]) -> None:
        own = {"words": tuple(words), "_flags": tuple(flags), "_text": text, "_sources": dict(sources)}
        self.__dict__.update(own, _values=Values(yaml.safe_load(text)))

    words: tuple[str, ...]
    """The words that were given: choices of groups, and fields."""
    _flags: tuple[str, ...]
    _text: str
    _sources: dict[str, str]
    _values: Values

    def check(self) -> Plan:
        """Check everything that can be known before a weight is read, as `fmstune check`; the plan.

        Raises UserError with all problems.
        """
        answer = call_command(["check", *self._flags, *self.words], keep=True, job=self._text)
        answer.raise_if_failed()
        return Plan(answer.out.rstrip("\n"), Values(answer.told[caller.PLAN], "plan"))

    def train(self) -> Run:
        """Train, as `fmstune` does, in processes of its own; their lines stream to this program's output.

        Raises UserError with all problems where the run cannot begin, RunError where it fails or is stopped, and
        KeyboardInterrupt after an interrupt: the run has then ended in order, and `fmstune.run(folder).resume()`
        resumes it from its last checkpoint.
        """
        return run_of(call_command(["train", *self._flags, *self.words], job=self._text))

    def show_data(self, rows: int = 3) -> str:
        """The first rows with what is trained in ⟦brackets⟧ and the sums of all rows, as `fmstune show-data` prints."""
        answer = call_command(["show-data", f"--rows={rows}", *self._flags, *self.words], keep=True, job=self._text)
        answer.raise_if_failed()
        return answer.out

    def with_(self, *words: str) -> "Job":
        """The job of the same words and these; a word takes the place of a former one for the same group or field."""
        replaced = {_key(word) for word in checked_words(words)}
        kept = [word for word in self.words if _key(word) not in replaced]
        return _composed([*kept, *words], self._flags)

    def to_yaml(self) -> str:
        """All values, as the run's `job.yaml` has them."""
        return self._text

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_values"], name)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise unchangeable(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Job) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> Any:
        return (Job, (self.words, self._flags, self._text, self._sources))

    def __repr__(self) -> str:
        """The values that are not defaults, each with the file or word that has set it."""
        rows = [(name, _shown(_at(self._values, name)), source) for name, source in self._sources.items()]
        return "\n".join(tables.lines((f"job {self._values['name']}", "value", "set by"), rows, left=(0, 1, 2)))


def _at(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values[key] if isinstance(values, Mapping) and key in values else None
    return dict(values) if isinstance(values, Mapping) else values


def _shown(value: Any) -> str:
    """A value on one line, text without quotes where nothing is lost by it."""
    plain = isinstance(value, str) and value.isprintable() and value
    return str(value) if plain else json.dumps(value, ensure_ascii=False, default=str)


def compose(*words: str, config_dir: Folder | None = None, trust: str | Sequence[str] = ()) -> Job:
    """The job of these words, which are those of the command: `peft=lora`, `training.max_steps=20`.

    `config_dir` is a folder with groups of your own; `trust` names packages that a `_target_` may be from.
    Raises UserError with everything that is wrong with the words. What needs the model or the rows, `check` finds.
    """
    return _composed(checked_words(words), flags_of_python(config_dir, trust))


def flags_of_python(config_dir: Folder | None, trust: str | Sequence[str]) -> list[str]:
    """The flags of the command for these arguments."""
    packages = [trust] if isinstance(trust, str) else trust
    folder = [] if config_dir is None else [f"--config-dir={os.path.abspath(config_dir)}"]
    return [*folder, *(f"--trust={package}" for package in packages)]


def checked_words(words: Sequence[str]) -> list[str]:
    """The words; raises UserError for flags, which are arguments or methods here."""
    problems: list[Problem] = []
    given: Sequence[object] = words  # also of who has no type checker
    for word in given:
        if not isinstance(word, str):
            problems.append(Problem(repr(word), "is not text; a word is one such as 'training.max_steps=20'"))
        elif word.startswith("-"):
            hint = "give fields and choices, and config_dir= or trust= as arguments; fmstune.sweep takes several values"
            problems.append(Problem(word, f"is a flag of the command; {hint}"))
    if problems:
        raise ShownError(problems)
    return [*words]


def _composed(words: Sequence[str], flags: Sequence[str]) -> Job:
    answer = call_command(["train", "--cfg=job", *flags, *words])
    answer.raise_if_failed()
    return Job(words, flags, answer.told[caller.JOB], answer.told[caller.SOURCES])


def _key(word: str) -> str:
    """The group or field that a word sets."""
    return word.lstrip("+~").partition("=")[0]
