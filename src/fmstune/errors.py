"""The errors that a user can cause; their message alone is shown, and the exit code is 2."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing to correct: the job field, flag or file place that it is about, and the rest of the sentence.

    `field` is empty where no single one is to blame. `text` follows it after a space, or directly where it begins
    with `:` or `=`, so that `str()` is one sentence.
    """

    field: str
    text: str

    def __str__(self) -> str:
        space = " " if self.field and self.text and not self.text.startswith((":", "=")) else ""
        return f"{self.field}{space}{self.text}"

    def moved(self, old: str, new: str) -> "Problem":
        """The problem with the group `old` renamed to `new`, such as the format of one source."""
        inside = self.field == old or self.field.startswith((f"{old}.", f"{old}["))
        return replace(self, field=new + self.field.removeprefix(old)) if inside else self


class UserError(Exception):
    """One problem in what the user gave, or with `of` several: each names the file, row or field, and what to do."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(field, text)
        self.problems: tuple[Problem, ...] = (Problem(field, text),)

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> "UserError":
        """The error with all of these problems, each of them once."""
        error = cls("", "")
        error.problems = tuple(dict.fromkeys(problems))
        return error

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))

    def __reduce__(self) -> Any:
        return (UserError.of, (self.problems,))


class Preempted(Exception):
    """The run was asked to stop: it has saved a checkpoint to resume from, or had not begun."""


def raise_if_any(problems: Iterable[Problem]) -> None:
    """Raise all problems at once, so that one run is enough to see and correct them."""
    if found := tuple(problems):
        raise UserError.of(found)


class collect_problems(AbstractContextManager[None]):
    """Add the problems of a UserError to the list instead of raising it; `new_fields`: of fields without one alone."""

    def __init__(self, problems: list[Problem], *, new_fields: bool = False) -> None:
        self._problems, self._new_fields = problems, new_fields

    def __exit__(self, kind: object, err: object, trace: object) -> bool:
        known = {problem.field for problem in self._problems if problem.field and self._new_fields}
        if isinstance(err, UserError):
            self._problems += [problem for problem in err.problems if problem.field not in known]
        return isinstance(err, UserError)


@contextmanager
def naming_flag(flag: str, fields: Sequence[str]) -> Iterator[None]:
    """Let the problems of these fields, and of what is in them, name the flag that the user gave."""
    try:
        yield
    except UserError as err:
        for field in fields:
            err.problems = tuple(problem.moved(field, flag) for problem in err.problems)
        raise


def os_problem(err: OSError) -> Problem:
    """What the operating system refuses, such as a name that is too long, with the beginning of the file's name."""
    return Problem(f"{err.filename or 'a file'!s:.200}", f": {err.strerror or err}")


def one_line(err: object) -> str:
    """The beginning of an error's text, without its line breaks."""
    return " ".join(str(err).split())[:300]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message, or an empty string when nothing is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(said: object) -> str:
    """The first line of a text or an error that is not blank; of an error without one the name of its class."""
    without = type(said).__name__ if isinstance(said, BaseException) else ""
    return next((line.strip() for line in str(said).splitlines() if line.strip()), without)


def without_secrets(text: str) -> str:
    """The text with `://user:password@` and tokens of the hub left out, to be shown or written down."""
    return re.sub(r"\bhf_[A-Za-z0-9]{20,}", "hf_…", re.sub(r"://[^\s/@:]*:[^\s/@]*@", "://…@", text))


def render(problems: Sequence[Problem]) -> str:
    """The text that a terminal shows for these problems."""
    if len(problems) == 1:
        return f"fmstune: error: {problems[0]}"
    numbered = (f"  {number}. {problem}" for number, problem in enumerate(problems, start=1))
    return "\n".join([f"fmstune: {len(problems)} errors:", *numbered])


def shown(value: object) -> str:
    """A value as a message shows it."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else repr(value)


def in_words(value: object) -> str:
    """The value and its type, as a message names them."""
    return "null" if value is None else f"the {type(value).__name__} {value!r:.40}"
