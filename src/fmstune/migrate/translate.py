"""`fmstune from-fms`: a command, a script or a job file of the early tool → the same in fmstune's words.

A pure function of text; files that the text names are read by a function that is handed in.
"""

import base64
import binascii
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.migrate import asking, launcher, shell, tuning
from fmstune.migrate.flags import HARNESS, INFERENCE, TUNING, of_tuning
from fmstune.migrate.launcher import Given, Launched, Read, json_object
from fmstune.migrate.shell import UNSET, Command
from fmstune.migrate.words import Became, Note, Translated, read_flags, readable

_TUNING = ("sft_trainer.py", "tuning.sft_trainer")
_INFERENCE = ("run_inference.py", "scripts.run_inference")
_HARNESS = ("main.py", "lm_eval", "lm-eval", "lm_eval.__main__")
_CONTAINER = ("accelerate_launch.py", "launch_training.py", "build.accelerate_launch", "build.launch_training")
_TORCHRUN = ("torchrun", "torch.distributed.launch", "torch.distributed.run")
_JOB_FILE, _JOB_TEXT = "SFT_TRAINER_CONFIG_JSON_PATH", "SFT_TRAINER_CONFIG_JSON_ENV_VAR"
_LAUNCH_KEYS = ("accelerate_launch_args", "multiGPU")
_ENVIRONMENT = re.compile(r"CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|TOKENIZERS_PARALLELISM|(HF|NCCL|WANDB|MLFLOW)_\w+")
"""Variables that mean to fmstune what they meant to the early tool, and stay before the command."""


@dataclass(frozen=True)
class Translation:
    """One command of today."""

    words: tuple[str, ...]
    """The words after `fmstune`; a variable without a value stands between UNSET."""
    environment: Mapping[str, str]
    """What stands before the command."""
    notes: tuple[Note, ...]

    @property
    def unset(self) -> list[str]:
        """Names of variables without a value."""
        found = re.findall(f"{UNSET}(\\w+){UNSET}", " ".join(self.words))
        return list(dict.fromkeys(found))


def translate(given: Sequence[str], environment: Mapping[str, str], read: Read) -> list[Translation]:
    """The commands of today for what was typed: words of a command, its text, or a file's name.

    `environment` has the variables that the text may use. Raises UserError where nothing is the early tool's.
    """
    try:
        # a name with a variable that has no value is no file's
        return _translated(given, environment, lambda name: None if UNSET in name else read(name))
    except UserError as err:
        raise UserError.of(Problem(readable(one.field), readable(one.text)) for one in err.problems) from err


def _translated(given: Sequence[str], environment: Mapping[str, str], read: Read) -> list[Translation]:
    if not given:
        raise UserError("from-fms", "needs an old command in single quotes or after --, or a file; - is stdin")
    if len(given) > 1:
        return _of_commands([Command(tuple(given), {})], environment, read)
    text = read(given[0]) if _may_be_file(given[0]) else None
    if text is None:
        text = given[0]
    job = _job_of(text.strip(), "the job")
    if job is not None:
        return [_of_job(job, environment, read)]
    return _of_commands(shell.commands(text, environment), environment, read)


def _may_be_file(word: str) -> bool:
    return "\n" not in word and len(word) < 4096


def _job_of(text: str, name: str) -> dict[str, Any] | None:
    """The early container's job: JSON, or JSON in base64; None where the text is neither."""
    if text.startswith("{"):
        return json_object(text, name)
    if not re.fullmatch(r"[A-Za-z0-9+/\s]{16,}={0,2}", text):
        return None
    try:
        raw = base64.b64decode(re.sub(r"\s", "", text), validate=True)
    except binascii.Error:
        return None
    if raw.startswith(b"\x80"):
        raise UserError(name, "is a pickle, which could run code when it is read; give it as JSON")
    if not raw.lstrip().startswith(b"{"):
        return None
    return json_object(raw.decode("utf-8", errors="replace"), name)


def _of_job(job: Mapping[str, Any], environment: Mapping[str, str], read: Read) -> Translation:
    """A job of the container: flags by name, and those of `accelerate launch` under a key of their own."""
    flags = {name: value for name, value in job.items() if name not in _LAUNCH_KEYS}
    launch: Given | None = None
    for key in _LAUNCH_KEYS:
        if job.get(key):
            launch = _words_of(job[key])
            # the container took its own file where the job named none, and all GPUs
            if "config_file" not in launch:
                launch["use_fsdp"] = ["true"]
    return _finished([], tuning.translate(_words_of(flags), launch, environment, read), {})


def _words_of(values: Mapping[str, Any]) -> Given:
    """A job file's values as the words of flags; null says nothing."""
    found: Given = {}
    for name, value in values.items():
        if value is not None:
            listed = value if isinstance(value, list) else [value]
            found[name] = [json.dumps(one) if isinstance(one, dict) else str(one) for one in listed]
    return found


def _of_commands(commands: Sequence[Command], environment: Mapping[str, str], read: Read) -> list[Translation]:
    found: list[Translation] = []
    others: list[str] = []
    for command in commands:
        translation = _of_command(command, environment, read)
        if translation is None:
            others.append(" ".join(command.words)[:70])
        else:
            found.append(translation)
    if not found:
        hint = "give one that starts tuning/sft_trainer.py, scripts/run_inference.py or lm_eval, or a file that is here"
        raise UserError("", f"no command{f' of the early tool in {others[0]!r}' if others else ''}; {hint}")
    passed = tuple(Note(Became.dropped, other, why="it is no command of the early tool") for other in others)
    return [Translation(found[0].words, found[0].environment, (*found[0].notes, *passed)), *found[1:]]


def _of_command(command: Command, environment: Mapping[str, str], read: Read) -> Translation | None:
    """The translation of one command; None where it is not the early tool's."""
    around = {**environment, **command.environment}
    kept = {name: value for name, value in command.environment.items() if _ENVIRONMENT.fullmatch(name)}
    launched = _launched(list(command.words))
    words = _without_python(launched.rest)
    if not words:
        return None
    program, rest = PurePath(words[0]).name, words[1:]
    if program in _CONTAINER:
        return _of_container(around, read)
    if program in _TUNING:
        out = tuning.translate(_flags(rest, TUNING), launched.flags, around, read)
        return _finished([], _as_typed(out, launched), kept)
    if program in _INFERENCE:
        return _finished(["generate"], asking.generate(_flags(rest, INFERENCE)), kept)
    if program in _HARNESS and any(word.startswith(("--tasks", "--model_args")) for word in rest):
        return _finished(["evaluate", "harness"], asking.harness(_flags(rest, HARNESS)), kept)
    return None


def _launched(words: list[str]) -> Launched:
    """The launcher's flags, and the words of what it launches."""
    plain = _without_python(words)
    if words[:2] == ["accelerate", "launch"]:
        return launcher.of_accelerate(words[2:])
    if plain and plain[0] in ("accelerate.commands.launch",):
        return launcher.of_accelerate(plain[1:])
    if plain and PurePath(plain[0]).name in _TORCHRUN:
        return launcher.of_torchrun(plain[1:])
    return Launched(None, words)


def _as_typed(out: Translated, launched: Launched) -> Translated:
    """The translation with what the launcher's own flags came to, under the names that were typed."""
    names = {f"--{name}": old for name, old in launched.spelled.items()}
    notes = [_renamed(note, names.get(note.old.partition(" ")[0])) for note in out.notes]
    return Translated(out.fields, [*notes, *launched.notes], [*launched.problems, *out.problems])


def _renamed(note: Note, old: str | None) -> Note:
    if old is None:
        return note
    return replace(note, old=old, became=Became.renamed if note.became is Became.kept else note.became)


def _without_python(words: list[str]) -> list[str]:
    """The words from the script or module on."""
    rest = list(words)
    if rest and re.fullmatch(r"python[\d.]*", PurePath(rest[0]).name):
        rest.pop(0)
        while rest and rest[0].startswith("-") and rest[0] != "-m":
            rest.pop(0)
    return rest[1:] if rest[:1] == ["-m"] else rest


def _flags(words: list[str], flags: Mapping[str, Any]) -> Given:
    known = dict(flags)
    if flags is TUNING:
        # the switches of transformers that the table does not list
        names = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
        known |= {name: flag for name in names if (flag := of_tuning(name)) is not None}
    given, rest = read_flags(words, known)
    raise_if_any([Problem("", f"{rest[0]!r} belongs to no flag; a value with spaces needs quotes")] if rest else [])
    return given


def _of_container(environment: Mapping[str, str], read: Read) -> Translation:
    if _JOB_FILE in environment:
        text = read(environment[_JOB_FILE])
        if text is None:
            raise UserError("", f"{_JOB_FILE}={environment[_JOB_FILE]} cannot be read; give the job file itself")
    elif _JOB_TEXT in environment:
        text = environment[_JOB_TEXT]
    else:
        raise UserError("", f"the container's job is in {_JOB_FILE} or {_JOB_TEXT}; give the job file itself")
    job = _job_of(text.strip(), "the job")
    if job is None:
        raise UserError(
            "", f"the job in {_JOB_FILE if _JOB_FILE in environment else _JOB_TEXT} is neither JSON nor base64"
        )
    return _of_job(job, environment, read)


def _finished(verb: list[str], out: Translated, environment: Mapping[str, str]) -> Translation:
    raise_if_any(out.problems)
    words = list(verb)
    for field, value in out.fields.items():
        words += [field, value] if field.startswith("--") else [f"{field}={value}"]
    return Translation(tuple(words), environment, tuple(out.notes))


def command(translation: Translation) -> str:
    """The command to copy: one field a line, quoted for the shell."""
    words = list(translation.words)
    first = [word for word in words[:2] if not word.startswith("--") and "=" not in word]
    groups: list[list[str]] = []
    for word in words[len(first) :]:
        if groups and groups[-1][0].startswith("--") and len(groups[-1]) == 1:
            groups[-1].append(word)
        else:
            groups.append([word])
    set_before = [f"{name}={_quoted(value)}" for name, value in translation.environment.items()]
    lines = [" ".join([*set_before, "fmstune", *first])]
    lines += ["  " + " ".join(map(_quoted, group)) for group in groups]
    return " \\\n".join(lines)


def _quoted(word: str) -> str:
    """A word in shell quotes; a variable without a value stays one."""
    if UNSET not in word:
        return shlex.quote(word)
    safe = re.sub(r'(["$`\\])', r"\\\1", word)
    return '"' + re.sub(f"{UNSET}(\\w+){UNSET}", r"${\1}", safe) + '"'


def explanation(translation: Translation) -> str:
    """What became of each flag, for people: first what stayed, last what changed."""
    notes = [note for became in Became for note in translation.notes if note.became is became]
    lines = [" ".join(_columns(note)).rstrip() for note in notes]
    for name in translation.unset:
        lines.append(f"unset    ${name} has no value here; set it before the command runs")
    return "\n".join(lines)


def _columns(note: Note) -> list[str]:
    new = f"→ {readable(note.new)}" if note.new else ""
    why = f"({note.why})" if note.why else ""
    return [f"{note.became.value:<8}", f"{note.old:<44}", new, why]
