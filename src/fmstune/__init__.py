"""fmstune: compose, check, train and compare fine-tuning runs of causal language models.

From Python: `fmstune.compose("peft=lora").train()`. The names below are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmstune.cli.python.job import Job, Plan, compose
    from fmstune.cli.python.run import Run, RunError, run, runs
    from fmstune.cli.python.sweep import Sweep, sweep
    from fmstune.errors import UserError

__version__ = "0.1.0"
__all__ = ["Job", "Plan", "Run", "RunError", "Sweep", "UserError", "compose", "run", "runs", "sweep"]

_HOMES = {
    "Job": "cli.python.job",
    "Plan": "cli.python.job",
    "compose": "cli.python.job",
    "Run": "cli.python.run",
    "RunError": "cli.python.run",
    "run": "cli.python.run",
    "runs": "cli.python.run",
    "Sweep": "cli.python.sweep",
    "sweep": "cli.python.sweep",
    "UserError": "errors",
}

# `fmstune.runs` is a function and a package. Python makes the package an attribute when it is first imported, which is
# here and not later: the name is then free for the function, and `from fmstune.runs import …` still finds the package.
importlib.import_module(f"{__name__}.runs")
globals().pop("runs", None)


def __getattr__(name: str) -> Any:
    """The public name, from its module (PEP 562): the command and its runner import this package and need none."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
