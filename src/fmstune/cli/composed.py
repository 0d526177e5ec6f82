"""From the command line to a frozen job: check the choices, compose, freeze; or print the job for `--cfg job`."""

import dataclasses
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from fmstune.cli.arguments import CommandLine
from fmstune.config import compose, defaults, freeze, origins
from fmstune.config.choices import Auto
from fmstune.config.compose import Composed
from fmstune.config.composing_errors import ERRORS
from fmstune.config.job import Job
from fmstune.config.overrides import swept_keys, text_of
from fmstune.config.renamed_fields import USUAL_RATE
from fmstune.errors import Problem, collect_problems, did_you_mean, raise_if_any
from fmstune.errors import shown as show_value
from fmstune.flatten import flat_differences
from fmstune.launch import accelerate_file, caller


def check_choices(line: CommandLine) -> None:
    """Raise UserError with every choice that does not exist, and everything else that is wrong."""
    for note in compose.shadowed_files(line.config_dir):
        print(f"fmstune: note: {note}", file=sys.stderr)
    wrong = list(compose.wrong_choices(line.overrides, line.hydra))
    problems, groups = [problem for _, problem in wrong], {one.key_or_group for one, _ in wrong}
    # an experiment would choose for other groups, and the points of a sweep are composed one by one
    if wrong and not ("experiment" in groups or line.hydra.multirun or swept_keys(line.overrides)):
        others = [one for one in line.overrides if one not in [choice for choice, _ in wrong]]
        found: list[Problem] = []
        with suppress(*ERRORS), collect_problems(found):
            freeze.freeze(compose.compose_job(others, line.hydra).tree(), trusted=line.trusted)
        # the fields of the groups that are wrong cannot be judged
        problems += [problem for problem in found if problem.field.partition(".")[0] not in groups]
    raise_if_any(problems)


def print_config(line: CommandLine) -> int:
    """`--cfg`: check the composed job as far as it is given, then print it, or where its fields come from."""
    composed = compose.compose_job(line.overrides, line.hydra)
    part, found = line.hydra.package or "", launcher_file(composed, line)
    config: Any = OmegaConf.merge(composed.job, {"launcher": found}) if found else composed.job
    tree = compose.plain_tree(config)
    if not OmegaConf.missing_keys(config):
        tree = freeze.as_tree(freeze.freeze(tree, trusted=line.trusted).job)
    if getattr(line.options, "sources", False):
        shown = origins.render_origins(tree, composed_origins(composed, line), part)
        raise_if_any([] if shown else [_no_such_part(part, config)])
        print(shown)
        return 0
    config = defaults.settled(config)
    if line.hydra.cfg != "job":
        config = _with_hydra(config, composed, resolve=line.hydra.resolve, job=line.hydra.cfg == "all")
    selected = OmegaConf.select(config, part) if part else config
    raise_if_any([_no_such_part(part, config)] if selected is None else [])
    text = OmegaConf.to_yaml(selected, resolve=line.hydra.resolve) if OmegaConf.is_config(selected) else f"{selected}\n"
    print(f"# @package {part}\n{text}" if part else text, end="")
    return 0


def tell_job(line: CommandLine) -> int:
    """Compose the whole job, and tell it to the program that asks for it."""
    hint = "fmstune.sweep runs a job for each value; a list is written in brackets"
    raise_if_any(Problem(text_of(one), f": {hint}") for one in line.overrides if one.is_sweep_override())
    composed = compose.compose_job(line.overrides, line.hydra)
    frozen = freeze_composed(composed, line)
    caller.tell_yaml(freeze.dump(frozen.job))
    sources = origins.recorded_origins(freeze.as_tree(frozen.job), composed_origins(composed, line))
    caller.tell(caller.SOURCES, sources)
    return 0


def raise_if_changed(job: Job) -> None:
    """Raise UserError where the program that started the command has composed another job from the same words."""
    if (known := caller.known_job()) is None or known == (now := freeze.dump(job)):
        return
    then, today = yaml.safe_load(known), yaml.safe_load(now)
    hint = "a file of the groups or the environment has changed; compose it again"
    raise_if_any(
        Problem(name, f"is {found} now, and was {former} when the job was composed: {hint}")
        for name, former, found in flat_differences(then, today, show_value, "absent")
    )


def _no_such_part(part: str, config: Any) -> Problem:
    return Problem("--package", f"{part}: the job has no such part{did_you_mean(part, map(str, config))}")


def _with_hydra(config: DictConfig, composed: Composed, *, resolve: bool, job: bool) -> DictConfig:
    """Hydra's own settings, as Hydra shows them, without its help texts; and the job, if that is asked for."""
    settings: Any = OmegaConf.to_container(composed.settings, resolve=False)
    shown = {name: value for name, value in settings.items() if name not in ("help", "hydra_help")}
    both = OmegaConf.create({**config, "hydra": shown})
    # resolved here, where references lead from one to the other
    tree: Any = OmegaConf.to_container(both, resolve=resolve)
    return OmegaConf.create(tree if job else {"hydra": tree["hydra"]})


def freeze_composed(composed: Composed, line: CommandLine, folder: Path | None = None) -> freeze.Frozen:
    """The composed configuration as a job; a point of a sweep has the run folder `folder`."""
    tree = composed.tree()
    if found := launcher_file(composed, line):
        tree["launcher"] = {**tree["launcher"], **found}
    frozen = freeze.freeze(tree, trusted=line.trusted)
    if folder is not None:
        frozen = frozen._replace(job=dataclasses.replace(frozen.job, output_dir=str(folder)))
    if getattr(line.options, "sources", False):
        shown = origins.render_origins(freeze.as_tree(frozen.job), composed_origins(composed, line))
        # before the problems that the rules find, and before the output of the runner
        print(shown, end="\n\n", flush=True)
    return frozen


def launcher_file(composed: Composed, line: CommandLine) -> dict[str, Any]:
    """The fields of the launcher group that the user's own accelerate YAML sets."""
    if not OmegaConf.is_dict(composed.job.get("launcher")) or composed.job.launcher.get("config_file") is None:
        return {}
    return accelerate_file.taken(composed.tree()["launcher"], frozenset(one.key_or_group for one in line.overrides))


def composed_origins(composed: Composed, line: CommandLine) -> origins.Origins:
    """The origin of each value of the composed configuration; a point of a sweep has a folder of its own."""
    found = origins.composition_origins(composed)
    file = origins.Origin(OmegaConf.select(composed.job, "launcher.config_file"))
    found |= {("launcher", name): file for name in launcher_file(composed, line)}
    rate, usual = ("training", "learning_rate"), ("training", USUAL_RATE)
    if found.get(rate, origins.Origin("")).written == Auto.auto.value and usual not in found:
        found[usual] = origins.Origin("the rate that the job has without auto")
    if composed.is_point:
        found["output_dir",] = origins.Origin("a folder for each point of the sweep")
    return found
