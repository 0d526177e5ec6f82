"""`fmstune from-fms`: a command, a script or a job file of the early tool → commands of fmstune."""

import base64
import binascii
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.migrate.flags import HARNESS, INFERENCE, TUNING, Flag
from fmstune.migrate.inference import translate_harness, translate_inference
from fmstune.migrate.launcher import Launched, Read, json_object, read_accelerate_launch, read_torchrun
from fmstune.migrate.shell import UNSET, Command, shell_commands
from fmstune.migrate.tuning import translate_tuning
from fmstune.migrate.words import Became, Given, Note, Translation, read_flags, readable

_TUNING = ("sft_trainer.py", "tuning.sft_trainer")
_INFERENCE = ("run_inference.py", "scripts.run_inference")
_HARNESS = ("main.py", "lm_eval", "lm-eval", "lm_eval.__main__")
_CONTAINER = ("accelerate_launch.py", "launch_training.py", "build.accelerate_launch", "build.launch_training")
_TORCHRUN = ("torchrun", "torch.distributed.launch", "torch.distributed.run")
_JOB_FILE, _JOB_TEXT = "SFT_TRAINER_CONFIG_JSON_PATH", "SFT_TRAINER_CONFIG_JSON_ENV_VAR"
_LAUNCH_KEYS = ("accelerate_launch_args", "multiGPU")
_ENVIRONMENT = re.compile(r"CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|TOKENIZERS_PARALLELISM|(HF|NCCL|WANDB|MLFLOW)_\w+")
"""Variables with the same meaning for fmstune; they stay before the command."""


def translate_old_commands(given: Sequence[str], environment: Mapping[str, str], read: Read) -> list[Translation]:
    """Translate the words of one command, or a text or file with several; `environment` has variables of the text."""

    def read_named(name: str) -> str | None:
        # a name with a variable without a value names no file
        return None if UNSET in name else read(name)

    if not given:
        raise UserError("from-fms", "needs an old command in single quotes or after --, or a file; - is stdin")
    try:
        if len(given) > 1:
            return _translate_commands([Command(tuple(given), {})], environment, read_named)
        text = read_named(given[0]) if "\n" not in given[0] and len(given[0]) < 4096 else None
        text = given[0] if text is None else text
        if (job := _read_job(text.strip())) is not None:
            return [_translate_job(job, environment, read_named)]
        return _translate_commands(shell_commands(text, environment), environment, read_named)
    except UserError as err:
        raise UserError.of(Problem(readable(one.field), readable(one.text)) for one in err.problems) from err


def _read_job(text: str) -> dict[str, Any] | None:
    """Parse the early container's job, JSON or JSON in base64; None for any other text."""
    if text.startswith("{"):
        return json_object(text, "the job")
    if not re.fullmatch(r"[A-Za-z0-9+/\s]{16,}={0,2}", text):
        return None
    try:
        raw = base64.b64decode(re.sub(r"\s", "", text), validate=True)
    except binascii.Error:
        return None
    if raw.startswith(b"\x80"):
        raise UserError("from-fms", ": the job is a pickle, which could run code when it is read; give it as JSON")
    return json_object(raw.decode(errors="replace"), "the job") if raw.lstrip().startswith(b"{") else None


def _translate_job(job: Mapping[str, Any], environment: Mapping[str, str], read: Read) -> Translation:
    """Translate a job of the container: flags by name, with those of `accelerate launch` under their own key."""
    launch: Given | None = None
    for key in _LAUNCH_KEYS:
        if job.get(key):
            launch = _values_of(job[key])
            # without a file, the container used its own and all GPUs
            if "config_file" not in launch:
                launch["use_fsdp"] = ["true"]
    flags = _values_of({name: value for name, value in job.items() if name not in _LAUNCH_KEYS})
    out = Translation()
    translate_tuning(flags, launch, environment, read, out)
    raise_if_any(out.problems)
    return out


def _values_of(values: Mapping[str, Any]) -> Given:
    """A job file's values as the values of flags, without null."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in values.items() if value is not None}
    return {name: [json.dumps(v) if isinstance(v, dict) else str(v) for v in each] for name, each in lists.items()}


def _translate_commands(commands: Sequence[Command], environment: Mapping[str, str], read: Read) -> list[Translation]:
    """Translate the early tool's commands; the first translation notes the commands of other tools."""
    all_found = [(command, _translate_command(command, environment, read)) for command in commands]
    found = [translation for _, translation in all_found if translation is not None]
    others = [" ".join(command.words)[:70] for command, translation in all_found if translation is None]
    if not found:
        which = f" of the early tool in {others[0]!r}" if others else ""
        hint = "give one that starts tuning/sft_trainer.py, scripts/run_inference.py or lm_eval, or an existing file"
        raise UserError("", f"no command{which}; {hint}")
    found[0].notes += [Note(Became.dropped, other, why="not a command of the early tool") for other in others]
    return found


def _translate_command(command: Command, environment: Mapping[str, str], read: Read) -> Translation | None:
    around = {**environment, **command.environment}
    out = Translation({name: value for name, value in command.environment.items() if _ENVIRONMENT.fullmatch(name)})
    launched = _split_launcher(list(command.words), out)
    words = _without_python(launched.rest)
    program, rest = PurePath("".join(words[:1])).name, words[1:]
    if program in _CONTAINER:
        return _translate_container(around, read)
    if program in _TUNING:
        translate_tuning(_read_all_flags(rest, TUNING), launched.flags, around, read, out)
        out.notes = [_with_typed_name(note, launched.spelled) for note in out.notes]
    elif program in _INFERENCE:
        translate_inference(_read_all_flags(rest, INFERENCE), out)
    elif program in _HARNESS and any(word.startswith(("--tasks", "--model_args")) for word in rest):
        translate_harness(_read_all_flags(rest, HARNESS), out)
    else:
        return None
    raise_if_any(out.problems)
    return out


def _split_launcher(words: list[str], out: Translation) -> Launched:
    plain = _without_python(words)
    if words[:2] == ["accelerate", "launch"]:
        return read_accelerate_launch(words[2:])
    if plain[:1] == ["accelerate.commands.launch"]:
        return read_accelerate_launch(plain[1:])
    if plain and PurePath(plain[0]).name in _TORCHRUN:
        return read_torchrun(plain[1:], out)
    return Launched(None, words)


def _with_typed_name(note: Note, spelled: Mapping[str, str]) -> Note:
    old = spelled.get(note.old.partition(" ")[0].removeprefix("--"))
    became = Became.renamed if note.became is Became.kept else note.became
    return replace(note, old=old, became=became) if old else note


def _without_python(words: list[str]) -> list[str]:
    """The words from the script or module on."""
    rest = list(words)
    if rest and re.fullmatch(r"python[\d.]*", PurePath(rest[0]).name):
        rest.pop(0)
        while rest and rest[0].startswith("-") and rest[0] != "-m":
            rest.pop(0)
    return rest[1:] if rest[:1] == ["-m"] else rest


def _read_all_flags(words: list[str], flags: Mapping[str, Flag]) -> Given:
    given, rest = read_flags(words, flags)
    if rest:
        raise UserError("", f"{rest[0]!r} belongs to no flag; put a value with spaces into quotes")
    return given


def _translate_container(environment: Mapping[str, str], read: Read) -> Translation:
    name = next((name for name in (_JOB_FILE, _JOB_TEXT) if name in environment), None)
    if name is None:
        raise UserError("", f"{_JOB_FILE} or {_JOB_TEXT} must name the container's job; or give the job file itself")
    text = read(environment[name]) if name == _JOB_FILE else environment[name]
    if text is None:
        raise UserError("", f"{name}={environment[name]} cannot be read; give the job file itself")
    if (job := _read_job(text.strip())) is None:
        raise UserError("", f"the job in {name} is neither JSON nor base64")
    return _translate_job(job, environment, read)


def render_command(translation: Translation) -> str:
    """The command in shell quotes, one field a line."""
    set_before = [f"{name}={_quoted(value)}" for name, value in translation.environment.items()]
    lines = [" ".join([*set_before, "fmstune", *translation.verb])]
    lines += ["  " + " ".join(map(_quoted, words)) for words in translation.lines()]
    return " \\\n".join(lines)


def _quoted(word: str) -> str:
    """A word in shell quotes; a variable without a value stays a variable."""
    if UNSET not in word:
        return shlex.quote(word)
    safe = re.sub(r'(["$`\\])', r"\\\1", word)
    return '"' + re.sub(f"{UNSET}(\\w+){UNSET}", r"${\1}", safe) + '"'


def render_notes(translation: Translation) -> str:
    """One line for each note, in the order of Became, and for each variable without a value."""
    lines = []
    for note in sorted(translation.notes, key=lambda note: list(Became).index(note.became)):
        new, why = f"→ {readable(note.new)}" if note.new else "", f"({note.why})" if note.why else ""
        lines.append(f"{note.became.value:<8} {note.old:<44} {new} {why}".rstrip())
    lines += [f"unset    ${name} has no value; set it before the command" for name in translation.unset]
    return "\n".join(lines)
