"""One rank: `python -m fmstune.runner RUN/job.yaml`; reads the frozen job, never composes, never makes a folder."""

import argparse
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fmstune import ranks
from fmstune.checks.launcher import rank_problems
from fmstune.config import freeze, requests
from fmstune.config.after_training.serving import Serving, Talk
from fmstune.config.after_training.sharing import Push
from fmstune.config.flags import add_flags
from fmstune.config.requests import Verb, read_request
from fmstune.data.preparation import was_prepared
from fmstune.errors import Preempted, UserError, os_problem, raise_if_any, render
from fmstune.exit_codes import INTERNAL_ERROR, INTERRUPTED, INTERRUPTING, USER_ERROR, closed_pipe
from fmstune.launch import agent, caller, early, parent, preemption
from fmstune.runs import log, processes, run_folder
from fmstune.tables import show_plain_characters
from fmstune.upstream import quick_imports

_OF_THE_USER = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
"""What the operating system says of a name, of permissions or of a full disk: nothing that a traceback explains."""


def main(words: Sequence[str] | None = None) -> int:
    """Do the verb; 0, 2 for what the user can mend, 130 interrupted, 75 stopped by a notice, or 1 with a traceback."""
    show_plain_characters()
    caller.listen()
    given = sys.argv[1:] if words is None else words
    options = _options(_words_of_composed(int(given[1])) if given[:1] == [early.FLAG] else given)
    if options.verb is not Verb.train:
        parent.take_nothing_apart()
    with ExitStack() as until_the_end:
        return _do_verb(options, until_the_end)


def _words_of_composed(pipe: int) -> list[str]:
    """The words of a runner that is started while its job is composed: it imports what it needs, and then waits.

    It ends without a word when it is interrupted, or the parent gives up.
    """
    for number in INTERRUPTING:
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTING)  # the parent starts with them kept back
    parent.watch(lambda: None)
    parent.take_nothing_apart()
    with quick_imports():
        from fmstune.training import pipeline, reproduce  # noqa: F401
    with open(pipe, encoding="utf-8") as line:
        if not (said := line.read()):
            os._exit(INTERNAL_ERROR)
    words: list[str] = json.loads(said)
    return words


def _do_verb(options: argparse.Namespace, until_the_end: ExitStack) -> int:
    """The exit code; an error is shown while the log of `until_the_end` is still kept."""
    try:
        try:
            parent.interrupt_once(saves=options.verb is Verb.train and not (options.prepare or options.probe))
            if issubclass(options.verb.options, requests.RunnerRequest):
                return _answer(options)
            return _act(options, until_the_end)
        finally:
            # the launcher signals every rank when one has failed; no signal may interrupt the report of this rank
            parent.interrupt_no_more()
    except UserError as err:
        if caller.tell_problems(err.problems) and options.verb is not Verb.train:
            return USER_ERROR  # the program that asked shows them
        return _ended("user", render(err.problems), USER_ERROR)
    except Preempted as err:
        return _ended(run_folder.PREEMPTED, f"fmstune: {err}", preemption.CODE)
    except KeyboardInterrupt:
        return _ended("interrupted", "fmstune: interrupted", INTERRUPTED)
    except BrokenPipeError:
        return closed_pipe()
    except OSError as err:
        # without the file's name, the traceback is all that says where
        if err.errno in _OF_THE_USER and (err.filename or err.errno in (errno.ENOSPC, errno.EDQUOT)):
            return _ended("user", render([os_problem(err)]), USER_ERROR)
        return _ended("internal", traceback.format_exc().rstrip(), INTERNAL_ERROR)
    except Exception:
        return _ended("internal", traceback.format_exc().rstrip(), INTERNAL_ERROR)


def _ended(kind: str, text: str, code: int) -> int:
    """Say how it ended, or let the agent above the ranks say it once for all of them."""
    if not agent.tell_agent(kind, text):
        print(text, file=sys.stderr)
    return code


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fmstune.runner", description=__doc__)
    parser.add_argument("job", type=Path, help="the frozen job.yaml of a run folder, or the JSON of a request")
    parser.add_argument("--verb", type=Verb, default=Verb.train, help=", ".join(verb.value for verb in Verb))
    parser.add_argument("--prepare", action="store_true", help="stop when the rows are tokenised and cached")
    parser.add_argument("--probe", action="store_true", help="stop when short runs have chosen the learning rate")
    parser.add_argument("--command", help="what was typed, to be recorded")
    parser.add_argument("--recorded", type=Path, help="reproduce: the folder of the run to compare with")
    parser.add_argument("--again", type=Path, help="reproduce: the folder of the run again, to compare the weights")
    parser.add_argument("--two_layers", type=Path, help="check: write the model at two layers into this folder instead")
    add_flags(parser, requests.ShowData)
    add_flags(parser, requests.Reproduce, {"strict"})
    parser.set_defaults(**{**vars(requests.ShowData()), "trusted": []}, strict=False)
    return parser.parse_args(words)


def _act(options: argparse.Namespace, until_the_end: ExitStack) -> int:
    verb, rank = options.verb, ranks.here()
    job = freeze.read(options.job, trusted=tuple(options.trusted)).job
    raise_if_any(rank_problems(job.launcher, rank))
    folder = Path(job.output_dir) if verb is Verb.train and job.output_dir and rank.is_main else None
    if verb is Verb.train and job.output_dir:
        until_the_end.enter_context(log.keep_log(Path(job.output_dir), stdout=rank.is_main))
    if folder is not None:
        until_the_end.enter_context(processes.record_process(folder))
        run_folder.set_damaged_aside(folder)
        run_folder.mark_begun(folder)
    parent.watch(lambda: run_folder.mark_orphaned(folder) if folder else None)
    if not rank.is_main:  # one process speaks for all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if options.prepare and was_prepared(job):  # as of a job that Slurm has put back into its queue
        return 0
    # here and not above: it imports torch for seconds, in which a signal or the parent's death must already end it
    with quick_imports():
        from fmstune.training import library_noise, pipeline, reproduce

    library_noise.quiet()
    match verb:
        case Verb.modules:
            return pipeline.modules(job)
        case Verb.check if options.two_layers is not None:
            from fmstune.training.debugging import smoke

            return smoke.write_small_model(job, options.two_layers)
        case Verb.check:
            return pipeline.check(job)
        case Verb.show_data:
            return pipeline.show_rows(job, options.rows, options.json, options.html)
        case Verb.reproduce if options.again is not None:
            return reproduce.compare_weights(options.recorded, options.again)
        case Verb.reproduce:
            return reproduce.compare_facts(job, options.recorded, strict=options.strict, trusted=tuple(options.trusted))
        case _:
            if options.prepare:
                return pipeline.prepare(job)
            return pipeline.probe(job) if options.probe else pipeline.train(job, options.command)


def _answer(options: argparse.Namespace) -> int:
    """A verb that has a request; each imports what it needs alone, as what trains takes seconds more."""
    verb, file = options.verb, options.job
    parent.watch(lambda: None)
    if verb in (Verb.report, Verb.compare):
        from fmstune.runs.report import build

        if verb is Verb.report:
            return build.write_report(read_request(requests.Report, file))
        return build.compare_runs(read_request(requests.Comparison, file))
    if verb is Verb.push:
        from fmstune.serving import push

        return push.push_model(read_request(Push, file))
    with quick_imports():
        from fmstune.training import library_noise

        if verb is Verb.rows:
            from fmstune.training.suspects import view
        elif verb is Verb.serve:
            from fmstune.serving import serve
        elif verb is Verb.chat:
            from fmstune.serving import talk
        elif verb is Verb.generate:
            from fmstune.evaluation import ask
        elif verb is not Verb.evaluate:
            from fmstune.models import merge
            from fmstune.serving.parity import prove
    library_noise.quiet()
    if verb is Verb.rows:
        return view.show_suspects(read_request(requests.SuspectRows, file))
    if verb is Verb.serve:
        return serve.serve_model(read_request(Serving, file))
    if verb is Verb.chat:
        return talk.hold_talk(read_request(Talk, file))
    if verb is Verb.generate:
        return ask.answer_prompts(read_request(requests.Generation, file))
    if verb is Verb.merge:
        asked = read_request(requests.Merge, file)
        if asked.export in (requests.Export.gguf, requests.Export.ollama):
            from fmstune.serving.llama_cpp.export import write_export

            return write_export(asked)
        return merge.run_merge(asked, prove.prove_merged)
    if verb is Verb.parity:
        return prove.run_parity(read_request(requests.Parity, file))
    if "tasks" in json.loads(file.read_text(encoding="utf-8")):
        from fmstune.evaluation import harness

        return harness.run_harness(read_request(requests.Harness, file))
    with quick_imports():
        from fmstune.evaluation import score

    return score.evaluate_rows(read_request(requests.Scoring, file))


if __name__ == "__main__":
    parent.leave(main())
