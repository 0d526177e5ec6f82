"""The words `GROUP=CHOICE` and `FIELD=VALUE`: parsed once by Hydra's own parser, and judged as far as that shows."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, QuotedString
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmstune.config.groups import GROUPS, OPTIONAL, choices
from fmstune.errors import Problem, raise_if_any


def parse_overrides(words: Sequence[str], groups: Collection[str] = ()) -> tuple[Override, ...]:
    """Parse the words; raises UserError with every unreadable one, and each of `groups` that is given no choice."""
    parser, found, problems = OverridesParser.create(), list[Override](), list[Problem]()
    for word in words:
        if "=" in word and not word.lstrip("~+").partition("=")[0]:
            problems.append(Problem("", f"{word}: name the field before the ="))
            continue
        try:
            found += parser.parse_overrides([word])
        except OverrideParseException:
            hint = ": neither FIELD=VALUE nor GROUP=CHOICE, and a verb comes first (see fmstune --help)"
            quotes = "quotes inside quotes, such as 'data.response_template=\"\\n### Label:\"'"
            if "=" in word:
                hint = f": cannot be read as FIELD=VALUE; a value with special characters needs {quotes}"
            problems.append(Problem(word, hint))
    for one in found:
        if one.key_or_group in groups and (one.is_delete() or one.value() is None) and not _chooses_nothing(one):
            hint = f"choose {one.key_or_group}=NAME, or leave it out for the default"
            problems.append(Problem("", f"{text_of(one)}: {hint}"))
    raise_if_any(problems)
    return tuple(choice_as_name(one) for one in found if not _chooses_nothing(one))


def choice_as_name(one: Override) -> Override:
    """The word with its choice as a name where Hydra reads a number: `debug=nan`."""
    is_number = isinstance(one.value(), float) and one.key_or_group in GROUPS
    return dataclasses.replace(one, _value=text_of(one).partition("=")[2].strip()) if is_number else one


def _chooses_nothing(one: Override) -> bool:
    """Whether the word is `experiment=null`, which is the default, and which Hydra would not take."""
    return one.key_or_group == OPTIONAL and one.value() is None and not one.is_delete()


def text_of(override: Override) -> str:
    """The word as it was typed."""
    return override.input_line or ""


def allow_new_fields(overrides: Sequence[Override], groups: Collection[str]) -> list[Override]:
    """Let `key=value` set any key: Hydra would stop at the first unknown one, and freezing reports all of them.

    A choice of the job's own groups needs no `+`, and may have one.
    """
    found = []
    for one in overrides:
        key, is_change = one.key_or_group, one.type is OverrideType.CHANGE and one.package is None
        is_field = "/" not in key and key.partition(".")[0] != "hydra" and (key not in groups or _sets_fields(one))
        if is_change and is_field:
            one = dataclasses.replace(one, type=OverrideType.FORCE_ADD, input_line=f"++{text_of(one)}")
        elif key in GROUPS and one.package is None and (one.is_add() or one.is_force_add()) and not _sets_fields(one):
            one = dataclasses.replace(one, type=OverrideType.CHANGE, input_line=text_of(one).lstrip("+"))
        found.append(one)
    return found


def swept_keys(overrides: Sequence[Override]) -> frozenset[str]:
    """The keys that several values are given for: `a=1,2`, and Hydra's functions that give several."""
    return frozenset(one.get_key_element().lstrip("+") for one in overrides if one.is_sweep_override())


def field_changes(overrides: Sequence[Override]) -> dict[str, Any]:
    """`FIELD=VALUE` words as data; raises UserError for a group, a sweep or a reference, which no frozen job takes."""
    changes, problems = dict[str, Any](), list[Problem]()
    for one in overrides:
        if one.key_or_group in GROUPS or one.package is not None or one.is_sweep_override() or one.is_delete():
            problems.append(Problem(text_of(one), ": with --from single fields can change, not groups or sweeps"))
            continue
        try:
            given: Any = OmegaConf.to_container(OmegaConf.create({"value": one.value()}), resolve=True)
            changes[one.key_or_group] = given["value"]
        except OmegaConfBaseException:
            hint = "give the value itself, and text that only looks like a reference as \\${…}"
            problems.append(Problem(text_of(one), f": a recorded job takes no reference to a field; {hint}"))
    raise_if_any(problems)
    return changes


def unknown_choices(overrides: Sequence[Override], extra: Path | None) -> Iterator[tuple[Override, str | None]]:
    """Yield each override with a name that its group has no file for, or with None for a value that is not a name."""
    for one in overrides:
        if one.key_or_group not in GROUPS or one.package is not None or one.is_delete() or _sets_fields(one):
            continue
        for name in _names(one):
            # a name with a slash is a file of a folder within the group; what a reference leads to is known later
            is_plain = name is not None and not {"/", "$"} & {*name}
            if name is None or (is_plain and name.removesuffix(".yaml") not in choices(one.key_or_group, extra)):
                yield one, name


def _names(one: Override) -> Iterator[str | None]:
    value = one.value()
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        for name in choice if isinstance(choice, list) else [choice]:
            if isinstance(name, QuotedString):
                name = name.text
            if isinstance(name, str | int | float) and not isinstance(name, bool):
                yield str(name)
            elif not isinstance(name, Glob):
                yield None


def _sets_fields(one: Override) -> bool:
    """Whether the value is a mapping, which sets fields of a group, such as `tracking={aim: {repo: x}}`."""
    value = one.value()
    return all(isinstance(part, dict) for part in (value.list if isinstance(value, ChoiceSweep) else [value]))
