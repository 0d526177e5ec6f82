"""`fmstune bisect`: which differences of two jobs make the difference in their results, by short runs of mixed jobs.

Runs that are in the folder already are not run again.
"""

import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.errors import UserError, first_line
from fmstune.exit_codes import INTERRUPTED
from fmstune.files import read_json, write_json
from fmstune.launch import preemption
from fmstune.runs import run_folder
from fmstune.runs.difference_units import Unit
from fmstune.runs.report.run_data import read_run
from fmstune.sweeps.delta_debugging import Causes, Changes, OutOfRuns, Search

FILE = "bisect.json"
"""The plan, the numbers of the runs and the result, in the folder of a bisection."""
SEEDS = 2
"""Runs of A with other seeds, by which the noise is known."""
NOISE = 3.0
"""Standard deviations between seeds within which A and B do not differ: two runs, each with its own noise, at 2.1."""
NEAR = 2.0
"""Standard deviations within which the number of a mixed job is that of A, or of B."""
LEAST_SHARE = 0.1
"""Share of the difference that is not looked into further, however small the noise is."""


class Ended(Exception):
    """A run ended in a way that ends the bisection, with its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Subject:
    """What is bisected; `start` trains A with these units as in B, and other seeds, and returns the exit code."""

    units: tuple[Unit, ...]
    figure: str
    folder: Path
    max_runs: int
    start: Callable[[tuple[Unit, ...], Path, int], int]
    plan: Mapping[str, Any]
    """What the folder's record must agree with."""


@dataclass(frozen=True)
class Verdict:
    """What came out."""

    a: float
    b: float
    seeds: tuple[float, ...]
    """The numbers of A with other seeds."""
    causes: Causes | None
    """None where the difference is within the noise."""
    runs: int
    """Trained by this command or by those before it."""
    values: Mapping[str, float | None] = field(default_factory=dict)
    """The number of each run by the name of its folder; None where the mixed job was refused or failed."""

    @property
    def difference(self) -> float:
        """B less A."""
        return self.b - self.a

    @property
    def noise(self) -> float:
        """The standard deviation between seeds."""
        return statistics.stdev([self.a, *self.seeds])

    @property
    def tolerance(self) -> float:
        """By how much a number may be away from that of B and still be the same; less than half of the difference."""
        most = 0.499 * abs(self.difference)
        return min(max(NEAR * self.noise, LEAST_SHARE * abs(self.difference)), most)

    @property
    def is_noise(self) -> bool:
        """Whether A and B differ by no more than other seeds do."""
        return abs(self.difference) <= NOISE * self.noise or self.difference == 0


def most_runs(count: int, max_runs: int) -> int:
    """The runs that a bisection of so many units takes at most: A, B, seeds, and mixed jobs."""
    mixed = 0 if count == 1 else 2**count - 2
    return min(2 + SEEDS + mixed, max_runs)


def name_of(changes: Changes, count: int) -> str:
    """The name of the folder of a run with these units as in B."""
    if not changes or len(changes) == count:
        return "b" if changes else "a"
    return f"b-{'-'.join(str(one + 1) for one in sorted(changes))}"


class Bisection:
    """The runs of one bisection, kept in its folder."""

    def __init__(self, subject: Subject, say: Callable[[str], object]) -> None:
        self._subject, self._say = subject, say
        known = self._read()
        self._values: dict[str, float | None] = dict(known.get("runs") or {})
        self._trained: list[str] = list(known.get("trained") or [])

    def _read(self) -> dict[str, Any]:
        path = self._subject.folder / FILE
        known = read_json(path) if path.is_file() else {"plan": self._subject.plan}
        if known.get("plan") != self._subject.plan:
            text = f": {path} is of another bisection (other runs, fields, steps or figure); choose another folder"
            raise UserError("--out", text)
        return known

    def find(self) -> Verdict:
        """Run A, B, A with other seeds, and what the search asks for; raises Ended, or UserError where A or B fails."""
        count = len(self._subject.units)
        everything = frozenset(range(count))
        a = self._needed(frozenset(), 0)
        b = self._needed(everything, 0)
        seeds = tuple(self._needed(frozenset(), number) for number in range(1, SEEDS + 1))
        verdict = Verdict(a, b, seeds, None, len(self._trained))
        if not verdict.is_noise:
            known = {frozenset[int](): a, everything: b}
            causes = Search(count, verdict.tolerance, known, self._measure).find()
            verdict = Verdict(a, b, seeds, causes, len(self._trained), dict(self._values))
        self._record({"difference": verdict.difference, "noise": verdict.noise, "runs": verdict.runs})
        return verdict

    def _needed(self, changes: Changes, seed: int) -> float:
        value = self._value(changes, seed)
        if value is None:
            name = self._name(changes, seed)
            raise UserError("bisect", f": {name} cannot be run here; {self._subject.folder / 'log.txt'} says why")
        return value

    def _name(self, changes: Changes, seed: int) -> str:
        return f"a-seed-{seed}" if seed else name_of(changes, len(self._subject.units))

    def _measure(self, changes: Changes) -> float | None:
        return self._value(changes, 0)

    def _value(self, changes: Changes, seed: int) -> float | None:
        """The number of one run, which is trained unless that was done before; raises OutOfRuns, or Ended."""
        subject, name = self._subject, self._name(changes, seed)
        folder = subject.folder / name
        if name in self._values:
            return self._values[name]
        units = tuple(subject.units[one] for one in sorted(changes))
        if not run_folder.has_finished(folder):
            if (number := len(self._trained) + 1) > subject.max_runs:
                raise OutOfRuns
            what = self._title(changes, seed, units)
            try:
                code = subject.start(units, folder, seed)
            except UserError as err:
                if not changes or len(changes) == len(subject.units):
                    raise
                self._say(f"not run: {what}: {first_line(err)}")
                self._keep(name, None)
                return None
            if code in (INTERRUPTED, preemption.CODE):
                raise Ended(code)
            self._trained.append(name)
            what = f"run {number} of at most {most_runs(len(subject.units), subject.max_runs)}: {what}"
        else:
            what = f"run before: {self._title(changes, seed, units)}"
        value = read_run(folder).figure(subject.figure) if run_folder.has_finished(folder) else None
        shutil.rmtree(folder / run_folder.MODEL, ignore_errors=True)  # the number alone is wanted
        self._say(f"{what}: {'failed' if value is None else f'{subject.figure} {value:.5g}'}")
        self._keep(name, value)
        return value

    def _title(self, changes: Changes, seed: int, units: tuple[Unit, ...]) -> str:
        if seed:
            return f"A with seed + {seed}"
        if not changes or len(changes) == len(self._subject.units):
            return "B" if changes else "A"
        return f"A with {', '.join(unit.name for unit in units)} of B"

    def _keep(self, name: str, value: float | None) -> None:
        self._values[name] = value
        self._record(None)

    def _record(self, result: Mapping[str, Any] | None) -> None:
        self._subject.folder.mkdir(parents=True, exist_ok=True)
        found = {"plan": self._subject.plan, "runs": self._values, "trained": self._trained, "result": result}
        write_json(self._subject.folder / FILE, found)
