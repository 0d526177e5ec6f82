"""Sweeps whose points run elsewhere: jobs of submitit, that Hydra's other launchers start.

Such a point is called in another process, maybe on another machine. Its exit code comes back as a file in the sweep's
folder, as Hydra drops what a point returns.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.conf import HydraConf
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fmstune import run_folder
from fmstune.errors import UserError

_CODES = ".points"
"""Folder in the sweep's folder: the exit code of each point, under its number."""
_GROUP = "hydra/launcher"


class Sweep(Callback):
    """What Hydra tells of a sweep as a whole; `conf/job.yaml` names it."""

    away: ClassVar[list[Path]] = []
    """The folders of sweeps whose points run elsewhere; Hydra makes the object, and so it cannot be asked."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say where the points' words go, before Hydra waits for them."""
        if not is_away(config.hydra):
            return
        folder = Path(config.hydra.sweep.dir)
        Sweep.away.append(folder)
        shutil.rmtree(folder / _CODES, ignore_errors=True)
        logs = str(config.hydra.launcher.get("submitit_folder", folder)).replace("%j", "*")
        print(f"fmstune: sweep folder {folder}; the points are jobs, which log into {logs}", file=sys.stderr)
        print("fmstune: Ctrl-C ends the waiting for them, and not the jobs", file=sys.stderr)


def is_away(settings: HydraConf) -> bool:
    """Whether Hydra has the points run elsewhere than in this process."""
    return bool(settings.runtime.choices[_GROUP] != "basic")


def here(words: Sequence[str]) -> list[str] | None:
    """The same sweep with its points in this process, to check them first; None where they are already.

    Raises UserError where there is no sweep.
    """
    chosen = [word for word in words if word.startswith(f"{_GROUP}=") and word != f"{_GROUP}=basic"]
    if not chosen:
        return None
    if not {"-m", "--multirun"} & {*words}:
        raise UserError(f"{chosen[0]} runs the points of a sweep; add -m, or choose launcher=slurm for one job")
    return [word for word in words if not word.lstrip("+~").startswith((f"{_GROUP}=", "hydra.launcher."))]


def leave(folder: Path, number: int, code: int) -> None:
    """Leave a point's exit code for the parent."""
    (folder / _CODES).mkdir(exist_ok=True)
    (folder / _CODES / str(number)).write_text(str(code), encoding="utf-8")


def collected(folder: Path) -> list[int]:
    """The exit codes that the points have left, by their number; they are taken away."""
    found = sorted((int(path.name), int(path.read_text(encoding="utf-8"))) for path in (folder / _CODES).glob("*"))
    shutil.rmtree(folder / _CODES, ignore_errors=True)
    return [code for _, code in found]


def outcomes(folder: Path) -> Iterator[str]:
    """One line a point: how it ended."""
    points = [path.parent for path in folder.glob(f"*/{run_folder.SUMMARY}")]
    for point in sorted(points, key=lambda path: (int(path.name.partition("-")[0]), path.name)):
        summary = run_folder.read_summary(point)
        error = (summary.get("error") or {}).get("message")
        yield f"{summary.get('status')}: {point}" + (f"\n  {error}" if error else "")


def requeue() -> None:
    """Let submitit put this point's job back into the queue, where a checkpoint was saved at a notice.

    It waits for a signal of its own (submitit/core/job_environment.py, `_handle_signals`) and does not return then.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
        signal.raise_signal(signal.Signals[f"SIG{name}"])
