"""A job composed from overrides, as the command composes it."""

import copy
from functools import cache
from typing import Any

from fmstune.config.compose import Composed, compose_job
from fmstune.config.groups import GROUPS
from fmstune.config.overrides import parse_overrides


def composed(*words: str) -> Composed:
    return compose_job(parse_overrides(words, GROUPS))


def composed_tree(*words: str) -> dict[str, Any]:
    """The job of these words and the shipped files as plain data, composed once: Hydra takes a quarter of a second."""
    return copy.deepcopy(_tree(words))


@cache
def _tree(words: tuple[str, ...]) -> dict[str, Any]:
    return composed(*words).tree()
