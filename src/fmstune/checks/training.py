"""Rules on the training group, and on what of it goes with the other groups."""

import importlib.util
from collections.abc import Iterator

from fmstune.checks.peft import PREFIXES, learns_a_prompt, makes_its_prompt
from fmstune.checks.resume import AUTO
from fmstune.config.choices import Device
from fmstune.config.job import LORAPLUS_LR_RATIO, Job, has_held_out
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.config.renamed_fields import USUAL_RATE
from fmstune.errors import Problem, did_you_mean
from fmstune.runs.learning_rate import is_rate_open

_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
"""transformers' `trainer_log_levels` (training_args.py)."""
_PACKAGES = {"galore": "galore_torch", "apollo": "apollo_torch", "lomo": "lomo_optim", "adalomo": "lomo_optim"}
"""Families of `optim` that transformers builds from the model, and so only after it is loaded."""
_EVALUATE = "needs training.eval_strategy=epoch or steps"


def training_problems(job: Job) -> Iterator[Problem]:
    """Yield the problems of the training group; transformers' own checks need torch and come later."""
    training, steps = job.training, job.training.get("max_steps", -1)
    epochs = training.get("num_train_epochs", 3.0)
    if steps < 0 and not 0 < epochs < 2**31:
        yield Problem("training.num_train_epochs", f"must be above 0 and below 2**31, got {epochs:g}")
    if training.get("bf16") and training.get("fp16"):
        yield Problem("training.bf16", "and training.fp16 are both true; set one of them to false or null")
    if training.get("fp16") and job.launcher.device is Device.cpu:
        yield Problem("training.fp16", "needs an accelerator, and launcher.device=cpu; set training.fp16=false")
    if training.get("activation_offloading") and job.launcher.device is Device.cpu:
        text = "moves activations off an accelerator, and launcher.device=cpu; set it to false"
        yield Problem("training.activation_offloading", text)
    for name in ("log_level", "log_level_replica"):
        # transformers would look them up only while training
        if (word := training.get(name, "passive")) not in _LOG_LEVELS:
            hint = did_you_mean(word, _LOG_LEVELS)
            yield Problem(f"training.{name}", f"must be one of {', '.join(_LOG_LEVELS)}; got {word!r}{hint}")
    yield from _optimizer_problems(job)
    yield from _open_rate_problems(job)
    yield from _evaluation_problems(job)
    yield from _best_model_problems(job)
    if training.get("packing_strategy") == "wrapped":
        text = "=wrapped cuts documents at the end of a row, and documents of a row see each other"
        yield Problem("training.packing_strategy", f"{text}; leave it out (bfd keeps documents whole and separate)")
    if training.get("padding_free") and training.get("eval_packing") and not training.get("packing"):
        text = "and training.eval_packing need training.packing=true; set it, or one of them to false"
        yield Problem("training.padding_free", text)
    if learns_a_prompt(job.peft):
        yield from _virtual_token_problems(job)


def _optimizer_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for a package that is missing, or a setting that the optimizer cannot do without."""
    training, optim = job.training, job.training.get("optim", "adamw_torch")
    package = _PACKAGES.get(optim.partition("_")[0])
    if package is not None and importlib.util.find_spec(package) is None:
        text = f"={optim} needs the package {package.replace('_', '-')}; install it, or choose another"
        yield Problem("training.optim", text)
    elif optim.startswith(("galore", "apollo")) and not training.get("optim_target_modules"):
        yield Problem("training.optim", f"={optim} needs training.optim_target_modules, the modules to apply it to")
    if package is not None and job.peft.get(LORAPLUS_LR_RATIO) is not None:
        text = f"={optim} groups the parameters itself, and so does peft.{LORAPLUS_LR_RATIO}; choose one"
        yield Problem("training.optim", text)


def _open_rate_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for what keeps probes from choosing the learning rate."""
    training, field = job.training, "training.learning_rate"
    usual = training.get(USUAL_RATE)
    if not is_rate_open(job):
        if usual is not None:
            yield Problem(f"training.{USUAL_RATE}", f"is where {field}=auto looks; set that to auto, or leave this out")
        return
    if usual is None:
        yield Problem(f"training.{USUAL_RATE}", f"must be given: {field}=auto looks around it")
    if job.launcher.slurm is not None:
        hint = "give a number, or make the points of a sweep jobs with hydra/launcher=submitit_slurm"
        yield Problem(field, f"=auto probes before a job is queued, and launcher.slurm trains elsewhere; {hint}")
    if job.launcher.num_machines > 1:
        text = f"=auto probes on one machine, and launcher.num_machines={job.launcher.num_machines}; give a number"
        yield Problem(field, text)
    if training.get("resume") not in (None, AUTO):
        yield Problem(field, "=auto: a resumed run keeps the rate of its checkpoint; give that number")
    if training.get("lr_scheduler_type") == "reduce_lr_on_plateau":
        yield Problem(
            field, "=auto cannot try training.lr_scheduler_type=reduce_lr_on_plateau in short runs; give a number"
        )
    if "min_lr" in (training.get("lr_scheduler_kwargs") or {}):
        hint = "give min_lr_rate, a share of it"
        yield Problem("training.lr_scheduler_kwargs", f": min_lr does not fit a learning rate of auto; {hint}")
    if job.data.streaming and not has_held_out(job.data):
        yield Problem(field, "=auto measures on held-out rows; set data.eval or data.eval_fraction")


def _evaluation_problems(job: Job) -> Iterator[Problem]:
    training = job.training
    when, saves = training.get("eval_strategy", "no"), training.get("save_strategy", "steps")
    if when != "no" and not has_held_out(job.data):
        yield Problem("training.eval_strategy", f"={when} needs held-out rows; set data.eval or data.eval_fraction")
    if when == "no":
        if job.evaluation.sample > 0:
            yield Problem("evaluation.sample", f"{_EVALUATE}: samples are generated at each evaluation")
        if training.get("eval_on_start"):
            yield Problem("training.eval_on_start", f"=true {_EVALUATE}; set it, or leave eval_on_start out")
        if training.get("load_best_model_at_end"):
            yield Problem("training.load_best_model_at_end", f"{_EVALUATE}, to know the best")
        elif saves == "best":
            yield Problem("training.save_strategy", f"=best {_EVALUATE}, to know the best")
    elif training.get("load_best_model_at_end") and saves not in (when, "best"):
        text = f"needs save_strategy and eval_strategy to agree, got {saves} and {when}"
        yield Problem("training.load_best_model_at_end", text)


def _best_model_problems(job: Job) -> Iterator[Problem]:
    training, table, field = job.training, metrics_of(job), "training.metric_for_best_model"
    sampled = names_at(table, Place.sample)
    measured = (*names_at(table, Place.evaluation), *sampled)
    metric = training.get("metric_for_best_model")
    name = (metric or "").removeprefix("eval_")
    if metric is None:
        # transformers takes the loss when it loads the best model
        if training.get("save_strategy") == "best" and not training.get("load_best_model_at_end"):
            yield Problem("training.save_strategy", "=best needs training.metric_for_best_model, such as loss")
    elif name not in measured:
        yield Problem(field, f"must be one of {', '.join(measured)}; got {metric!r}{did_you_mean(metric, measured)}")
    elif name in sampled and not job.evaluation.sample:
        yield Problem(field, f"={metric} is measured on generated answers; set evaluation.sample")
    elif table[name].better is None and training.get("greater_is_better") is None:
        yield Problem(field, f"={metric} needs training.greater_is_better: true, or false if less is better")


def _virtual_token_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each setting that does not work with tokens that the adapter puts before every row."""
    training, method = job.training, job.peft["_target_"].removeprefix("peft.").removesuffix("Config")
    for name in ("packing", "eval_packing", "padding_free"):
        if training.get(name):
            # measured: packed documents see each other, because PEFT drops position_ids
            text = f"lets documents with virtual tokens ({method}) see each other; set training.{name}=false"
            yield Problem(f"training.{name}", text)
    if job.model.adapter is not None:
        text = f": PEFT cannot train saved virtual tokens further ({method}); leave it out and train anew"
        yield Problem("model.adapter", text)
    for name in ("resume", "load_best_model_at_end") if makes_its_prompt(job.peft) else ():
        if training.get(name):
            # measured: the tokens are put into a network that is not the one that made them
            text = f": a checkpoint of {method} holds the virtual tokens without the network that makes them"
            yield Problem(f"training.{name}", f"{text}, and cannot be resumed; leave it out")
    if job.peft["_target_"] in PREFIXES and training.get("activation_checkpointing"):
        text = f"drops the keys and values that {method} learns; set it to false"
        yield Problem("training.activation_checkpointing", text)
