"""Argv → one typed object: the verb, its options, Hydra's flags, and the overrides as Hydra's own parser reads them."""

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra.core.override_parser.types import Override

from fmstune.config import other_names, requests
from fmstune.config.after_training.serving import Serving, Talk
from fmstune.config.first_aid.verbs import Copy, Recipes
from fmstune.config.flags import add_flags, flags_of, make_request, missing_flags, spellings
from fmstune.config.groups import group_names
from fmstune.config.overrides import parse_overrides
from fmstune.config.requests import Composing, Generation, Harness, HydraFlags, Options, Scoring, Verb
from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any

_WORDS = {
    Verb.reproduce: (("run",), "takes the folder of one run, such as runs/first"),
    Verb.chat: (("model",), "takes the folder of one run, an adapter, a model or a hub id"),
    Verb.serve: (("model",), "takes the folder of one run, an adapter, a model or a hub id"),
    Verb.report: (("folder",), "takes one folder, of a run or of runs such as a sweep's"),
    Verb.compare: (("a", "b"), "takes two run folders"),
    Verb.bisect: (("a", "b"), "takes two run folders"),
    Verb.rows: (("run",), "takes the folder of one run"),
    Verb.push: (("run",), "takes one folder, of a run, an adapter or a merged model"),
    Verb.parity: (("run",), "takes the folder of one run"),
    Verb.runs: (("folder",), "takes one folder of runs"),
    Verb.logs: (("run",), "takes the folder of one run or sweep"),
    Verb.stop: (("run",), "takes the folder of one run or sweep"),
    Verb.clean: (("folder",), "takes one folder, of runs, of a sweep or of a run"),
    Verb.recipes: (("group",), "takes one group"),
    Verb.copy: (("choice", "folder"), "takes GROUP=CHOICE and a folder, such as experiment=complaints_lora my_conf"),
    Verb.schema: (("group",), "takes one group"),
}
"""The words without a flag that a verb takes, and how to say so."""
_WITH_FIELDS = (Verb.reproduce, Verb.chat, Verb.serve)
"""Of these, verbs that take fields of a job, too."""


_MODES = ("cfg", "info", "hydra_help", "multirun", "run")
"""Flags of Hydra's of which each says what to do with the composed job."""


@dataclass(frozen=True)
class CommandLine:
    """The words of one command, parsed."""

    verb: Verb
    options: Options  # the verb's own flags and words
    hydra: HydraFlags = requests.NO_HYDRA_FLAGS
    overrides: tuple[Override, ...] = ()
    recorded: tuple[str, ...] = ()  # `--resume`: the words that the sweep's folder keeps, in place of these

    @property
    def trusted(self) -> tuple[str, ...]:
        """Packages that `--trust` allows as `_target_` of a format."""
        return tuple(getattr(self.options, "trusted", ()))

    @property
    def trust_flags(self) -> list[str]:
        """The `--trust` flags, for a runner or a record."""
        return [f"--trust={package}" for package in self.trusted]

    @property
    def config_dir(self) -> Path | None:
        """The user's own folder of groups."""
        return Path(self.hydra.config_dir) if self.hydra.config_dir else None


class HelpOrVersion(NamedTuple):
    """A command line that asks only for a text, perhaps about a verb."""

    verb: Verb | None
    version: bool
    config_dir: Path | None = None


def parse_command_line(words: Sequence[str]) -> CommandLine | HelpOrVersion:
    """Parse argv once; raises UserError with every unknown flag, else with every word that cannot be read."""
    named, rest = _split_verb(words)
    verb = named or Verb.train
    if verb is Verb.from_fms:
        return _parse_from_fms(rest)
    kind = Harness if verb is Verb.evaluate and rest[:1] == ["harness"] else verb.options
    parser = _Parser(prog="fmstune", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    add_flags(parser, kind)
    add_flags(parser, HydraFlags, _hydra_flags(kind))
    options, left = parser.parse_known_args(rest[1:] if kind is Harness else rest)
    given = vars(options)
    hydra = HydraFlags(**{flag.field: given.pop(flag.field) for flag in flags_of(HydraFlags) if flag.field in given})
    hydra = _with_folders(hydra)
    if given.pop("help") | given.pop("version"):
        return HelpOrVersion(named, "--version" in rest, Path(hydra.config_dir) if hydra.config_dir else None)
    words_left = [word for word in left if not word.startswith("-")]
    problems = [_unknown_flag(word.partition("=")[0], verb, kind) for word in left if word.startswith("-")]
    raise_if_any([*problems, *_wrong_words(verb, kind, words_left, given)])
    positional = _positional(verb, words_left)
    given |= positional
    missing = list(missing_flags(kind, given))
    if missing and kind is Generation and not given.keys() & {*requests.PROMPTS}:
        missing.append(requests.NOTHING_TO_ASK)
    raise_if_any(missing)
    fields = [word for word in words_left if word not in positional.values()]
    overrides = parse_overrides(fields, group_names(hydra.config_dir))
    chosen: Any = make_request(kind, given)
    line = CommandLine(verb, chosen, hydra, overrides)
    raise_if_any(_contradictions(line))
    return line


def _with_folders(flags: HydraFlags) -> HydraFlags:
    """The flags with the folder of `--config-path` in full; raises UserError for a folder that is not there."""
    if flags.config_dir and not os.path.isdir(flags.config_dir):
        raise UserError("--config-dir", f": {flags.config_dir} is not a folder; give the folder that holds your groups")
    if flags.config_path is None or flags.config_path.startswith("pkg://"):
        return flags
    if not os.path.isdir(flags.config_path):
        hint = "it takes the place of fmstune's own files; --config-dir adds your groups to them"
        raise UserError("--config-path", f": {flags.config_path} is not a folder; {hint}")
    # Hydra would look for it in the folder of this module
    return replace(flags, config_path=os.path.abspath(flags.config_path))


def _split_verb(words: Sequence[str]) -> tuple[Verb | None, list[str]]:
    if not words or not re.fullmatch(r"\w[\w-]*", words[0]):
        return None, list(words)
    known = [verb.value for verb in Verb]
    if words[0] not in known:
        hint = did_you_mean(words[0], known)
        raise UserError("", f"unknown verb {words[0]!r}{hint}; the verbs are {', '.join(known)}")
    return Verb(words[0]), list(words[1:])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("", f"{message} (see fmstune --help)")


def _hydra_flags(kind: type[Options]) -> set[str] | None:
    """Hydra's flags that a verb takes; None is all of them."""
    if issubclass(kind, Composing):
        return None
    return {"config_dir"} if kind in (Generation, Scoring, Serving, Talk, Recipes, Copy) else set()


def _parse_from_fms(words: Sequence[str]) -> CommandLine | HelpOrVersion:
    """The old command is all words after our own flags; `--` may stand between."""
    own = {"--run", "--help", "-h", "--version"}
    flags = [*takewhile(own.__contains__, words)]
    old = words[len(flags) :]
    if old and old[0].startswith("--") and old[0] != "--":
        hint = f"{did_you_mean(old[0], own)}; the old command follows after --"
        raise UserError("from-fms", f"has no flag {old[0]}{hint}")
    if len(old) == 2 and old[1] == "--run":  # behind the quoted command, where one would write it
        flags, old = [*flags, "--run"], old[:1]
    if {"--help", "-h", "--version"} & {*flags}:
        return HelpOrVersion(Verb.from_fms, "--version" in flags)
    options = requests.FromFms(old_command=tuple(old[1:] if old[:1] == ["--"] else old), run_it="--run" in flags)
    return CommandLine(Verb.from_fms, options)


def _unknown_flag(flag: str, verb: Verb, kind: type[Options]) -> Problem:
    known = [*spellings(kind), *spellings(HydraFlags, _hydra_flags(kind))]
    if not issubclass(kind, Composing):
        return Problem(verb.value, f"has no flag {flag}{did_you_mean(flag, known)}")
    others = [other for other in Verb if flag in spellings(other.options)]
    if others:
        return Problem(flag, f"is a flag of fmstune {', '.join(others)}")
    hint = did_you_mean(flag, known) or " (see fmstune --help)"
    if (field := other_names.suggestion(flag.lstrip("-"))) is not None:
        # a choice has its value already
        hint = f"; a field is set without dashes: {field if '=' in field else f'{field}=VALUE'}"
        hint += " (fmstune from-fms translates whole commands of fms-hf-tuning)" if verb is Verb.train else ""
    return Problem("", f"unknown flag {flag}{hint}")


def _wrong_words(verb: Verb, kind: type[Options], words: list[str], given: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each word that a verb with few overrides, or none, does not take."""
    for word in words:
        if kind is Scoring and not re.match(r"(data|seed|data\..*?)=", word):
            yield Problem("evaluate", f"takes flags, data=CHOICE, data.FIELD=VALUE and seed=N; got {word!r}")
        elif kind is Generation and not re.match(r"data\..*?=", word):
            yield Problem("generate", f"takes flags, and data.FIELD=VALUE with --format; got {word!r}")
        elif kind in (Serving, Talk) and "=" in word and not Path(word).exists() and not word.startswith("data."):
            yield Problem(verb.value, f"takes flags, and data.FIELD=VALUE with --format; got {word!r}")
        elif kind in (Generation, Serving, Talk) and word.startswith("data.") and "data_format" not in given:
            yield Problem(word, ": fields of a data format go with --format")
        elif kind in (Harness, requests.Merge, requests.Doctor):
            yield Problem(f"{verb} harness" if kind is Harness else verb.value, f"takes flags; got {word!r}")


def _positional(verb: Verb, words: Sequence[str]) -> dict[str, str]:
    """The words without a flag that a verb takes, by the fields that they fill."""
    if verb not in _WORDS:
        return {}
    names, takes = _WORDS[verb]
    found = [word for word in words if verb not in _WITH_FIELDS or "=" not in word or Path(word).exists()]
    needed = [name for name in names if not hasattr(verb.options, name)]  # a field without a default
    if not len(needed) <= len(found) <= len(names):
        raise UserError(verb.value, f"{takes}; got {', '.join(found) or 'none'}")
    return dict(zip(names, found, strict=False))


def _contradictions(line: CommandLine) -> Iterator[Problem]:
    """Yield a problem for each value that no parser can judge alone."""
    options, cfg = line.options, line.hydra.cfg
    if isinstance(options, requests.ShowData):
        if options.rows < 0:
            yield Problem("--rows", f"must be at least 0, got {options.rows}")
        if options.json is not None and options.json == options.html:
            yield Problem("--json", f"and --html both name {options.json}; give each a file of its own")
    if isinstance(options, requests.Train) and options.sources and cfg != "job":
        yield Problem("--sources", "is a flag of fmstune check, and goes with --cfg job")
    if cfg and line.hydra.multirun:
        yield Problem("--cfg", "prints one job, and -m composes several; leave one of them out")
        return
    for name in ("package", "resolve") if cfg is None else ():
        if getattr(line.hydra, name):
            yield Problem(f"--{name}", "goes with --cfg job, which prints the composed job")
    asks = [f"--{name.replace('_', '-')}" for name in _MODES if getattr(line.hydra, name)]
    if len(asks) > 1:
        yield Problem(asks[0], f"and {asks[1]} ask for two things; leave one of them out")
