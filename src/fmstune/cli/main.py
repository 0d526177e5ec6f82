"""The parent process: read the command line, and do what it says. Imports nothing heavy."""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fmstune import __version__
from fmstune.cli import completion, composed_jobs, help
from fmstune.cli.arguments import parse
from fmstune.config import compose
from fmstune.config.renamed_fields import with_compare_by_words
from fmstune.config.verbs import Verb
from fmstune.errors import Problem, UserError, raise_if_any, render
from fmstune.exit_codes import INTERRUPTED, USER_ERROR, closed_pipe
from fmstune.launch import subprocesses
from fmstune.sweeps import optuna


def main() -> NoReturn:
    """The console script: exits 0, 2 for what the user can mend, 1 for what we must, 130 when interrupted."""
    optuna.register()
    logging.raiseExceptions = False  # Hydra logs to stdout, which `| head` may have closed
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as err:
        print(render(err.problems), file=sys.stderr)
    except compose.ERRORS as err:
        print(render([compose.explained(err)]), file=sys.stderr)
    except BrokenPipeError:
        sys.exit(closed_pipe())
    except OSError as err:
        # such as a sweep's folder that is a file, or a name that is too long
        print(render([Problem(str(err.filename or "a file"), f": {err.strerror or err}")]), file=sys.stderr)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(USER_ERROR)


def run(words: Sequence[str]) -> int:
    """Do what one command line says; the exit code."""
    if "--shell-completion" in words or "-sc" in words:
        return _complete(words)
    todays, notes = with_compare_by_words(words)
    for note in notes:
        print(f"fmstune: note: {note}", file=sys.stderr)
    line = dataclasses.replace(parse(todays), typed=tuple(words))
    if line.version:
        print(f"fmstune {__version__}")
        return 0
    if line.help:
        # train is meant where no verb is named; then the help is of all of them
        named = None if line.verb is Verb.train and words[0] != Verb.train.value else line.verb
        print(help.text(named, compose.config_dir(line.hydra)))
        return 0
    if line.verb is Verb.doctor:
        return subprocesses.start(subprocesses.doctor_command(clear_cache=line.clear_cache), os.environ)
    printed = compose.without_cfg_job(line.hydra)[1] is not None
    if line.sources and line.verb is Verb.train and not printed:
        raise UserError("--sources", "is a flag of fmstune check, and goes with --cfg job")
    if line.verb is Verb.from_fms:
        return _from_fms(line.old_command, run_it=line.run_it)
    if line.request is not None:
        # here and not above: what some verbs need is not imported at the start of all
        from fmstune.cli import request_verbs

        return request_verbs.run(line, line.request)
    if line.resume or line.run or line.from_job:
        from fmstune.cli import recorded_jobs

        return recorded_jobs.run(line)
    return composed_jobs.run(line)


def _from_fms(old_command: Sequence[str], *, run_it: bool) -> int:
    """Print what an old command is today, and what changed; with `run_it`, run it; the first failure's exit code."""
    from fmstune.migrate import translate

    found = translate.translate(old_command, os.environ, _text_of)
    if run_it:
        raise_if_any(
            Problem("", f"${name} has no value; set it before the command") for one in found for name in one.unset
        )
    for place, translation in enumerate(found):
        # a blank line between two commands; with --run, stdout is theirs
        print(
            "\n" * (place > 0) + translate.command(translation), file=sys.stderr if run_it else sys.stdout, flush=True
        )
        print(translate.explanation(translation), file=sys.stderr)
    if not run_it:
        return 0
    code = 0
    for translation in found:
        os.environ.update(translation.environment)
        code = code or run(translation.words)
    return code


def _text_of(name: str) -> str | None:
    """The text of a file, of stdin for `-`; None where there is none."""
    if name == "-":
        return sys.stdin.read()
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise UserError(name, f"is not text ({err.reason}); give a script or a job file") from err
    except OSError:
        return None


def _complete(words: Sequence[str]) -> int:
    """Tab completion: Hydra's, on a line without our verb, after our own suggestions."""
    typed = os.environ.get("COMP_LINE")
    if typed is not None:
        print("\n".join(completion.suggestions(typed)))
        os.environ["COMP_LINE"] = completion.for_hydra(typed, compose.groups(None))
    compose.compose(words, lambda _config: None)
    return 0


if __name__ == "__main__":
    main()
