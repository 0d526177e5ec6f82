"""The verbs `report` and `compare`: run folders → files beside them, or a text; no model and no torch is needed."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fmstune.config.requests import Comparison, Report
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.files import write_aside
from fmstune.flatten import flatten
from fmstune.runs.report import comparison_report, ranking, render, run_report, sweep_report
from fmstune.runs.report.document import Document
from fmstune.runs.report.ranking import Column
from fmstune.runs.report.run_data import Refused, Run, is_run, raise_if_no_run, read_refused_points, read_run, read_runs
from fmstune.runs.run_folder import FAILED

PAGE, MARKDOWN, CSV = "report.html", "report.md", "report.csv"


def write_report(asked: Report) -> int:
    """Write the three files into the folder; raises UserError where it holds no run, or what it holds is broken."""
    folder = Path(asked.folder)
    raise_if_no_run(folder)
    one = is_run(folder)
    runs = [read_run(folder)] if one else read_runs(folder)
    not_run = [] if one else read_refused_points(folder)
    by = ranking.choose_metric(runs, asked.metric, asked.direction)
    made = run_report.run_document(runs[0]) if one else sweep_report.sweep_document(folder, runs, by, not_run)
    files = {
        PAGE: render.render_html(made),
        MARKDOWN: render.render_markdown(made),
        CSV: _csv(runs, [] if one else ranking.differing_columns(runs), not_run),
    }
    _write({folder / name: text for name, text in files.items()})
    print(_first_words(made))
    print("\n".join(f"wrote {folder / name}" for name in files))
    return 0


def compare_runs(asked: Comparison) -> int:
    """Print how two runs differ, and write it as a page where that is asked for."""
    a, b = (Path(place) for place in (asked.a, asked.b))
    problems: list[Problem] = []
    for place in (a, b):
        try:
            raise_if_no_run(place, "compare: ")
        except UserError as err:
            problems += err.problems
    raise_if_any(problems)
    made = comparison_report.comparison_document(read_run(a), read_run(b))
    if asked.html is not None:
        _write({Path(asked.html): render.render_html(made)})
    print(render.render_text(made))
    if asked.html is not None:
        print(f"\nwrote {asked.html}")
    return 0


def _first_words(made: Document) -> str:
    """The status, and the result in one sentence."""
    return f"{made.status}: {made.place}\n{_result(made)}"


def _result(made: Document) -> str:
    found = next((section for section in made.sections if section.title == "Result"), None)
    return str(getattr(found.blocks[0], "text", "")) if found is not None else ""


def _csv(runs: Sequence[Run], columns: Sequence[Column], not_run: Sequence[Refused]) -> str:
    """A line for each run: its settings that differ, and every number of its summary at full precision."""
    rows = [dict(_row(run, index, columns)) for index, run in enumerate(runs)]
    rows += [dict(_row_of_refused(one, columns)) for one in not_run]
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _row(run: Run, index: int, columns: Sequence[Column]) -> Iterator[tuple[str, Any]]:
    yield "run", run.folder.name
    yield "status", run.status
    yield "error", run.error or ""
    yield "seed", run.job.get("seed")
    for column in columns:
        yield column.name, ranking.show_value(column.values[index])
    for name in flatten(run.summary):
        if (value := run.figure(name)) is not None and name != ranking.SEED:
            yield name, value


def _row_of_refused(one: Refused, columns: Sequence[Column]) -> Iterator[tuple[str, Any]]:
    yield "run", one.name
    yield "status", FAILED
    yield "error", one.error
    for name in (ranking.SEED, *(column.name for column in columns)):
        yield name, one.fields.get(name, "")


def _write(files: dict[Path, str]) -> None:
    """Write all files, then rename all; raises UserError where one cannot be written, and keeps the former ones."""
    try:
        with ExitStack() as stack:
            for path, text in files.items():
                stack.enter_context(write_aside(path)).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as err:
        raise UserError(
            str(path), f": cannot be written ({err.strerror}); give it a folder that can be written"
        ) from err
