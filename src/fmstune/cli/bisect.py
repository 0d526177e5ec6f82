"""`fmstune bisect A B`: the differences of two runs, the runs that tell which of them matter, and what came out."""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from fmstune.cli import start_job
from fmstune.cli.arguments import CommandLine
from fmstune.cli.bisect_result import Pair, explain_without_runs, list_differences, render_verdict, verdict_as_json
from fmstune.cli.start_job import History
from fmstune.config import freeze
from fmstune.config.first_aid.verbs import Bisect
from fmstune.config.job import Job, sources
from fmstune.config.requests import Verb
from fmstune.data.locate import local_files
from fmstune.errors import Problem, UserError, collect_problems, did_you_mean, raise_if_any
from fmstune.files import did_you_mean_beside, sha256_of, user_path
from fmstune.flatten import flatten
from fmstune.runs import differences, run_folder
from fmstune.runs.difference_units import Unit, environment_facts, find_differences, with_units
from fmstune.runs.fingerprints import first_departure, read_fingerprints
from fmstune.runs.learning_rate import with_chosen_rate
from fmstune.runs.report.run_data import Run, is_run, read_run
from fmstune.sweeps import bisect, warm
from fmstune.sweeps.bisect import Bisection, Ended, Subject, Verdict, most_runs
from fmstune.sweeps.short_runs import choose_share, common_figure, short_job, total_steps
from fmstune.tables import count_of

LOG = "log.txt"
"""What the runs said, in the folder of the bisection."""


def bisect_runs(line: CommandLine, asked: Bisect) -> int:
    """Find what makes the difference, and show it; the exit code."""
    pair = _read_pair(asked)
    share = _share(asked, pair)
    place = _folder(asked, pair, share)
    text = sys.stderr if asked.json else sys.stdout
    print("\n".join(list_differences(pair)), file=text, flush=True)
    if not pair.found.units:
        print("\n".join(explain_without_runs(pair)), file=text)
        return _tell_json(asked, verdict_as_json(pair, None, None))
    steps = max(round(share * total_steps(pair.a)), 1)
    most, length = most_runs(len(pair.found.units), asked.max_runs), f"{steps:,} of {total_steps(pair.a):,} steps"
    print(f"\nat most {count_of(most, 'run')} of {length}, in {place}", file=text, flush=True)
    verdict, code = _find(line, asked, pair, share, place)
    if verdict is None:
        print("fmstune: interrupted; the same command resumes, and repeats no finished run", file=sys.stderr)
        return code
    print("\n".join(["", *render_verdict(pair, verdict, place, max_runs=asked.max_runs, share=share)]), file=text)
    return _tell_json(asked, verdict_as_json(pair, verdict, place))


def _read_pair(asked: Bisect) -> Pair:
    """Both runs and their differences; raises UserError with all that is wrong with them and with the flags."""
    problems = list(_flag_problems(asked))
    runs: list[Run] = []
    jobs: list[Job] = []
    for place in (asked.a, asked.b):
        folder = user_path(place)
        with collect_problems(problems):
            _raise_if_no_run(place, folder)
            job = freeze.read(folder / run_folder.JOB, trusted=asked.trusted).job
            jobs.append(with_chosen_rate(job, folder))  # and no probes again
            run = read_run(folder)
            if not run.summary or not total_steps(run):
                raise UserError(place, f": has no results yet ({run.status}); give a run that has finished")
            runs.append(run)
    raise_if_any(problems)
    (a, b), (job_a, job_b) = runs, jobs
    figure = asked.metric or common_figure(a, b, (job_a, job_b))
    raise_if_any(_figure_problems(figure, a, b))
    raise_if_any(
        Problem(name, f": training.resume={job.training['resume']}: it began from a checkpoint, and short runs cannot")
        for name, job in zip((asked.a, asked.b), jobs, strict=True)
        if job.training.get("resume") not in (None, "auto")
    )
    trees = [freeze.as_tree(job) for job in jobs]
    found = find_differences(trees[0], trees[1], (a.lock, b.lock), str(figure))
    differing = [one for one in differences.lock_differences(a.lock, b.lock) if one.counts] if a.lock and b.lock else []
    names = environment_facts([one.fact for one in differing], found.units, found.seeds)
    facts = [f"{one.fact} {one.recorded} → {one.now}" for one in differing if one.fact in names]
    facts += [note for run, job in zip(runs, jobs, strict=True) for note in _changed_data(run, job)]
    prints = [read_fingerprints(run.folder) for run in runs]
    return Pair(a, b, trees[0], str(figure), found, facts, first_departure(*prints), all(prints))


def _flag_problems(asked: Bisect) -> Iterator[Problem]:
    least = 2 + bisect.SEEDS
    if asked.max_runs < least:
        text = f"must be at least {least} (A, B, and A with {bisect.SEEDS} other seeds), got {asked.max_runs}"
        yield Problem("--max_runs", text)
    if asked.steps is not None and asked.steps < 1:
        yield Problem("--steps", f"must be at least 1, got {asked.steps}")
    if asked.out is not None and user_path(asked.out).is_file():
        yield Problem("--out", f": {asked.out} is a file; name a folder")
    if os.path.realpath(user_path(asked.a)) == os.path.realpath(user_path(asked.b)):
        yield Problem("bisect", f": {asked.a} and {asked.b} are one run; give two")


def _raise_if_no_run(place: str, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(place, f": no such folder{did_you_mean_beside(folder)}; give the folder of a run")
    if not is_run(folder):
        raise UserError(place, f": not a run folder (no {run_folder.JOB} in it)")


def _figure_problems(figure: str | None, a: Run, b: Run) -> Iterator[Problem]:
    numbers = [{name for name in flatten(run.summary) if run.figure(name) is not None} for run in (a, b)]
    both = sorted(numbers[0] & numbers[1])
    if figure is None:
        text = f": {a.folder} ({a.status}) and {b.folder} ({b.status}) have no loss and no score in common to explain"
        yield Problem("bisect", f"{text}; give --metric NAME, a figure of both summaries")
        return
    for run, known in zip((a, b), numbers, strict=True):
        if figure not in known:
            yield Problem("--metric", f": {run.folder} has no figure {figure!r}{did_you_mean(figure, both)}")


def _changed_data(run: Run, job: Job) -> Iterator[str]:
    """Say which data files are not as the run read them."""
    recorded = run.lock.get("data_files") or {}
    for part in ("train", "eval"):
        for name, source in sources(job.data, part).items():
            field = f"data.{part}.{name}" if name else f"data.{part}"
            known = recorded.get(field) or {}
            for path in local_files(source.path, field) if known else ():
                digest = known.get(path.name, known.get(str(path)))
                if digest is not None and digest != sha256_of(path):
                    yield f"{field}: {path} has changed since {run.folder} read it; the runs here read it as it is"


def _share(asked: Bisect, pair: Pair) -> float:
    if asked.steps is None:
        return choose_share(pair.a, pair.b)
    if asked.steps > (whole := total_steps(pair.a)):
        raise UserError("--steps", f"={asked.steps} is more than the {whole:,} steps of {pair.a.folder}")
    return asked.steps / whole


def _plan(pair: Pair, share: float) -> dict[str, Any]:
    """What makes a bisection the same as one before."""
    units = [[unit.name, *([one.field, repr(one.a), repr(one.b)] for one in unit.changes)] for unit in pair.found.units]
    job = hashlib.sha256(json.dumps(pair.tree, sort_keys=True, default=str).encode()).hexdigest()
    return {"figure": pair.figure, "share": round(share, 6), "units": units, "job": job}


def _folder(asked: Bisect, pair: Pair, share: float) -> Path:
    if asked.out is not None:
        return user_path(asked.out)
    digest = hashlib.sha256(json.dumps(_plan(pair, share)).encode()).hexdigest()[:8]
    return Path(run_folder.RUNS) / f"bisect-{pair.a.folder.name}-{pair.b.folder.name}-{digest}"


def _find(line: CommandLine, asked: Bisect, pair: Pair, share: float, place: Path) -> tuple[Verdict | None, int]:
    """The verdict, or the exit code with which a run has ended the search."""
    line = dataclasses.replace(line, verb=Verb.train)

    def start(units: tuple[Unit, ...], folder: Path, seed: int) -> int:
        frozen = freeze.freeze(with_units(pair.tree, units), trusted=asked.trusted)
        job = short_job(frozen.job, share, folder, pair.figure, more_seed=seed)
        return start_job.start_job(frozen._replace(job=job), line, History(["bisect", asked.a, asked.b], {}), _started)

    place.mkdir(parents=True, exist_ok=True)
    with _said_into(place / LOG) as terminal:
        subject = Subject(pair.found.units, pair.figure, place, asked.max_runs, start, _plan(pair, share))
        try:
            search = Bisection(subject, lambda text: print(text, file=terminal, flush=True))
            return search.find(), 0
        except Ended as ended:
            return None, ended.code
        finally:
            warm.close()


def _started(argv: Any, env: Mapping[str, str]) -> int:
    return warm.start_forked(argv, env)


@contextmanager
def _said_into(file: Path) -> Iterator[TextIO]:
    """Let what this process and those that it starts say go into the file; yields the standard error of before."""
    sys.stdout.flush()
    sys.stderr.flush()
    former = [os.dup(number) for number in (1, 2)]
    with file.open("a", encoding="utf-8", errors="backslashreplace") as log:
        terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            with terminal, redirect_stdout(log), redirect_stderr(log):
                yield terminal
        finally:
            for number, kept in zip((1, 2), former, strict=True):
                os.dup2(kept, number)
                os.close(kept)


def _tell_json(asked: Bisect, found: Mapping[str, Any]) -> int:
    if asked.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0
