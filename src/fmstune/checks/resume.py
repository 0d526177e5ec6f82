"""Rules on `training.resume`: a resumed run must train as if it had never stopped."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from fmstune.config import freeze
from fmstune.config.job import Job, tunes_an_adapter
from fmstune.errors import Problem, UserError, shown
from fmstune.flatten import flat_differences
from fmstune.runs import checkpoints, run_folder
from fmstune.runs.checkpoints import Chosen
from fmstune.runs.learning_rate import with_chosen_rate

AUTO = "auto"
"""`training.resume=auto`: resume from the newest complete checkpoint in the run's own folder, if any."""

_MAY_CHANGE = re.compile(
    r"(?!(seed|model|peft|data|training)\b).*"
    r"|training\.(num_train_epochs|max_steps|(logging|save|eval)_\w+|per_device_eval_batch_size"
    r"|load_best_model_at_end|metric_for_best_model|greater_is_better|resume)"
)
"""Fields that a resumed run may change: its length, how it is watched, and what does not decide about training."""
_OWN_FOLDER = re.compile(
    r"output_dir|compare_by|direction|objective\.metrics.*|(launcher|tracking|sweep)(\..*)?"
    r"|training\.(resume|per_device_train_batch_size|gradient_accumulation_steps)"
)
"""Fields that may differ when a run is resumed in its folder; the rows of a step are compared when it starts."""


def resume_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for a checkpoint that is incomplete, finished or of another job."""
    if job.training.get("resume") in (None, AUTO):
        return
    folder = Path(str(job.training["resume"]))
    weights = "adapter_model.safetensors" if tunes_an_adapter(job) else "model*.safetensors"
    missing = [name for name in ("trainer_state.json", weights) if not any(folder.glob(name))]
    if missing:
        hint = " of this peft method" if missing == [weights] else ""
        text = f": {folder} is not a checkpoint folder{hint} (no {missing[0]}); give RUN/checkpoint-STEP"
        yield Problem("training.resume", text)
        return
    for name, found in (("optimizer.pt", "optimizer.*"), ("scheduler.pt", "scheduler.pt")):
        # FSDP's is optimizer.bin
        if not any(folder.glob(found)):
            text = f": {folder} has no {name}; give a checkpoint that was saved without training.save_only_model"
            yield Problem("training.resume", text)
    steps = job.training.get("max_steps", -1)
    try:
        if 0 < steps <= (done := steps_done(folder)):
            left = f"training.max_steps={steps} leaves nothing to train"
            yield Problem("training.resume", f": {folder} is at step {done}, so {left}")
    except UserError as err:
        yield from err.problems
    yield from _change_problems(job, folder.resolve().parent / run_folder.JOB)


def steps_done(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was saved at; raises UserError when its state cannot be read."""
    state = checkpoint / "trainer_state.json"
    try:
        return int(json.loads(state.read_text(encoding="utf-8"))["global_step"])
    except (ValueError, KeyError, TypeError, OSError) as err:
        raise UserError("training.resume", f": {state} is damaged; give an earlier checkpoint") from err


def choose_checkpoint(job: Job) -> Chosen:
    """Return the checkpoint that the job resumes from, after a look at each of its files; raises UserError.

    The one that the job names, or the newest whole one in its own folder.
    """
    given = job.training.get("resume")
    if given in (None, AUTO):
        return checkpoints.choose_whole(Path(str(job.output_dir)))
    return checkpoints.check_whole(Path(str(given)))


def _change_problems(job: Job, job_file: Path) -> Iterator[Problem]:
    """Yield a problem for each field that changes training and differs from the job of the checkpoint."""
    place = f"{job_file.parent.name}/{job_file.name}"
    try:
        for name, one, other in _different(job, job_file, _MAY_CHANGE) if job_file.is_file() else ():
            text = f"is {one} here and {other} in {place}; a resumed run keeps the values of its checkpoint"
            yield Problem(name, text)
    except UserError as err:
        text = f": the checkpoint's job cannot be compared ({'; '.join(map(str, err.problems))})"
        yield Problem("training.resume", f"{text}; copy the checkpoint elsewhere to resume without comparing")


def run_differences(job: Job, job_file: Path) -> Iterator[str]:
    """Yield each difference from the job of a run folder; a job without any can be resumed there."""
    try:
        for name, one, other in _different(job, job_file, _OWN_FOLDER):
            yield f"{name} is {one} here and {other} there"
    except UserError as err:
        yield f"its job.yaml cannot be read: {'; '.join(map(str, err.problems))}"


def _different(job: Job, job_file: Path, allowed: re.Pattern[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the dotted name and both values of each field that differs and may not; raises UserError."""
    # the packages that this job names have been allowed already
    named = [job.data.format, *job.tracking.values(), *job.callbacks.others.values()]
    targets = [job.objective._target_, *(one["_target_"] for one in named)]
    former = freeze.read(job_file, trusted=[target.partition(".")[0] for target in targets]).job
    settled = (with_chosen_rate(given, job_file.parent) for given in (job, former))
    here, there = (yaml.safe_load(freeze.dump(given)) for given in settled)
    for name, one, other in flat_differences(here, there, shown, "not given"):
        if not allowed.fullmatch(name):
            yield name, one, other
