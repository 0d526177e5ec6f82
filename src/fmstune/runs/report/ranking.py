"""Several runs → what they differ in, which of them differ in the seed alone, and their order by one figure."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.config.compare_by import USUAL
from fmstune.config.job import Direction
from fmstune.config.metrics import better_end, metrics_of
from fmstune.errors import UserError, did_you_mean
from fmstune.flatten import flatten
from fmstune.runs.report.run_data import Run
from fmstune.runs.run_folder import FINISHED

SEED = "seed"
_NOT_SETTINGS = frozenset({"output_dir", "name", SEED})
"""Fields that name a run, or repeat it."""
_SIGNIFICANT = 2.0
"""Standard errors from which on a difference is called more than noise."""


@dataclass(frozen=True)
class Column:
    """A setting that differs between the runs, with its value in each of them."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Group:
    """Runs with the same settings, the seed aside."""

    values: tuple[Any, ...]
    """Of each column."""
    runs: tuple[Run, ...]
    scores: tuple[float, ...]
    """The figure of those that finished."""

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def label(self, columns: Sequence[Column]) -> str:
        """The settings in one line."""
        pairs = zip(columns, self.values, strict=True)
        return (
            ", ".join(f"{short_field(column.name)}={show_value(value)}" for column, value in pairs) or "the one setting"
        )


@dataclass(frozen=True)
class Metric:
    """The figure of `summary.json` that runs are ordered by."""

    name: str
    smaller: bool
    """Whether less is better."""


def choose_metric(runs: Sequence[Run], name: str | None, direction: str | None) -> Metric:
    """The figure to compare by: the one that is asked for, else the one that the jobs name, else a usual one.

    Raises UserError where no run has the one that is asked for.
    """
    known = sorted({key for run in runs for key in flatten(run.summary) if run.figure(key) is not None})
    if name is not None and known and name not in known:
        near = did_you_mean(name, known) or f"; there are {', '.join(key for key in known if 'tuned' in key)}"
        raise UserError("--metric", f"{name}: no run has such a figure in its summary.json{near}")
    finished = [run for run in runs if run.status == FINISHED]
    usual = next((key for key in USUAL if any(run.figure(key) is not None for run in finished)), USUAL[0])
    own = _said_by_all(runs, "compare_by") or usual
    found = name or own
    given = direction or (_said_by_all(runs, "direction") if found == own else None)
    way = better_end(metrics_of(runs[0].job), found) if given is None else Direction(given)
    return Metric(found, way is Direction.minimize)


def _said_by_all(runs: Sequence[Run], field: str) -> str | None:
    """A field that has one value in all jobs."""
    values = {run.job.get(field) for run in runs}
    return str(values.pop()) if len(values) == 1 and None not in values else None


def differing_columns(runs: Sequence[Run]) -> list[Column]:
    """What the runs differ in: by the words that were typed where these tell it all, else field by field.

    Fields that change together are one column, under the first name: a choice of a group changes many. Words are not:
    in a search, the values of two intervals differ in every run.
    """
    fields = _distinct([Column(name, values) for name, values in _differing(runs)])
    typed = _typed(runs)
    if typed and _partition([column.values for column in typed]) == _partition([column.values for column in fields]):
        return typed
    return fields


def group_runs(runs: Sequence[Run], found: Sequence[Column], by: Metric) -> list[Group]:
    """Runs with equal settings together, the best first; those without a figure last."""
    keys = list(zip(*(column.values for column in found), strict=True)) if found else [()] * len(runs)
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(_text(key), []).append(index)
    made = [_group(keys[places[0]], [runs[i] for i in places], by) for places in members.values()]
    return sorted(made, key=lambda group: _rank(group.mean, by))


def sort_by_score(runs: Sequence[Run], by: Metric) -> list[Run]:
    """The runs, the best first; those without a figure last."""
    return sorted(runs, key=lambda run: _rank(run.figure(by.name) if run.status == FINISHED else None, by))


def verdict(best: Group, second: Group) -> str:
    """Whether the best setting is ahead of the second by more than the seeds make a difference."""
    assert best.mean is not None
    assert second.mean is not None
    ahead = abs(best.mean - second.mean)
    if ahead == 0:
        return "The second is just as good."
    if best.spread is None or second.spread is None:
        return (
            f"It is ahead of the second by {ahead:.4g}; whether that is noise cannot be told without two seeds of "
            "each: sweep over seeds too (seed=1,2,3)."
        )
    error = math.hypot(best.spread / math.sqrt(len(best.scores)), second.spread / math.sqrt(len(second.scores)))
    told = "more than the seeds explain" if ahead > _SIGNIFICANT * error else "which may be noise"
    return f"It is ahead of the second by {ahead:.4g}, {told}: the standard error of that difference is {error:.2g}."


def short_field(name: str) -> str:
    """The last part of a dotted name; that before it for a target, which says nothing alone."""
    parts = name.split(".")
    return parts[-2] if parts[-1] in ("_target_", "path") and len(parts) > 1 else parts[-1]


def show_value(value: Any) -> str:
    r"""A setting's value in one line, a line break as `\n`: as it is typed in a shell."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        line = value.replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r")
        return line.removeprefix("peft.").removesuffix("Config") if line.startswith("peft.") else line
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False)


def _group(key: tuple[Any, ...], runs: Sequence[Run], by: Metric) -> Group:
    scores = [run.figure(by.name) for run in runs if run.status == FINISHED]
    return Group(key, tuple(sort_by_score(runs, by)), tuple(score for score in scores if score is not None))


def _rank(score: float | None, by: Metric) -> float:
    return math.inf if score is None else score if by.smaller else -score


def _differing(runs: Sequence[Run]) -> list[tuple[str, tuple[Any, ...]]]:
    """Fields of the jobs with unequal values; one that a job lacks is null there."""
    jobs = [flatten(run.job) for run in runs]
    names = dict.fromkeys(name for job in jobs for name in job)
    values = {name: tuple(job.get(name) for job in jobs) for name in names}
    return [(name, of) for name, of in values.items() if name not in _NOT_SETTINGS and len(set(map(_text, of))) > 1]


def _typed(runs: Sequence[Run]) -> list[Column]:
    """What the recorded words set differently; none where a run has no record."""
    if not all(run.words for run in runs):
        return []
    given = [dict(_set(word) for word in run.words if "=" in word and not word.startswith("-")) for run in runs]
    names = dict.fromkeys(name for words in given for name in words)
    found = [Column(name, tuple(words.get(name) for words in given)) for name in names if name not in _NOT_SETTINGS]
    return [column for column in found if len(set(map(_text, column.values))) > 1]


def _set(word: str) -> tuple[str, Any]:
    """`++a.b=1e-3` → its name, and its value as a number where it is one."""
    name, _, value = word.lstrip("+~").partition("=")
    try:
        number = float(value)
    except ValueError:
        return name, value
    return name, int(number) if number.is_integer() and value.lstrip("+-").isdecimal() else number


def _distinct(found: Sequence[Column]) -> list[Column]:
    """One column of those that change together."""
    kept: dict[tuple[int, ...], Column] = {}
    for column in found:
        kept.setdefault(_partition([column.values]), column)
    return list(kept.values())


def _partition(of: Sequence[Sequence[Any]]) -> tuple[int, ...]:
    """For each run, the number of the first run with equal values."""
    keys = [_text(key) for key in zip(*of, strict=True)]
    return tuple(keys.index(key) for key in keys)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
