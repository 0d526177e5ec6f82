"""The errors that a user can cause; their message alone is shown, and the exit code is 2."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """One or more problems in what the user gave; each names the file, row or field, and what to do."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        return (type(self), self.problems)


class Preempted(Exception):
    """The run was asked to stop: it has saved a checkpoint to go on from, or had not begun."""


def raise_if_any(problems: Iterable[str]) -> None:
    """Raise all problems at once, so that nobody mends them one run at a time."""
    found = tuple(problems)
    if found:
        raise UserError(*found)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message, or an empty string when nothing is near."""
    near: Sequence[str] = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def render(problems: Sequence[str]) -> str:
    """The text that a terminal shows for these problems."""
    if len(problems) == 1:
        return f"fmstune: error: {problems[0]}"
    lines = [f"fmstune: {len(problems)} errors:"]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(problems, start=1)]
    return "\n".join(lines)


def shown(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else repr(value)
