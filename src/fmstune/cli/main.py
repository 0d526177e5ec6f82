"""The parent process: read the command line, and do what it says. Imports nothing heavy."""

import atexit
import dataclasses
import gc
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fmstune import __version__
from fmstune.cli import composed
from fmstune.cli.arguments import CommandLine, HelpOrVersion, parse_command_line
from fmstune.config import compose
from fmstune.config.composing_errors import ERRORS, explain
from fmstune.config.first_aid.verbs import Bisect, Clean, Copy, Logs, Recipes, Runs, Stop, WriteSchema
from fmstune.config.renamed_fields import with_compare_by_words
from fmstune.config.requests import Composing, Doctor, FromFms, Reproduce
from fmstune.errors import Problem, UserError, os_problem, raise_if_any, render
from fmstune.exit_codes import INTERRUPTED, USER_ERROR, closed_pipe
from fmstune.files import refuse_pipe, user_path
from fmstune.launch import caller, parent
from fmstune.sweeps import optuna
from fmstune.sweeps.search_files import with_search_files
from fmstune.tables import show_plain_characters


def main() -> NoReturn:
    """The console script: exits 0, 2 for what the user can mend, 1 for what we must, 130 when interrupted."""
    show_plain_characters()
    caller.listen()
    if caller.listens():
        parent.watch(lambda: None)
    optuna.register_sweeper()
    # Python collects garbage once more before it frees all: a sixth of a short command's time
    atexit.register(gc.freeze)
    logging.raiseExceptions = False  # Hydra logs to stdout, which `| head` may have closed
    try:
        sys.exit(run_command(sys.argv[1:]))
    except UserError as err:
        if not caller.tell_problems(err.problems):
            print(render(err.problems), file=sys.stderr)
    except BrokenPipeError:
        sys.exit(closed_pipe())
    except OSError as err:  # such as a sweep's folder that is a file, or a name that is too long
        if not caller.tell_problems([os_problem(err)]):
            print(render([os_problem(err)]), file=sys.stderr)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(USER_ERROR)


def run_command(words: Sequence[str]) -> int:
    """Do what one command line says; the exit code."""
    if "--shell-completion" in words or "-sc" in words:
        return _complete(words)
    todays, notes = with_compare_by_words(words)
    for note in notes:
        print(f"fmstune: note: {note}", file=sys.stderr)
    line = parse_command_line(todays)
    if isinstance(line, HelpOrVersion):
        from fmstune.cli import help

        print(f"fmstune {__version__}" if line.version else help.help_text(line.verb, line.config_dir))
        return 0
    try:
        return _run_verb(line)
    except ERRORS as err:
        raise UserError.of([explain(err)]) from err


def _run_verb(line: CommandLine) -> int:
    """Imports for some verbs are here and not above, where they would delay all verbs."""
    match line.options:
        case Doctor(clear_cache=clear):
            from fmstune.launch import subprocesses

            # doctor imports torch, and so has a process of its own
            argv = [sys.executable, "-m", "fmstune.cli.doctor", *(["--clear-cache"] if clear else [])]
            return subprocesses.start(argv, os.environ)
        case FromFms() as asked:
            return _translate(asked)
        case Reproduce() as asked:
            from fmstune.cli import repeat

            return repeat.reproduce_run(line, asked)
        case Bisect() as asked:
            from fmstune.cli import bisect

            return bisect.bisect_runs(line, asked)
        case Composing():
            return _run_job(line)
        case Runs() | Logs() | Stop() | Clean() as asked:
            from fmstune.cli import run_care

            return run_care.care_for_runs(asked)
        case Recipes() | Copy() | WriteSchema() as asked:
            from fmstune.cli import group_files

            return group_files.answer_about_files(line, asked)
        case asked:
            from fmstune.cli import after_training

            return after_training.ask_runner(line, asked)


def _run_job(line: CommandLine) -> int:
    hydra, resumed = line.hydra, getattr(line.options, "resume", None)
    repeated = getattr(line.options, "from_job", None)
    if not resumed and not repeated:
        composed.check_choices(line)
        line = dataclasses.replace(line, overrides=with_search_files(line.overrides, hydra))
        if hydra.cfg:
            return composed.tell_job(line) if caller.listens() else composed.print_config(line)
        if hydra.info or hydra.hydra_help:
            return compose.call_hydra(line.overrides, hydra)
    from fmstune.cli import repeat, start_job, sweep

    if resumed:
        return sweep.resume_sweep(line, resumed)
    if repeated:
        return repeat.repeat_job(line, repeated)
    code = None if hydra.multirun else start_job.run_one_job(line)
    return sweep.run_sweep(line) if code is None else code


def _translate(asked: FromFms) -> int:
    """Print today's command for each old one, and what changed; with `--run`, run it; the first failure's exit code."""
    from fmstune.migrate.translate import render_command, render_notes, translate_old_commands

    found = translate_old_commands(asked.old_command, os.environ, _text_of)
    unset = [name for one in found for name in one.unset] if asked.run_it else []
    raise_if_any(Problem("", f"${name} has no value; set it before the command") for name in unset)
    out = sys.stderr if asked.run_it else sys.stdout  # with --run, stdout is that of the commands
    for place, translation in enumerate(found):
        # a blank line between two
        print("\n" * (place > 0) + render_command(translation), file=out, flush=True)
        print(render_notes(translation), file=sys.stderr)
    code = 0
    for translation in found if asked.run_it else ():
        os.environ.update(translation.environment)
        code = code or run_command(translation.words)
    return code


def _text_of(name: str) -> str | None:
    """The text of a file, of stdin for `-`; None where there is none."""
    if name == "-":
        return sys.stdin.read()
    path = user_path(name)
    refuse_pipe("from-fms", path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise UserError(name, f"is not text ({err.reason}); give a script or a job file") from err
    except OSError:
        return None


def _complete(words: Sequence[str]) -> int:
    """Tab completion: Hydra's, on a line without our verb, after our own suggestions."""
    from fmstune.cli import completion

    if (typed := os.environ.get("COMP_LINE")) is not None:
        print("\n".join(completion.suggestions(typed)))
        os.environ["COMP_LINE"] = completion.line_for_hydra(typed)
    line = parse_command_line(words)
    assert isinstance(line, CommandLine)
    return compose.call_hydra(line.overrides, line.hydra)
