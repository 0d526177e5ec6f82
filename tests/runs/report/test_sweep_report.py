"""What a report says of several runs: each chart of a setting fits how its values were chosen."""

import re
from collections.abc import Sequence
from pathlib import Path

from fmstune.files import write_json
from fmstune.runs import looks, sweep_folder
from fmstune.runs.looks import Look
from fmstune.runs.report import render, sweep_report
from fmstune.runs.report.document import Charts, Document, Text
from fmstune.runs.report.ranking import Metric
from fmstune.runs.report.run_data import Run

LOSS = Metric("train_loss", smaller=True)


def run(loss: float, seed: int = 1, **job: float) -> Run:
    summary = {"status": "finished", "train_loss": loss}
    words = [f"{name}={value}" for name, value in job.items()]
    return Run(Path("runs/x"), {"name": "x", "seed": seed, **job}, summary, [], {}, {}, words, [])


def document(runs: Sequence[Run]) -> Document:
    return sweep_report.sweep_document(Path("runs"), runs, LOSS)


def charts(runs: Sequence[Run]) -> list[str]:
    (block,) = [block for block in document(runs).sections["Each setting"] if isinstance(block, Charts)]
    return list(block.pictures)


def test_a_grid_has_a_line_for_each_choice_of_the_other_settings() -> None:
    grid = [run(loss, a=a, b=b) for loss, a, b in ((1.0, 1, 1), (2.0, 1, 2), (3.0, 2, 1), (4.0, 2, 2))]
    by_a, by_b = charts(grid)
    assert (">b=1<" in by_a, ">b=2<" in by_a, ">a=1<" in by_b, ">a=2<" in by_b) == (True, True, True, True)


def test_a_search_has_no_line_from_one_point_to_the_next() -> None:
    """Its neighbours differ in the other settings too; of a setting with few values, the best of each counts."""
    chosen = ((3.0, 0.1, 1, 7), (1.0, 0.3, 2, 5), (2.0, 0.5, 1, 6), (4.0, 0.7, 2, 9))
    by_a, by_b, by_c = charts([run(loss, a=a, b=b, c=c) for loss, a, b, c in chosen])
    for picture in (by_a, by_c):
        assert ">each setting<" in picture
    assert ">best of each value; dots are all runs<" in by_b


def test_seeds_alone_are_no_choice_to_be_best() -> None:
    first = document([run(1.0, seed=1), run(2.0, seed=2)]).sections["Result"][0]
    assert isinstance(first, Text)
    assert re.fullmatch(r"Train loss 1\.5 ± 0\.71 over 2 seeds", first.text)


def test_runs_whose_model_flops_utilisation_is_known_are_shown_with_it() -> None:
    runs = [run(loss, a=loss) for loss in (1.0, 2.0)]
    assert "MFU" not in render.render_text(document(runs))
    for one in runs:
        one.summary["mfu"] = 0.4115
    assert re.search(r"tokens/s +MFU", render.render_text(document(runs)))
    assert "41.1%" in render.render_text(document(runs))


def test_the_report_says_what_stopping_losers_saved_and_how_sure_the_best_is(tmp_path: Path) -> None:
    best, other, lost = run(1.0, a=1), run(2.0, a=2), run(9.0, a=3)
    lost.summary.clear()
    lost.summary.update({"status": "stopped", "stopped": "0 has the lower held-out loss (1 against 2)"})
    runs = [one._replace(folder=tmp_path / str(number)) for number, one in enumerate((best, other, lost))]
    for one, losses in zip(runs[:2], ([1.0, 1.0, 3.0, 2.0], [2.0, 2.0, 2.5, 2.1]), strict=True):
        one.folder.mkdir()
        looks.write_look(one.folder, Look(10, 10, "x", losses))
    point = {"code": 0, "skipped": False, "compare_by": "train_loss", "direction": "minimize", "error": None}
    points = [{**point, "number": n, "folder": str(n), "overrides": [], "status": "finished"} for n in range(2)]
    points.append({**points[0], "number": 2, "folder": "2", "status": "stopped", "steps_saved": 8, "seconds_saved": 4})
    write_json(
        tmp_path / sweep_folder.FILE,
        [{**one, "metrics": {"steps": s}} for one, s in zip(points, (10, 10, 2), strict=True)],
    )
    made = sweep_report.sweep_document(tmp_path, runs, LOSS)
    assert made.status == "2 of 3 finished, 1 stopped early"
    texts = [block.text for block in made.sections["Result"] if isinstance(block, Text)]
    assert "Saved: 8 of 30 steps (27%), about 4 s, as 1 of 3 points were stopped early." in texts
    assert any(re.match(r"Chance that it is the best of 2 finished points: [89]\d% \(over", text) for text in texts)
    assert "0 has the lower held-out loss (1 against 2)" in render.render_text(made)


def test_all_settings_of_a_sweep_are_lines_through_parallel_axes_with_their_importance() -> None:
    rates = (1e-4, 1e-3, 1e-2)
    grid = [run(abs(i - 1) + 0.01 * b, rate=rate, b=b) for i, rate in enumerate(rates) for b in (1, 2)]
    ((parallel,),) = [b.pictures for b in document(grid).sections["All settings"] if isinstance(b, Charts)]
    for text in ("All settings; the best is the thick line", "rate, log scale", "train_loss, log scale"):
        assert f">{text}<" in parallel
    table = render.render_text(document(grid)).partition("importance\n")[2].splitlines()
    assert [line.split()[0] for line in table[1:3]] == ["rate", "b"]
