"""Rank several runs: in which settings they differ, which of them differ only in the seed, and which one is best."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmstune.config.choices import Direction
from fmstune.config.compare_by import USUAL
from fmstune.config.job import Sweep
from fmstune.config.metrics import better_end, metrics_of
from fmstune.errors import UserError, did_you_mean
from fmstune.flatten import flatten
from fmstune.runs.report.cells import show_value
from fmstune.runs.report.run_data import Run
from fmstune.runs.run_folder import FINISHED

SEED = "seed"
_NOT_SETTINGS = frozenset({"output_dir", "name", SEED, *(f"sweep.{name}" for name in Sweep.__dataclass_fields__)})
"""Fields that name a run or repeat it, and those of the sweep that it is a point of."""
_SIGNIFICANT = 2.0
"""Standard errors above which a difference is more than noise."""


class Column(NamedTuple):
    """A setting that differs between the runs, with its value in each of them."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Group:
    """Runs with the same settings and different seeds."""

    values: tuple[Any, ...]
    """One of each column."""
    runs: tuple[Run, ...]
    scores: tuple[float, ...]
    """The metric of the runs that finished."""

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None if no run finished."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def label(self, columns: Sequence[Column]) -> str:
        """Return the settings in one line."""
        pairs = zip(columns, self.values, strict=True)
        return ", ".join(f"{short_field(c.name)}={short_value(value)}" for c, value in pairs) or "the only setting"


class Metric(NamedTuple):
    """The number of `summary.json` that ranks the runs."""

    name: str
    smaller: bool
    """Whether less is better."""

    def rank(self, score: float | None) -> float:
        """Return a key that sorts the best first and a missing score last."""
        return math.inf if score is None else score if self.smaller else -score


def choose_metric(runs: Sequence[Run], name: str | None, direction: str | None) -> Metric:
    """Return the metric that was asked for, else the one that the jobs name, else a usual one."""
    known = sorted({key for run in runs for key in flatten(run.summary) if run.figure(key) is not None})
    if name is not None and known and name not in known:
        near = did_you_mean(name, known) or f"; choose one of {', '.join(key for key in known if 'tuned' in key)}"
        raise UserError("--metric", f"{name}: no run has this number in its summary.json{near}")
    finished = [run for run in runs if run.status == FINISHED]
    usual = next((key for key in USUAL if any(run.figure(key) is not None for run in finished)), USUAL[0])
    own = _same_in_all(runs, "compare_by") or usual
    found = name or own
    given = direction or (_same_in_all(runs, "direction") if found == own else None)
    ways = {way.value: way for way in Direction}
    way = ways.get(str(given)) or better_end(metrics_of(runs[0].job), found)
    return Metric(found, way is Direction.minimize)


def _same_in_all(runs: Sequence[Run], field: str) -> str | None:
    """Return the value of a field that is the same in all jobs, else None."""
    first, *others = (run.job.get(field) for run in runs)
    return str(first) if first is not None and all(other == first for other in others) else None


def differing_columns(runs: Sequence[Run]) -> list[Column]:
    """Return the settings that differ: as they were typed if the typed words tell the runs apart, else by field.

    Fields that change together are one column under the first name, because a choice of a group changes many. Typed
    words are not joined: in a search, the values of two intervals differ in every run.
    """
    kept: dict[tuple[int, ...], Column] = {}
    for column in _differing([flatten(run.job) for run in runs]):
        kept.setdefault(_partition([column.values]), column)
    fields = list(kept.values())
    typed = _differing([dict(_assignment(w) for w in run.words if "=" in w and w[0] != "-") for run in runs])
    told_apart = _partition([column.values for column in typed]) == _partition([column.values for column in fields])
    return typed if typed and told_apart and all(run.words for run in runs) else fields


def group_runs(runs: Sequence[Run], columns: Sequence[Column], by: Metric) -> list[Group]:
    """Return the runs with equal settings together: the best first, those without a score last."""
    keys = list(zip(*(column.values for column in columns), strict=True)) if columns else [()] * len(runs)
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(_text(key), []).append(index)
    groups = []
    for places in members.values():
        same = sort_by_score([runs[index] for index in places], by)
        scores = tuple(score for run in same if (score := _score(run, by)) is not None)
        groups.append(Group(keys[places[0]], tuple(same), scores))
    return sorted(groups, key=lambda group: by.rank(group.mean))


def sort_by_score(runs: Sequence[Run], by: Metric) -> list[Run]:
    """Return the runs: the best first, those without a score last."""
    return sorted(runs, key=lambda run: by.rank(_score(run, by)))


def verdict(best: Group, second: Group) -> str:
    """Say whether the best setting leads the second by more than the seeds explain."""
    assert best.mean is not None and second.mean is not None
    lead = abs(best.mean - second.mean)
    if lead == 0:
        return "The second is just as good."
    if best.spread is None or second.spread is None:
        advice = "Two seeds of each setting would tell whether that is noise: sweep over seeds too (seed=1,2,3)."
        return f"It leads the second by {lead:.4g}. {advice}"
    error = math.hypot(best.spread / math.sqrt(len(best.scores)), second.spread / math.sqrt(len(second.scores)))
    told = "more than the seeds explain" if lead > _SIGNIFICANT * error else "which may be noise"
    return f"It leads the second by {lead:.4g}, {told}: the standard error of that difference is {error:.2g}."


def short_field(name: str) -> str:
    """Return the last part of a dotted name, or the part before `_target_` and `path`."""
    parts = name.split(".")
    return parts[-2] if parts[-1] in ("_target_", "path") and len(parts) > 1 else parts[-1]


def short_value(value: Any) -> str:
    """Return a setting's value in one line, a PEFT class by its method."""
    text = show_value(value)
    return text.removeprefix("peft.").removesuffix("Config") if text.startswith("peft.") else text


def _score(run: Run, by: Metric) -> float | None:
    return run.figure(by.name) if run.status == FINISHED else None


def _differing(given: Sequence[dict[str, Any]]) -> list[Column]:
    """Return the names with unequal values; a name that one of the mappings lacks is null there."""
    names = dict.fromkeys(name for values in given for name in values if name not in _NOT_SETTINGS)
    columns = [Column(name, tuple(values.get(name) for values in given)) for name in names]
    return [column for column in columns if len(set(map(_text, column.values))) > 1]


def _assignment(word: str) -> tuple[str, Any]:
    """Return the name in `++a.b=1e-3`, and its value, as a number if it is one."""
    name, _, value = word.lstrip("+~").partition("=")
    try:
        number = float(value)
    except ValueError:
        return name, value
    return name, int(number) if number.is_integer() and value.lstrip("+-").isdecimal() else number


def _partition(values: Sequence[Sequence[Any]]) -> tuple[int, ...]:
    """Return, for each run, the index of the first run with equal values."""
    keys = [_text(key) for key in zip(*values, strict=True)]
    return tuple(keys.index(key) for key in keys)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
