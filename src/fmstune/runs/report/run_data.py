"""Read run folders for a report, and collect every problem with them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fmstune.config.compare_by import curve, figure
from fmstune.config.metrics import Table, metrics_of
from fmstune.config.renamed_fields import with_compare_by
from fmstune.errors import Problem, UserError, collect_problems, first_line, raise_if_any
from fmstune.runs import run_folder, sweep_folder

_DEEPEST = 100
"""Levels of a job file that are read; a job has six."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml, a job of 150 fields takes 50 ms


class Run(NamedTuple):
    """The content of one run folder; files that do not exist yet are empty."""

    folder: Path
    job: dict[str, Any]
    """`job.yaml` as plain data."""
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""
    lock: dict[str, Any]
    origins: dict[str, str]
    """Source of each field that has no default value; empty if it was not recorded."""
    words: list[str]
    """Words of the command, in a sweep of this point's command; empty if they were not recorded."""
    samples: list[dict[str, Any]]

    @property
    def status(self) -> str:
        """The status in the summary; `begun` if there is no summary yet."""
        return str(self.summary.get("status", "begun"))

    @property
    def error(self) -> str | None:
        """The recorded cause of a failure or an interruption, or why a sweep stopped the run."""
        error = self.summary.get("error") or {}
        if self.status == run_folder.STOPPED:
            return str(self.summary.get("stopped"))
        return str(error["message"]) if error.get("message") else None

    @property
    def table(self) -> Table:
        """The metrics of the run's objective."""
        return metrics_of(self.job)

    def figure(self, name: str) -> float | None:
        """Return a number of the summary by its dotted name, such as `tuned.eval_loss`; None if there is none."""
        return figure(self.summary, name)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return the steps and values of one metric."""
        return curve(self.metrics, name)


def is_run(folder: Path) -> bool:
    """Whether this is a run folder."""
    return (folder / run_folder.JOB).is_file()


def read_run(folder: Path) -> Run:
    """Read a run folder; raises UserError with every broken file."""
    problems: list[Problem] = []
    tree = _read_yaml(folder / run_folder.JOB, problems)
    with collect_problems(problems), _explain_read_errors(folder / run_folder.JOB):
        metrics_of(tree)  # its objective may name metrics of its own
    names = (run_folder.SUMMARY, run_folder.PROVENANCE, run_folder.SOURCES, run_folder.SAMPLES)
    summary, lock, typed, samples = (_read_own(folder / name, problems) for name in names)
    metrics = list(_read_metrics(folder / run_folder.METRICS, problems))
    raise_if_any(problems)
    job, origins, words = dict(with_compare_by(tree)[0]), typed.get("sources") or {}, typed.get("words") or []
    return Run(folder, job, summary, metrics, lock, origins, words, samples.get("rows") or [])


def read_job_tree(folder: Path, problems: list[Problem] | None = None) -> dict[str, Any]:
    """Read `job.yaml` of a run folder as plain data; empty if it is missing or broken, which is added to `problems`."""
    return _read_yaml(folder / run_folder.JOB, [] if problems is None else problems)


def read_runs(folder: Path) -> list[Run]:
    """Read the run folders in this folder by number and name; raises UserError with every broken file."""
    runs: list[Run] = []
    problems: list[Problem] = []
    for place in sorted((path for path in folder.iterdir() if is_run(path)), key=_number_and_name):
        with collect_problems(problems):
            runs.append(read_run(place))
    raise_if_any(problems)
    return runs


def read_refused_points(folder: Path) -> list[sweep_folder.Point]:
    """Read the points without a run, whose jobs were refused, from `sweep.json`; raises UserError if it is broken."""
    with _explain_read_errors(folder / sweep_folder.FILE):
        return [point for point in sweep_folder.read_points(folder) if not is_run(folder / point.folder)]


def raise_if_no_run(folder: Path, flag: str = "") -> None:
    """Raise UserError unless this is a run folder or, without a flag, a folder of runs."""
    what = f"{flag}{folder}"
    if not folder.is_dir():
        raise UserError(what, f": no such folder; give a run folder{'' if flag else ' or a folder of runs'}")
    if is_run(folder) or (not flag and any(is_run(path) for path in folder.iterdir())):
        return
    if flag:
        raise UserError(what, f": not a run folder (no {run_folder.JOB} in it)")
    below = sorted({str(path.parent.parent) for path in folder.glob(f"*/*/{run_folder.JOB}")})
    hint = f"; runs are in {', '.join(below[:3])}" if below else ""
    raise UserError(what, f": no run here (no {run_folder.JOB} in it or in a folder of it){hint}")


def _number_and_name(path: Path) -> tuple[int, str]:
    number = path.name.partition("-")[0]
    return (int(number) if number.isdecimal() else 0, path.name)


def _read_own(path: Path, problems: list[Problem]) -> dict[str, Any]:
    """Read a JSON file that a run writes; a missing file is empty."""
    with collect_problems(problems):
        return run_folder.read_own(path)
    return {}


def _read_yaml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; a missing file is empty."""
    found: Any = {}
    with collect_problems(problems), _explain_read_errors(path):
        text = path.read_text(encoding="utf-8") if path.exists() else "{}"
        _raise_if_deep(text)
        found = yaml.load(text, Loader=_Loader)
    if not isinstance(found, dict):
        problems.append(Problem(str(path), ": must hold a mapping of names to values; correct or remove the file"))
        return {}
    return found


def _raise_if_deep(text: str) -> None:
    """Raise ValueError for YAML that is nested too deeply: libyaml would take the process with it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _read_metrics(path: Path, problems: list[Problem]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file; an unfinished last line is left out."""
    lines = []
    with collect_problems(problems), _explain_read_errors(path):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as err:
            problems.append(Problem(str(path), f":{number}: broken JSON ({first_line(err)}); remove the line"))
            continue
        if isinstance(found, dict):
            yield found
        else:
            problems.append(Problem(str(path), f":{number}: must be a mapping of names to values; remove the line"))


@contextmanager
def _explain_read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as err:
        raise UserError(str(path), f": cannot be read ({first_line(err)}); correct or remove the file") from err
