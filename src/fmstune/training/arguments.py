"""The job → the arguments of its trainer."""

from pathlib import Path
from typing import Any

import trl
from transformers import TrainingArguments

from fmstune import ranks
from fmstune.config.job import Job, is_sharded
from fmstune.config.renamed_fields import OWN
from fmstune.errors import UserError
from fmstune.models import sharding
from fmstune.training import fsdp_on_cpu
from fmstune.training.objectives.base import BaseObjective
from fmstune.training.preflight import Checked


def training_arguments(job: Job, objective: BaseObjective, checked: Checked, folder: Path) -> TrainingArguments:
    """The arguments of the job's trainer; every default of TRL's that would decide something unseen is set."""
    given = {name: value for name, value in job.training.items() if name not in OWN}
    derived = {
        "output_dir": str(folder),
        "run_name": job.name,
        "seed": job.seed,
        "use_cpu": checked.device == "cpu",
        "bf16": checked.precision.autocast == "bfloat16",
        "fp16": checked.precision.autocast == "float16",
        "report_to": "none",
        "disable_tqdm": True,
        **objective.arguments(),
        **_sharing(job, checked),
    }
    # for a user's own training file that leaves them out
    defaults = {
        "activation_checkpointing": False,
        # a filtered NaN looks like a good loss
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": checked.device == "cuda",
    }
    try:
        config_class: type[TrainingArguments] = getattr(trl, job.objective.config_class.removeprefix("trl."))
        return config_class(**{**defaults, **given, **derived})
    except (TypeError, ValueError) as err:
        raise UserError("training", f": {job.objective.config_class} refuses these fields: {err}") from err


def _sharing(job: Job, checked: Checked) -> dict[str, Any]:
    """Return the arguments by which several processes share the work; a process that was started alone needs none."""
    if not (is_sharded(job.launcher) and ranks.here().started):
        # every trained weight takes part in every step, so there is nothing to look for
        return {"ddp_find_unused_parameters": False} if ranks.here().processes > 1 else {}
    sharding.set_environment(job.launcher)
    # else each process would keep whole gradients while it accumulates (transformers/trainer.py, `no_sync`)
    shares = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
    if checked.device == "cpu":
        fsdp_on_cpu.enable()
    return {**sharding.settings(job.launcher), **shares}
