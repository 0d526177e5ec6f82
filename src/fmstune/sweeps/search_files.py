"""The group `search`: files that say which fields a sweep tries, and which values of each."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from fmstune.config.compose import compose_job, wrong_choices
from fmstune.config.composing_errors import ERRORS
from fmstune.config.first_aid.recipes import text_of_file
from fmstune.config.freeze import freeze, parse_yaml
from fmstune.config.groups import GROUPS, OPTIONAL, SEARCH
from fmstune.config.overrides import parse_overrides, swept_keys, text_of
from fmstune.config.requests import HydraFlags
from fmstune.errors import Problem, UserError, collect_problems, raise_if_any
from fmstune.sweeps import callback, optuna


def with_search_files(overrides: Sequence[Override], flags: HydraFlags) -> tuple[Override, ...]:
    """The words, with those of the file in place of `search=NAME`; a field of the other words wins over the file's.

    Raises UserError for a single job, a file that cannot be read, and with every field of the file that is wrong.
    """
    chosen = [one for one in overrides if one.key_or_group == SEARCH]
    if not chosen:
        return tuple(overrides)
    word = text_of(chosen[-1])
    if not flags.multirun:
        raise UserError(word, "names the fields of a sweep; add -m")
    name = chosen[-1].value()
    if not isinstance(name, str) or len(chosen) > 1:
        raise UserError(word, f": choose one file, such as {SEARCH}=lora_rates")
    others = [one for one in overrides if one not in chosen]
    place = f"{SEARCH}/{name.removesuffix('.yaml')}.yaml"
    found = _words_of(name.removesuffix(".yaml"), place, Path(flags.config_dir) if flags.config_dir else None)
    given = {one.key_or_group for one in others}
    # an experiment chooses for its groups, and its file could not
    given |= {*GROUPS} if OPTIONAL in given else set()
    own = [one for one in found if one.key_or_group not in given]
    raise_if_any(_field_problems([*own, *others], own, flags, place))
    return (*own, *others)


def _words_of(name: str, place: str, extra: Path | None) -> tuple[Override, ...]:
    """The lines of a file as words of the command line."""
    try:
        tree: Any = parse_yaml(text_of_file(SEARCH, name, extra))
    except yaml.YAMLError as err:
        raise UserError(place, f"holds broken YAML: {' '.join(str(err).split())}") from err
    if not isinstance(tree, dict) or not tree:
        raise UserError(place, "must hold lines such as 'peft.r: [4, 16]'")
    hint = "write the whole name in one line, such as 'peft.r: [4, 16]'"
    raise_if_any(Problem(f"{place}: {key}", f"is a mapping; {hint}") for key in tree if isinstance(tree[key], dict))
    try:
        found = parse_overrides([f"{key}={_as_typed(value, outer=True)}" for key, value in tree.items()])
    except UserError as err:
        raise UserError.of([Problem(f"{place}: {one.field}", one.text) for one in err.problems]) from err
    if not swept_keys(found):
        raise UserError(place, "gives several values to no field; a list or interval(…) does")
    return found


def _as_typed(value: Any, *, outer: bool = False) -> str:
    """A value as it is typed on the command line; an outer list is one of values to try."""
    if isinstance(value, list):
        inner = ",".join(map(_as_typed, value))
        return inner if outer else f"[{inner}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _field_problems(
    words: Sequence[Override], own: Sequence[Override], flags: HydraFlags, place: str
) -> Iterator[Problem]:
    """Yield what is wrong with the lines of the file, each of their values composed once."""
    found = [problem for _, problem in wrong_choices(own, flags)]
    yield from (Problem(f"{place}: {one.field}", one.text) for one in found)
    if found:
        return
    fields = [one.key_or_group for one in own]
    for sample in optuna.samples(callback.without_launcher(words), swept_keys(words)):
        with suppress(*ERRORS), collect_problems(found):
            freeze(compose_job(sample, flags).tree())
    for one in dict.fromkeys(found):
        # of an unknown field of the job, its first name alone
        if one.field and any(f"{field}.".startswith(f"{one.field}.") for field in fields):
            yield Problem(f"{place}: {one.field}", one.text)
