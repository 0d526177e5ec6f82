"""The parent process: compose, freeze, check, start the runner, show the result. Imports nothing heavy."""

import argparse
import dataclasses
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmstune import __version__, completion, freeze, help, launch, report, rules, run_folder
from fmstune.command_line import FLAG_OF, CommandLine, Verb, choice_problems, force_plain_overrides, parse, swept_keys
from fmstune.errors import UserError, did_you_mean, raise_if_any, render
from fmstune.job import Job

USER_ERROR = 2
INTERNAL_ERROR = 1


def main() -> NoReturn:
    """The console script: exits 0, 2 for what the user can mend, 1 for what we must, 130 when interrupted."""
    logging.raiseExceptions = False  # Hydra logs to stdout, which `| head` may have closed
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as err:
        print(render(err.problems), file=sys.stderr)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as err:
        print(render([_explained(err)]), file=sys.stderr)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERNAL_ERROR)
    sys.exit(USER_ERROR)


def run(words: Sequence[str]) -> int:
    """Do what one command line says; the exit code."""
    if "--shell-completion" in words or "-sc" in words:
        return _complete(words)
    line = parse(words)
    if line.version:
        print(f"fmstune {__version__}")
        return 0
    if line.help:
        print(help.text(line.verb if line.verb is not Verb.train else None, _config_dir(line.hydra)))
        return 0
    if line.verb is Verb.doctor:
        return launch.start(launch.doctor_command(clear_cache=line.clear_cache), os.environ)
    if line.from_job is not None:
        return _repeat(line)
    return _composed(line)


def _composed(line: CommandLine) -> int:
    """Let Hydra compose each point and run it; the first failure's exit code, after all points ran."""
    words, printed = _without_cfg_job(line.hydra)
    swept = swept_keys(words)
    codes: list[int] = []
    sweeps: set[Path] = set()

    def point(config: DictConfig) -> None:
        # raised here, an error would get Hydra's words around it, and would end a sweep
        try:
            codes.append(_print_config(config, printed, line.trusted) if printed else _point(config, line, swept))
        except UserError as err:
            print(render(err.problems), file=sys.stderr)
            codes.append(USER_ERROR)
        except OmegaConfBaseException as err:
            print(render([_explained(err)]), file=sys.stderr)
            codes.append(USER_ERROR)
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            sweeps.add(Path(HydraConfig.get().sweep.dir))

    groups = _groups(_config_dir(words))
    raise_if_any(choice_problems(words, groups))
    _compose(force_plain_overrides(words, groups), point)
    for folder in sweeps:
        _release_sweep(folder)
    failed = [code for code in codes if code]
    if failed and len(codes) > 1:
        print(f"fmstune: {len(failed)} of {len(codes)} points failed", file=sys.stderr)
    return failed[0] if failed else 0


def _compose(words: Sequence[str], task: Callable[[DictConfig], Any]) -> None:
    """Hydra's own main, with our words; its errors rise instead of ending the process with 1."""
    OmegaConf.register_new_resolver("first", _first, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["fmstune", *words]

    def fmstune(config: DictConfig) -> None:
        task(config)

    hydra.main(version_base="1.3", config_path="pkg://fmstune.conf", config_name="job")(fmstune)()


def _first(*values: Any) -> Any:
    """The first value that is set: the one resolver that `conf/job.yaml` uses."""
    return next((value for value in values if value is not None), None)


def _point(config: DictConfig, line: CommandLine, swept: Collection[str]) -> int:
    """One composed configuration, to its end."""
    frozen = freeze.freeze(_tree(config), trusted=line.trusted)
    job = frozen.job
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        job = dataclasses.replace(job, output_dir=str(_sweep_folder(HydraConfig.get(), swept)))
    return _act(job, frozen.notes, line)


def _sweep_folder(settings: HydraConf, swept: Collection[str]) -> Path:
    """The folder of one point: its number, and what sets it apart from the others."""
    given = [word.lstrip("+").partition("=") for word in settings.overrides.task]
    own = ",".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in given if key in swept)
    slug = re.sub(r"[^\w.=+-]+", "_", own)[:60]
    return Path(settings.sweep.dir) / "-".join(part for part in (str(settings.job.num), slug) if part)


def _repeat(line: CommandLine) -> int:
    """`train --from RUN/job.yaml`: the same job in a folder of its own."""
    path = line.from_job
    assert path is not None
    changes = _changes(line.hydra)
    job_file = path / run_folder.JOB if path.is_dir() else path
    frozen = freeze.read(job_file, trusted=line.trusted, changes={"output_dir": None, **changes})
    return _act(frozen.job, frozen.notes, line)


def _changes(words: Sequence[str]) -> dict[str, Any]:
    """`field=value` words as data; groups cannot change in a frozen job."""
    changes: dict[str, Any] = {}
    raise_if_any(f"{word}: --from repeats one job and takes fields only" for word in words if word.startswith("-"))
    for override in OverridesParser.create().parse_overrides(overrides=list(words)):
        key = override.key_or_group
        sweeps = override.is_sweep_override() or override.is_delete()
        if key in help.GROUPS or override.package is not None or sweeps:
            raise UserError(f"{override.input_line}: with --from single fields can change, not groups or sweeps")
        changes[key] = override.value()
    return changes


def _act(job: Job, notes: Sequence[str], line: CommandLine) -> int:
    """Check what the parent can, then hand the job to the runner."""
    raise_if_any(rules.problems(job))
    for note in (*notes, *rules.notes(job)):
        print(f"fmstune: note: {note}", file=sys.stderr)
    flags = [f"--trust={package}" for package in line.trusted]
    if line.verb is Verb.train:
        return _train(job, flags)
    flags.append(f"--verb={line.verb.value}")
    if line.verb is Verb.show_data:
        flags += [f"--rows={line.rows}", *([f"--json={line.json}"] if line.json else [])]
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        job_file = Path(folder) / "job.yaml"
        freeze.write(job, job_file)
        return launch.start(launch.command(job_file, *flags), launch.environment(job, os.environ))


def _train(job: Job, flags: Sequence[str]) -> int:
    """Claim the run folder, freeze the job into it, run it, and show what came out."""
    job, folder = _claim(job)
    print(f"fmstune: run folder {folder}", file=sys.stderr)
    code = launch.start(launch.command(folder / run_folder.JOB, *flags), launch.environment(job, os.environ))
    if not (folder / run_folder.SUMMARY).is_file():
        # nothing was trained: leave nothing behind
        _release(folder)
        return code if code > 0 else INTERNAL_ERROR
    if code < 0:
        run_folder.mark_killed(folder, -code)
    print(report.render(run_folder.read_summary(folder), folder))
    return code if code >= 0 else INTERNAL_ERROR


def _claim(job: Job) -> tuple[Job, Path]:
    """Make the run folder by creating its job.yaml, which only one process can do."""
    given = job.output_dir
    for number in range(1, 1000):
        folder = Path(given) if given is not None else _default_folder(job.name, number)
        claimed = dataclasses.replace(job, output_dir=str(folder))
        raise_if_any(rules.folder_problems(folder) if given is not None else ())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            freeze.write(claimed, folder / run_folder.JOB)
        except FileExistsError:
            if given is not None:
                raise UserError(f"output_dir: {folder} was taken by another run just now; choose another") from None
            continue
        except OSError as err:
            raise UserError(f"output_dir: {folder} cannot be made: {err.strerror}; choose another") from err
        return claimed, folder
    raise UserError("output_dir: no free folder under runs/; set output_dir")


def _default_folder(name: str, number: int) -> Path:
    now = datetime.now()
    suffix = f"-{number}" if number > 1 else ""
    return Path("runs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{name}{suffix}"


def _release(folder: Path) -> None:
    """Take back what `_claim` made, and the folders above it that this leaves empty."""
    for name in (run_folder.JOB, run_folder.LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    for empty in (folder, *folder.parents):
        if empty == Path(".") or not empty.is_dir() or any(empty.iterdir()):
            return
        empty.rmdir()


def _release_sweep(folder: Path) -> None:
    """Take back Hydra's note on a sweep of which no point left anything."""
    note = folder / "multirun.yaml"
    if note.is_file() and list(folder.iterdir()) == [note]:
        note.unlink()
        _release(folder)


def _tree(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain data, interpolations resolved, missing values left as `???`."""
    unresolved = {str(key) for key in OmegaConf.missing_keys(config)}
    tree = OmegaConf.to_container(config, resolve=not unresolved)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _without_cfg_job(words: Sequence[str]) -> tuple[list[str], Mapping[str, Any] | None]:
    """Take `--cfg job` (with `-p`, `--resolve`) off: we check the composed job before we print it."""
    args, unknown = _hydra_flags(words)
    raise_if_any(_unknown_flag(word) for word in unknown)
    if args.cfg and args.multirun:
        raise UserError("--cfg prints one job, and -m composes several; leave one of them out")
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
        return parser.parse_known_args(list(words))
    except argparse.ArgumentError as err:
        raise UserError(f"{err} (see fmstune --help)") from err


def _unknown_flag(word: str) -> str:
    if word in FLAG_OF:
        return f"{word} is a flag of fmstune {FLAG_OF[word].value}"
    flags = ["--cfg", "--resolve", "--package", "--multirun", "--config-dir", "--info", "--trust", *FLAG_OF]
    return f"unknown flag {word}{did_you_mean(word, flags) or ' (see fmstune --help)'}"


def _print_config(config: DictConfig, how: Mapping[str, Any], trusted: Sequence[str]) -> int:
    if not OmegaConf.missing_keys(config):
        freeze.freeze(_tree(config), trusted=trusted)
    package = how["package"]
    shown = OmegaConf.select(config, package) if package else config
    if shown is None:
        raise UserError(f"--package {package}: the job has no such part{did_you_mean(package, map(str, config))}")
    text = OmegaConf.to_yaml(shown, resolve=how["resolve"]) if OmegaConf.is_config(shown) else f"{shown}\n"
    print(f"# @package {package}\n{text}" if package else text, end="")
    return 0


def _groups(extra: Path | None) -> set[str]:
    """Names that choose a file and not a value: our groups, and those a user's folder adds."""
    own = {path.name for path in extra.iterdir() if path.is_dir()} if extra is not None and extra.is_dir() else set()
    return {*help.GROUPS, *own}


def _config_dir(words: Sequence[str]) -> Path | None:
    given = _hydra_flags(words)[0].config_dir
    return Path(given) if given else None


def _complete(words: Sequence[str]) -> int:
    """Tab completion: Hydra's, on a line without our verb, after our own suggestions."""
    typed = os.environ.get("COMP_LINE")
    if typed is not None:
        print("\n".join(completion.suggestions(typed)))
        os.environ["COMP_LINE"] = completion.for_hydra(typed, _groups(None))
    _compose(words, lambda _config: None)
    return 0


def _explained(err: BaseException) -> str:
    """Hydra's and OmegaConf's messages, with a suggestion where a choice was misspelt and a hint on quoting."""
    text = str(err).strip()
    missing = re.search(r"Could not find '([\w/]+)/([\w.-]*)'", text)
    if missing:
        group, name = missing.groups()
        options = help.choices(group, _config_dir(sys.argv[1:])) if group in help.GROUPS else []
        return f"{group}={name}: no such choice{did_you_mean(name, options)} ({', '.join(options)})"
    several = re.match(r"Ambiguous value for argument '(?:\+\+)?(.*)'", text)
    if several:
        return f"{several[1]}: one run for each value needs -m; a list is written in brackets"
    if isinstance(err, OverrideParseException):
        word = err.override.removeprefix("++")
        if "=" not in word:
            return f"{word}: neither FIELD=VALUE nor GROUP=CHOICE, and a verb comes first (see fmstune --help)"
        return (
            f"{word}: cannot be read as FIELD=VALUE; a value with special characters needs "
            "quotes inside quotes, such as 'data.response_template=\"\\n### Label:\"'"
        )
    if isinstance(err, yaml.YAMLError):
        return f"broken YAML: {' '.join(text.split())}"
    if isinstance(err, OmegaConfBaseException) and err.full_key:
        return f"{err.full_key}: {text.splitlines()[0]}"
    cause = f": {err.__cause__}" if err.__cause__ is not None and str(err.__cause__) not in text else ""
    return text + cause


if __name__ == "__main__":
    main()
