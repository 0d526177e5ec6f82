"""What Hydra and OmegaConf say to words and files that cannot be composed, in words of a user of fmstune."""

import os
import re
from collections.abc import Sequence

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from fmstune.config.groups import GROUPS, short_list
from fmstune.errors import Problem, did_you_mean, first_line

ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""Raised while composing for what a user typed; `explain` says each in one sentence."""
PLUGINS = {
    "hydra/launcher": {
        "joblib": "'fmstune[sweep]'",
        "submitit_local": "'fmstune[slurm]'",
        "submitit_slurm": "'fmstune[slurm]'",
        **dict.fromkeys(("ray", "ray_aws"), "hydra-ray-launcher"),
        "rq": "hydra-rq-launcher",
    },
    "hydra/sweeper": {"optuna": "'fmstune[sweep]'", "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper"},
    **{group: {"colorlog": "hydra-colorlog"} for group in ("hydra/job_logging", "hydra/hydra_logging")},
}
"""What to install for choices that plugins bring (https://hydra.cc/docs/plugins)."""
_BROUGHT = {
    ("peft", "none"): "peft=full",
    ("peft", "pt"): "peft=prompt_tuning",
    ("peft", "qlora"): "peft=lora model.quantization.load_in_4bit=true",
    ("launcher", "torchrun"): "launcher=ddp",
    ("launcher", "accelerate"): "launcher=ddp",
    ("launcher", "deepspeed"): "launcher=fsdp",
    ("launcher", "single"): "launcher=local",
    ("launcher", "fsdp2"): "launcher=fsdp",
    ("tracking", "none"): "tracking=file",
    ("evaluation", "false"): "evaluation=none",
}
"""Words that other tools have for a choice."""
_FIELD_OF = {"model": "model=causal_lm model.path", "data": "data=text data.train"}
"""Where the name of a folder, a file or a hub id goes that was given as a choice."""
_REFERENCE = "write it as ${seed} or ${model.path}, and text that only looks like one as \\${…}"
_UNREADABLE = f"holds a reference that cannot be read; {_REFERENCE}"
_SAID = (
    (r"Could not override '(.*?)'\.\s*Did you mean to override (.*?)\?", r"\1", "is not in the job; did you mean \\2?"),
    (r"Could not override '(.*?)'\. No match", r"\1", "is not among the groups of the job; add it with +\\1=NAME"),
    (r"Could not override '(hydra\..*?)'", r"\1", ": Hydra has no such setting (fmstune --cfg hydra lists them)"),
    (r"Could not override '(.*?)'", r"\1", ": the job has no such field or group"),
    (r"Override (.*?) looks like a config group override, but config group '(.*)'", r"\1", ": no group \\2"),
    (r"Could not delete from config\. '(.*?)' does not", r"~\1", ": the job has no such field"),
    (r"Could not delete from config\. The value of '(.*?)' is (.*) and not", r"~\1", "is \\2; write ~\\1"),
    (r"Could not delete '(.*?)'\.", r"~\1", ": the job chooses no such file"),
    (r"Could not append to config\. An item is already at '(.*?)'", r"+\1", "is set already; leave the + out"),
    (
        r"force-add of config groups is not supported: '(?:\+\+)?(.*)'",
        r"\1",
        "is a choice; write it with one + or none",
    ),
    (r"Multiple values for (.*?)\. To override", r"\1", "is chosen by two files; write override before the second"),
    (r"(.*) appears more than once in the final defaults list", r"\1", "is chosen twice; choose it once"),
    (r"Error resolving interpolation '(.*?)'", r"\1", "refers to no group, so it names no choice; name one"),
    (r"Defaults List interpolation is not supported", "", "a list of choices takes names, not references"),
    (r"Defaults list element '(.*?)' is using a deprecated", r"\1", "refers to a list of files; name the choice"),
    (
        r"Primary config (?:directory|module).* not\s+found",
        "--config-path",
        "is not a folder; --config-dir adds your groups",
    ),
    (r"No folder (.*) of hydra\.searchpath", "hydra.searchpath", ": no folder \\1"),
    (r"Error merging override (?:\+\+)?(.*)", r"\1", ""),
)
"""Hydra's sentences, and for each the field and the text of ours."""


def explain(err: BaseException) -> Problem:
    """The message of Hydra or OmegaConf as a problem, with a suggestion where a choice was misspelt."""
    text = str(err).strip()
    if isinstance(err, MissingConfigException) and err.missing_cfg_file:
        return _no_such_file(str(err.missing_cfg_file), err.options or (), text)
    if "does not support sweep type : INTERVAL_SWEEP" in text:
        hint = "without it, give single values with commas between"
        return Problem("", f"an interval is searched with hydra/sweeper=optuna; {hint}")
    if isinstance(err, yaml.YAMLError):
        return Problem("", f"broken YAML: {' '.join(text.split())}")
    if isinstance(err, GrammarParseError) or (isinstance(err, OmegaConfBaseException) and err.full_key):
        return Problem(err.full_key or "", f": {_plain_words(err)}")
    of, cause = _file_of(text), "" if err.__cause__ is None else _plain_words(err.__cause__)
    if not text and isinstance(err.__cause__, OmegaConfBaseException):
        return explain(err.__cause__)
    for pattern, field, said in _SAID:
        if (found := re.search(pattern, text, re.DOTALL)) is not None:
            return Problem(found.expand(field), (found.expand(said) if said else f": {cause}") + of)
    return Problem("", _plain_words(text) + (f": {cause}" if cause and cause not in text else ""))


def _plain_words(err: object) -> str:
    """The first line of a message, with OmegaConf's classes called by what they hold."""
    if isinstance(err, GrammarParseError):
        return _UNREADABLE
    found = re.fullmatch(r"(\w+)(?: raised)? while resolving interpolation: (['\"]?)(.*)\2", first_line(err), re.DOTALL)
    if found is not None:
        unreadable = found[1] in ("GrammarParseError", "TypeError")
        return _UNREADABLE if unreadable else f"holds a reference without a value ({found[3]})"
    words = {"DictConfig": "a mapping", "ListConfig": "a list", "AnyNode": "a value", "NoneType": "null"}
    return re.sub("|".join(words), lambda found: words[found[0]], first_line(err))


def _file_of(text: str) -> str:
    """The user's file whose defaults list is meant, for the end of a sentence."""
    found = re.match(r"In '(.*?)': ", text)
    return f" (in {found[1]}.yaml)" if found and found[1] not in ("job", "hydra/config") else ""


def _no_such_file(name: str, options: Sequence[str], text: str) -> Problem:
    if "/" not in name:
        hint = "leave both out, and give your own groups with --config-dir"
        if "primary config" in text:
            return Problem("", f"no file {name}.yaml where --config-path and --config-name look for the job; {hint}")
        return Problem("", f"no file {name}.yaml among the groups{_file_of(text)}")
    group, _, choice = name.partition("/") if name.partition("/")[0] in GROUPS else name.rpartition("/")
    problem = no_such_choice(group, choice, options)
    return Problem(problem.field, problem.text + _file_of(text))


def no_such_choice(group: str, name: str, options: Sequence[str]) -> Problem:
    """The problem of a choice that its group does not have, with the choices that it has."""
    if (package := PLUGINS.get(group, {}).get(name)) is not None:
        return Problem(group, f"={name} is brought by a plugin: pip install {package}")
    hint = did_you_mean(name, options)
    if (brought := _BROUGHT.get((group, name.lower()))) is not None:
        hint = f"; did you mean {brought}?"
    elif group in _FIELD_OF and (re.search(r"[/~]|\.jsonl?$|\.csv$|\.parquet$", name) or os.path.exists(name)):
        hint = f"; a folder, a file or a hub id is given as {_FIELD_OF[group]}={name}"
    listed = f" ({', '.join(short_list(list(options)))})" if options else ""
    return Problem(group, f"={name}: no such choice{hint}{listed}")
