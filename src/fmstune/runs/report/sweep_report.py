"""The report of several runs: which setting won and by how much, and the cost of all runs."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fmstune.config.compare_by import is_number
from fmstune.config.metrics import Place, label_with_unit, names_at
from fmstune.flatten import flatten
from fmstune.runs import sweep_folder
from fmstune.runs.report import charts, ranking
from fmstune.runs.report.cells import Cell, change_cell, number_cell, setting_cell
from fmstune.runs.report.charts import Axes, Line, Scale, Series, Spot
from fmstune.runs.report.document import Block, Charts, Command, Document, More, Text, make_table
from fmstune.runs.report.importance import setting_importances
from fmstune.runs.report.ranking import Column, Group, Metric
from fmstune.runs.report.run_data import Run
from fmstune.runs.report.run_report import capitalize, repeat_commands
from fmstune.runs.run_folder import FAILED, FINISHED, STOPPED
from fmstune.runs.sweep_folder import Point
from fmstune.tables import count_of

_MOST_COLOURED = 8
"""Settings whose curves are drawn; if there are more, the best of them."""
_MOST_SERIES = 6
"""Lines in a chart of one setting, one for each choice of the other settings."""
_SMOOTHED = 30
"""Points of a train loss, averaged so that the lines of several runs can be told apart."""
_COST = (
    ("training, seconds", "train_seconds", ",.1f"),
    ("reading and tokenising, seconds", "preparation_seconds", ",.1f"),
    ("loading models, seconds", "load_seconds", ",.1f"),
    ("tokens trained on", "tokens_trained_on", ","),
    ("optimizer steps", "steps", ","),
)


def sweep_document(folder: Path, runs: Sequence[Run], by: Metric, refused: Sequence[Point] = ()) -> Document:
    """Return the report of the runs in a folder, in any state, and of the points that were refused."""
    columns = ranking.differing_columns(runs)
    groups = ranking.group_runs(runs, columns, by)
    scored = [group for group in groups if group.mean is not None]
    failed = sum(run.status == FAILED for run in runs) + len(refused)
    status = f"{sum(run.status == FINISHED for run in runs)} of {len(runs) + len(refused)} finished"
    if stopped := sum(run.status == STOPPED for run in runs):
        status += f", {stopped} stopped early"
    sections = {
        "Result": [*_result(scored, columns, by), *_stopping(folder, scored)],
        "Settings": [_settings_table(groups, columns, by)],
        "Each setting": _by_setting(scored, columns, by),
        "All settings": _all_settings(scored, columns, by),
        "Curves": _curves(groups, columns),
        "Runs": [_runs_table(runs, columns, by)] if len(groups) < len(runs) else [],
        "Not finished": _unfinished(runs, refused),
        "Cost": _cost(runs),
        "Common to all runs": _common(runs),
    }
    names = ", ".join(sorted({str(run.job.get("name", "run")) for run in runs}))
    title = f"{names}: report of {count_of(len(runs) + len(refused), 'run')}"
    return Document.of(title, f"{status}, {failed} failed" if failed else status, str(folder), sections)


def _result(scored: Sequence[Group], columns: Sequence[Column], by: Metric) -> Iterator[Block]:
    if not scored:
        yield Text("No run has finished with a result yet.", strong=True)
        return
    best = scored[0]
    spread = f" ± {best.spread:.2g} over {count_of(len(best.scores), 'seed')}" if best.spread is not None else ""
    label = label_with_unit(best.runs[0].table, by.name)
    name = label.partition(" (")[0]
    beginning = f"Best: {best.label(columns)}, with {name}" if columns else capitalize(name)
    yield Text(f"{beginning} {best.mean:.4g}{spread}", strong=True)
    yield Text(f"Ranked by {by.name}: {label}, {'less' if by.smaller else 'more'} is better.")
    if len(scored) > 1:
        yield Text(ranking.verdict(best, scored[1]))
    if not any(run.status == FINISHED and run.figure("tuned.rows") for run in best.runs):
        yield Text("No rows were held out: the train loss measures the training rows, not answers to new prompts.")
    yield Text(f"The best run is {best.runs[0].folder.name}:")
    yield from repeat_commands(best.runs[0])


def _stopping(folder: Path, scored: Sequence[Group]) -> Iterator[Block]:
    """Yield what stopping points early saved, and how sure the best run is on other held-out rows."""
    lines = list(sweep_folder.savings_lines(sweep_folder.read_points(folder)))
    if scored:
        finished = [run.folder.name for group in scored for run in group.runs if run.status == FINISHED]
        lines += sweep_folder.chance_lines(folder, scored[0].runs[0].folder.name, finished)
    yield from (Text(f"{capitalize(line)}.") for line in lines)


def _settings_table(groups: Sequence[Group], columns: Sequence[Column], by: Metric) -> Block:
    best = next((group.mean for group in groups if group.mean is not None), None)
    runs = [run for group in groups for run in group.runs]
    headline = [f"tuned.{name}" for name in reversed(names_at(runs[0].table, Place.headline))]
    names = [name for name in (*headline, "train_loss") if name != by.name]
    more = [name for name in names if any(run.figure(name) is not None for run in runs)]
    settings = zip(*(map(_setting, group.values) for group in groups), strict=True)
    table: list[tuple[str, Sequence[object]]] = [
        (ranking.short_field(column.name), cells) for column, cells in zip(columns, settings, strict=True)
    ]
    table.append((by.name, [group.mean for group in groups]))
    if any(len(group.runs) > 1 for group in groups):
        table.append(("± over seeds", [number_cell(group.spread, ".2g") for group in groups]))
        counts = [(len(group.scores), len(group.runs)) for group in groups]
        table.append(("seeds", [Cell(str(a) if a == b else f"{a} of {b}", a) for a, b in counts]))
    table.append(("to the best", [change_cell(best, group.mean) for group in groups]))
    table += [(name, [_average(group, name) for group in groups]) for name in more]
    for name, key, form in (("seconds", "train_seconds", ",.1f"), ("tokens/s", "tokens_per_second", ",.0f")):
        table.append((name, [number_cell(_average(group, key), form) for group in groups]))
    if any(run.figure("mfu") is not None for run in runs):
        table.append(("MFU", [number_cell(_average(group, "mfu"), ".1%") for group in groups]))
    head, cells = zip(*table, strict=True)
    return make_table(head, zip(*cells, strict=True), sortable=True, best_first=best is not None)


def _setting(value: Any) -> Cell:
    return setting_cell(value)._replace(text=ranking.short_value(value))


def _average(group: Group, name: str) -> float | None:
    values = [value for run in group.runs if run.status == FINISHED and (value := run.figure(name)) is not None]
    return sum(values) / len(values) if values else None


def _by_setting(scored: Sequence[Group], columns: Sequence[Column], by: Metric) -> Iterator[Block]:
    pictures = [
        charts.draw_setting(_series(scored, columns, index), _axes(column, scored, index, by))
        for index, column in enumerate(columns)
        if len({str(group.values[index]) for group in scored}) > 1
    ]
    if pictures:
        if any(group.spread is not None for group in scored):
            yield Text("Points are means over seeds, bars one standard deviation, small dots the runs.")
        yield Charts(pictures)


def _all_settings(scored: Sequence[Group], columns: Sequence[Column], by: Metric) -> Iterator[Block]:
    """Yield a line for each setting through all of its values, and how much each value matters."""
    varied = [index for index in range(len(columns)) if len({str(group.values[index]) for group in scored}) > 1]
    if len(varied) > 1 and len(scored) > 2:
        yield Charts([charts.draw_parallel([*_scales(scored, columns, varied), _score_scale(scored, by)], _PARALLEL)])
    if shares := setting_importances(columns, scored):
        yield Text(f"Importance: the share of the variance of {by.name} that a setting explains (Optuna's fANOVA).")
        rows = [[ranking.short_field(name), number_cell(share, ".0%")] for name, share in shares.items()]
        yield make_table(("setting", "importance"), rows)


_PARALLEL = "All settings; the best is the thick line"


def _scales(scored: Sequence[Group], columns: Sequence[Column], varied: Sequence[int]) -> Iterator[Scale]:
    for index in varied:
        values = [ranking.short_value(v) if not is_number(v) else v for v in (g.values[index] for g in scored)]
        yield Scale(ranking.short_field(columns[index].name), values, log=charts.spans_decades(values))


def _score_scale(scored: Sequence[Group], by: Metric) -> Scale:
    means = [group.mean for group in scored]
    return Scale(by.name, means, log=charts.spans_decades(means))


def _axes(column: Column, scored: Sequence[Group], index: int, by: Metric) -> Axes:
    name, values = ranking.short_field(column.name), [group.values[index] for group in scored]
    label = label_with_unit(scored[0].runs[0].table, by.name)
    positive = all(is_number(value) and value > 0 for value in values)
    return Axes(
        f"{capitalize(label.partition(' (')[0])} by {name.replace('_', ' ')}",
        column.name,
        label,
        log_x=positive and (name == "learning_rate" or charts.spans_decades(values)),
        log_y=charts.spans_decades([group.mean for group in scored]),
    )


def _series(groups: Sequence[Group], columns: Sequence[Column], index: int) -> list[Series]:
    """Group the points by their other settings if these are few; else take the best of each value of this setting."""
    others = [(ranking.short_field(column.name), i) for i, column in enumerate(columns) if i != index]
    series: dict[str, list[Spot]] = {}
    for group in groups:
        label = ", ".join(f"{name}={ranking.short_value(group.values[i])}" for name, i in others)
        series.setdefault(label, []).append(_spot(group, index))
    if len(series) <= _MOST_SERIES and any(len(spots) > 1 for spots in series.values()):
        return [Series(label, spots) for label, spots in series.items()]
    same: dict[str, list[Group]] = {}
    for group in groups:
        same.setdefault(str(group.values[index]), []).append(group)
    if len(same) == len(groups):
        # points of a search: neighbours differ in the other settings too
        return [Series("each setting", [_spot(group, index) for group in groups], joined=False)]
    best = [
        _spot(members[0], index)._replace(scores=tuple(score for group in members for score in group.scores))
        for members in same.values()
    ]
    return [Series("best of each value; dots are all runs", best)]


def _spot(group: Group, index: int) -> Spot:
    assert group.mean is not None
    return Spot(group.values[index], group.mean, group.spread or 0.0, group.scores)


def _curves(groups: Sequence[Group], columns: Sequence[Column]) -> Iterator[Block]:
    pictures = []
    shown = groups[:_MOST_COLOURED]
    for name, title in (("loss", "Train loss by step"), ("eval_loss", "Held-out loss by step")):
        if lines := list(_lines(shown, columns, name)):
            log = charts.spans_decades([y for line in lines for _, y in line.points])
            axes = Axes(title, "optimizer step", "loss (nats a trained token)", log_y=log, from_zero=True)
            pictures.append(charts.draw_curves(lines, axes))
    if not pictures:
        return
    if len(groups) > len(shown):
        yield Text(f"The best {len(shown)} of {len(groups):,} settings.")
    if any(len(group.runs) > 1 for group in shown):
        yield Text("Means over the seeds of a setting.")
    yield Charts(pictures)


def _lines(groups: Sequence[Group], columns: Sequence[Column], name: str) -> Iterator[Line]:
    """Yield a curve for each setting: the mean over its finished runs, or all if none finished, at common steps."""
    for place, group in enumerate(groups):
        finished = [run for run in group.runs if run.status == FINISHED]
        curves = [dict(points) for run in finished or group.runs if (points := run.curve(name))]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        points = [(step, sum(curve[step] for curve in curves) / len(curves)) for step in steps]
        if points:
            smooth = charts.thin_points(points, _SMOOTHED) if name == "loss" else points
            yield Line(group.label(columns), smooth, place, marked=name != "loss")


def _runs_table(runs: Sequence[Run], columns: Sequence[Column], by: Metric) -> Block:
    head = ["run", *(ranking.short_field(column.name) for column in columns), "seed", by.name, "status", "seconds"]
    settings = {id(run): [_setting(column.values[index]) for column in columns] for index, run in enumerate(runs)}
    rows: list[list[object]] = []
    for run in ranking.sort_by_score(runs, by):
        seed, seconds = setting_cell(run.job.get("seed")), number_cell(run.figure("train_seconds"), ",.1f")
        rows.append([run.folder.name, *settings[id(run)], seed, run.figure(by.name), run.status, seconds])
    return make_table(head, rows, sortable=True)


def _unfinished(runs: Sequence[Run], refused: Sequence[Point]) -> Iterator[Block]:
    rows: list[list[str | float | None]] = [[one.folder, FAILED, None, one.error or ""] for one in refused]
    for run in runs:
        if run.status != FINISHED:
            seen = run.curve("loss")
            rows.append([run.folder.name, run.status, seen[-1][0] if seen else None, run.error or ""])
    yield make_table(("run", "status", "last step", "cause"), rows)


def _cost(runs: Sequence[Run]) -> Iterator[Block]:
    rows = []
    for name, key, form in _COST:
        values = [value for run in runs if (value := run.figure(key)) is not None]
        if values:
            mean = sum(values) / len(values)
            rows.append([name, number_cell(sum(values), form), number_cell(mean, ",.0f" if mean >= 100 else ",.1f")])
    yield make_table(("what", "all runs", "each"), rows)


def _common(runs: Sequence[Run]) -> Iterator[Block]:
    jobs = [flatten(run.job) for run in runs]
    same = [(name, value) for name, value in jobs[0].items() if all(job.get(name, ...) == value for job in jobs)]
    rows = [[name, setting_cell(value)] for name, value in same]
    yield More(f"{len(rows)} fields that are the same in every run", [make_table(("field", "value"), rows)])
    words = [set(run.words) for run in runs]
    if all(words) and (common := set.intersection(*words)):
        yield Text("Words that the commands of all runs share:")
        yield Command(shlex.join(word for word in runs[0].words if word in common))
