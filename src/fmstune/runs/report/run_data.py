"""Run folders → what they hold, read for a report; a folder of runs → all of them, or every problem with them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fmstune.config.compare_by import curve, figure
from fmstune.config.metrics import Table, metrics_of
from fmstune.config.renamed_fields import with_compare_by
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.runs import run_folder, sweep_folder


@dataclass(frozen=True)
class Run:
    """What one run folder holds; what is not there yet is empty."""

    folder: Path
    job: dict[str, Any]
    """`job.yaml`, as plain data."""
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""
    lock: dict[str, Any]
    origins: dict[str, str]
    """What set each field that has no default value; empty where it was not recorded."""
    words: list[str]
    """The words of the command, those of this point alone in a sweep; empty where they were not recorded."""
    samples: list[dict[str, Any]]

    @property
    def status(self) -> str:
        """The status of the summary; a run that has written none yet has begun."""
        return str(self.summary.get("status", "begun"))

    @property
    def error(self) -> str | None:
        """Why it did not finish, where it says so."""
        error = self.summary.get("error") or {}
        return str(error["message"]) if error.get("message") else None

    @property
    def table(self) -> Table:
        """The metrics of the run's objective."""
        return metrics_of(self.job)

    def figure(self, name: str) -> float | None:
        """A number of the summary by its dotted name, such as `tuned.eval_loss`; None where there is none."""
        return figure(self.summary, name)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Step and value of one metric, without what is no number."""
        return curve(self.metrics, name)


class Refused(NamedTuple):
    """A point of a sweep that was wrong: it has left no folder."""

    name: str
    """Of the folder that it would have had."""
    fields: dict[str, str]
    """What set it apart from the others."""
    error: str


def is_run(folder: Path) -> bool:
    """Whether a run lives in the folder."""
    return (folder / run_folder.JOB).is_file()


def read_run(folder: Path) -> Run:
    """The run of this folder; raises UserError with all that is broken in it."""
    problems: list[Problem] = []
    job = dict(with_compare_by(_mapping(folder / run_folder.JOB, problems))[0])
    summary = _mapping(folder / run_folder.SUMMARY, problems)
    lock = _mapping(folder / run_folder.PROVENANCE, problems)
    typed = _mapping(folder / run_folder.SOURCES, problems)
    samples = _mapping(folder / run_folder.SAMPLES, problems)
    metrics = list(_lines(folder / run_folder.METRICS, problems))
    raise_if_any(problems)
    rows = samples.get("rows", [])
    return Run(folder, job, summary, metrics, lock, typed.get("sources", {}), typed.get("words", []), rows)


def read_job_tree(folder: Path) -> dict[str, Any]:
    """`job.yaml` of a run folder as plain data; empty where it is missing or broken."""
    return _mapping(folder / run_folder.JOB, [])


def read_runs(folder: Path) -> list[Run]:
    """The runs in the folders below this one, by their number and name; raises UserError with all that is broken."""
    runs: list[Run] = []
    problems: list[Problem] = []
    for place in sorted((path for path in folder.iterdir() if is_run(path)), key=_order):
        try:
            runs.append(read_run(place))
        except UserError as err:
            problems += err.problems
    raise_if_any(problems)
    return runs


def read_refused_points(folder: Path) -> list[Refused]:
    """The points of this sweep that have no run, as `sweep.json` has them; raises UserError where it is broken."""
    try:
        found = sweep_folder.read_points(folder)
    except (OSError, ValueError, TypeError) as err:
        path = folder / sweep_folder.FILE
        raise UserError(str(path), f": cannot be read ({_first_line(err)}); mend or remove it") from err
    return [
        Refused(point.folder, dict(_pair(word) for word in point.overrides), point.error or "")
        for point in found
        if not is_run(folder / point.folder)
    ]


def _pair(word: str) -> tuple[str, str]:
    field, _, value = word.partition("=")
    return field, value


def raise_if_no_run(folder: Path, flag: str = "") -> None:
    """Raises UserError where there is neither a run nor a folder of runs."""
    what = f"{flag}{folder}"
    if not folder.is_dir():
        raise UserError(what, f": no such folder; give a run folder{'' if flag else ', or a folder of runs'}")
    if is_run(folder) or (not flag and any(is_run(path) for path in folder.iterdir())):
        return
    below = sorted({str(path.parent.parent) for path in folder.glob(f"*/*/{run_folder.JOB}")})
    hint = f"; runs are in {', '.join(below[:3])}" if below and not flag else ""
    here = "is no run folder" if flag else "holds no run"
    raise UserError(what, f": {here}, as there is no {run_folder.JOB}{'' if flag else ' in it or one below'}{hint}")


def _order(path: Path) -> tuple[int, str]:
    number = path.name.partition("-")[0]
    return (int(number) if number.isdecimal() else 0, path.name)


def _mapping(path: Path, problems: list[Problem]) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.load(text, Loader=_Loader) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as err:
        problems.append(Problem(str(path), f": cannot be read ({_first_line(err)}); mend or remove it"))
        return {}
    if not isinstance(found, dict):
        problems.append(Problem(str(path), ": holds no mapping of names to values; mend or remove it"))
        return {}
    return found


# libyaml where it is there: a job of 150 fields takes 50 ms without
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _lines(path: Path, problems: list[Problem]) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; one that a process is just writing, or was killed in, is left out."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as err:
        problems.append(Problem(str(path), f": cannot be read ({_first_line(err)}); mend or remove it"))
        return
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return
        try:
            found = json.loads(line)
        except ValueError as err:
            problems.append(Problem(str(path), f":{number}: broken JSON ({_first_line(err)}); remove the line"))
            continue
        if isinstance(found, dict):
            yield found
        else:
            problems.append(Problem(str(path), f":{number}: holds no mapping of names to values; remove the line"))


def _first_line(err: BaseException) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0]
