"""All rules on a job that need neither torch nor its model: one table, by group."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fmstune import files
from fmstune.checks.callbacks import callback_problems, loser_problems
from fmstune.checks.data import data_problems
from fmstune.checks.fms import fms_problems
from fmstune.checks.launcher import launcher_problems
from fmstune.checks.limits import number_problems
from fmstune.checks.model import model_problems
from fmstune.checks.peft import peft_problems
from fmstune.checks.resume import AUTO, resume_problems, run_differences
from fmstune.checks.tracking import tracking_problems
from fmstune.checks.training import training_problems
from fmstune.config.compare_by import compare_by_problems
from fmstune.config.job import Job, has_held_out, tunes_an_adapter
from fmstune.errors import Problem
from fmstune.runs import run_folder


def job_problems(job: Job) -> Iterator[Problem]:
    """Yield every problem that shows before anything is started."""
    for rule in RULES:
        yield from rule(job)


def name_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for a name or an output folder that no run can have."""
    if not re.fullmatch(r"[\w.+-]+", job.name) or job.name.startswith("."):
        yield Problem("name", f"becomes part of a folder's name: use letters, digits and . _ + -, got {job.name!r}")
    if job.output_dir == "":
        yield Problem("output_dir", "is empty; name a folder, or null for one under runs/")
    elif job.output_dir is not None:
        yield from folder_problems(Path(job.output_dir), job)


def folder_problems(folder: Path, job: Job) -> Iterator[Problem]:
    """Yield a problem where the folder holds another run; a run of the same job is resumed there."""
    if (kind := files.kind_of_file(folder)) not in (None, "folder"):
        yield Problem("output_dir", f": {folder} is a {kind}; choose a folder")
    found = [name for name in run_folder.MARKS if (folder / name).exists()]
    if not found:
        return
    job_file = folder / run_folder.JOB
    why = list(run_differences(job, job_file)) if job_file.is_file() else ["it has no job.yaml"]
    if why:
        marks = ", ".join(found)
        more = f" and {len(why) - 1} more" if len(why) > 1 else ""
        text = f": {folder} holds another run ({marks}), which is never overwritten; choose another"
        yield Problem("output_dir", f"{text} ({why[0]}{more})")
    elif job.training.get("resume") not in (None, AUTO):
        text = f": {folder} holds a run of this job, which is resumed from its own checkpoints"
        yield Problem("training.resume", f"{text}; leave training.resume out, or choose another output_dir")


RULES: tuple[Callable[[Job], Iterator[Problem]], ...] = (
    name_problems,
    number_problems,
    model_problems,
    fms_problems,
    peft_problems,
    data_problems,
    training_problems,
    resume_problems,
    launcher_problems,
    lambda job: tracking_problems(job.tracking),
    callback_problems,
    loser_problems,
    compare_by_problems,
)
"""A new rule is a generator of problems, called by its group's own; a group's is named here."""


def job_notes(job: Job) -> Iterator[str]:
    """Yield a note on each setting that works and may be a mistake."""
    rate = job.training.get("learning_rate")
    warmup, steps = job.training.get("warmup_steps", 0), job.training.get("max_steps", -1)
    if steps > 0 and warmup and (math.ceil(steps * warmup) if warmup < 1 else warmup) >= steps:
        yield f"training.max_steps={steps} ends within the warm-up, whose first step has a learning rate of 0"
    if job.training.get("packing") and job.training.get("train_sampling_strategy") == "group_by_length":
        yield "training.train_sampling_strategy=group_by_length has no effect: packed rows are all about as long"
    if job.data.prefix_sharing and (share := job.peft.get("lora_dropout")):
        rows = "all rows that share it" + ("" if job.data.prefix_sharing is True else ", where auto becomes true")
        yield f"peft.lora_dropout={share:g}: a shared beginning draws its dropout once for {rows}"
    if tunes_an_adapter(job) and isinstance(rate, float) and rate < 5e-5:
        hint = "adapters usually want 1e-4 or more (leave it out for the method's usual rate)"
        yield f"training.learning_rate={rate:g} suits full tuning; {hint}"
    if job.model.adapter is not None:
        yield "model.adapter: the adapter keeps its saved configuration; the peft group only names its method"
    if job.sweep.stop_losers and job.sweep.points is None:
        yield "sweep.stop_losers=true has no effect on a single run: it compares the points of a sweep (-m)"
    if job.evaluation.enabled and not has_held_out(job.data):
        yield "no held-out rows, so base and tuned are not compared; set data.eval or data.eval_fraction"
