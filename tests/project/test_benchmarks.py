# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, each alone, and their page says what it should; how long anything takes is not asserted."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import learning_rate
import pairs
import results
import stop_losers
import stopped_sweeps
from fmstune.runs.looks import Curve, Look
from results import Figure, Section
from tests import ROOT
from tests.fixtures import forked

BENCHMARKS = ROOT / "benchmarks"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.slow
def test_a_childs_seconds_memory_and_output_are_its_own() -> None:
    # from a process as small as a benchmark's: Linux counts what a parent held when it forked
    code = (
        f"import json, sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import pairs\n"
        "idle = pairs.run([sys.executable, '-c', \"import time; time.sleep(1); print('done')\"])\n"
        "work = \"x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096]); sum(range(3_000_000))\"\n"
        "busy = pairs.run([sys.executable, '-c', work])\n"
        "print(json.dumps([idle.out, idle.wall, idle.cpu, busy.peak - idle.peak]))"
    )
    done = subprocess.run(python(code), capture_output=True, text=True, check=True)
    out, wall, cpu, more = json.loads(done.stdout)
    assert out == "done\n"
    assert wall > 1 > cpu
    assert more > 150_000_000


def test_memory_and_time_of_a_childs_own_children_count() -> None:
    inner = "x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096])"
    child = pairs.run(python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"))
    assert child.peak > 150_000_000


@pytest.mark.slow
def test_a_line_of_the_watched_file_is_a_moment(tmp_path: Path) -> None:
    code = f"import time\nfor n in range(3):\n  time.sleep(.1); print('x', file=open({str(tmp_path / 'f')!r}, 'a'))"
    child = pairs.run(python(f"{code}\ntime.sleep(1)"), watched=tmp_path / "f")
    first, second, third = child.lines
    assert first > 0.1 and second > 0.2 and third > 0.3
    # and not only when the child has ended
    assert third < child.wall - 0.5


def test_a_child_that_fails_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match=r"exited with 3\n(.|\n)*why"):
        pairs.run(python("import sys; print('why', file=sys.stderr); sys.exit(3)"))


def test_both_sides_have_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    env = pairs.environment()
    assert (env["OMP_NUM_THREADS"], env["RAYON_NUM_THREADS"], env["OMP_WAIT_POLICY"]) == ("3", "3", "passive")


def test_each_side_goes_first_in_every_other_pair() -> None:
    order: list[str] = []
    made = pairs.interleave(lambda: order.append("a") or 1, lambda: order.append("b") or 2, 3)
    assert "".join(order) == "abbaab"
    assert made == [(1, 2)] * 3


def test_each_of_several_sides_goes_first_in_its_turn() -> None:
    order: list[str] = []
    made = pairs.rounds({name: lambda name=name: order.append(name) or name for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert made == [{"a": "a", "b": "b", "c": "c"}] * 3


@pytest.mark.parametrize(
    ("figure", "row"),
    [
        (
            Figure("x", pairs.spread([1.0, 3.0, 2.0]), 2.0, "1 s against 2 s"),
            "| x | 2.000 | 1.000 to 3.000 | 3 | ≤ 2 | yes | 1 s against 2 s |",
        ),
        (Figure("x", pairs.spread([2.5]), 2.0), "| x | 2.500 | 2.500 to 2.500 | 1 | ≤ 2 | **no** |  |"),
        (
            Figure("x", pairs.spread([0.97]), 0.98, at_least=True),
            "| x | 0.970 | 0.970 to 0.970 | 1 | ≥ 0.98 | **no** |  |",
        ),
        (Figure("x", pairs.spread([0.5])), "| x | 0.500 | 0.500 to 0.500 | 1 |  |  |  |"),
    ],
)
def test_a_figure_stands_beside_its_bar(figure: Figure, row: str) -> None:
    assert results.table(Section("t", "a", [figure])).splitlines()[-1] == row


def test_the_page_says_when_and_on_what_and_names_no_machine() -> None:
    import platform

    page = results.document([results.dated(Section("Title", "about", []), 0.5)])
    for part in (
        "Measured on 2",
        "cores",
        "GiB of memory",
        "threads",
        "load 0.5",
        "torch 2",
        "transformers 5",
        "trl 1",
    ):
        assert part in page
    assert platform.node() not in page
    assert str(Path.home()) not in page


def test_a_benchmark_alone_replaces_its_own_table_and_keeps_the_others() -> None:
    one, two, again = (results.dated(Section(title, about, []), 0) for title, about in ("1a", "2b", "1c"))
    page = results.document([one, two])
    kept = results.sections_of(page)
    assert kept == {"1": one, "2": two}
    assert results.document((kept | {"1": again}).values()) == page.replace(one, again)


def test_figures_of_other_versions_are_not_put_beside_new_ones() -> None:
    page = results.document([]).replace("torch 2", "torch 1")
    with pytest.raises(ValueError, match="measure all"):
        results.sections_of(page)


def quick(script: str, *flags: str) -> dict[str, list[str]]:
    """Try a script out; what it measured, by the headings of its tables.

    It forks what it measures, and is forked itself: it need not import the libraries that train either.
    """
    program = Path("program.py")
    found = f"import runpy, sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\n"
    program.write_text(f"{found}runpy.run_path({str(BENCHMARKS / script)!r}, run_name='__main__')\n")
    done = forked.run([sys.executable, "-P", program, "--quick", *flags], timeout=500)
    assert done.returncode == 0, done.stderr
    sections = re.split(r"^## ", done.stdout, flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0]: [line.split("|")[1].strip() for line in section.splitlines() if line[:1] == "|"][2:]
        for section in sections
    }


@pytest.mark.slow
def test_one_alone() -> None:
    assert quick("startup.py") == {"Start": ["wall clock", "CPU time"]}


@pytest.mark.slow
def test_those_that_prepare_rows() -> None:
    assert quick("run_all.py", "preparation", "packed_rows") == {
        "Preparation": ["300 rows of JSON lines", "SFTTrainer, the same rows", "memory, jsonl: most rows over fewest"],
        "Positions that hold a token": ["tokens over positions, packed", "tokens over positions, padded"],
    }


@pytest.mark.soak
def test_those_that_train() -> None:
    step, memory = "tiny_llama, full: step", "tiny_llama, full: memory"
    assert quick(
        "run_all.py", "first_step", "step", "varlen", "launching", "sweep", "stop_losers", "stopped_sweeps"
    ) == {
        "Time to the first step": ["nothing in the cache"],
        "Step time and memory": [step, f"{step} of plain SFTTrainer", memory, f"{memory} of plain SFTTrainer"],
        "Packed rows with varlen attention": [
            "shipped rows of 35 tokens, tiny_llama: tokens/s",
            "Alpaca's lengths, a Llama of 3 million: tokens/s",
            "the same: memory against padded rows",
        ],
        "Launching": ["to the first step, over bare torchrun"],
        "Sweeps": ["a sweep, over the training of its points", "a sweep, over separate runs"],
        "Sweeps that stop losers, as run": [
            "steps, of those of the whole sweep",
            "seconds of training",
            "CPU seconds of the command",
            "sweeps with a winner that is worse by more than the noise",
            "sweeps with the same winner",
            "held-out loss of the winner above the best, nats",
            "points that ended elsewhere than replayed",
        ],
        "Sweeps that stop losers": [
            "steps, of those of the whole sweep: points side by side",
            "one after the other, the usual rates first",
            "one after the other, the lowest rates first",
            "sweeps with a winner that is worse by more than the noise",
            "held-out loss of the winner above the best, nats",
        ],
    }


@pytest.mark.soak
def test_the_one_of_the_learning_rate() -> None:
    (figures,) = quick("learning_rate.py").values()
    assert figures == [
        "texts, lora: held-out loss above the grid's best",
        "steps of the probes, of those of the grid",
        "seconds of the probes, of those of the grid",
        "the grid's best rate lies in the interval",
    ]


@pytest.mark.soak
def test_the_one_of_recording() -> None:
    (figures,) = quick("recording.py").values()
    what = ("losses of rows, share of the training", "fingerprints, in steps")
    whole = "training with losses of rows by training without"
    assert figures == [f"the shipped job, lora: {one}" for one in (*what, whole)]


@pytest.mark.soak
def test_the_one_of_suspects() -> None:
    (figures,) = quick("suspects.py").values()
    assert figures == ["flipped rows among the first suspects", "macro F1 without the suspects, less that with all"]


@pytest.mark.soak
def test_the_one_of_planted_causes() -> None:
    (figures,) = quick("planted_causes.py").values()
    assert figures == [
        "pairs of which exactly the planted causes are named",
        "runs of a bisection",
        "most runs of a bisection",
    ]


@pytest.mark.soak
def test_the_one_of_planned_memory() -> None:
    (figures,) = quick("planned_memory.py").values()
    assert figures[:2] == ["share of the jobs within a tenth", "the smallest ratio"]
    assert len(figures) == 2 + 6


def test_a_replayed_sweep_counts_its_steps_and_compares_its_winner() -> None:
    def curve(loss: float, slope: float) -> Curve:
        shares = [tenth / 10 for tenth in range(1, 11)]
        return {share: Look(round(50 * share), 50, "x", [loss + slope * share] * 40) for share in shares}

    bad, good, late = curve(2.0, 0.0), curve(1.0, 0.0), curve(2.0, -1.9)
    by = stop_losers.rule(3)
    # the first point has no rival, and the last one is stopped at its second look
    assert stop_losers.replay([bad, good, bad], by) == (pytest.approx((1 + 1 + 0.2) / 3), True, True, 0.0)
    assert stop_losers.replay_side_by_side([bad, good, bad], by).steps == pytest.approx((0.2 + 1 + 0.2) / 3)
    # one that is about to win is kept, and one that falls suddenly is missed
    assert stop_losers.replay([good, late], by).same
    sudden = {**bad, 1.0: Look(50, 50, "x", [0.5] * 40)}
    assert stop_losers.replay([good, sudden], by) == (pytest.approx(0.6), False, False, pytest.approx(0.5))


def test_a_sweep_that_stopped_elsewhere_than_replayed_is_counted() -> None:
    def curve(loss: float, until: float = 1.0) -> Curve:
        shares = [share for share in (0.1, 0.2, 0.3, 1.0) if share <= until]
        return {share: Look(round(50 * share), 50, "x", [loss] * 40) for share in shares}

    whole, seconds = [curve(1.0), curve(2.0), curve(3.0)], ((10.0, 5.0), (20.0, 12.0))
    as_replayed = stopped_sweeps.compare(whole, [curve(1.0), curve(2.0, 0.2), curve(3.0, 0.2)], *seconds)
    assert as_replayed.replay == (pytest.approx(1.4 / 3), True, True, 0.0)
    assert as_replayed.elsewhere == 0
    late = stopped_sweeps.compare(whole, [curve(1.0), curve(2.0, 0.3), curve(3.0, 0.2)], *seconds)
    assert late.elsewhere == 1
    figures = stopped_sweeps.section([as_replayed, late]).figures
    assert [figure.met for figure in figures if figure.bar is not None] == [True, True, False]


def swept(losses: Sequence[float], chosen: float, low: float, high: float) -> list[learning_rate.Point]:
    """A grid of three rates, and the point whose rate probes have chosen."""
    probes = [{"steps": 5, "seconds": 1.0}, {"steps": 20, "seconds": 2.0}]
    cost = {"steps": 100, "seconds": 10.0}
    grid = [{**cost, "rate": rate, "loss": loss, "choice": None} for rate, loss in zip((1, 2, 4), losses, strict=True)]
    return [*grid, {**cost, "rate": 2.5, "loss": chosen, "choice": {"low": low, "high": high, "probes": probes}}]


def test_a_probed_rate_is_compared_with_the_best_of_the_grid() -> None:
    found = learning_rate.compare(swept((0.9, 0.8, 1.0), 0.82, 1.9, 2.6))
    assert found == (pytest.approx(0.025), pytest.approx(0.02), pytest.approx(25 / 300), pytest.approx(0.1), True)
    assert not learning_rate.compare(swept((0.9, 0.8, 1.0), 0.82, 2.1, 2.6)).covered


def test_the_rate_of_the_other_seeds_says_how_far_above_the_best_a_good_rate_ends() -> None:
    sweeps = [swept(losses, 1.0, 1.0, 4.0) for losses in ((0.9, 0.8, 1.0), (0.9, 0.8, 1.0), (0.8, 1.0, 0.9))]
    # the first two seeds choose 2 for the third, and each of them gets 1 from the other and the third
    assert learning_rate.regrets_of_other_seeds(sweeps) == [
        pytest.approx(0.125),
        pytest.approx(0.125),
        pytest.approx(0.25),
    ]


def test_every_benchmark_is_tried_here_and_is_part_of_make_bench() -> None:
    # those of the proof on a GPU have tests of their own (test_gpu_proof.py)
    stems = {path.stem for path in BENCHMARKS.glob("*.py") if not path.stem.startswith("gpu_")}
    scripts = stems - {"pairs", "results", "run_all", "subjects"}
    trains = {"first_step", "launching", "planned_memory", "prefix_sharing", "step", "sweep", "varlen"}
    trains |= {"learning_rate", "planted_causes", "stop_losers", "recording", "stopped_sweeps", "suspects"}
    assert scripts == {*trains, "packed_rows", "preparation", "startup"}
    run_all = (BENCHMARKS / "run_all.py").read_text()
    assert all(f"import {script}\n" in run_all for script in scripts)
