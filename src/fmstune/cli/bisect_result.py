"""What `fmstune bisect` shows: the list of differences, and what makes the difference, as text and as JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fmstune import tables
from fmstune.runs.difference_units import Differences
from fmstune.runs.fingerprints import Departure, first_departure, read_fingerprints
from fmstune.runs.report.run_data import Run
from fmstune.sweeps import bisect
from fmstune.sweeps.bisect import Verdict
from fmstune.sweeps.short_runs import total_steps
from fmstune.tables import count_of


class Pair(NamedTuple):
    """Two runs and what differs between them."""

    a: Run
    b: Run
    tree: dict[str, Any]
    """The job of A, of which the others are made."""
    figure: str
    found: Differences
    facts: list[str]
    """Facts outside of the jobs that differ, each with both values."""
    departure: Departure | None
    fingerprints: bool
    """Whether both runs have recorded them."""


def list_differences(pair: Pair) -> Iterator[str]:
    """Both results, and the list of what differs."""
    one, other = (run.figure(pair.figure) for run in (pair.a, pair.b))
    assert one is not None and other is not None
    yield f"A  {pair.a.folder}  {pair.figure} {one:.5g}"
    yield f"B  {pair.b.folder}  {pair.figure} {other:.5g} ({other - one:+.4g})"
    yield ""
    if pair.found.units:
        rows = [(str(number), *unit.shown()) for number, unit in enumerate(pair.found.units, start=1)]
        yield from tables.lines(("", "difference", "A", "B"), rows, left=(1, 2, 3))
    lists = (
        ("not run, as they cannot reach the result", pair.found.harmless),
        ("not run, as both places hold the same content", pair.found.same_content),
        ("other draws of random numbers, where all runs here have those of A", pair.found.seeds),
    )
    for what, fields in lists:
        if fields:
            yield f"{what}: {', '.join(fields)} ({count_of(len(fields), 'field')})"
    for fact in pair.facts:
        yield f"not in the jobs, and the same in all runs here: {fact}"
    if pair.departure is not None:
        yield f"fingerprints: {pair.departure.text}"


def explain_without_runs(pair: Pair) -> Iterator[str]:
    """What can be said without a run, where no field that matters differs."""
    yield "no field that can reach the result differs, so no run here can tell more"
    if pair.facts:
        yield f"{count_of(len(pair.facts), 'fact')} of versions, devices and files above can make the difference"
    elif pair.found.seeds:
        yield "the seed makes the difference"
    if not pair.fingerprints:
        yield "fingerprints: not recorded by both runs; repeat them with this version to see which module departs"
    elif pair.departure is None:
        yield "fingerprints: equal in the first steps, so the runs depart later, or in what was not recorded"


def render_verdict(pair: Pair, verdict: Verdict, place: Path, *, max_runs: int, share: float) -> Iterator[str]:
    """Say what came out, by runs in this folder of this share of their steps."""
    own = first_departure(read_fingerprints(pair.a.folder), read_fingerprints(place / "a"))
    if own is not None:
        yield f"A as it was recorded (A) and as it runs here (B) are not the same: {own.text}"
    noise, runs = verdict.noise, count_of(verdict.runs, "run")
    yield f"B less A: {verdict.difference:+.4g}; standard deviation between {bisect.SEEDS + 1} seeds of A: {noise:.2g}"
    if verdict.is_noise or (causes := verdict.causes) is None:
        yield f"within the noise of seeds ({runs}): there is no cause to find"
        if share < 1:
            yield f"the runs were short; --steps, up to {total_steps(pair.a):,}, looks further"
        return
    named = [pair.found.units[one] for one in causes.changes]
    yield f"{'cause' if len(named) == 1 else 'causes'} ({runs}):"
    for number, unit in zip(causes.changes, named, strict=True):
        name, one, other = unit.shown()
        effect = causes.alone.get(number)
        does = "" if effect is None or len(named) == 1 else f"; without the others {effect:+.4g}"
        yield f"  {name}: {one} → {other}{does}"
    if causes.value is not None:
        gain = causes.value - verdict.a
        part = f"{gain / verdict.difference:.0%} of the difference"
        yield f"with {'it' if len(named) == 1 else 'these'} alone: {gain:+.4g} ± {noise:.2g}, {part}"
    yield from _doubts(pair, verdict, max_runs)


def _doubts(pair: Pair, verdict: Verdict, max_runs: int) -> Iterator[str]:
    """How sure the result is."""
    causes = verdict.causes
    assert causes is not None
    if causes.only_together:
        yield "they act only together: fewer of them make no difference"
    for group in causes.unseparated:
        names = ", ".join(pair.found.units[one].name for one in group)
        yield f"not told apart: one or more of {names}"
    spent = verdict.runs >= max_runs
    more = f"; the same command with --max_runs above {max_runs} goes on" if spent else ""
    if not causes.explained:
        yield f"whether these alone make the difference is not shown{more}"
    elif not causes.minimal:
        yield f"whether each of them is needed is not shown{more}"
    if pair.facts:
        yield "what is not in the jobs may add to the difference of the recorded results"


def verdict_as_json(pair: Pair, verdict: Verdict | None, place: Path | None) -> dict[str, Any]:
    """Everything for a program."""
    causes = verdict.causes if verdict is not None else None
    names = [unit.name for unit in pair.found.units]
    found: dict[str, Any] = {
        "a": str(pair.a.folder),
        "b": str(pair.b.folder),
        "figure": pair.figure,
        "recorded": [run.figure(pair.figure) for run in (pair.a, pair.b)],
        "differences": {unit.name: [one.field for one in unit.changes] for unit in pair.found.units},
        "cannot_reach_the_result": list(pair.found.harmless),
        "same_content": list(pair.found.same_content),
        "seeds": list(pair.found.seeds),
        "not_in_the_jobs": pair.facts,
        "first_departure": pair.departure and pair.departure._asdict(),
        "folder": place and str(place),
    }
    if verdict is not None:
        found |= {"here": [verdict.a, verdict.b], "noise": verdict.noise, "within_noise": verdict.is_noise}
        found |= {"runs": verdict.runs}
    if causes is not None:
        found |= {
            "causes": [names[one] for one in causes.changes],
            "effect": None if causes.value is None or verdict is None else causes.value - verdict.a,
            "explained": causes.explained,
            "minimal": causes.minimal,
            "only_together": causes.only_together,
            "not_told_apart": [[names[one] for one in group] for group in causes.unseparated],
            "alone": {names[one]: effect for one, effect in causes.alone.items()},
        }
    return found
