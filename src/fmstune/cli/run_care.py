"""The verbs that look after runs: the parent answers them from the run folders, and starts no runner."""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from fmstune import tables
from fmstune.config.first_aid.verbs import Clean, Logs, RunCare, Runs, Stop
from fmstune.errors import UserError, render
from fmstune.exit_codes import USER_ERROR
from fmstune.launch import notice
from fmstune.runs import cleaning, log, run_folder
from fmstune.runs.listing import ListedRun, Status, list_runs, run_folders, run_status, sweep_status
from fmstune.tables import count_of, show_bytes, show_clock

_PIPED = 10_000
"""Columns of a line that no terminal breaks."""
_LOOK_EVERY_SECONDS = 0.5
_BETWEEN_POINTS_SECONDS = 5.0
"""Seconds without a point that runs, after which a sweep has ended that another process runs."""


def care_for_runs(asked: RunCare) -> int:
    """Do what the verb says with the folders of runs; the exit code."""
    match asked:
        case Runs():
            return _show_runs(asked)
        case Logs(run=run, follow=follow):
            return _show_logs(_run_or_sweep(run), follow=follow)
        case Stop(run=run):
            return notice.stop_runs(_run_or_sweep(run))
        case Clean():
            return _clean(asked)


def _show_runs(asked: Runs) -> int:
    folder = Path(asked.folder)
    unmade = asked.folder == run_folder.RUNS and not folder.exists()  # the folder that runs have by default
    rows = [] if unmade else list_runs(folder)
    if asked.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False))
    elif rows:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPED
        print(render_runs(rows, folder, width))
    else:
        print(f"no runs in {folder}{' (no such folder yet)' if unmade else ''}")
    return 0


def render_runs(rows: Sequence[ListedRun], folder: Path, width: int) -> str:
    """The rows as a table; where that is wider than `width` columns, two lines a row."""
    named = {row.compare_by for row in rows}
    cells = [_cells(row, folder, name_objective=len(named) > 1) for row in rows]
    objective = "objective" if len(named) > 1 else named.pop() or "objective"
    heads = ("run", "status", objective, "steps", "time", "size", "begun")
    found = tables.lines(heads, cells, left=(0, 1))
    if max(map(len, found)) > width:
        found = [line for row, one in zip(rows, cells, strict=True) for line in _narrow(row, one)]
    damaged = [row for row in rows if row.damage]
    found += [f"damaged: {row.damage}" for row in damaged]
    found += [f"{row.folder} runs on {row.host}; whether it lives is known there" for row in rows if row.host]
    return "\n".join([*found, "", _counts(rows)])


def _narrow(row: ListedRun, cells: Sequence[str]) -> tuple[str, str]:
    """Two lines of a row, without the heads of the table."""
    name, status, objective, steps, *others = cells
    known = [] if row.objective is None else [objective if " " in objective else f"{row.compare_by} {objective}"]
    return name, "  " + "  ".join([status, *known, steps + (" steps" if row.kind == "run" else ""), *others])


def _cells(row: ListedRun, folder: Path, *, name_objective: bool) -> tuple[str, ...]:
    place = Path(row.folder)
    name = str(place.relative_to(folder)) if place != folder else str(place)
    objective = "-" if row.objective is None else f"{row.objective:.4g}"
    if name_objective and row.objective is not None:
        objective = f"{row.compare_by} {objective}"
    unit = " points" if row.kind == "sweep" else ""
    steps = f"{row.steps:,}" + (f"/{row.total_steps:,}" if row.total_steps is not None else "") + unit
    begun = f"{datetime.fromtimestamp(row.begun):%m-%d %H:%M}"
    clock, size = show_clock(row.seconds), show_bytes(row.bytes)
    return f"{name}/" if row.kind == "sweep" else name, row.status, objective, steps, clock, size, begun


def _counts(rows: Sequence[ListedRun]) -> str:
    kinds = {kind: sum(row.kind == kind for row in rows) for kind in ("run", "sweep")}
    parts = [count_of(count, kind) for kind, count in kinds.items() if count]
    states = {status: sum(row.status is status for row in rows) for status in Status}
    said = ", ".join(f"{count} {status}" for status, count in states.items() if count)
    return f"{' and '.join(parts)}: {said}; {show_bytes(sum(row.bytes for row in rows))}"


def _run_or_sweep(name: str) -> Path:
    """The folder; raises UserError where it holds no run."""
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(name, ": no such folder; give the folder of a run or of a sweep (fmstune runs lists them)")
    if not run_folders(folder):
        raise UserError(
            name, f": no run here (no {run_folder.JOB} in it or in a folder of it); fmstune runs lists runs"
        )
    return folder


def _show_logs(folder: Path, *, follow: bool) -> int:
    """Print the log of the run, or of each point under its name; `follow` until the last one has ended."""
    read: dict[Path, int] = {}
    last: Path | None = None
    quiet_since = time.monotonic()
    while True:
        ended = not follow or _has_ended(folder)
        for run, text in _new_lines(run_folders(folder), read, whole=ended):
            if run != folder and run != last:
                print(f"{'' if last is None else chr(10)}==> {run.relative_to(folder)} <==")
            last = run
            sys.stdout.write(text)
            quiet_since = time.monotonic()
        sys.stdout.flush()
        if ended and (not follow or _is_run(folder) or time.monotonic() - quiet_since > _BETWEEN_POINTS_SECONDS):
            break
        time.sleep(_LOOK_EVERY_SECONDS)
    if last is None:
        print(f"fmstune: {folder} has no log: it has not begun, or an earlier fmstune ran it", file=sys.stderr)
    return 0


def _is_run(folder: Path) -> bool:
    return run_folders(folder) == [folder]


def _has_ended(folder: Path) -> bool:
    states = [run_status(run) for run in run_folders(folder)]
    return all(one.has_ended for one in states) and (_is_run(folder) or sweep_status(folder, states).has_ended)


def _new_lines(runs: Sequence[Path], read: dict[Path, int], *, whole: bool) -> Iterator[tuple[Path, str]]:
    """What was added to the logs of the runs since the last look; a line that is not whole yet is left, unless `whole`.

    `read` holds the bytes of each file that were seen, and is moved on.
    """
    for run in runs:
        for file in log.log_files(run):
            with file.open("rb") as content:
                content.seek(read.get(file, 0))
                new = content.read()
            end = len(new) if whole else new.rfind(b"\n") + 1
            read[file] = read.get(file, 0) + end
            if end:
                yield run, new[:end].decode(errors="replace")


def _clean(asked: Clean) -> int:
    keep, folder = cleaning.read_keep(asked.keep), Path(asked.folder)
    if not folder.is_dir():
        raise UserError(asked.folder, ": no such folder; give a folder of runs, of a sweep or of one run")
    found, going_on = cleaning.removable(folder, keep)
    for run in going_on:
        print(f"{run} has not ended, and keeps all its checkpoints")
    if not found:
        print(f"nothing to remove in {folder}: no ended run has other checkpoints than those that stay")
        return 0
    print("\n".join(_removal_lines(found)))
    size, count = show_bytes(sum(one.bytes for one in found)), sum(len(one.folders) for one in found)
    what = f"{count_of(count, 'checkpoint')} of {count_of(len(found), 'run')}, {size}"
    if not asked.yes and not _is_terminal():
        raise UserError("--yes", f"must be given where no terminal can be asked: {what} would be removed")
    if not asked.yes and input(f"remove {what}? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was removed")
        return 0
    problems = list(cleaning.remove_checkpoints(found))
    if problems:
        print(render(problems), file=sys.stderr)
        return USER_ERROR
    print(f"removed {what}")
    return 0


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _removal_lines(found: Sequence[cleaning.Removable]) -> Iterator[str]:
    for one in found:
        stays = ", ".join(one.kept) or "no checkpoint"
        yield f"{one.run} ({one.status}): {stays} stays{f'; {one.note}' if one.note else ''}"
        yield from (f"  remove {path.name}  {show_bytes(size)}" for path, size in one.folders)
