"""The range of each number, and the form of each word, in a job or a request: one table, which one generator checks."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fmstune.config.choices import Auto
from fmstune.config.job import LORAPLUS_LR_RATIO, Job
from fmstune.config.renamed_fields import USUAL_RATE
from fmstune.config.requests import RunnerRequest
from fmstune.errors import Problem, shown


class Limit(NamedTuple):
    """Which values a field takes, and the words for them."""

    holds: Callable[[Any], object]
    words: str
    below: int = 31
    """The power of two that whole numbers are below: counts beyond 2**31 fit no machine, and no int of libraries."""


def are_names(value: Any) -> bool:
    """Whether this is a list of text, none of it empty."""
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _pattern(words: str, *kinds: type) -> Limit:
    def holds(given: Any) -> bool:
        return isinstance(given, dict) and all(type(value) in kinds and value > 0 for value in given.values())

    return Limit(holds, f"a mapping of module names to {words} above 0")


_AT_LEAST_0 = Limit(lambda number: number >= 0, "at least 0")
AT_LEAST_1 = Limit(lambda number: number >= 1, "at least 1")
MOST_THREADS = 1024
"""Threads or workers of one process: more than any machine has cores, and few enough to be started."""
_THREADS = Limit(lambda number: 1 <= number <= MOST_THREADS, f"from 1 to {MOST_THREADS:,}")
_SECONDS = Limit(lambda number: 1 <= number < 2**31, "at least 1 and below 2**31 seconds")
_ABOVE_0 = Limit(lambda number: number > 0, "above 0")
ABOVE_0_AND_FINITE = Limit(lambda number: 0 < number < math.inf, "above 0 and finite")
_BELOW_1 = Limit(lambda number: 0 <= number < 1, "at least 0 and below 1")
_WORD = Limit(re.compile(r"[^\s#\"'\\]+").fullmatch, "one word without quotes")
_SEED = Limit(lambda number: 0 <= number < 2**32, "at least 0 and below 2**32", 32)
_COUNTED = ("data", "peft", "training", "launcher", "evaluation", "sweep")
"""Groups whose other whole numbers are counts and sizes."""
_ANY = Limit(lambda _: True, "")

_LIMITS: Mapping[str, Limit] = {
    **dict.fromkeys(("seed", "training.data_seed"), _SEED),
    "model.quantization.llm_int8_threshold": ABOVE_0_AND_FINITE,
    **dict.fromkeys(("peft.r", "peft.lora_alpha", "peft.num_virtual_tokens"), AT_LEAST_1),
    "peft.lora_dropout": _BELOW_1,
    f"peft.{LORAPLUS_LR_RATIO}": Limit(
        lambda number: 1 <= number < math.inf,
        "at least 1 and finite (the learning rate of B divided by the one of A; 1 is plain LoRA)",
    ),
    "peft.target_modules": Limit(
        lambda one: isinstance(one, str) or are_names(one), "a list of names, one name or all-linear"
    ),
    **dict.fromkeys(("peft.target_parameters", "peft.modules_to_save"), Limit(are_names, "a list of names")),
    "peft.layers_to_transform": Limit(
        lambda given: _are_numbers(given if isinstance(given, list) else [given]), "a layer's number or a list of them"
    ),
    "peft.trainable_token_indices": Limit(
        lambda given: all(map(_are_numbers, given.values() if isinstance(given, dict) else [given])),
        "a list of token ids, or such lists by embedding",
    ),
    "peft.rank_pattern": _pattern("whole numbers", int),
    "peft.alpha_pattern": _pattern("numbers", int, float),
    "data.eval_fraction": _BELOW_1,
    "data.max_length": Limit(lambda number: number >= 2, "at least 2"),
    **dict.fromkeys(("data.max_rows", "data.buffer_size"), AT_LEAST_1),
    **{f"training.per_device_{part}_batch_size": AT_LEAST_1 for part in ("train", "eval")},
    "training.gradient_accumulation_steps": AT_LEAST_1,
    "training.max_steps": Limit(lambda n: n > 0 or n == -1, "at least 1, or -1 to train for training.num_train_epochs"),
    "training.learning_rate": Limit(lambda rate: rate == Auto.auto or 0 < rate < 10, "above 0 and below 10"),
    f"training.{USUAL_RATE}": Limit(
        lambda rate: type(rate) in (int, float) and 0 < rate < 10, "a number above 0 and below 10"
    ),
    **dict.fromkeys(("training.warmup_steps", "training.weight_decay", "training.max_grad_norm"), _AT_LEAST_0),
    **dict.fromkeys(("training.label_smoothing_factor", "training.neftune_noise_alpha"), _AT_LEAST_0),
    "training.dataloader_num_workers": Limit(lambda number: 0 <= number <= MOST_THREADS, f"from 0 to {MOST_THREADS:,}"),
    "training.ddp_timeout": _SECONDS,
    "training.include_for_metrics": Limit(
        lambda given: isinstance(given, list) and all(word in ("inputs", "loss") for word in given),
        "a list of some of inputs, loss",
    ),
    # transformers reads 0 as no limit
    "training.save_total_limit": AT_LEAST_1,
    **dict.fromkeys(("training.logging_steps", "training.save_steps", "training.eval_steps"), ABOVE_0_AND_FINITE),
    **dict.fromkeys(("launcher.threads", "launcher.slurm.cpus_per_task"), _THREADS),
    **dict.fromkeys(("launcher.num_processes", "launcher.num_machines"), AT_LEAST_1),
    "launcher.rdzv_timeout": _SECONDS,
    **{f"launcher.{name}": ABOVE_0_AND_FINITE for name in ("device_gib", "device_tflops", "price_per_hour")},
    "launcher.transformer_layer_cls_to_wrap": Limit(
        lambda given: given != [] and are_names([given] if isinstance(given, str) else given),
        "a class name or a list of them",
    ),
    "launcher.main_process_port": Limit(lambda port: 0 < port < 2**16, f"at least 1 and below {2**16}"),
    **{f"launcher.slurm.{name}": _WORD for name in ("partition", "account", "qos", "constraint", "mem")},
    "launcher.slurm.time": Limit(
        re.compile(r"\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2}").fullmatch,
        'like "4:00:00" or "1-12" (days-hours), in quotes in a YAML file',
    ),
    "launcher.slurm.gpus_per_node": Limit(re.compile(r"([\w.-]+:)?[1-9]\d*").fullmatch, "a number or TYPE:NUMBER"),
    "launcher.slurm.signal": Limit(
        lambda given: re.fullmatch(r"USR[12]@[1-9]\d{0,4}", given) and int(given[5:]) < 2**16,
        "USR1 or USR2 and the seconds before the time limit, such as USR1@120",
    ),
    **{f"evaluation.{name}": AT_LEAST_1 for name in ("batch_size", "max_new_tokens", "max_rows")},
    **dict.fromkeys(("callbacks.early_stopping.patience", "sweep.patience", "sweep.points"), AT_LEAST_1),
    "sweep.risk": Limit(lambda number: 0 < number < 1, "above 0 and below 1"),
    "sweep.warm_up": Limit(lambda number: 0 <= number <= 1, "from 0 to 1"),
    **dict.fromkeys(("callbacks.early_stopping.threshold", "evaluation.sample"), _AT_LEAST_0),
}
_LIMITS_OF_FLAGS: Mapping[str, Limit] = {
    **dict.fromkeys(("batch_size", "max_new_tokens", "max_rows", "limit"), AT_LEAST_1),
    "num_fewshot": _AT_LEAST_0,
    "temperature": Limit(ABOVE_0_AND_FINITE.holds, "above 0 and finite (leave it out to take the likeliest token)"),
    "top_p": Limit(lambda number: 0 < number <= 1, "above 0 and at most 1"),
    "top_k": AT_LEAST_1,
    "repetition_penalty": ABOVE_0_AND_FINITE,
    "seed": _SEED,
    "port": Limit(lambda port: 0 <= port < 2**16, f"at least 0 and below {2**16}"),
    "max_waiting": AT_LEAST_1,
    "grace": _AT_LEAST_0,
}


def number_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each number of the job that is out of its range, and for each word of another form."""
    for field, limit in _LIMITS.items():
        found: Any = job
        for name in field.split("."):
            found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        yield from limit_problems(field, found, limit)
    for group in _COUNTED:
        settings = getattr(job, group)
        for name, value in (settings if isinstance(settings, Mapping) else vars(settings)).items():
            if (field := f"{group}.{name}") not in _LIMITS:
                yield from limit_problems(field, value, _ANY)


def flag_problems(request: RunnerRequest) -> Iterator[Problem]:
    """Yield a problem for each number of the request that is out of its range."""
    for name, limit in _LIMITS_OF_FLAGS.items():
        yield from limit_problems(f"--{name}", getattr(request, name, None), limit)


def limit_problems(field: str, value: Any, limit: Limit) -> Iterator[Problem]:
    """Yield a problem where the value is given and the field does not take it, or it is too large to count."""
    if value is None:
        return
    if not limit.holds(value):
        yield Problem(field, f"must be {limit.words}, got {shown(value)}")
    elif type(value) is int and value >= 2**limit.below:
        yield Problem(field, f"must be below 2**{limit.below}, got {value}")
