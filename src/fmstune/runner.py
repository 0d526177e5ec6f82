"""One rank: `python -m fmstune.runner RUN/job.yaml`; reads the frozen job, never composes, never makes a folder."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from fmstune import ranks
from fmstune.checks.launcher import rank_problems
from fmstune.config import freeze
from fmstune.config.flags import add_flags
from fmstune.config.job import Job
from fmstune.config.requests import (
    Comparison,
    Generation,
    Harness,
    Merge,
    Report,
    Reproduce,
    Scoring,
    ShowData,
    Verb,
    read_request,
)
from fmstune.errors import Preempted, UserError, raise_if_any, render
from fmstune.launch import agent, parent, preemption
from fmstune.runs import run_folder
from fmstune.upstream import hide_unused_packages


def main(words: Sequence[str] | None = None) -> int:
    """Do the verb; 0, 2 for what the user can mend, 130 when interrupted, 1 with a traceback for what we must.

    75 when it stopped at a notice, with a checkpoint.
    """
    options = _options(words)
    try:
        parent.interrupt_once(saves=_trains(options))
        return _act(options)
    except UserError as err:
        return _ended("user", render(err.problems), 2)
    except Preempted as err:
        return _ended(run_folder.PREEMPTED, f"fmstune: {err}", preemption.CODE)
    except KeyboardInterrupt:
        return _ended("interrupted", "fmstune: interrupted", 130)
    except BrokenPipeError:
        # `| head` has seen enough; nothing may be flushed into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        return _ended("internal", traceback.format_exc().rstrip(), 1)


def _ended(kind: str, text: str, code: int) -> int:
    """Say how it ended, or let the agent above the ranks say it once for all of them."""
    if not agent.tell_agent(kind, text):
        print(text, file=sys.stderr)
    return code


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fmstune.runner", description=__doc__)
    parser.add_argument(
        "job", type=Path, help="the frozen job.yaml of a run folder; for a verb after training, a request"
    )
    parser.add_argument("--verb", choices=[v.value for v in Verb if v is not Verb.doctor], default=Verb.train.value)
    parser.add_argument("--prepare", action="store_true", help="stop when the rows are tokenised and cached")
    parser.add_argument("--command", help="what was typed, to be recorded")
    parser.add_argument("--recorded", type=Path, help="reproduce: the folder of the run to compare with")
    parser.add_argument("--again", type=Path, help="reproduce: the folder of the run again, to compare the weights")
    add_flags(parser, ShowData)
    add_flags(parser, Reproduce, {"strict"})
    parser.set_defaults(**{**vars(ShowData()), "trusted": []}, strict=False)
    return parser.parse_args(words)


def _trains(options: argparse.Namespace) -> bool:
    return options.verb == Verb.train.value and not options.prepare


def _act(options: argparse.Namespace) -> int:
    verb = Verb(options.verb)
    if verb in (Verb.generate, Verb.merge, Verb.evaluate):
        return _after(verb, options.job)
    if verb in (Verb.report, Verb.compare):
        return _look_back(verb, options.job)
    rank = ranks.here()
    job = freeze.read(options.job, trusted=tuple(options.trusted)).job
    raise_if_any(rank_problems(job.launcher, rank))
    folder = Path(job.output_dir) if verb is Verb.train and job.output_dir and rank.is_main else None
    if folder is not None:
        run_folder.mark_begun(folder)
    parent.watch(lambda: run_folder.mark_orphaned(folder) if folder else None)
    if not rank.is_main:
        # one process speaks for all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # here and not above: it imports torch for seconds, in which a signal or the parent's death must be heeded already
    with hide_unused_packages():
        from fmstune.training import library_noise, pipeline

    library_noise.quiet()
    if verb is Verb.modules:
        return pipeline.modules(job)
    if verb is Verb.check:
        return pipeline.check(job)
    if verb is Verb.show_data:
        return pipeline.show_rows(job, options.rows, options.json, options.html)
    if verb is Verb.reproduce:
        return _reproduce(job, options)
    return pipeline.prepare(job) if options.prepare else pipeline.train(job, options.command)


def _reproduce(job: Job, options: argparse.Namespace) -> int:
    """Before the run again, what differs; after it, by how much the weights do."""
    from fmstune.training import reproduce

    if options.again is not None:
        return reproduce.compare_weights(options.recorded, options.again)
    return reproduce.check(job, options.recorded, strict=options.strict, trusted=tuple(options.trusted))


def _after(verb: Verb, file: Path) -> int:
    """A verb after training, which has a request and no job."""
    parent.watch(lambda: None)
    if verb is Verb.evaluate:
        return _evaluate(file)
    # these alone: what trains takes seconds more to import
    with hide_unused_packages():
        from fmstune.evaluation import ask
        from fmstune.models import merge
        from fmstune.training import library_noise

    library_noise.quiet()
    if verb is Verb.merge:
        return merge.run(read_request(Merge, file))
    return ask.answer_prompts(read_request(Generation, file))


def _look_back(verb: Verb, file: Path) -> int:
    """A verb about runs that are there, which needs no torch."""
    parent.watch(lambda: None)
    # what draws takes a second to import
    from fmstune.runs.report import build

    if verb is Verb.report:
        return build.write_report(read_request(Report, file))
    return build.compare_runs(read_request(Comparison, file))


def _evaluate(file: Path) -> int:
    harness = "tasks" in json.loads(file.read_text(encoding="utf-8"))
    with hide_unused_packages():
        from fmstune.training import library_noise

    library_noise.quiet()
    if harness:
        from fmstune.evaluation import harness as harness_tasks

        return harness_tasks.run_harness(read_request(Harness, file))
    with hide_unused_packages():
        from fmstune.evaluation import score

    return score.evaluate_rows(read_request(Scoring, file))


if __name__ == "__main__":
    parent.leave(main())
