"""The job → the arguments of its trainer."""

from pathlib import Path
from typing import Any

import trl
from transformers import TrainingArguments

from fmstune import ranks
from fmstune.config.job import Job, is_sharded
from fmstune.config.renamed_fields import OWN
from fmstune.errors import UserError
from fmstune.models import compiled, sharding
from fmstune.models.experts import count_experts
from fmstune.training import fsdp_on_cpu
from fmstune.training.objectives.base import BaseObjective
from fmstune.training.preflight import Checked


def training_arguments(job: Job, objective: BaseObjective, checked: Checked, folder: Path) -> TrainingArguments:
    """The arguments of the job's trainer; every default of TRL's that would decide something unseen is set."""
    given = {name: value for name, value in job.training.items() if name not in (*OWN, *compiled.FIELDS)}
    sharing: dict[str, Any] = {}
    if is_sharded(job.launcher) and ranks.here().started:
        sharding.set_environment(job.launcher)
        # else each process would keep whole gradients while it accumulates (transformers/trainer.py, `no_sync`)
        shares = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
        sharing = {**sharding.settings(job.launcher), **shares}
        if checked.device == "cpu":
            fsdp_on_cpu.enable()
    elif ranks.here().processes > 1:
        # every trained weight takes part in every step, so there is nothing to look for
        sharing = {"ddp_find_unused_parameters": False}
    derived = {
        "output_dir": str(folder),
        "run_name": job.name,
        "seed": job.seed,
        "use_cpu": checked.device == "cpu",
        "bf16": checked.precision.autocast == "bfloat16",
        "fp16": checked.precision.autocast == "float16",
        "tf32": checked.precision.tf32 if checked.device == "cuda" else None,
        "report_to": "none",
        "disable_tqdm": True,
        **objective.arguments(),
        **sharing,
    }
    if hasattr(checked.configuration.get_text_config(), "output_router_logits"):
        # TRL would ask a model of a mixture's class for the scores of a router that one without experts does not have
        derived |= {} if count_experts(checked.configuration) else {"router_aux_loss_coef": 0.0}
    # for a user's own training file that leaves them out
    defaults = {
        "activation_checkpointing": False,
        # a filtered NaN looks like a good loss
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": checked.device == "cuda",
    }
    try:
        return getattr(trl, job.objective.config_class.removeprefix("trl."))(**{**defaults, **given, **derived})
    except (TypeError, ValueError, ArithmeticError) as err:
        raise UserError("training", f": {job.objective.config_class} refuses these fields: {err}") from err
