"""Several runs by one command: a sweep from Python, and its points."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmstune.cli.python.command import Answer, ShownError, call_command
from fmstune.cli.python.job import Folder, checked_words, flags_of_python
from fmstune.cli.python.run import Run, as_table
from fmstune.errors import Problem
from fmstune.files import shown_place, user_path
from fmstune.runs import run_folder, sweep_folder


class Sweep:
    """The folder of a sweep. Its points are read from the files each time."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(os.path.abspath(user_path(os.fspath(folder))))
        if not (self.folder / sweep_folder.FILE).is_file():
            raise ShownError([Problem(str(folder), f": no sweep here (no {sweep_folder.FILE} in it)")])

    def points(self) -> Any:
        """A row for each point, as `runs` gives them: what was swept, how it ended, and its figures."""
        return as_table([_row(point) for point in self._points()])

    @property
    def runs(self) -> list[Run]:
        """The runs of the points that have begun, in their order."""
        folders = (self.folder / point.folder for point in self._points())
        return [Run(folder) for folder in folders if (folder / run_folder.JOB).is_file()]

    @property
    def best(self) -> Run | None:
        """The finished run with the best `compare_by`; None where none can be compared."""
        point = sweep_folder.best_point(self._points())
        return None if point is None else Run(self.folder / point.folder)

    def resume(self) -> "Sweep":
        """Run the points that have not finished, as `fmstune -m --resume` does."""
        return _sweep_of(call_command(["train", "-m", f"--resume={self.folder}"]))

    def _points(self) -> list[sweep_folder.Point]:
        return sweep_folder.read_points(self.folder)

    def __repr__(self) -> str:
        points = self._points()
        done = sum(point.status == run_folder.FINISHED for point in points)
        return f"Sweep({shown_place(self.folder)!r}, {done} of {len(points)} points finished)"


def sweep(*words: str, config_dir: Folder | None = None, trust: str | Sequence[str] = ()) -> Sweep:
    """Run a job for each combination of comma-separated values, as `fmstune -m` does; further words as for `compose`.

    All points are checked by the command before or while they run. A point that fails is in `points()` with its error,
    and the others go on. Raises UserError where no point has begun, and KeyboardInterrupt after an interrupt.
    """
    return _sweep_of(call_command(["train", "-m", *flags_of_python(config_dir, trust), *checked_words(words)]))


def _sweep_of(answer: Answer) -> Sweep:
    if answer.place is None:
        answer.raise_if_failed()
    assert answer.place is not None
    return Sweep(answer.place)


def _row(point: sweep_folder.Point) -> dict[str, Any]:
    swept = dict(word.partition("=")[::2] for word in point.overrides)
    own = {"folder": point.folder, "status": point.status, "error": point.error}
    return {"number": point.number, **swept, **point.metrics, **own}
