"""Reports of real runs: every figure is that of the runs' own files, and the page works in a browser."""

import contextlib
import csv
import json
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmstune import files
from fmstune.config.metrics import Place, metrics_of, names_at
from tests.conftest import MadeOnce, Result
from tests.fixtures import browser
from tests.fixtures.browser import Browser

SWEEP = (
    "-m",
    "training.learning_rate=1e-3,1e-2",
    "seed=1,2",
    "training.max_steps=3",
    "training.eval_strategy=steps",
    "training.eval_steps=1",
    "data.eval=held.jsonl",
    "training.save_strategy=no",
    "data.max_rows=8",
    "evaluation.max_rows=4",
    "evaluation.max_new_tokens=4",
)
HOSTILE = "<script>alert(1)</script> | `x` & $a$ </dd>"

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The tables and other texts of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def table(self, *head: str) -> list[dict[str, str]]:
        """The rows of the table that begins with these columns."""
        (found,) = [table for table in self.tables if tuple(table[0][: len(head)]) == head]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


@pytest.fixture
def sweep(made_once: MadeOnce, fmstune: Callable[..., Result]) -> Path:
    """A folder with the sweep `rates` and its report, and a report of its first run."""

    held_out = Path(files.resolve("package:complaints/held_out.jsonl"))

    def train(place: Path) -> None:
        with contextlib.chdir(place):
            # of 120 rows, which each evaluation goes through
            Path("held.jsonl").write_text("".join(held_out.read_text().splitlines(keepends=True)[:8]))
            done = fmstune(*SWEEP, "output_dir=rates")
            assert done.code == 0, done.err
            for folder in ("rates", str(runs(place / "rates")[0].relative_to(place))):
                reported = fmstune("report", folder)
                assert reported.code == 0, reported.err
                assert [line for line in reported.out.splitlines() if line.startswith("wrote ")] == [
                    f"wrote {folder}/report.{suffix}" for suffix in ("html", "md", "csv")
                ]

    return made_once("reported_sweep", train) / "rates"


def runs(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.glob("*/job.yaml"))


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


@pytest.fixture
def a_run(sweep: Path) -> Path:
    return runs(sweep)[0]


def test_the_result_stands_first_with_base_tuned_and_change(a_run: Path) -> None:
    page, s = Page(a_run / "report.html"), summary(a_run)
    rows = page.table("held-out rows", "base", "tuned", "change")
    for row, key in zip(rows, (*names_at(metrics_of({}), Place.held_out), "rows"), strict=True):
        assert row["base"] == f"{s['base'][key]:.4g}"
        assert row["tuned"] == f"{s['tuned'][key]:.4g}"
    change = s["tuned"]["eval_loss"] - s["base"]["eval_loss"]
    assert rows[0]["change"] == f"{change:+.4g}"
    assert page.text.index("Exact match from") < page.text.index("Curves")


def test_cost_plan_and_ledger_are_those_of_the_summary(a_run: Path) -> None:
    page, s = Page(a_run / "report.html"), summary(a_run)
    cost = {row["what"]: row["how much"] for row in page.table("what", "how much")}
    assert cost["optimizer steps"] == "3"
    assert cost["tokens trained on"] == f"{s['tokens_trained_on']:,}"
    assert cost["tokens a second"] == f"{s['tokens_per_second']:,.0f}"
    assert cost["training, seconds"] == f"{s['train_seconds']:,.1f}"
    plan = {row[""]: row for row in page.table("", "planned", "actual")}
    used = (s["peak_memory_bytes"] - s["memory_before_model_bytes"]) / 2**20
    assert plan["memory"]["planned"] == f"{s['plan']['total'] / 2**20:,.1f} MiB"
    assert plan["memory"]["actual"] == f"{used:,.1f} MiB"
    assert plan["steps"] == {"": "steps", "planned": "3", "actual": "3"}
    ledger = {row[""]: row for row in page.table("", "train", "held out")}
    assert ledger["rows read"]["train"] == "8"
    assert ledger["tokens trained"]["train"] == f"{s['data']['train']['tokens_trained']:,}"
    assert ledger["rows trained on"]["held out"] == f"{s['data']['held_out']['rows_trained']:,}"


def test_samples_are_the_first_held_out_rows_with_both_answers(a_run: Path) -> None:
    rows = json.loads((a_run / "samples.json").read_text())["rows"]
    assert [row["row"] for row in rows] == [1, 2, 3, 4]
    page = Page(a_run / "report.html")
    for row in rows:
        assert row["prompt"].endswith("### Label:")
        assert row["expected"] in ("complaint", "no complaint")
        assert {"base", "tuned"} <= row.keys()
        assert row["prompt"] in page.text
    share = sum(row["tuned"].strip() == row["expected"].strip() for row in rows) / 4
    assert share == summary(a_run)["tuned"]["exact_match"]


def test_the_job_says_what_set_each_value_and_how_to_repeat_it(a_run: Path, fmstune: Callable[..., Result]) -> None:
    page = Page(a_run / "report.html")
    tables = [table for table in page.tables if table[0] == ["field", "value", "set by"]]
    fields = {row[0]: row for table in tables for row in table[1:]}
    assert fields["training.learning_rate"] == ["training.learning_rate", "0.001", "command line"]
    assert fields["training.optim"] == ["training.optim", "adamw_torch_fused", "training/default.yaml"]
    assert fields["launcher.num_machines"] == ["launcher.num_machines", "1", "default"]
    assert fields["output_dir"][2].endswith("a folder for each point of the sweep")
    again = next(line for line in page.text.splitlines() if line.startswith("fmstune --from"))
    assert again == f"fmstune --from rates/{a_run.name}/job.yaml"
    typed = next(line for line in page.text.splitlines() if line.startswith("fmstune training.learning_rate=0.001"))
    job = fmstune("--cfg", "job", *typed.split()[1:])
    composed, ran = (yaml.safe_load(text) for text in (job.out, (a_run / "job.yaml").read_text()))
    assert composed["training"] == {**ran["training"]}
    assert composed["seed"] == ran["seed"]


def test_the_settings_of_a_sweep_are_sorted_with_spread_and_distance(sweep: Path) -> None:
    scores: dict[float, list[float]] = {}
    for run in runs(sweep):
        rate = float(next(w for w in words(run) if w.startswith("training.learning_rate=")).partition("=")[2])
        scores.setdefault(rate, []).append(summary(run)["tuned"]["eval_loss"])
    ordered = sorted(scores, key=lambda rate: statistics.fmean(scores[rate]))
    best = statistics.fmean(scores[ordered[0]])
    rows = Page(sweep / "report.html").table("learning_rate", "tuned.eval_loss", "± over seeds", "seeds")
    assert [float(row["learning_rate"]) for row in rows] == ordered
    for row, rate in zip(rows, ordered, strict=True):
        mean = statistics.fmean(scores[rate])
        assert row["tuned.eval_loss"] == f"{mean:.4g}"
        assert row["± over seeds"] == f"{statistics.stdev(scores[rate]):.2g}"
        assert row["to the best"] == f"{mean - best:+.4g}"
        assert row["seeds"] == "2"


def words(run: Path) -> list[str]:
    found: list[str] = json.loads((run / "sources.json").read_text())["words"]
    return found


def test_a_sweep_names_the_best_run_its_command_and_the_cost_of_all(sweep: Path) -> None:
    page = Page(sweep / "report.html")
    best = min(runs(sweep), key=lambda run: summary(run)["tuned"]["eval_loss"])
    rates = page.table("learning_rate", "tuned.eval_loss", "± over seeds", "seeds")
    assert f"Best: learning_rate={rates[0]['learning_rate']}, with loss on the answer" in page.text
    winner = page.text.partition("The best run is ")[2].partition(":")[0]
    assert (best.name == winner) or rates[0]["learning_rate"] in winner
    assert f"fmstune --from rates/{winner}/job.yaml" in page.text
    cost = {row["what"]: row["all runs"] for row in page.table("what", "all runs", "each")}
    assert cost["tokens trained on"] == f"{sum(summary(run)['tokens_trained_on'] for run in runs(sweep)):,}"
    assert cost["optimizer steps"] == "12"
    assert cost["training, seconds"] == f"{sum(summary(run)['train_seconds'] for run in runs(sweep)):,.1f}"


def test_the_charts_say_what_they_show_and_the_rate_has_a_log_axis(sweep: Path, a_run: Path) -> None:
    of_sweep = (sweep / "report.html").read_text()
    for text in ("Loss on the answer by learning rate", "Train loss by step", "Held-out loss by step", "log scale"):
        assert f">{text}" in of_sweep or text in of_sweep
    titles = {attrs["aria-label"] for tag, attrs in Page(a_run / "report.html").tags if tag == "svg"}
    assert titles >= {"Loss by step", "Learning rate by step", "Speed by step"}
    assert all(len((folder / "report.html").read_bytes()) < 400_000 for folder in (sweep, a_run))


def test_the_table_of_all_runs_has_every_number_of_their_summaries(sweep: Path) -> None:
    rows = list(csv.DictReader((sweep / "report.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["run"] for row in rows] == [run.name for run in runs(sweep)]
    for row, run in zip(rows, runs(sweep), strict=True):
        assert float(row["tuned.eval_loss"]) == summary(run)["tuned"]["eval_loss"]
        assert int(row["tokens_trained_on"]) == summary(run)["tokens_trained_on"]
        assert row["status"] == "finished"
    assert {row["seed"] for row in rows} == {"1", "2"}


def test_the_text_has_the_same_table_as_the_page(sweep: Path) -> None:
    text = (sweep / "report.md").read_text()
    for row in Page(sweep / "report.html").table("learning_rate", "tuned.eval_loss"):
        assert "| " + " | ".join(row.values()) + " |" in text
    assert "svg" not in text


def test_a_report_made_again_is_the_same(sweep: Path, tmp_path: Path, fmstune: Callable[..., Result]) -> None:
    shutil.copytree(sweep, tmp_path / "rates")
    before = {path.name: path.read_bytes() for path in (tmp_path / "rates").glob("report.*")}
    assert fmstune("report", "rates").code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "rates").glob("report.*")} == before


@pytest.fixture
def broken(sweep: Path, tmp_path: Path) -> Path:
    """The sweep with a run that failed, one that was killed in a line, and hostile text in both."""
    place = tmp_path / "hurt"
    shutil.copytree(sweep, place)
    failed, running, *_ = runs(place)
    for name in ("samples.json", "sources.json"):
        (failed / name).unlink()
    error = {"kind": "internal", "message": HOSTILE}
    (failed / "summary.json").write_text(json.dumps({"status": "failed", "error": error}))
    (running / "summary.json").write_text(json.dumps({"status": "running", "error": None, "name": "x"}))
    samples = {"rows": [{"set": "", "row": 1, "prompt": HOSTILE, "expected": HOSTILE, "base": HOSTILE}]}
    (running / "samples.json").write_text(json.dumps(samples))
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    return place


def test_failures_are_listed_with_their_cause_and_running_ones_with_their_step(
    broken: Path, fmstune: Callable[..., Result]
) -> None:
    assert fmstune("report", "hurt").code == 0
    page = Page(broken / "report.html")
    failed, running = page.table("run", "status", "last step", "cause")
    assert (failed["status"], failed["cause"]) == ("failed", HOSTILE)
    assert (running["status"], running["last step"]) == ("running", "3")
    assert "2 of 4 finished" in page.text
    # without a record of every command the jobs themselves tell
    assert page.table("learning_rate", "tuned.eval_loss")[0]["learning_rate"] == "0.01"
    for run in runs(broken)[:2]:
        assert fmstune("report", str(run)).code == 0
        alone = Page(run / "report.html")
        assert HOSTILE in alone.text
        assert [tag for tag, _ in alone.tags].count("script") == 1


def test_a_point_that_was_refused_is_among_the_failures_and_compare_by_orders_the_others(
    fmstune: Callable[..., Result],
) -> None:
    few = ("training.max_steps=1", "data.max_rows=8", "evaluation=none", "compare_by=tokens_per_second")
    assert fmstune("-m", "training.learning_rate=-1,1e-3,1e-2", *few, "output_dir=rates").code == 2
    assert fmstune("report", "rates").code == 0
    page = Page(Path("rates/report.html"))
    assert "2 of 3 finished, 1 failed" in page.text
    (refused,) = page.table("run", "status", "last step", "cause")
    cause = "training.learning_rate must be above 0 and below 10, got -1"
    assert list(refused.values()) == ["0-learning_rate=-1", "failed", "–", cause]
    rows = csv.DictReader(Path("rates/report.csv").read_text().splitlines())
    causes = [(row["training.learning_rate"], row["error"]) for row in rows]
    assert causes == [("0.001", ""), ("0.01", ""), ("-1", cause)]
    settings = page.table("learning_rate", "tokens_per_second")
    speeds = [float(row["tokens_per_second"].replace(",", "")) for row in settings]
    assert speeds == sorted(speeds, reverse=True)
    Path("rates/sweep.json").write_text("[{}]")
    broken = fmstune("report", "rates")
    assert (broken.code, broken.err.count("sweep.json: cannot be read")) == (2, 1)


def test_another_figure_can_order_the_runs(sweep: Path, tmp_path: Path, fmstune: Callable[..., Result]) -> None:
    shutil.copytree(sweep, tmp_path / "rates")
    assert fmstune("report", "rates", "--metric", "tokens_per_second").code == 0
    rows = Page(Path("rates/report.html")).table("learning_rate", "tokens_per_second")
    means = [float(row["tokens_per_second"].replace(",", "")) for row in rows]
    assert means == sorted(means, reverse=True)
    assert fmstune("report", "rates", "--metric", "tokens_per_second", "--direction", "minimize").code == 0
    rows = Page(Path("rates/report.html")).table("learning_rate", "tokens_per_second")
    assert means == [float(row["tokens_per_second"].replace(",", "")) for row in rows][::-1]


def test_two_runs_are_compared_in_settings_results_and_curves(
    sweep: Path, tmp_path: Path, fmstune: Callable[..., Result]
) -> None:
    first, other = runs(sweep)[0], runs(sweep)[3]
    done = fmstune("compare", str(first), str(other), "--html", "both.html")
    assert done.code == 0, done.err
    page = Page(Path("both.html"))
    settings = {row["field"]: row for row in page.table("field", "A", "B")}
    assert settings == {
        "seed": {"field": "seed", "A": "1", "B": "2"},
        "training.learning_rate": {"field": "training.learning_rate", "A": "0.001", "B": "0.01"},
    }
    results = {row[""]: row for row in page.table("", "A", "B", "B − A")}
    a, b = (summary(run)["tuned"]["eval_loss"] for run in (first, other))
    assert results["tuned.eval_loss"] == {
        "": "tuned.eval_loss",
        "A": f"{a:.4g}",
        "B": f"{b:.4g}",
        "B − A": f"{b - a:+.4g}",
    }
    assert "training.learning_rate  0.001  0.01" in done.out
    assert re.search(r"^(\d+) of \1 facts of data and model are the same\.$", done.out, re.MULTILINE)
    assert "command" not in done.out
    assert "loss: they differ from step 2 on, most at step 2" in done.out
    assert done.out.endswith("\n\nwrote both.html\n")


def test_a_run_is_equal_to_itself(a_run: Path, fmstune: Callable[..., Result]) -> None:
    done = fmstune("compare", str(a_run), str(a_run))
    assert "loss: identical at all 3 steps that both have logged" in done.out


@pytest.fixture
def opened(sweep: Path) -> Iterator[Browser]:
    if browser.PROGRAM is None:
        pytest.skip("there is no Chromium here")
    with browser.browser() as one:
        one.open(sweep / "report.html")
        yield one


COLUMN = "[...document.querySelectorAll('table.sortable')].at(-1).tBodies[0].rows"


def test_in_a_browser_tables_sort_and_nothing_is_asked_for(opened: Browser, sweep: Path, a_run: Path) -> None:
    def column(index: int) -> list[str]:
        cells: list[str] = opened.value(f"[...{COLUMN}].map((row) => row.cells[{index}].textContent)")
        return cells

    def click(index: int) -> None:
        opened.value(
            f"[...document.querySelectorAll('table.sortable')].at(-1).querySelectorAll('button')[{index}].click()"
        )

    names = [run.name for run in runs(sweep)]
    assert sorted(column(0)) == names
    click(0)
    assert column(0) == names
    click(0)
    assert column(0) == names[::-1]
    click(1)
    assert [float(text) for text in column(1)] == [0.001, 0.001, 0.01, 0.01]
    sorted_by = "[...document.querySelectorAll('th[aria-sort]')].map((head) => head.ariaSort)"
    assert opened.value(sorted_by) == ["ascending"]
    for width in (1200, 390):
        opened.width(width)
        assert opened.value("document.documentElement.scrollWidth") <= width
    opened.open(a_run / "report.html")
    opened.width(390)
    assert opened.value("document.documentElement.scrollWidth") <= 390
    assert opened.complaints() == []
    pages = [page.resolve().as_uri() for page in (sweep / "report.html", a_run / "report.html")]
    assert [url for url in opened.requests() if not url.startswith("data:")] == pages
