"""Job → problems: what cannot work, found without torch, each message naming the field and what to change."""

import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmstune import files
from fmstune.checks import callbacks, fms, launcher, peft, resume, tracking
from fmstune.config import compare_by
from fmstune.config.job import (
    LORAPLUS_LR_RATIO,
    Attention,
    Data,
    Device,
    Evaluation,
    Job,
    Model,
    Overlap,
    Quantization,
    has_held_out,
    sources,
    tunes_an_adapter,
)
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.data.locate import local_files
from fmstune.errors import Problem, UserError, did_you_mean, shown
from fmstune.runs import run_folder

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "extra_special_tokens")


_AT_LEAST_0 = (
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "dataloader_num_workers",
)
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


def problems(job: Job) -> Iterator[Problem]:
    """All that the parent can find wrong before it starts anything."""
    yield from _top_level(job)
    yield from _model(job.model, adapts=tunes_an_adapter(job))
    yield from fms.problems(job)
    yield from peft.problems(job)
    yield from _data(job.data)
    yield from _format(job.data)
    yield from _streaming(job)
    yield from _training(job)
    yield from resume.problems(job)
    yield from _together(job)
    yield from launcher.problems(job)
    yield from _evaluation(job.evaluation)
    yield from tracking.problems(job.tracking)
    yield from callbacks.problems(job)
    yield from compare_by.problems(job)


def notes(job: Job) -> Iterator[str]:
    """What works but may not be meant."""
    rate = job.training.get("learning_rate")
    warmup, steps = job.training.get("warmup_steps", 0), job.training.get("max_steps", -1)
    if steps > 0 and warmup and (math.ceil(steps * warmup) if warmup < 1 else warmup) >= steps:
        yield f"training.max_steps={steps} ends within the warm-up, whose first step has a learning rate of 0"
    if job.training.get("packing") and job.training.get("train_sampling_strategy") == "group_by_length":
        yield "training.train_sampling_strategy=group_by_length has nothing to do: packed rows are all about as long"
    if tunes_an_adapter(job) and isinstance(rate, float) and rate < 5e-5:
        yield (
            f"training.learning_rate={rate:g} suits full tuning; adapters usually want 1e-4 or more"
            " (leave it out for the method's usual rate)"
        )
    if job.model.adapter is not None:
        yield "model.adapter: the configuration saved with it holds, and the peft group only names its method"
    if job.evaluation.enabled and not has_held_out(job.data):
        yield "no held-out rows, so base and tuned are not compared; set data.eval or data.eval_fraction"


def folder_problems(folder: Path, job: Job) -> Iterator[Problem]:
    """Why this cannot become the folder of this job's run; that of the same job can, and is gone on with."""
    if folder.is_dir():
        found = [name for name in run_folder.MARKS if (folder / name).exists()]
        if not found:
            return
        job_file = folder / run_folder.JOB
        why = list(resume.differences(job, job_file)) if job_file.is_file() else ["it has no job.yaml"]
        if why:
            marks = ", ".join(found)
            more = f" and {len(why) - 1} more" if len(why) > 1 else ""
            yield Problem(
                "output_dir",
                f": {folder} holds another run ({marks}), which is never overwritten; choose another ({why[0]}{more})",
            )
        elif job.training.get("resume") not in (None, resume.AUTO):
            yield Problem(
                "training.resume",
                f": {folder} holds a run of this job, which goes on from its own checkpoints; "
                "leave it out, or choose another output_dir",
            )
    elif folder.exists():
        yield Problem("output_dir", f": {folder} is a file; choose a folder")


def _top_level(job: Job) -> Iterator[Problem]:
    if not re.fullmatch(r"[\w.+-]+", job.name) or job.name.startswith("."):
        yield Problem("name", f"becomes part of a folder's name: use letters, digits and . _ + -, got {job.name!r}")
    if not 0 <= job.seed < 2**32:
        yield Problem("seed", f"must be at least 0 and below 2**32, got {job.seed}")
    if job.output_dir == "":
        yield Problem("output_dir", "is empty; name a folder, or null for one under runs/")
    elif job.output_dir is not None:
        yield from folder_problems(Path(job.output_dir), job)


def _model(model: Model, *, adapts: bool) -> Iterator[Problem]:
    yield from _model_place("model.path", model.path, wants="config.json")
    if model.tokenizer is not None:
        yield from _model_place("model.tokenizer", model.tokenizer, wants="tokenizer_config.json")
    if model.adapter is not None:
        yield from _model_place("model.adapter", model.adapter, wants="adapter_config.json")
        if not adapts:
            yield Problem(
                "model.adapter", "goes on training an adapter, and peft=full has none; choose its method (peft=lora)"
            )
    if model.quantization is not None:
        yield from _quantization(model.quantization, adapts=adapts)
    if model.chat_template is not None:
        yield from files.absent("model.chat_template", model.chat_template)
    if model.architecture is not None and "model_type" not in model.architecture:
        yield Problem("model.architecture", "needs model_type, such as llama")
    for name, value in model.special_tokens.items():
        if name == "extra_special_tokens":
            if not peft.are_names(value):
                yield Problem(f"model.special_tokens.{name}", f"must be a list of text, got {value!r}")
        elif name in SPECIAL_TOKENS:
            if not isinstance(value, str):
                yield Problem(f"model.special_tokens.{name}", f"must be text, got {value!r}")
            elif not value:
                yield Problem(
                    f"model.special_tokens.{name}", "is empty text, which is no token; name one, or leave it out"
                )
        else:
            known = ", ".join(SPECIAL_TOKENS)
            yield Problem(
                f"model.special_tokens.{name}", f": unknown{did_you_mean(name, SPECIAL_TOKENS)}; the names are {known}"
            )


def _quantization(quantization: Quantization, *, adapts: bool) -> Iterator[Problem]:
    """What bitsandbytes would not do."""
    if not adapts:
        yield Problem(
            "model.quantization", ": quantised weights cannot be trained; choose an adapter (peft=lora), or null"
        )
    if quantization.load_in_4bit == quantization.load_in_8bit:
        chosen = "both set" if quantization.load_in_4bit else "both false"
        yield Problem("model.quantization", f": load_in_4bit and load_in_8bit are {chosen}; set one of them to true")
    if not 0 < quantization.llm_int8_threshold < math.inf:
        yield Problem(
            "model.quantization.llm_int8_threshold", f"must be above 0, got {quantization.llm_int8_threshold:g}"
        )


def _model_place(field: str, place: str, wants: str) -> Iterator[Problem]:
    """A folder must hold what it should; what is no folder must look like a hub id."""
    try:
        folder = Path(files.resolve(place)).expanduser()
    except UserError as err:
        yield Problem(field, f": {err}")
        return
    if folder.is_dir():
        if not (folder / wants).is_file():
            yield Problem(field, f": {folder} has no {wants}; give the folder that save_pretrained wrote")
        elif wants != "tokenizer_config.json" and not any(folder.glob("*.safetensors")):
            # pickled weights can run code on loading
            found = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no weights"
            hint = "fmstune reads nothing else; save it again with save_pretrained"
            yield Problem(field, f": {folder} holds no *.safetensors (found {found}); {hint}")
    elif folder.is_file():
        yield Problem(field, f": {folder} is a file; give the folder that holds it")
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", place):
        yield Problem(field, f": no folder {folder}, and {place!r} is not a hub id (owner/name); give one of them")


def _data(data: Data) -> Iterator[Problem]:
    for part in ("train", "eval"):
        yield from _sources(data, part)
    if not 0 <= data.eval_fraction < 1:
        yield Problem("data.eval_fraction", f"must be at least 0 and below 1, got {data.eval_fraction}")
    elif data.eval is not None and data.eval_fraction > 0:
        yield Problem("data.eval", "and data.eval_fraction both say what is held out; set one of them")
    if data.max_rows is not None:
        yield from _at_least("data.max_rows", data.max_rows, 1)
    yield from _at_least("data.max_length", data.max_length, 2)
    yield from _at_least("data.buffer_size", data.buffer_size, 1)
    if "text_field" in data.format and not data.format["text_field"]:
        yield Problem("data.text_field", "must name the column that holds the text")


def _sources(data: Data, part: str) -> Iterator[Problem]:
    """The sources of `train` or `eval`: their files, names and weights."""
    found = sources(data, part)
    for name, source in found.items():
        field = f"data.{part}.{name}" if name else f"data.{part}"
        if name and not re.fullmatch(r"\w[\w-]*", name):
            yield Problem(field, ": a source's name is made of letters, digits, _ and -; change it")
        try:
            local_files(source.path, field)
        except UserError as err:
            yield from err.problems
        if source.max_rows is not None and source.max_rows != data.max_rows:
            yield from _at_least(f"{field}.max_rows", source.max_rows, 1)
        if source.weight is not None and not 0 < source.weight < math.inf:
            yield Problem(f"{field}.weight", f"must be above 0 and finite, got {source.weight:g}")
    weighted = [name for name, source in found.items() if source.weight is not None]
    if weighted and part == "eval":
        yield Problem(f"data.eval.{weighted[0]}.weight", ": held-out rows are not mixed; leave it out")
    elif weighted and len(weighted) < len(found):
        without = ", ".join(name for name in found if name not in weighted)
        yield Problem(
            "data.train", f": {', '.join(weighted)} has a weight and {without} has none; give one to all, or to none"
        )
    if getattr(data, part) == {}:
        yield Problem(f"data.{part}", "names no source; give some, such as {a: a.jsonl, b: b.jsonl}")


def _streaming(job: Job) -> Iterator[Problem]:
    """What streaming cannot do without the number of rows, or without all of them at hand."""
    if not job.data.streaming:
        return
    training = job.training
    if training.get("max_steps", -1) < 1:
        yield Problem("data.streaming", "=true does not know how many rows there are; set training.max_steps")
    if job.data.eval is None and job.data.eval_fraction > 0:
        yield Problem(
            "data.streaming", "=true cannot draw data.eval_fraction from rows that are not all there; set data.eval"
        )
    if training.get("dataloader_num_workers"):
        yield Problem(
            "data.streaming",
            "=true counts its rows in the training process; set training.dataloader_num_workers=0, "
            f"got {training['dataloader_num_workers']}",
        )
    if training.get("train_sampling_strategy") not in (None, "random"):
        yield Problem(
            "training.train_sampling_strategy",
            f"={training['train_sampling_strategy']} needs all rows at hand; "
            "set data.streaming=false (data.buffer_size says how streamed rows are shuffled)",
        )
    if job.data.overlap is Overlap.drop:
        yield Problem(
            "data.overlap", "=drop needs all rows at hand, and data.streaming=true reads them while training; set keep"
        )


def _format(data: Data) -> Iterator[Problem]:
    """Settings that the format does not read, or reads otherwise: the format's own values are those that count."""
    if data.format["_target_"] == "fmstune.data.formats.template":
        yield from files.absent("data.format.template_file", str(data.format.get("template_file")))
    for name, value in (("text_field", data.text_field), ("response_template", data.response_template)):
        if name not in data.format and value is not None:
            yield Problem(f"data.{name}", f"is not used by {data.format['_target_'].rpartition('.')[2]}; leave it out")
        elif name in data.format and data.format[name] != value:
            yield Problem(
                f"data.{name}", f"is {shown(value)} and data.format.{name} is {shown(data.format[name])}; change both"
            )


def _training(job: Job) -> Iterator[Problem]:
    training = job.training
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if name in training:
            yield from _at_least(f"training.{name}", training[name], 1)
    steps, epochs = training.get("max_steps", -1), training.get("num_train_epochs", 3.0)
    if steps == 0 or steps < -1:
        yield Problem("training.max_steps", f"must be at least 1, or -1 for whole epochs, got {steps}")
    if steps < 0 and not 0 < epochs < math.inf:
        yield Problem("training.num_train_epochs", f"must be above 0 and finite, got {epochs:g}")
    if "learning_rate" in training and not 0 < training["learning_rate"] < 10:
        yield Problem("training.learning_rate", f"must be above 0 and below 10, got {training['learning_rate']:g}")
    for name in _AT_LEAST_0:
        if (training.get(name) or 0) < 0:
            yield Problem(f"training.{name}", f"must be at least 0, got {training[name]:g}")
    if training.get("save_total_limit") is not None:
        # transformers reads 0 as no limit
        yield from _at_least("training.save_total_limit", training["save_total_limit"], 1)
    for name in ("logging_steps", "save_steps", "eval_steps"):
        if training.get(name) is not None and training[name] <= 0:
            yield Problem(f"training.{name}", f"must be above 0, got {training[name]:g}")
    if training.get("bf16") and training.get("fp16"):
        yield Problem(
            "training.bf16", "and training.fp16 are both true; set one of them, or neither (model.dtype decides)"
        )
    yield from _words(training)
    yield from _packages(training)
    yield from _evaluation_while_training(job)
    yield from _best_model(job)


def _words(training: dict[str, Any]) -> Iterator[Problem]:
    """Words that transformers looks up only when it trains."""
    for name in ("log_level", "log_level_replica"):
        word = training.get(name, "passive")
        if word not in _LOG_LEVELS:
            hint = did_you_mean(word, _LOG_LEVELS)
            yield Problem(f"training.{name}", f"must be one of {', '.join(_LOG_LEVELS)}; got {word!r}{hint}")
    wanted = training.get("include_for_metrics")
    if wanted is not None and not (isinstance(wanted, list) and all(word in _FOR_METRICS for word in wanted)):
        yield Problem(
            "training.include_for_metrics", f"must be a list of some of {', '.join(_FOR_METRICS)}; got {wanted!r}"
        )


def _packages(training: dict[str, Any]) -> Iterator[Problem]:
    """What must be installed, and is looked for only when the model is there."""
    if training.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        yield Problem("training.use_liger_kernel", "needs the package liger-kernel; install it, or set it to false")
    optim = training.get("optim", "adamw_torch")
    package = _OPTIMIZER_PACKAGES.get(optim.partition("_")[0])
    if package is not None and importlib.util.find_spec(package) is None:
        yield Problem(
            "training.optim", f"={optim} needs the package {package.replace('_', '-')}; install it, or choose another"
        )
    elif optim.startswith(("galore", "apollo")) and not training.get("optim_target_modules"):
        yield Problem("training.optim", f"={optim} needs training.optim_target_modules, the modules that it is for")


def _evaluation_while_training(job: Job) -> Iterator[Problem]:
    training = job.training
    evaluates = training.get("eval_strategy", "no")
    saves = training.get("save_strategy", "steps")
    if evaluates != "no" and not has_held_out(job.data):
        yield Problem(
            "training.eval_strategy", f"={evaluates} needs held-out rows; set data.eval or data.eval_fraction"
        )
    if job.evaluation.sample > 0 and evaluates == "no":
        yield Problem(
            "evaluation.sample", "is generated when training evaluates; set training.eval_strategy=epoch or steps"
        )
    if training.get("eval_on_start") and evaluates == "no":
        yield Problem(
            "training.eval_on_start", "=true needs training.eval_strategy=epoch or steps; set it, or leave it out"
        )
    if training.get("load_best_model_at_end"):
        if evaluates == "no":
            yield Problem(
                "training.load_best_model_at_end", "needs training.eval_strategy=epoch or steps, to know the best"
            )
        elif saves not in (evaluates, "best"):
            yield Problem(
                "training.load_best_model_at_end",
                f"needs save_strategy and eval_strategy to agree, got {saves} and {evaluates}",
            )
    elif saves == "best" and evaluates == "no":
        yield Problem("training.save_strategy", "=best needs training.eval_strategy=epoch or steps, to know the best")


def _best_model(job: Job) -> Iterator[Problem]:
    """What says which model is the best."""
    training = job.training
    table = metrics_of(job)
    sampled = names_at(table, Place.sample)
    measured = (*names_at(table, Place.evaluation), *sampled)
    metric = training.get("metric_for_best_model")
    name = (metric or "").removeprefix("eval_")
    if metric is None:
        # where the best is loaded, transformers takes the loss
        if training.get("save_strategy") == "best" and not training.get("load_best_model_at_end"):
            yield Problem("training.save_strategy", "=best needs training.metric_for_best_model, such as loss")
    elif name not in measured:
        hint = did_you_mean(metric, measured)
        yield Problem("training.metric_for_best_model", f"must be one of {', '.join(measured)}; got {metric!r}{hint}")
    elif name in sampled and not job.evaluation.sample:
        yield Problem(
            "training.metric_for_best_model", f"={metric} is measured on generated answers; set evaluation.sample"
        )
    elif table[name].better is None and training.get("greater_is_better") is None:
        yield Problem(
            "training.metric_for_best_model",
            f"={metric} needs training.greater_is_better: true, or false for the least",
        )


def _together(job: Job) -> Iterator[Problem]:
    """Fields that are right alone and wrong together."""
    yield from _packing(job)
    if peft.learns_a_prompt(job.peft):
        yield from _with_virtual_tokens(job)
    if job.model.attention is Attention.flash_attention_2 and job.launcher.device in (Device.cpu, Device.mps):
        yield Problem(
            "model.attention",
            f"=flash_attention_2 needs a CUDA device, and launcher.device={job.launcher.device.value}",
        )
    if job.training.get("fp16") and job.launcher.device is Device.cpu:
        yield Problem("training.fp16", "needs an accelerator, and launcher.device=cpu; set training.fp16=false")
    if job.model.quantization is not None and job.launcher.device in (Device.cpu, Device.mps):
        yield Problem(
            "model.quantization",
            f"needs a CUDA device, and launcher.device={job.launcher.device.value}; set it to null",
        )
    optim = job.training.get("optim", "adamw_torch")
    if job.peft.get(LORAPLUS_LR_RATIO) is not None and optim.partition("_")[0] in _OPTIMIZER_PACKAGES:
        yield Problem(
            "training.optim", f"={optim} groups the parameters itself, and so does peft.{LORAPLUS_LR_RATIO}; choose one"
        )
    offload = job.training.get("activation_offloading")
    if offload and job.launcher.device is Device.cpu:
        yield Problem(
            "training.activation_offloading", "moves activations from an accelerator, and launcher.device=cpu"
        )


def _packing(job: Job) -> Iterator[Problem]:
    """Ways in which packed documents would see each other, or be cut."""
    training = job.training
    if training.get("packing_strategy") == "wrapped":
        yield Problem(
            "training.packing_strategy",
            "=wrapped cuts documents where a row is full, and lets those of a row see each "
            "other; leave it out (bfd keeps them whole and apart)",
        )
    if training.get("padding_free") and training.get("eval_packing") and not training.get("packing"):
        yield Problem(
            "training.padding_free",
            "and training.eval_packing need training.packing=true; set it, or one of them false",
        )


def _with_virtual_tokens(job: Job) -> Iterator[Problem]:
    """What goes wrong where an adapter puts tokens before every row."""
    training, method = job.training, job.peft["_target_"].removeprefix("peft.").removesuffix("Config")
    for name in ("packing", "eval_packing", "padding_free"):
        if training.get(name):
            # measured: packed documents see each other, because PEFT drops position_ids
            yield Problem(
                f"training.{name}", f"mixes documents up with virtual tokens ({method}); set training.{name}=false"
            )
    if job.model.adapter is not None:
        yield Problem(
            "model.adapter", f": PEFT goes on with no saved virtual tokens ({method}); leave it out and train anew"
        )
    if peft.makes_its_prompt(job.peft):
        for name in ("resume", "load_best_model_at_end"):
            if training.get(name):
                # measured: the tokens are put into a network that is not the one that made them
                yield Problem(
                    f"training.{name}",
                    f": a checkpoint of {method} holds the virtual tokens without the network that "
                    "makes them, so it cannot be gone on with; leave it out",
                )
    if job.peft["_target_"] in peft.PREFIXES and training.get("activation_checkpointing"):
        yield Problem(
            "training.activation_checkpointing", f"drops the keys and values that {method} learns; set it to false"
        )


def _evaluation(evaluation: Evaluation) -> Iterator[Problem]:
    yield from _at_least("evaluation.batch_size", evaluation.batch_size, 1)
    yield from _at_least("evaluation.max_new_tokens", evaluation.max_new_tokens, 1)
    yield from _at_least("evaluation.sample", evaluation.sample, 0)
    if evaluation.max_rows is not None:
        yield from _at_least("evaluation.max_rows", evaluation.max_rows, 1)


def _at_least(field: str, value: int | float, least: int) -> Iterator[Problem]:
    if value < least:
        yield Problem(field, f"must be at least {least}, got {value}")
