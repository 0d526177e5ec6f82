"""Importing the libraries of training without what they import beside it only because it happens to be installed."""

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from fmstune.garbage import uncollected

UNUSED = ("boto3", "scipy", "wandb")
"""Who imports them if they are there: accelerate, to ask about SageMaker; transformers, for the losses of object
detection; TRL, for the model cards that our trainer does not write. Ours, such as a tracker, imports what it needs
itself, later."""

_packages_distributions = importlib.metadata.packages_distributions


@contextmanager
def imports() -> Iterator[None]:
    """Import in a fifth less time where all of those are installed; afterwards all is as it was."""
    with uncollected(), _absent(UNUSED), _distributions_when_asked():
        yield


@contextmanager
def _absent(names: tuple[str, ...]) -> Iterator[None]:
    """Let packages look as if they were not installed, which None in sys.modules says (the import system's own word).

    One that is imported already is left alone.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


@contextmanager
def _distributions_when_asked() -> Iterator[None]:
    """TRL asks at its start which package has which module, should it want to know vLLM's version later."""
    importlib.metadata.packages_distributions = _Distributions
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = _packages_distributions


class _Distributions(Mapping[str, list[str]]):
    """What packages_distributions() gives, but looked up at the first question: it looks at each installed file."""

    @cached_property
    def _found(self) -> Mapping[str, list[str]]:
        return _packages_distributions()

    def __getitem__(self, name: str) -> list[str]:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
