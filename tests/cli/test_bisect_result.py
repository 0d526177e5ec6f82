"""What `fmstune bisect` says: how much the causes do, and how sure that is."""

from pathlib import Path
from typing import Any

import pytest

from fmstune.cli.bisect_result import Pair, explain_without_runs, list_differences, render_verdict, verdict_as_json
from fmstune.runs.difference_units import Change, Differences, Unit
from fmstune.runs.fingerprints import Departure
from fmstune.runs.report.run_data import Run
from fmstune.sweeps.bisect import Verdict
from fmstune.sweeps.delta_debugging import Causes

UNITS = tuple(Unit(name, (Change(name, 1, 2),)) for name in ("x", "y", "z"))


def run(name: str, loss: float) -> Run:
    summary = {"train_loss": loss, "plan": {"total_steps": 40}}
    return Run(Path(name), {}, summary, [], {}, {}, [], [])


def pair(units: tuple[Unit, ...] = UNITS, facts: tuple[str, ...] = (), **more: Any) -> Pair:
    found = Differences(units, ("name",), ("seed",), ("data.train",))
    return Pair(run("a", 2.0), run("b", 1.0), {}, "train_loss", found, list(facts), more.get("departure"), True)


def said(causes: Causes | None, *, b: float = 1.0, runs: int = 6, share: float = 1.0, **more: Any) -> list[str]:
    verdict = Verdict(2.0, b, (2.01, 1.99), causes, runs)
    return list(render_verdict(pair(**more), verdict, Path("nowhere"), max_runs=10, share=share))


def test_the_list_has_all_that_differs_with_counts() -> None:
    lines = list(list_differences(pair(facts=("packages.torch 1 → 2",), departure=Departure(0, "m", "step 0: m"))))
    assert lines[:2] == ["A  a  train_loss 2", "B  b  train_loss 1 (-1)"]
    assert lines[-5:] == [
        "not run, as they cannot reach the result: name (1 field)",
        "not run, as both places hold the same content: data.train (1 field)",
        "other draws of random numbers, where all runs here have those of A: seed (1 field)",
        "not in the jobs, and the same in all runs here: packages.torch 1 → 2",
        "fingerprints: step 0: m",
    ]


def test_one_cause_is_said_with_its_share() -> None:
    found = Causes((1,), 1.02, explained=True, minimal=True, alone={1: -0.98})
    assert said(found) == [
        "B less A: -1; standard deviation between 3 seeds of A: 0.01",
        "cause (6 runs):",
        "  y: 1 → 2",
        "with it alone: -0.98 ± 0.01, 98% of the difference",
    ]


def test_of_two_causes_what_each_does_is_said_and_whether_they_act_only_together() -> None:
    adds = Causes((0, 1), 1.0, explained=True, minimal=True, alone={0: -0.7, 1: -0.3})
    assert said(adds)[2:4] == ["  x: 1 → 2; without the others -0.7", "  y: 1 → 2; without the others -0.3"]
    joint = Causes((0, 1), 1.0, explained=True, minimal=True, alone={0: 0.0, 1: 0.0}, only_together=True)
    assert said(joint)[-1] == "they act only together: fewer of them make no difference"


@pytest.mark.parametrize(("runs", "more"), [(10, "; the same command with --max_runs above 10 goes on"), (7, "")])
def test_what_is_not_shown_is_said(runs: int, more: str) -> None:
    group = Causes((0, 1), None, explained=False, minimal=False, unseparated=((0, 1),))
    assert said(group, runs=runs)[-2:] == [
        "not told apart: one or more of x, y",
        f"whether these alone make the difference is not shown{more}",
    ]
    whole = Causes((0, 1), 1.0, explained=True, minimal=False)
    assert said(whole, runs=runs)[-1] == f"whether each of them is needed is not shown{more}"


def test_a_difference_within_the_noise_has_no_cause() -> None:
    assert said(None, b=2.005)[1:] == ["within the noise of seeds (6 runs): there is no cause to find"]
    assert said(None, b=2.005, share=0.5)[-1] == "the runs were short; --steps, up to 40, looks further"


def test_facts_that_no_run_here_changes_are_remembered() -> None:
    found = Causes((1,), 1.0, explained=True, minimal=True)
    assert said(found, facts=("x",))[-1] == "what is not in the jobs may add to the difference of the recorded results"


def test_without_units_versions_or_the_seed_are_left() -> None:
    assert list(explain_without_runs(pair((), ("x", "y"))))[1].startswith("2 facts of versions, devices and files")
    assert "the seed makes the difference" in list(explain_without_runs(pair(())))


def test_a_program_gets_all_of_it() -> None:
    causes = Causes((1,), 1.0, explained=True, minimal=True, alone={1: -1.0})
    found = verdict_as_json(pair(), Verdict(2.0, 1.0, (2.01, 1.99), causes, 6), Path("runs/x"))
    assert (found["causes"], found["effect"], found["alone"]) == (["y"], -1.0, {"y": -1.0})
    assert found["differences"] == {"x": ["x"], "y": ["y"], "z": ["z"]}
    assert (found["here"], found["runs"], found["within_noise"], found["folder"]) == ([2.0, 1.0], 6, False, "runs/x")
    nothing = verdict_as_json(pair(()), None, None)
    assert nothing["differences"] == {} and "causes" not in nothing
