"""What Hydra tells of sweeps; a point that starts elsewhere leaves its result as a file, as Hydra returns none."""

import importlib.util
import math
import os
import re
import signal
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from hydra.conf import HydraConf
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fmstune import hardware
from fmstune.errors import UserError
from fmstune.runs import processes, sweep_folder

_LAUNCHER, _SWEEPER = "hydra/launcher", "hydra/sweeper"


class Sweep(Callback):
    """What Hydra tells of a sweep as a whole; `conf/job.yaml` names it."""

    away: ClassVar[list[Path]] = []
    """The folders of sweeps whose points run elsewhere; Hydra makes the object, and so it cannot be asked."""
    waiting: ClassVar[ExitStack] = ExitStack()
    """While it is open, those folders record this process, which waits for the points."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say where the points' words go, before Hydra waits for them."""
        folder = Path(config.hydra.sweep.dir)
        sweep_folder.gather_points(folder)  # of a command that was killed
        if config.hydra.runtime.choices[_LAUNCHER] != "basic":
            Sweep.away.append(folder)
            folder.mkdir(parents=True, exist_ok=True)
            Sweep.waiting.enter_context(processes.record_process(folder))
        if is_submitit(config.hydra):
            logs = str(config.hydra.launcher.get("submitit_folder", folder)).replace("%j", "*")
            print(f"fmstune: sweep folder {folder}; the points are jobs, which log into {logs}", file=sys.stderr)
            print("fmstune: Ctrl-C ends the waiting for them, and not the jobs", file=sys.stderr)


def is_submitit(settings: HydraConf) -> bool:
    """Whether each point has a process of submitit's of its own."""
    return str(settings.runtime.choices[_LAUNCHER]).startswith("submitit")


def threads(settings: HydraConf, number: int) -> int | None:
    """Threads for each of `number` points that run side by side on this machine; None where they do not."""
    launcher = settings.runtime.choices[_LAUNCHER]
    if launcher == "joblib":
        jobs = int(settings.launcher.n_jobs)
        number = jobs if jobs > 0 else hardware.cores() + 1 + jobs  # joblib counts back from the cores
    return max(hardware.cores() // max(number, 1), 1) if launcher in ("joblib", "submitit_local") else None


def count_points(settings: HydraConf, overrides: Sequence[Override]) -> int:
    """The points of a sweep: of a grid, the product of its values; of a search, its trials."""
    if is_search(overrides):
        return int(settings.sweeper.n_trials)
    return math.prod(sum(1 for _ in one.sweep_string_iterator()) for one in overrides if one.is_sweep_override())


def swept_values(settings: HydraConf, swept: Collection[str]) -> list[tuple[str, str]]:
    """The fields that set a point apart from the others, with their values."""
    given = [word.lstrip("+").partition("=") for word in settings.overrides.task]
    # Hydra's sweeper writes a reference as text that is to be read once more
    return [(key, value.replace("\\{", "{").replace("\\}", "}")) for key, _, value in given if key in swept]


def short_number(value: str) -> str:
    """A number with many digits as a folder's name shows it."""
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value) else value


def is_search(overrides: Sequence[Override]) -> bool:
    """Whether Optuna chooses the points; raises UserError if Optuna is not installed."""
    searched = any(one.key_or_group == _SWEEPER and one.value() == "optuna" for one in overrides)
    if searched and importlib.util.find_spec("optuna") is None:
        raise UserError(_SWEEPER, "=optuna needs optuna: pip install 'fmstune[sweep]'")
    return searched


def runs_elsewhere(overrides: Sequence[Override]) -> bool:
    """Whether the words choose a launcher that runs the points in other processes."""
    return any(one.key_or_group == _LAUNCHER and one.value() != "basic" for one in overrides)


def without_launcher(overrides: Sequence[Override]) -> list[Override]:
    """The overrides without the choice of who runs the points and who chooses them."""
    chosen = (_LAUNCHER, _SWEEPER, "hydra.launcher.", "hydra.sweeper.")
    return [one for one in overrides if not one.key_or_group.startswith(chosen)]


def raise_if_no_sweep(overrides: Sequence[Override]) -> None:
    """Raise UserError where a sweeper or a launcher is chosen for a single job."""
    if is_search(overrides):
        raise UserError(_SWEEPER, "=optuna chooses the points of a sweep; add -m")
    for one in overrides:
        if runs_elsewhere([one]):
            hint = "runs the points of a sweep; add -m, or choose launcher=slurm for one job"
            raise UserError(str(one.input_line), hint)


def requeue() -> None:
    """Let submitit put this point's job back into the queue, where a checkpoint was saved at a notice.

    It waits for a signal of its own (submitit/core/job_environment.py, `_handle_signals`) and does not return then.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        signal.raise_signal(signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")])
