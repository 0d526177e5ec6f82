"""What a Slurm job says at its end: `python -m fmstune.launch.slurm_end RUN/job.yaml CODE [--requeue]`.

As the parent does for a run on its own machine: one error on top, the summary in order, the report.
"""

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fmstune.config.metrics import metrics_of
from fmstune.launch import agent, preemption, slurm
from fmstune.launch.agent import Failure
from fmstune.runs import log, run_folder
from fmstune.runs.report import run_data, terminal_summary
from fmstune.tables import show_plain_characters

_CODES = {"user": 2, "interrupted": 130, run_folder.PREEMPTED: preemption.CODE}
"""Exit codes of a process by the kind of its end."""
_CANCELLED = (_CODES["interrupted"], 128 + signal.SIGTERM)


def main(words: Sequence[str] | None = None) -> int:
    """The exit code of the batch script; 75 where the job is to be put back into the queue."""
    show_plain_characters()
    job_file, code, *flags = sys.argv[1:] if words is None else words
    folder = Path(job_file).parent
    with log.keep_log(folder):
        return _end_job(folder, int(code), flags)


def _end_job(folder: Path, code: int, flags: Sequence[str]) -> int:
    ranks = folder / slurm.RANKS
    own = {path.stem: json.loads(path.read_bytes())["message"]["fmstune"] for path in sorted(ranks.glob("*.json"))}
    failures = [Failure(int(rank), _CODES.get(one["kind"], 1), **one) for rank, one in own.items()]
    shutil.rmtree(ranks, ignore_errors=True)
    ended = code
    # first: srun kills what is left when the first process has ended with 75, and then its code is another
    if ended and run_folder.is_preempted(folder):
        ended = preemption.CODE
    elif failures:
        ended = agent.show_failure(agent.first_failure(failures), folder) or 1
    if ended and run_folder.read_summary(folder).get("status") in (run_folder.QUEUED, run_folder.RUNNING):
        status, kind, said = run_folder.FAILED, "internal", f"the Slurm job ended with code {code}; its log says why"
        if ended in _CANCELLED:
            status, kind, said = run_folder.INTERRUPTED, "interrupted", "the Slurm job was ended before it trained"
        run_folder.mark_ended(folder, status, "user" if ended == 2 else kind, said)
    table = metrics_of(run_data.read_job_tree(folder))
    print(terminal_summary.render_summary(run_folder.read_summary(folder), folder, table), flush=True)
    if ended == preemption.CODE and "--requeue" in flags:
        run_folder.update_summary(folder, {"status": run_folder.QUEUED})
    return ended


if __name__ == "__main__":
    sys.exit(main())
