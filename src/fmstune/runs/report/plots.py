"""Draw `loss.png` from the metrics file of a run; also a command: `python -m fmstune.runs.report.plots`."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def plot_loss(metrics: Path, picture: Path) -> None:
    """Train and evaluation loss by step; written aside and renamed, so that a viewer never sees half of it."""
    from fmstune.runs.report import (
        charts,  # matplotlib takes a second to import, and a run has no use for it before its end
    )

    place = aside(picture, os.getpid())
    try:
        charts.save_curves(charts.loss_lines(list(_lines(metrics))), charts.LOSS, place)
        place.replace(picture)
    finally:
        place.unlink(missing_ok=True)


def aside(picture: Path, process: int) -> Path:
    """Where the process of this id writes the picture, before it has its name."""
    return picture.with_name(f".{picture.name}.{process}")


def command(metrics: Path, picture: Path) -> list[str]:
    """The command line of a process that draws it."""
    return [sys.executable, "-m", "fmstune.runs.report.plots", str(metrics), str(picture)]


def _lines(metrics: Path) -> Iterator[dict[str, Any]]:
    """The lines that are whole: another process may be writing one."""
    for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


if __name__ == "__main__":
    plot_loss(Path(sys.argv[1]), Path(sys.argv[2]))
