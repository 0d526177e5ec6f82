"""Hydra's part of the parent: words → composed configuration, and Hydra's errors in our words."""

import argparse
import copy
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmstune.config import compose_once, defaults, freeze
from fmstune.config.groups import GROUPS, choices
from fmstune.config.verbs import FLAG_OF
from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any

ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""What composing raises for what a user typed; `explained` says it in one sentence."""


def compose(words: Sequence[str], task: Callable[[DictConfig], Any]) -> None:
    """Hydra's own main, with our words; its errors rise instead of ending the process with 1."""
    defaults.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["fmstune", *_flags_first(words)]

    compose_once.register()

    # holds only what can be pickled: Hydra's launchers may send it elsewhere
    def fmstune(config: DictConfig) -> Any:
        return task(config)

    hydra.main(version_base="1.3", config_path="pkg://fmstune.conf", config_name="job")(fmstune)()


def task_words() -> list[str]:
    """The overrides of the job that is being composed, as they were given."""
    words = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


def tree(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain data, interpolations resolved, missing values left as `???`."""
    if missing := OmegaConf.missing_keys(config):
        # text in their place, so that what refers to them is resolved too
        config = copy.deepcopy(config)
        for key in missing:
            OmegaConf.update(config, str(key), _MISSING)
    tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)
    if isinstance(peft := tree.get("peft"), dict):
        peft.pop(defaults.USUAL_RATE, None)
    return {str(key): _with_missing(value) for key, value in tree.items()}


_MISSING = "<must be given>"


def _with_missing(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _with_missing(value) for key, value in tree.items()}
    return "???" if tree == _MISSING else tree


def changes(words: Sequence[str]) -> dict[str, Any]:
    """`field=value` words as data; groups cannot change in a frozen job."""
    found: dict[str, Any] = {}
    raise_if_any(
        Problem("", f"{word}: --from repeats one job and takes fields only") for word in words if word.startswith("-")
    )
    for override in OverridesParser.create().parse_overrides(overrides=list(words)):
        key = override.key_or_group
        sweeps = override.is_sweep_override() or override.is_delete()
        if key in GROUPS or override.package is not None or sweeps:
            raise UserError("", f"{override.input_line}: with --from single fields can change, not groups or sweeps")
        found[key] = override.value()
    return found


def without_cfg_job(words: Sequence[str]) -> tuple[list[str], Mapping[str, Any] | None]:
    """Take `--cfg job` (with `-p`, `--resolve`) off: we check the composed job before we print it."""
    args, unknown = _hydra_flags(words)
    raise_if_any(_unknown_flag(word) for word in unknown if word.startswith("-"))
    if args.cfg and args.multirun:
        raise UserError("--cfg", "prints one job, and -m composes several; leave one of them out")
    if args.cfg != "job":
        return list(words), None
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("--cfg", "-c", "--package", "-p"):
            skip = True
        elif word != "--resolve" and not word.startswith(("--cfg=", "--package=")):
            kept.append(word)
    return kept, {"package": args.package, "resolve": args.resolve}


def _hydra_flags(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What Hydra reads of these words, and what it does not know; its parser would print its own usage and exit."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        # flags may stand anywhere: `parse_known_args` takes the fields before the first of them alone
        return parser.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as err:
        raise UserError("", f"{err} (see fmstune --help)") from err


def _flags_first(words: Sequence[str]) -> list[str]:
    """The same words for Hydra, whose own reading wants the fields in one piece."""
    given = vars(_hydra_flags(words)[0])
    fields = given.pop("overrides")
    flags = {name.replace("_", "-"): value for name, value in given.items() if value}
    return [*(f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()), *fields]


def _unknown_flag(word: str) -> Problem:
    if word in FLAG_OF:
        return Problem(word, f"is a flag of fmstune {FLAG_OF[word].value}")
    flags = ["--cfg", "--resolve", "--package", "--multirun", "--config-dir", "--info", "--trust", *FLAG_OF]
    return Problem("", f"unknown flag {word}{did_you_mean(word, flags) or ' (see fmstune --help)'}")


def print_config(config: DictConfig, how: Mapping[str, Any], trusted: Sequence[str]) -> int:
    """`--cfg job`: check what there is, then print it as Hydra does; the exit code."""
    if not OmegaConf.missing_keys(config):
        freeze.freeze(tree(config), trusted=trusted)
    config = defaults.settled(config)
    package = how["package"]
    shown = OmegaConf.select(config, package) if package else config
    if shown is None:
        raise UserError.of([no_such_part(package, config)])
    text = OmegaConf.to_yaml(shown, resolve=how["resolve"]) if OmegaConf.is_config(shown) else f"{shown}\n"
    print(f"# @package {package}\n{text}" if package else text, end="")
    return 0


def no_such_part(package: str, config: DictConfig) -> Problem:
    """What is wrong with `--package`."""
    return Problem("--package", f"{package}: the job has no such part{did_you_mean(package, map(str, config))}")


def groups(extra: Path | None) -> set[str]:
    """Names that choose a file and not a value: our groups, and those a user's folder adds."""
    own = {path.name for path in extra.iterdir() if path.is_dir()} if extra is not None and extra.is_dir() else set()
    return {*GROUPS, *own}


def shadowed(extra: Path | None) -> Iterator[Problem]:
    """Files of a user's folder that Hydra passes over in silence, because a shipped one has their name."""
    if extra is None:
        return
    for group in GROUPS:
        for name in sorted({path.stem for path in (extra / group).glob("*.yaml")} & set(choices(group))):
            yield Problem(
                f"{extra / group / name}.yaml", f"is not used: {group}={name} is the shipped one; choose another name"
            )


def wrong_choices(words: Sequence[str], extra: Path | None) -> Iterator[tuple[str, Problem]]:
    """The words that choose what a group does not have, each with what is wrong; Hydra would stop at the first."""
    for word in words:
        group, _, value = word.partition("=")
        if group not in GROUPS or not re.fullmatch(r"\[?[\w./, -]+\]?", value):
            continue
        known = choices(group, extra)
        for name in value.strip("[]").split(","):
            # a name with a slash is a file of a folder within the group
            if "/" not in name and name.strip().removesuffix(".yaml") not in known:
                yield word, no_such_choice(group, name.strip(), extra)


def no_such_choice(group: str, name: str, extra: Path | None) -> Problem:
    """What is wrong with a choice, and what there is."""
    options = choices(group, extra) if group in GROUPS else []
    return Problem(group, f"={name}: no such choice{did_you_mean(name, options)} ({', '.join(options)})")


def config_dir(words: Sequence[str]) -> Path | None:
    """The user's own folder of groups, if one is named."""
    given = _hydra_flags(words)[0].config_dir
    if given and not Path(given).is_dir():
        raise UserError("--config-dir", f": {given} is not a folder; give the folder that holds your groups")
    return Path(given) if given else None


def explained(err: BaseException) -> Problem:
    """Hydra's and OmegaConf's messages, with a suggestion where a choice was misspelt and a hint on quoting."""
    text = str(err).strip()
    # "load" where several are chosen of one group
    missing = re.search(r"Could not (?:find|load) '([\w/]+)/([\w.-]*)'", text)
    if missing:
        group, name = missing.groups()
        if group == "hydra/launcher" and name.startswith("submitit_"):
            return Problem(group, f"={name} needs hydra-submitit-launcher: pip install 'fmstune[slurm]'")
        if (group, name) == ("hydra/launcher", "joblib"):
            return Problem(group, f"={name} needs hydra-joblib-launcher: pip install 'fmstune[sweep]'")
        return no_such_choice(group, name, config_dir(sys.argv[1:]))
    several = re.match(r"Ambiguous value for argument '(?:\+\+)?(.*)'", text)
    if several:
        return Problem(several[1], ": one run for each value needs -m; a list is written in brackets")
    if "does not support sweep type : INTERVAL_SWEEP" in text:
        return Problem(
            "", "an interval is searched with hydra/sweeper=optuna; without it, give single values with commas between"
        )
    if isinstance(err, OverrideParseException):
        word = err.override.removeprefix("++")
        if "=" not in word:
            return Problem(word, ": neither FIELD=VALUE nor GROUP=CHOICE, and a verb comes first (see fmstune --help)")
        return Problem(
            word,
            ": cannot be read as FIELD=VALUE; a value with special characters needs "
            "quotes inside quotes, such as 'data.response_template=\"\\n### Label:\"'",
        )
    if isinstance(err, yaml.YAMLError):
        return Problem("", f"broken YAML: {' '.join(text.split())}")
    if isinstance(err, OmegaConfBaseException) and err.full_key:
        return Problem(err.full_key, f": {text.splitlines()[0]}")
    cause = f": {err.__cause__}" if err.__cause__ is not None and str(err.__cause__) not in text else ""
    return Problem("", text + cause)
