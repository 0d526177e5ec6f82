"""The loss curve."""

import json
from pathlib import Path

from PIL import Image

from fmstune.runs.report.plots import plot_loss


def test_the_curve_is_a_picture_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)] + [{"step": 3, "eval_loss": 0.5}, {"step": 3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > 600
        assert len(set(picture.convert("RGB").getdata())) > 10
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "loss.png"}


def test_a_loss_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "nan"}\n')
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0
