"""Several runs → what their report says: which setting won and by how much, and what all of them cost."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmstune.config.compare_by import is_number
from fmstune.config.metrics import Place, label_with_unit, names_at
from fmstune.flatten import flatten
from fmstune.runs import run_folder
from fmstune.runs.report import charts, ranking, run_report
from fmstune.runs.report.charts import Axes, Line, Series, Spot
from fmstune.runs.report.document import (
    Block,
    Cell,
    Charts,
    Command,
    Document,
    More,
    Section,
    Table,
    Text,
    change,
    number,
)
from fmstune.runs.report.ranking import Column, Group, Metric
from fmstune.runs.report.run_data import Refused, Run

_MOST_COLOURED = 8
"""Settings that curves are drawn for; of more, the best."""
_MOST_SERIES = 6
"""Choices of the other settings that a chart of one setting has a line for."""


def sweep_document(folder: Path, runs: Sequence[Run], by: Metric, refused: Sequence[Refused] = ()) -> Document:
    """The report of the runs in a folder, whatever they got to, and of the points that were refused."""
    found = ranking.differing_columns(runs)
    groups = ranking.group_runs(runs, found, by)
    count = len(runs) + len(refused)
    failed = sum(run.status == run_folder.FAILED for run in runs) + len(refused)
    status = f"{sum(run.status == run_folder.FINISHED for run in runs)} of {count} finished"
    status += f", {failed} failed" if failed else ""
    sections = [
        ("Result", _result(groups, found, by)),
        ("Settings", _table(groups, found, by)),
        ("Each setting", _by_setting(groups, found, by)),
        ("Curves", _curves(groups, found)),
        ("Runs", _runs(runs, found, by) if len(groups) < len(runs) else iter(())),
        ("Not finished", _unfinished(runs, refused)),
        ("Cost", _cost(runs)),
        ("What all runs share", _shared(runs)),
    ]
    kept = [Section(title, made) for title, blocks in sections if (made := list(blocks))]
    names = {str(run.job.get("name", "run")) for run in runs}
    return Document(f"{', '.join(sorted(names))}: report of {_count(count, 'run')}", status, str(folder), kept)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _result(groups: Sequence[Group], found: Sequence[Column], by: Metric) -> Iterator[Block]:
    scored = [group for group in groups if group.mean is not None]
    if not scored:
        yield Text("No run has finished with a result yet.", strong=True)
        return
    best = scored[0]
    label = label_with_unit(best.runs[0].table, by.name)
    figure = label.partition(" (")[0]
    what = f"Best: {best.label(found)}, with {figure}" if found else f"{figure[0].upper()}{figure[1:]}"
    yield Text(f"{what} {_mean(best)}", strong=True)
    better = "less" if by.smaller else "more"
    yield Text(f"Compared by {by.name}: {label}, {better} is better.")
    if len(scored) > 1:
        yield Text(ranking.verdict(best, scored[1]))
    if not any(run.status == run_folder.FINISHED and run.figure("tuned.rows") for run in best.runs):
        yield Text(
            "No row was held out: the train loss says how well the rows were learnt, not how new ones are answered."
        )
    winner = best.runs[0]
    yield Text(f"The best run is {winner.folder.name}:")
    yield from run_report.repeat_commands(winner)


def _mean(group: Group) -> str:
    assert group.mean is not None
    spread = f" ± {group.spread:.2g} over {_count(len(group.scores), 'seed')}" if group.spread is not None else ""
    return f"{group.mean:.4g}{spread}"


def _table(groups: Sequence[Group], found: Sequence[Column], by: Metric) -> Iterator[Block]:
    best = next((group.mean for group in groups if group.mean is not None), None)
    seeds = any(len(group.runs) > 1 for group in groups)
    headline = [f"tuned.{name}" for name in names_at(groups[0].runs[0].table, Place.headline)]
    more = (*reversed(headline), "train_loss")
    beside = [name for name in more if name != by.name and any(run.figure(name) is not None for run in _all(groups))]
    head = [
        *(ranking.short_field(column.name) for column in found),
        by.name,
        *(["± over seeds", "seeds"] if seeds else []),
        "to the best",
        *beside,
        "seconds",
        "tokens/s",
    ]
    rows = []
    for group in groups:
        rows.append(
            [
                *(_setting(value) for value in group.values),
                number(group.mean),
                *([number(group.spread, ".2g"), _seeds(group)] if seeds else []),
                change(group.mean - best if group.mean is not None and best is not None else None),
                *(number(_average(group, name)) for name in beside),
                number(_average(group, "train_seconds"), ",.1f"),
                number(_average(group, "tokens_per_second"), ",.0f"),
            ]
        )
    yield Table(head, rows, sortable=True, first=best is not None)


def _all(groups: Sequence[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs]


def _setting(value: object) -> Cell:
    kept = float(value) if is_number(value) else None
    return Cell(ranking.show_value(value), kept)


def _seeds(group: Group) -> Cell:
    failed = len(group.runs) - len(group.scores)
    return Cell(f"{len(group.scores)} of {len(group.runs)}" if failed else str(len(group.scores)), len(group.scores))


def _average(group: Group, name: str) -> float | None:
    values = [
        value for run in group.runs if run.status == run_folder.FINISHED and (value := run.figure(name)) is not None
    ]
    return sum(values) / len(values) if values else None


def _by_setting(groups: Sequence[Group], found: Sequence[Column], by: Metric) -> Iterator[Block]:
    scored = [group for group in groups if group.mean is not None]
    if len(scored) < 2:
        return
    means = [group.mean for group in scored]
    pictures = []
    for index, column in enumerate(found):
        values = [group.values[index] for group in scored]
        if len({str(value) for value in values}) < 2:
            continue
        log = ranking.short_field(column.name) == "learning_rate" or charts.spans_decades(values)
        positive = all(is_number(value) and value > 0 for value in values)
        label = label_with_unit(scored[0].runs[0].table, by.name)
        figure = label.partition(" (")[0]
        axes = Axes(
            f"{figure[0].upper()}{figure[1:]} by {ranking.short_field(column.name).replace('_', ' ')}",
            column.name,
            label,
            log_x=log and positive,
            log_y=charts.spans_decades(means),
        )
        pictures.append(charts.draw_setting(_series(scored, found, index), axes))
    if pictures:
        if any(group.spread is not None for group in scored):
            yield Text("Points are means over seeds, bars one standard deviation, small dots the runs.")
        yield Charts(pictures)


def _series(groups: Sequence[Group], found: Sequence[Column], index: int) -> list[Series]:
    """The groups by their other settings, where these are few; else the best of each value of this setting."""
    others = [(column, place) for place, column in enumerate(found) if place != index]
    series: dict[str, list[Spot]] = {}
    for group in groups:
        label = ", ".join(
            f"{ranking.short_field(c.name)}={ranking.show_value(group.values[place])}" for c, place in others
        )
        series.setdefault(label, []).append(_spot(group, index))
    if len(series) <= _MOST_SERIES and any(len(spots) > 1 for spots in series.values()):
        return [Series(label, spots) for label, spots in series.items()]
    same: dict[str, list[Group]] = {}
    for group in groups:
        same.setdefault(str(group.values[index]), []).append(group)
    if len(same) == len(groups):
        # of a search: neighbours differ in the other settings too
        return [Series("each setting", [_spot(group, index) for group in groups], joined=False)]
    scores = [tuple(score for group in each for score in group.scores) for each in same.values()]
    best = [_spot(each[0], index)._replace(scores=of) for each, of in zip(same.values(), scores, strict=True)]
    return [Series("best of each value; dots are all runs", best)]


def _spot(group: Group, index: int) -> Spot:
    assert group.mean is not None
    return Spot(group.values[index], group.mean, group.spread or 0.0, group.scores)


def _curves(groups: Sequence[Group], found: Sequence[Column]) -> Iterator[Block]:
    pictures = []
    shown = groups[:_MOST_COLOURED]
    for name, title in (("loss", "Train loss by step"), ("eval_loss", "Held-out loss by step")):
        lines = list(_lines(shown, found, name))
        values = [y for line in lines for _, y in line.points]
        if lines:
            log = charts.spans_decades(values)
            axes = Axes(title, "optimizer step", "loss (nats a trained token)", log_y=log, from_zero=True)
            pictures.append(charts.draw_curves(lines, axes))
    if not pictures:
        return
    if len(groups) > len(shown):
        yield Text(f"Of {len(groups):,} settings, the best {len(shown)}.")
    if any(len(group.runs) > 1 for group in shown):
        yield Text("Means over the seeds of a setting.")
    yield Charts(pictures)


def _lines(groups: Sequence[Group], found: Sequence[Column], name: str) -> Iterator[Line]:
    """A curve for each setting: the mean over its seeds at the steps that all have, of those that finished if any."""
    for place, group in enumerate(groups):
        finished = [run for run in group.runs if run.status == run_folder.FINISHED]
        curves = [dict(points) for run in finished or group.runs if (points := run.curve(name))]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        points = [(step, sum(curve[step] for curve in curves) / len(curves)) for step in steps]
        if points:
            smooth = charts.thin_points(points, _SMOOTHED) if name == "loss" else points
            yield Line(group.label(found), smooth, place, marked=name != "loss")


_SMOOTHED = 30
"""Points of a train loss that others are laid over: single batches would hide them."""


def _runs(runs: Sequence[Run], found: Sequence[Column], by: Metric) -> Iterator[Block]:
    places = {id(run): index for index, run in enumerate(runs)}
    head = ["run", *(ranking.short_field(column.name) for column in found), "seed", by.name, "status", "seconds"]
    rows = [
        [
            Cell(run.folder.name),
            *(_setting(column.values[places[id(run)]]) for column in found),
            _setting(run.job.get("seed")),
            number(run.figure(by.name)),
            Cell(run.status),
            number(run.figure("train_seconds"), ",.1f"),
        ]
        for run in ranking.sort_by_score(runs, by)
    ]
    yield Table(head, rows, sortable=True)


def _unfinished(runs: Sequence[Run], refused: Sequence[Refused]) -> Iterator[Block]:
    rows = [[Cell(one.name), Cell(run_folder.FAILED), number(None), Cell(one.error)] for one in refused]
    for run in runs:
        if run.status != run_folder.FINISHED:
            seen = run.curve("loss")
            rows.append(
                [Cell(run.folder.name), Cell(run.status), number(seen[-1][0] if seen else None), Cell(run.error or "")]
            )
    if rows:
        yield Table(("run", "status", "last step", "cause"), rows)


def _cost(runs: Sequence[Run]) -> Iterator[Block]:
    rows = []
    for name, key, form in (
        ("training, seconds", "train_seconds", ",.1f"),
        ("reading and tokenising, seconds", "preparation_seconds", ",.1f"),
        ("loading models, seconds", "load_seconds", ",.1f"),
        ("tokens trained on", "tokens_trained_on", ","),
        ("optimizer steps", "steps_here", ","),
    ):
        values = [value for run in runs if (value := run.figure(key)) is not None]
        if values:
            mean = sum(values) / len(values)
            rows.append([Cell(name), number(sum(values), form), number(mean, ",.0f" if mean >= _WHOLE else ",.1f")])
    if rows:
        yield Table(("what", "all runs", "each"), rows)


_WHOLE = 100
"""From here on a mean is shown without decimals."""


def _shared(runs: Sequence[Run]) -> Iterator[Block]:
    jobs = [flatten(run.job) for run in runs]
    same = [(name, value) for name, value in jobs[0].items() if all(job.get(name, ...) == value for job in jobs)]
    rows = [[Cell(name), _setting(value)] for name, value in same]
    yield More(f"{len(rows)} fields that are the same in every run", [Table(("field", "value"), rows)])
    words = [set(run.words) for run in runs]
    if all(words) and (common := set.intersection(*words)):
        yield Text("Of the command, all runs have:")
        yield Command(shlex.join(word for word in runs[0].words if word in common))
