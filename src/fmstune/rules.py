"""Job → problems: what cannot work, found without torch, each message naming the field and what to change."""

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fmstune import freeze, package_files, rows, run_folder
from fmstune.errors import UserError, did_you_mean
from fmstune.job import FULL, Attention, Data, Device, Evaluation, Job, Launcher, Model

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "extra_special_tokens")


_AT_LEAST_0 = (
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "dataloader_num_workers",
)
_METRICS = ("loss", "mean_token_accuracy", "entropy")
"""What TRL measures on the held-out rows while it trains."""
_ONE_WAY_METRICS = ("loss", "mean_token_accuracy")
"""Those of which transformers guesses rightly whether more is better."""
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
"""transformers' `trainer_log_levels` (training_args.py)."""
_FOR_METRICS = ("inputs", "loss")
_OPTIMIZER_PACKAGES = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
}
"""Families of `optim` that transformers builds from the model, and so only after it is loaded."""
_INITIALISATIONS = ("gaussian", "orthogonal", "mica", "olora", "pissa", "pissa_niter_N")
_DATA_DRIVEN = ("corda", "eva", "lora_ga")
"""Without their pass over the data, PEFT fails (corda) or takes a plain start in silence."""
_GOES_ON = re.compile(
    r"training\.(num_train_epochs|max_steps|(logging|save|eval)_\w+|per_device_eval_batch_size"
    r"|load_best_model_at_end|metric_for_best_model|greater_is_better|resume)"
)
"""What a resumed run may change: how long it goes on, and how it is watched."""


def problems(job: Job) -> Iterator[str]:
    """All that the parent can find wrong before it starts anything."""
    yield from _top_level(job)
    yield from _model(job.model, adapts=tunes_an_adapter(job))
    yield from _peft(job.peft)
    yield from _initialisation(job)
    yield from _data(job.data)
    yield from _format(job.data)
    yield from _training(job)
    yield from _resume(job)
    yield from _together(job)
    yield from _launcher(job.launcher)
    yield from _evaluation(job.evaluation)


def notes(job: Job) -> Iterator[str]:
    """What works but may not be meant."""
    rate = job.training.get("learning_rate")
    warmup, steps = job.training.get("warmup_steps", 0), job.training.get("max_steps", -1)
    if steps > 0 and warmup and (math.ceil(steps * warmup) if warmup < 1 else warmup) >= steps:
        yield f"training.max_steps={steps} ends within the warm-up, whose first step has a learning rate of 0"
    if tunes_an_adapter(job) and isinstance(rate, float) and rate < 5e-5:
        yield (
            f"training.learning_rate={rate:g} suits full tuning; adapters usually want 1e-4 or more"
            " (training_for/ has a rate for the shipped models only)"
        )
    if job.model.adapter is not None:
        yield "model.adapter: the configuration saved with it holds, and the peft group only names its method"
    if job.evaluation.enabled and not has_held_out(job.data):
        yield "no held-out rows, so base and tuned are not compared; set data.eval or data.eval_fraction"


def tunes_an_adapter(job: Job) -> bool:
    """Whether the base weights stay as they are."""
    return bool(job.peft["_target_"] != FULL)


def has_held_out(data: Data) -> bool:
    """Whether some rows are kept from training."""
    return data.eval is not None or data.eval_fraction > 0


def folder_problems(folder: Path) -> Iterator[str]:
    """Why this cannot become a run's folder."""
    if folder.is_dir():
        found = [name for name in run_folder.MARKS if (folder / name).exists()]
        if found:
            marks = ", ".join(found)
            yield f"output_dir: {folder} holds another run ({marks}), which is never overwritten; choose another"
    elif folder.exists():
        yield f"output_dir: {folder} is a file; choose a folder"


def _top_level(job: Job) -> Iterator[str]:
    if not re.fullmatch(r"[\w.+-]+", job.name) or job.name.startswith("."):
        yield f"name becomes part of a folder's name: use letters, digits and . _ + -, got {job.name!r}"
    if not 0 <= job.seed < 2**32:
        yield f"seed must be at least 0 and below 2**32, got {job.seed}"
    if job.output_dir == "":
        yield "output_dir is empty; name a folder, or null for one under runs/"
    elif job.output_dir is not None:
        yield from folder_problems(Path(job.output_dir))


def _model(model: Model, *, adapts: bool) -> Iterator[str]:
    yield from _model_place("model.path", model.path, wants="config.json")
    if model.tokenizer is not None:
        yield from _model_place("model.tokenizer", model.tokenizer, wants="tokenizer_config.json")
    if model.adapter is not None:
        yield from _model_place("model.adapter", model.adapter, wants="adapter_config.json")
        if not adapts:
            yield "model.adapter goes on training an adapter, and peft=full has none; choose its method (peft=lora)"
    if model.quantization is not None:
        yield f"model.quantization is reserved and must be null, got {model.quantization!r}"
    if model.architecture is not None and "model_type" not in model.architecture:
        yield "model.architecture needs model_type, such as llama"
    for name, value in model.special_tokens.items():
        if name == "extra_special_tokens":
            if not _are_names(value):
                yield f"model.special_tokens.{name} must be a list of text, got {value!r}"
        elif name in SPECIAL_TOKENS:
            if not isinstance(value, str):
                yield f"model.special_tokens.{name} must be text, got {value!r}"
            elif not value:
                yield f"model.special_tokens.{name} is empty text, which is no token; name one, or leave it out"
        else:
            known = ", ".join(SPECIAL_TOKENS)
            yield f"model.special_tokens.{name}: unknown{did_you_mean(name, SPECIAL_TOKENS)}; the names are {known}"


def _model_place(field: str, place: str, wants: str) -> Iterator[str]:
    """A folder must hold what it should; what is no folder must look like a hub id."""
    try:
        folder = Path(package_files.resolve(place)).expanduser()
    except UserError as err:
        yield f"{field}: {err}"
        return
    if folder.is_dir():
        if not (folder / wants).is_file():
            yield f"{field}: {folder} has no {wants}; give the folder that save_pretrained wrote"
        elif wants != "tokenizer_config.json" and not any(folder.glob("*.safetensors")):
            # pickled weights can run code on loading
            found = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no weights"
            hint = "fmstune reads nothing else; save it again with save_pretrained"
            yield f"{field}: {folder} holds no *.safetensors (found {found}); {hint}"
    elif folder.is_file():
        yield f"{field}: {folder} is a file; give the folder that holds it"
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", place):
        yield f"{field}: no folder {folder}, and {place!r} is not a hub id (owner/name); give one of them"


def _peft(peft: dict[str, Any]) -> Iterator[str]:
    for name in ("r", "lora_alpha", "num_virtual_tokens"):
        if name in peft:
            yield from _at_least(f"peft.{name}", peft[name], 1)
    for name in ("lora_dropout",):
        if name in peft and not 0 <= peft[name] < 1:
            yield f"peft.{name} must be at least 0 and below 1, got {peft[name]}"
    if peft.get("prompt_tuning_init") == "TEXT" and not peft.get("prompt_tuning_init_text"):
        yield "peft.prompt_tuning_init=TEXT needs peft.prompt_tuning_init_text, the words to start from"
    if peft.get("prompt_tuning_init_text") and peft.get("prompt_tuning_init") != "TEXT":
        yield "peft.prompt_tuning_init_text is used only with peft.prompt_tuning_init=TEXT"
    if peft.get("task_type") not in (None, "CAUSAL_LM"):
        yield f"peft.task_type is CAUSAL_LM here, got {peft['task_type']!r}; leave it out"
    if peft.get("inference_mode"):
        yield "peft.inference_mode=true would leave nothing to train; leave it out"
    yield from _peft_places(peft)
    yield from _peft_patterns(peft)


def _peft_places(peft: dict[str, Any]) -> Iterator[str]:
    """Names and numbers of what an adapter is put on; what they match is found with the model."""
    targets = peft.get("target_modules")
    if targets == []:
        yield "peft.target_modules is empty, so nothing would be trained; give names or all-linear"
    elif targets is not None and not (isinstance(targets, str) or _are_names(targets)):
        yield f"peft.target_modules must be a list of names, one name or all-linear, got {targets!r}"
    for name in ("target_parameters", "modules_to_save"):
        if peft.get(name) is not None and not _are_names(peft[name]):
            yield f"peft.{name} must be a list of names, got {peft[name]!r}"
    layers = peft.get("layers_to_transform")
    if layers is not None and not _are_numbers(layers if isinstance(layers, list) else [layers]):
        yield f"peft.layers_to_transform must be a layer's number or a list of them, got {layers!r}"
    ids = peft.get("trainable_token_indices")
    if ids is not None and not all(map(_are_numbers, ids.values() if isinstance(ids, dict) else [ids])):
        yield f"peft.trainable_token_indices must be a list of token ids, or such lists by embedding, got {ids!r}"


def _peft_patterns(peft: dict[str, Any]) -> Iterator[str]:
    """Ranks and scales of single modules."""
    for name, kinds, words in (("rank_pattern", (int,), "whole numbers"), ("alpha_pattern", (int, float), "numbers")):
        pattern = peft.get(name)
        if pattern is not None and not (
            isinstance(pattern, dict) and all(type(value) in kinds and value > 0 for value in pattern.values())
        ):
            yield f"peft.{name} must map module names to {words} above 0, got {pattern!r}"


def _initialisation(job: Job) -> Iterator[str]:
    """Ways to start LoRA that need more than the adapter itself."""
    chosen = job.peft.get("init_lora_weights")
    if not isinstance(chosen, str):
        return
    field = f"peft.init_lora_weights={chosen}"
    changes_base = re.fullmatch(r"olora|pissa(_niter_\d+)?", chosen) is not None
    if chosen in _DATA_DRIVEN:
        yield f"{field} needs a pass over the data before training, which fmstune does not make; leave it out"
    elif chosen == "loftq":
        yield f"{field} makes up for a quantised base, and fmstune quantises none; leave it out"
    elif not changes_base and chosen not in _INITIALISATIONS[:3]:
        known = ", ".join(_INITIALISATIONS)
        yield (
            f"peft.init_lora_weights must be true, false or one of {known}; "
            f"got {chosen!r}{did_you_mean(chosen, _INITIALISATIONS)}"
        )
    elif changes_base and job.evaluation.enabled and job.evaluation.base and has_held_out(job.data):
        yield f"{field} changes the base weights, so there is no base to compare with; set evaluation.base=false"


def _data(data: Data) -> Iterator[str]:
    for field, source in (("data.train", data.train), ("data.eval", data.eval)):
        if source is not None or field == "data.train":
            try:
                rows.files(source, field)
            except UserError as err:
                yield from err.problems
    if not 0 <= data.eval_fraction < 1:
        yield f"data.eval_fraction must be at least 0 and below 1, got {data.eval_fraction}"
    elif data.eval is not None and data.eval_fraction > 0:
        yield "data.eval and data.eval_fraction both say what is held out; set one of them"
    if data.max_rows is not None:
        yield from _at_least("data.max_rows", data.max_rows, 1)
    yield from _at_least("data.max_length", data.max_length, 2)
    if "text_field" in data.format and not data.format["text_field"]:
        yield "data.text_field must name the column that holds the text"


def _format(data: Data) -> Iterator[str]:
    """Settings that the format does not read, or reads otherwise: the format's own values are those that count."""
    for name, value in (("text_field", data.text_field), ("response_template", data.response_template)):
        if name not in data.format and value is not None:
            yield f"data.{name} is not used by {data.format['_target_'].rpartition('.')[2]}; leave it out"
        elif name in data.format and data.format[name] != value:
            yield f"data.{name} is {_shown(value)} and data.format.{name} is {_shown(data.format[name])}; change both"


def _training(job: Job) -> Iterator[str]:
    training = job.training
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if name in training:
            yield from _at_least(f"training.{name}", training[name], 1)
    steps, epochs = training.get("max_steps", -1), training.get("num_train_epochs", 3.0)
    if steps == 0 or steps < -1:
        yield f"training.max_steps must be at least 1, or -1 for whole epochs, got {steps}"
    if steps < 0 and not 0 < epochs < math.inf:
        yield f"training.num_train_epochs must be above 0 and finite, got {epochs:g}"
    if "learning_rate" in training and not 0 < training["learning_rate"] < 10:
        yield f"training.learning_rate must be above 0 and below 10, got {training['learning_rate']:g}"
    for name in _AT_LEAST_0:
        if (training.get(name) or 0) < 0:
            yield f"training.{name} must be at least 0, got {training[name]:g}"
    if training.get("save_total_limit") is not None:
        # transformers reads 0 as no limit
        yield from _at_least("training.save_total_limit", training["save_total_limit"], 1)
    for name in ("logging_steps", "save_steps", "eval_steps"):
        if training.get(name) is not None and training[name] <= 0:
            yield f"training.{name} must be above 0, got {training[name]:g}"
    if training.get("bf16") and training.get("fp16"):
        yield "training.bf16 and training.fp16 are both true; set one of them, or neither (model.dtype decides)"
    yield from _words(training)
    yield from _packages(training)
    yield from _evaluation_while_training(job)
    yield from _best_model(job)


def _words(training: dict[str, Any]) -> Iterator[str]:
    """Words that transformers looks up only when it trains."""
    for name in ("log_level", "log_level_replica"):
        word = training.get(name, "passive")
        if word not in _LOG_LEVELS:
            hint = did_you_mean(word, _LOG_LEVELS)
            yield f"training.{name} must be one of {', '.join(_LOG_LEVELS)}; got {word!r}{hint}"
    wanted = training.get("include_for_metrics")
    if wanted is not None and not (isinstance(wanted, list) and all(word in _FOR_METRICS for word in wanted)):
        yield f"training.include_for_metrics must be a list of some of {', '.join(_FOR_METRICS)}; got {wanted!r}"


def _packages(training: dict[str, Any]) -> Iterator[str]:
    """What must be installed, and is looked for only when the model is there."""
    if training.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        yield "training.use_liger_kernel needs the package liger-kernel; install it, or set it to false"
    optim = training.get("optim", "adamw_torch")
    package = _OPTIMIZER_PACKAGES.get(optim.partition("_")[0])
    if package is not None and importlib.util.find_spec(package) is None:
        yield f"training.optim={optim} needs the package {package.replace('_', '-')}; install it, or choose another"
    elif optim.startswith(("galore", "apollo")) and not training.get("optim_target_modules"):
        yield f"training.optim={optim} needs training.optim_target_modules, the modules that it is for"


def _resume(job: Job) -> Iterator[str]:
    """Why this job cannot go on from its checkpoint as if it had never stopped."""
    if job.training.get("resume") is None:
        return
    folder = Path(str(job.training["resume"]))
    weights = "adapter_model.safetensors" if tunes_an_adapter(job) else "model*.safetensors"
    missing = [name for name in ("trainer_state.json", weights) if not any(folder.glob(name))]
    if missing:
        hint = " of this peft method" if missing == [weights] else ""
        yield f"training.resume: {folder} is not a checkpoint folder{hint} (no {missing[0]}); give RUN/checkpoint-STEP"
        return
    for name in ("optimizer.pt", "scheduler.pt"):
        if not (folder / name).is_file():
            yield (
                f"training.resume: {folder} has no {name}, which would start anew in silence; "
                "give a checkpoint that was saved without training.save_only_model"
            )
    yield from _steps_left(folder, job.training.get("max_steps", -1))
    yield from _changes(job, folder.resolve().parent / run_folder.JOB)


def _steps_left(checkpoint: Path, max_steps: int) -> Iterator[str]:
    state = checkpoint / "trainer_state.json"
    try:
        done = int(json.loads(state.read_text(encoding="utf-8"))["global_step"])
    except (ValueError, KeyError, TypeError, OSError):
        yield f"training.resume: {state} is damaged; give an earlier checkpoint"
        return
    if 0 < max_steps <= done:
        left = f"training.max_steps={max_steps} leaves nothing to train"
        yield f"training.resume: {checkpoint} is at step {done}, so {left}"


def _changes(job: Job, job_file: Path) -> Iterator[str]:
    """What this job would train otherwise than the one whose checkpoint it goes on with, where that one is there."""
    if not job_file.is_file():
        return
    try:
        # the package of this job's format has been allowed already
        former = freeze.read(job_file, trusted=[job.data.format["_target_"].partition(".")[0]]).job
    except UserError as err:
        hint = "copy it elsewhere to go on without comparing"
        yield f"training.resume: the checkpoint's job cannot be compared ({'; '.join(err.problems)}); {hint}"
        return
    here, there = _leaves(job), _leaves(former)
    place = f"{job_file.parent.name}/{job_file.name}"
    for name in {**here, **there}:
        one, other = (_shown(values[name]) if name in values else "not given" for values in (here, there))
        if one != other and not _GOES_ON.fullmatch(name):
            yield f"{name} is {one} here and {other} in {place}; a resumed run keeps what its checkpoint began with"


def _leaves(job: Job) -> dict[str, Any]:
    """All that decides about training, by dotted names."""
    tree = yaml.safe_load(freeze.dump(job))
    return dict(leaf for group in ("seed", "model", "peft", "data", "training") for leaf in _named(group, tree[group]))


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _named(f"{name}.{key}", inner)


def _evaluation_while_training(job: Job) -> Iterator[str]:
    training = job.training
    evaluates = training.get("eval_strategy", "no")
    saves = training.get("save_strategy", "steps")
    if evaluates != "no" and not has_held_out(job.data):
        yield f"training.eval_strategy={evaluates} needs held-out rows; set data.eval or data.eval_fraction"
    if training.get("eval_on_start") and evaluates == "no":
        yield "training.eval_on_start=true needs training.eval_strategy=epoch or steps; set it, or leave it out"
    if training.get("load_best_model_at_end"):
        if evaluates == "no":
            yield "training.load_best_model_at_end needs training.eval_strategy=epoch or steps, to know the best"
        elif saves not in (evaluates, "best"):
            yield (
                f"training.load_best_model_at_end needs save_strategy and eval_strategy to agree, "
                f"got {saves} and {evaluates}"
            )
    elif saves == "best" and evaluates == "no":
        yield "training.save_strategy=best needs training.eval_strategy=epoch or steps, to know the best"


def _best_model(job: Job) -> Iterator[str]:
    """What says which model is the best."""
    training = job.training
    metric = training.get("metric_for_best_model")
    if metric is None:
        # where the best is loaded, transformers takes the loss
        if training.get("save_strategy") == "best" and not training.get("load_best_model_at_end"):
            yield "training.save_strategy=best needs training.metric_for_best_model, such as loss"
    elif metric.removeprefix("eval_") not in _METRICS:
        hint = did_you_mean(metric, _METRICS)
        yield f"training.metric_for_best_model must be one of {', '.join(_METRICS)}; got {metric!r}{hint}"
    elif metric.removeprefix("eval_") not in _ONE_WAY_METRICS and training.get("greater_is_better") is None:
        yield f"training.metric_for_best_model={metric} needs training.greater_is_better: true, or false for the least"


def _together(job: Job) -> Iterator[str]:
    """Fields that are right alone and wrong together."""
    learns_prompt = "num_virtual_tokens" in job.peft
    for name in ("packing", "eval_packing", "padding_free"):
        if learns_prompt and job.training.get(name):
            # measured: packed documents see each other, because PEFT drops position_ids
            yield f"training.{name} mixes documents up with prompt tuning; set training.{name}=false"
    if job.model.attention is Attention.flash_attention_2 and job.launcher.device in (Device.cpu, Device.mps):
        yield f"model.attention=flash_attention_2 needs a CUDA device, and launcher.device={job.launcher.device.value}"
    if job.training.get("fp16") and job.launcher.device is Device.cpu:
        yield "training.fp16 needs an accelerator, and launcher.device=cpu; set training.fp16=false"
    offload = job.training.get("activation_offloading")
    if offload and job.launcher.device is Device.cpu:
        yield "training.activation_offloading moves activations from an accelerator, and launcher.device=cpu"


def _launcher(launcher: Launcher) -> Iterator[str]:
    if launcher.threads is not None:
        yield from _at_least("launcher.threads", launcher.threads, 1)


def _evaluation(evaluation: Evaluation) -> Iterator[str]:
    yield from _at_least("evaluation.batch_size", evaluation.batch_size, 1)
    yield from _at_least("evaluation.max_new_tokens", evaluation.max_new_tokens, 1)
    if evaluation.max_rows is not None:
        yield from _at_least("evaluation.max_rows", evaluation.max_rows, 1)


def _at_least(field: str, value: int | float, least: int) -> Iterator[str]:
    if value < least:
        yield f"{field} must be at least {least}, got {value}"


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _shown(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else repr(value)
