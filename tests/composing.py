"""A job composed from overrides, as the command composes it."""

from typing import Any

from fmstune.config.compose import Composed, compose_job
from fmstune.config.groups import GROUPS
from fmstune.config.overrides import parse_overrides


def composed(*words: str) -> Composed:
    return compose_job(parse_overrides(words, GROUPS))


def composed_tree(*words: str) -> dict[str, Any]:
    return composed(*words).tree()
