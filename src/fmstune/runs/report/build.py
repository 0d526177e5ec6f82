"""The verbs `report` and `compare`: read run folders, write reports; neither needs a model or torch."""

import csv
import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fmstune.config.requests import Comparison, Report
from fmstune.errors import Problem, collect_problems, raise_if_any
from fmstune.files import explain_write_errors, write_aside
from fmstune.flatten import flatten
from fmstune.runs.report import comparison_report, ranking, render, run_report, sweep_report
from fmstune.runs.report.document import Text
from fmstune.runs.report.ranking import Column
from fmstune.runs.report.run_data import Run, is_run, raise_if_no_run, read_refused_points, read_run, read_runs
from fmstune.runs.run_folder import FAILED
from fmstune.runs.sweep_folder import Point


def write_report(request: Report) -> int:
    """Write the three files into the folder; raises UserError if it holds no run or a broken one."""
    folder = Path(request.folder)
    raise_if_no_run(folder)
    one = is_run(folder)
    runs = [read_run(folder)] if one else read_runs(folder)
    refused = [] if one else read_refused_points(folder)
    by = ranking.choose_metric(runs, request.metric, request.direction)
    document = run_report.run_document(runs[0]) if one else sweep_report.sweep_document(folder, runs, by, refused)
    files = {
        folder / "report.html": render.render_html(document),
        folder / "report.md": render.render_markdown(document),
        folder / "report.csv": _csv(runs, [] if one else ranking.differing_columns(runs), refused),
    }
    _write("report", files)
    headline = document.sections["Result"][0]
    assert isinstance(headline, Text)
    print(f"{document.status}: {document.place}\n{headline.text}")
    print("\n".join(f"wrote {path}" for path in files))
    return 0


def compare_runs(request: Comparison) -> int:
    """Print the differences of two runs, and write them as a page if one is asked for."""
    a, b = (Path(place) for place in (request.a, request.b))
    problems: list[Problem] = []
    for place in (a, b):
        with collect_problems(problems):
            raise_if_no_run(place, "compare: ")
    raise_if_any(problems)
    document = comparison_report.comparison_document(read_run(a), read_run(b))
    if request.html is not None:
        _write("--html", {Path(request.html): render.render_html(document)})
    print(render.render_text(document))
    if request.html is not None:
        print(f"\nwrote {request.html}")
    return 0


def _csv(runs: Sequence[Run], columns: Sequence[Column], refused: Sequence[Point]) -> str:
    """Return a line for each run: the settings that differ, and every number of its summary at full precision."""
    rows: list[dict[str, Any]] = []
    for index, run in enumerate(runs):
        settings = {column.name: ranking.short_value(column.values[index]) for column in columns}
        figures = {name: value for name in flatten(run.summary) if (value := run.figure(name)) is not None}
        known = {"run": run.folder.name, "status": run.status, "error": run.error or ""}
        rows.append({**known, ranking.SEED: run.job.get(ranking.SEED), **settings, **figures})
    for point in refused:
        typed = dict(word.partition("=")[::2] for word in point.overrides)
        settings = {name: typed.get(name, "") for name in (ranking.SEED, *(column.name for column in columns))}
        rows.append({"run": point.folder, "status": FAILED, "error": point.error or "", **settings})
    file = io.StringIO()
    writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _write(flag: str, files: dict[Path, str]) -> None:
    """Write all files, then rename all; raises UserError if one cannot be written, and keeps the former ones."""
    with ExitStack() as stack:
        # the first file is renamed first
        for path, text in reversed(files.items()):
            stack.enter_context(explain_write_errors(flag, path, "folder"))
            stack.enter_context(write_aside(path)).write_text(text, encoding="utf-8", errors="backslashreplace")
