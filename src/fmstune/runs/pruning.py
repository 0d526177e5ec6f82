"""Optuna's pruners on the looks at the points of a search, in the process of the point that is looked at."""

from collections.abc import Mapping
from typing import Any

from fmstune.runs.looks import Curve


def is_pruned(pruner: str, fields: Mapping[str, Any], name: str, curves: Mapping[str, Curve]) -> bool:
    """Whether this class of `optuna.pruners` stops the point of this name at its newest look.

    A pruner keeps what it decides of a trial in the study. So the study is made anew in memory, and each point's looks
    are reported in their order, the points in theirs: processes on several machines need no database for it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = getattr(optuna.pruners, pruner)(**fields)
    study = optuna.create_study(direction="minimize", pruner=made, study_name="fmstune")
    pruned = False
    for point in (*sorted(curves.keys() - {name}, key=_number), name):
        trial = study.ask()
        for look in curves[point].values():
            trial.report(look.loss, look.step)
            pruned = bool(trial.should_prune())
        if 1.0 in curves[point]:
            study.tell(trial, curves[point][1.0].loss)
    return pruned


def _number(point: str) -> tuple[int, str]:
    number = point.partition("-")[0]
    return (int(number) if number.isdecimal() else 0, point)
