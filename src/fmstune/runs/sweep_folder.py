"""The points of a sweep and their results, as `sweep.json` in the sweep's folder and as a table."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmstune import tables
from fmstune.config import compare_by
from fmstune.config.choices import Direction
from fmstune.config.job import Job
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.config.renamed_fields import COMPARE_BY, with_compare_by_words
from fmstune.errors import Problem, UserError, first_line
from fmstune.files import write_json
from fmstune.runs import looks, losers, processes, run_folder

FILE = "sweep.json"
"""File of the points' results, in the sweep's folder."""
COMMAND = "command.json"
"""Words of the sweep's command, for `--resume`."""
HYDRAS_NOTE = "multirun.yaml"
"""File that Hydra writes into the folder of each sweep."""
_LEFT = ".points"
"""Folder of results of points that `sweep.json` does not hold yet."""


@dataclass(frozen=True)
class Point:
    """Result of one point; its fields are those of `sweep.json`."""

    number: int
    folder: str
    """Its name in the sweep's folder; a point that was refused has left none."""
    overrides: list[str]
    """The fields in which it differs from other points."""
    status: str
    """That of its summary; `failed` where it has none."""
    code: int
    """Its exit code."""
    skipped: bool
    """It was finished or stopped before this command."""
    compare_by: str
    """Path in `summary.json` of the number that compares points; empty where the point was refused."""
    direction: str
    metrics: dict[str, float]
    """The numbers that points can be compared by, and the results, by their paths in `summary.json`."""
    error: str | None
    """The cause where it did not finish, in one line."""
    steps_saved: int = 0
    """Steps that it was not trained, as it was stopped early."""
    seconds_saved: float = 0.0
    """Seconds that these steps would have taken at the speed of the others."""


def summarize_point(
    number: int, folder: Path, overrides: Sequence[str], code: int, *, job: Job, skipped: bool = False
) -> Point:
    """Return the result of a point that has ended, from its run folder and its exit code."""
    summary = run_folder.read_summary(folder)
    path, direction = compare_by.path(job), compare_by.direction(job)
    names = (*compare_by.comparable_figures(job), *names_at(metrics_of(job), Place.result))
    metrics = {name: compare_by.value(summary, name) for name in dict.fromkeys((path, *names))}
    status = str(summary.get("status", run_folder.FAILED))
    lost = status == run_folder.STOPPED
    message = summary.get("stopped") if lost else (summary.get("error") or {}).get("message")
    steps, seconds = (compare_by.value(summary, name) or 0 for name in ("steps", "train_seconds"))
    saved = max(round((compare_by.value(summary, "plan.total_steps") or 0) - steps), 0) if lost else 0
    return Point(
        number=number,
        folder=folder.name,
        overrides=list(overrides),
        status=status,
        code=code,
        skipped=skipped,
        compare_by=path,
        direction=direction.value if direction else "",
        metrics={name: value for name, value in metrics.items() if value is not None},
        error=None if status == run_folder.FINISHED else first_line(message or _NO_MESSAGE),
        steps_saved=saved,
        seconds_saved=round(saved * seconds / steps, 3) if steps else 0.0,
    )


_NO_MESSAGE = "it ended before it began; its own words are above"


def refused_point(number: int, folder: Path, overrides: Sequence[str], code: int, problems: Sequence[Problem]) -> Point:
    """Return the result of a point whose job was refused before it began."""
    error = first_line("; ".join(map(str, problems)))
    return Point(number, folder.name, list(overrides), run_folder.FAILED, code, False, "", "", {}, error)


def record_point(sweep: Path, point: Point) -> None:
    """Write the result of a point, which may have run on another machine at the same time as others."""
    (sweep / _LEFT).mkdir(parents=True, exist_ok=True)
    write_json(sweep / _LEFT / f"{point.number}.json", asdict(point))


def gather_points(sweep: Path, *, keep: bool = False) -> list[Point]:
    """Merge the results of points into `sweep.json` and return them in order; with `keep`, their files stay."""
    files = sorted((sweep / _LEFT).glob("[0-9]*.json"), key=lambda file: int(file.stem))
    found = [point for file in files for point in _read_or_set_aside(file)]
    if found:
        whole = {point.folder: point for point in (*_read_or_set_aside(sweep / FILE), *found)}
        ordered = sorted(whole.values(), key=lambda point: (point.number, point.folder))
        write_json(sweep / FILE, [asdict(point) for point in ordered])
    if not keep:
        shutil.rmtree(sweep / _LEFT, ignore_errors=True)
    return found


def read_points(sweep: Path) -> list[Point]:
    """Read `sweep.json`; without the file, no points. Raises UserError for a damaged file."""
    file = sweep / FILE
    try:
        return _read(file)
    except _UNREADABLE as err:
        raise UserError(str(file), f": cannot be read ({first_line(err)}); correct or remove the file") from err


def _read_or_set_aside(file: Path) -> list[Point]:
    """The same for a file that the sweep writes anew; a damaged one is renamed, with a note."""
    try:
        return _read(file)
    except _UNREADABLE as err:
        run_folder.set_aside(file, f"cannot be read ({first_line(err)})")
        return []


_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, RecursionError)
"""What `_read` raises for a damaged file."""


def _read(file: Path) -> list[Point]:
    """The points of a file, which holds one or a list of them."""
    found = json.loads(file.read_text(encoding="utf-8")) if os.path.lexists(file) else []
    return [_point(one) for one in (found if isinstance(found, list) else [found])]


def _point(fields: dict[str, Any]) -> Point:
    """From JSON, where earlier sweeps call the number that compares points by its name of then."""
    point = Point(**{"compare_by" if name == COMPARE_BY else name: value for name, value in fields.items()})
    for name, kind in (("number", int), ("folder", str), ("overrides", list), ("status", str), ("metrics", dict)):
        if not isinstance(getattr(point, name), kind):
            raise TypeError(f"{name} of a point must be of type {kind.__name__}")
    return point


def record_command(sweep: Path, words: Sequence[str]) -> None:
    """Write the command of a sweep; each point writes the same."""
    sweep.mkdir(parents=True, exist_ok=True)
    write_json(sweep / COMMAND, list(words))


def recorded_command(sweep: Path, more: Sequence[str]) -> list[str]:
    """Return the recorded words of the command and `more` after them; raises UserError if none were recorded."""
    try:
        words = json.loads((sweep / COMMAND).read_text(encoding="utf-8"))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("it must hold a list of words")
    except FileNotFoundError:
        text = f": {sweep} is not a sweep's folder (no {COMMAND}); give the folder of a sweep"
        raise UserError("--resume", text) from None
    except (OSError, ValueError) as err:
        text = f": {sweep / COMMAND} cannot be read ({err}); give the command itself again"
        raise UserError("--resume", text) from err
    return [*with_compare_by_words(words)[0], *more]


def release_sweep_folder(sweep: Path, notes: Sequence[str] = ()) -> None:
    """Remove the folder of a sweep without results, and the empty folders of the default name above it."""
    own = {FILE, COMMAND, HYDRAS_NOTE, run_folder.LOCK_FILE, processes.FILE, *notes}
    if not sweep.is_dir() or not {path.name for path in sweep.iterdir()} <= own:
        return
    for name in own:
        (sweep / name).unlink(missing_ok=True)
    folders = (sweep, sweep.parent, sweep.parent.parent) if sweep.parts[0] == run_folder.RUNS else (sweep,)
    for empty in folders:
        with suppress(OSError):
            empty.rmdir()


def render_points(sweep: Path, points: Sequence[Point]) -> str:
    """Return the table of points with overrides, status and compared number, and the causes of failures."""
    best = best_point(points)
    named = {point.compare_by: None for point in points if point.compare_by}
    heads = ("point", *named, "status", "overrides")
    words = (0, len(heads) - 2, len(heads) - 1)
    first, rule, *lines = tables.lines(heads, [_cells(point, list(named)) for point in points], left=words)
    shown = ["", first, rule]
    shown += [f"{line}  best" if point is best else line for line, point in zip(lines, points, strict=True)]
    shown += [f"{point.status}: {sweep / point.folder}: {point.error}" for point in points if point.error is not None]
    shown += savings_lines(points)
    if best is not None:
        shown.append(f"best: {sweep / best.folder} ({best.compare_by} {best.metrics[best.compare_by]:.4g})")
        done = [point.folder for point in points if point.status == run_folder.FINISHED]
        shown += chance_lines(sweep, best.folder, done)
    return "\n".join(shown)


def savings_lines(points: Sequence[Point]) -> Iterator[str]:
    """Yield what was saved by stopping points early, as losers or by a pruner of Optuna, if any was stopped."""
    stopped = [point for point in points if point.status == run_folder.STOPPED]
    if stopped:
        saved = sum(point.steps_saved for point in stopped)
        whole = saved + round(sum(point.metrics.get("steps", 0) for point in points))
        seconds = sum(point.seconds_saved for point in stopped)
        share = f"{saved:,} of {whole:,} steps ({saved / max(whole, 1):.0%}), about {seconds:,.0f} s"
        yield f"saved: {share}, as {len(stopped)} of {len(points)} points were stopped early"


def chance_lines(sweep: Path, best: str, finished: Sequence[str]) -> Iterator[str]:
    """Yield how sure it is that a point is the best of those that finished, where their held-out rows were recorded."""
    curves = looks.read_curves(sweep)
    ends = {name: curve[1.0] for name, curve in curves.items() if name in finished and 1.0 in curve}
    if best not in ends:
        return
    same = {name: look.losses for name, look in ends.items() if look.rows == ends[best].rows}
    if len(same) > 1:
        chance = losers.chance_best(same, best)
        yield f"chance that it is the best of {len(same)} finished points: {chance:.0%} (over other held-out rows)"


def _cells(point: Point, named: Sequence[str]) -> tuple[str, ...]:
    numbers = (f"{point.metrics[name]:.4g}" if name in point.metrics else "-" for name in named)
    return (str(point.number), *numbers, point.status, " ".join(point.overrides))


def best_point(points: Sequence[Point]) -> Point | None:
    """Return the best of the finished points; None if they cannot be compared."""
    done = [point for point in points if point.status == run_folder.FINISHED and point.compare_by in point.metrics]
    if not done or len({(point.compare_by, point.direction) for point in done}) > 1:
        return None
    sign = -1 if done[0].direction == Direction.maximize.value else 1
    return min(done, key=lambda point: sign * point.metrics[point.compare_by])
