"""The early inference script and lm-evaluation-harness → words of `fmstune generate` and of `evaluate harness`."""

import re

from fmstune.errors import UserError
from fmstune.migrate.flags import HARNESS, INFERENCE, Kind
from fmstune.migrate.words import (
    Became,
    Given,
    Translation,
    kept_or_renamed,
    moved_flag,
    old_flag,
    single_value,
    todays_value,
)

_MODELS = ("hf", "hf-causal", "hf-causal-experimental", "hf-auto", "huggingface")
_MODEL_ARGS = {"pretrained": "--model", "peft": "--model", "dtype": "--dtype", "tokenizer": "", "use_accelerate": ""}


def translate_inference(given: Given, out: Translation) -> None:
    """Translate the inference script's flags to words of `fmstune generate`."""
    out.verb = ("generate",)
    for name, values in given.items():
        flag, old = moved_flag(name, values, INFERENCE, out), old_flag(name, values)
        if flag is not None and flag.kind is Kind.switch:
            if value := todays_value(name, flag, values):
                out.set(old, flag.field, value)
        elif flag is not None:
            out.fields[flag.field] = single_value(name, values)
            out.note(kept_or_renamed(old, flag.field), old, flag.field, flag.why)
    if "model" not in given:
        out.problem("--model", "is missing: the tuned model's folder")
    texts = [name for name in ("text", "text_file") if name in given]
    if len(texts) != 1:
        out.problem("", f"one of --text and --text_file must be given, got {' and '.join(texts) or 'none'}")
    flash = out.fields.get("--attention") == "flash_attention_2"
    out.set("the early script's default", "--dtype", "bfloat16" if flash else "float32", became=Became.set)
    why = "decoding is greedy; the model's own generation settings are not used"
    out.note(Became.changed, "special tokens in the output", "none", why)


def translate_harness(given: Given, out: Translation) -> None:
    """Translate the harness's flags to words of `fmstune evaluate harness`."""
    out.verb = ("evaluate", "harness")
    for name, values in given.items():
        flag = moved_flag(name, values, HARNESS, out)
        if flag is not None and name not in ("model", "model_args", "tasks"):
            out.attempt(_harness_flag, name, flag.field, values, out)
    model = given.get("model", ["hf"])
    if model[:1] and model[0] not in _MODELS:
        out.problem("--model", f"must be one of {', '.join(_MODELS)}; got {model[0]!r}")
    missing = {"model_args": "the model, as pretrained=DIR", "tasks": "names of tasks, separated by commas"}
    for name, translate_values in (("model_args", _model_args), ("tasks", _tasks)):
        if name in given:
            out.attempt(translate_values, given[name], out)
        else:
            out.problem(f"--{name}", f"is missing: {missing[name]}")


def _harness_flag(name: str, field: str, values: list[str], out: Translation) -> None:
    """A flag whose value may have another form in fmstune."""
    value, old = single_value(name, values), old_flag(name, values)
    if name == "batch_size" and value.startswith("auto"):
        out.drop(old, "fmstune's default is 8")
        return
    if name == "device":
        value, _, number = value.partition(":")
        if number not in ("", "0"):
            out.problem("--device", f"{value}:{number}: set CUDA_VISIBLE_DEVICES={number} before the command")
    if name == "output_path" and not value.endswith(".json"):
        value = f"{value.rstrip('/')}/harness.json"
    out.set(old, field, value)


def _model_args(values: list[str], out: Translation) -> None:
    text = single_value("model_args", values)
    found = dict(part.partition("=")[::2] for part in text.split(",") if part)
    for name in found:
        if name not in _MODEL_ARGS:
            out.problem("--model_args", f"{name} is not supported; choose from {', '.join(_MODEL_ARGS)}")
    if "pretrained" not in found:
        raise UserError("--model_args", "must name the model, as pretrained=DIR")
    out.fields["--model"] = found.get("peft", found["pretrained"])
    out.note(Became.renamed, old_flag("model_args", [text]), "--model")
    if "peft" in found:
        why = "the adapter's recorded base model is used; --base_model_name_or_path names another"
        out.note(Became.changed, "pretrained together with peft", why=why)
    if "dtype" in found:
        out.fields["--dtype"] = found["dtype"]


def _tasks(values: list[str], out: Translation) -> None:
    text = single_value("tasks", values)
    tasks = list(dict.fromkeys(re.sub(r"^hendrycksTest-.*$", "mmlu", task) for task in text.split(",") if task))
    out.fields["--tasks"] = ",".join(tasks)
    why = "hendrycksTest-* is mmlu today" if "hendrycksTest" in text else ""
    out.note(Became.kept, old_flag("tasks", [text]), "--tasks", why)
