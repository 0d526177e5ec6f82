"""The range of each number in a job or a request: one table, which one generator checks."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fmstune.config.job import LORAPLUS_LR_RATIO, Job
from fmstune.config.requests import RunnerRequest
from fmstune.errors import Problem, shown


class Limit(NamedTuple):
    """Which numbers a field takes, and the words for them."""

    holds: Callable[[float], bool]
    words: str


_AT_LEAST_0 = Limit(lambda number: number >= 0, "at least 0")
_AT_LEAST_1 = Limit(lambda number: number >= 1, "at least 1")
_ABOVE_0 = Limit(lambda number: number > 0, "above 0")
_ABOVE_0_AND_FINITE = Limit(lambda number: 0 < number < math.inf, "above 0 and finite")
_BELOW_1 = Limit(lambda number: 0 <= number < 1, "at least 0 and below 1")
_SEED = Limit(lambda number: 0 <= number < 2**32, "at least 0 and below 2**32")

_LIMITS: Mapping[str, Limit] = {
    "seed": _SEED,
    "model.quantization.llm_int8_threshold": _ABOVE_0_AND_FINITE,
    "peft.r": _AT_LEAST_1,
    "peft.lora_alpha": _AT_LEAST_1,
    "peft.num_virtual_tokens": _AT_LEAST_1,
    "peft.lora_dropout": _BELOW_1,
    f"peft.{LORAPLUS_LR_RATIO}": Limit(
        lambda number: 1 <= number < math.inf,
        "at least 1 and finite (the learning rate of B divided by the one of A; 1 is plain LoRA)",
    ),
    "data.eval_fraction": _BELOW_1,
    "data.max_rows": _AT_LEAST_1,
    "data.max_length": Limit(lambda number: number >= 2, "at least 2"),
    "data.buffer_size": _AT_LEAST_1,
    "training.per_device_train_batch_size": _AT_LEAST_1,
    "training.per_device_eval_batch_size": _AT_LEAST_1,
    "training.gradient_accumulation_steps": _AT_LEAST_1,
    "training.max_steps": Limit(
        lambda number: number >= 1 or number == -1, "at least 1, or -1 to train for training.num_train_epochs"
    ),
    "training.learning_rate": Limit(lambda number: 0 < number < 10, "above 0 and below 10"),
    "training.warmup_steps": _AT_LEAST_0,
    "training.weight_decay": _AT_LEAST_0,
    "training.max_grad_norm": _AT_LEAST_0,
    "training.label_smoothing_factor": _AT_LEAST_0,
    "training.neftune_noise_alpha": _AT_LEAST_0,
    "training.dataloader_num_workers": _AT_LEAST_0,
    # transformers reads 0 as no limit
    "training.save_total_limit": _AT_LEAST_1,
    "training.logging_steps": _ABOVE_0,
    "training.save_steps": _ABOVE_0,
    "training.eval_steps": _ABOVE_0,
    "launcher.threads": _AT_LEAST_1,
    "launcher.num_processes": _AT_LEAST_1,
    "launcher.num_machines": _AT_LEAST_1,
    "launcher.rdzv_timeout": _AT_LEAST_1,
    "launcher.device_gib": _ABOVE_0,
    "launcher.slurm.cpus_per_task": _AT_LEAST_1,
    "evaluation.batch_size": _AT_LEAST_1,
    "evaluation.max_new_tokens": _AT_LEAST_1,
    "evaluation.sample": _AT_LEAST_0,
    "evaluation.max_rows": _AT_LEAST_1,
}
_LIMITS_OF_FLAGS: Mapping[str, Limit] = {
    "batch_size": _AT_LEAST_1,
    "max_new_tokens": _AT_LEAST_1,
    "max_rows": _AT_LEAST_1,
    "limit": _AT_LEAST_1,
    "num_fewshot": _AT_LEAST_0,
    "temperature": Limit(
        _ABOVE_0_AND_FINITE.holds, "above 0 and finite (leave --do_sample out to take the likeliest token)"
    ),
    "top_p": Limit(lambda number: 0 < number <= 1, "above 0 and at most 1"),
    "top_k": _AT_LEAST_1,
    "repetition_penalty": _ABOVE_0_AND_FINITE,
    "seed": _SEED,
}


def number_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each number of the job that is out of its range."""
    for field, limit in _LIMITS.items():
        found: Any = job
        for name in field.split("."):
            found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        yield from limit_problems(field, found, limit)


def flag_problems(request: RunnerRequest) -> Iterator[Problem]:
    """Yield a problem for each number of the request that is out of its range."""
    for name, limit in _LIMITS_OF_FLAGS.items():
        yield from limit_problems(f"--{name}", getattr(request, name, None), limit)


def limit_problems(field: str, value: float | None, limit: Limit) -> Iterator[Problem]:
    """Yield a problem where the value is given and out of the range."""
    if value is not None and not limit.holds(value):
        yield Problem(field, f"must be {limit.words}, got {shown(value)}")
