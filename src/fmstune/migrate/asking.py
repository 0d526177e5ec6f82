"""The early inference script, and lm-evaluation-harness → words of `fmstune generate` and of `evaluate harness`."""

import re
from collections.abc import Sequence

from fmstune.errors import Problem, UserError
from fmstune.migrate.flags import HARNESS, INFERENCE, Kind
from fmstune.migrate.launcher import Given
from fmstune.migrate.words import Became, Note, Translated, moved, moves, shown, single, switch

_MODELS = ("hf", "hf-causal", "hf-causal-experimental", "hf-auto", "huggingface")
_MODEL_ARGS = {"pretrained": "--model", "peft": "--model", "dtype": "--dtype", "tokenizer": "", "use_accelerate": ""}


def generate(given: Given) -> Translated:
    """The words of `fmstune generate`; its flags have the early names."""
    out = Translated()
    for name, values in given.items():
        flag = moves(name, values, INFERENCE, out)
        if flag is None:
            continue
        if flag.kind is Kind.switch:
            value = flag.values["true" if switch(name, values) else "false"]
            if value:
                out.fields[flag.field] = value
                out.notes.append(Note(Became.renamed, shown(name, values), f"{flag.field} {value}"))
        else:
            out.fields[flag.field] = single(name, values)
            out.notes.append(Note(moved(name, flag.field), shown(name, values), flag.field, flag.why))
    asked = [name for name in ("text", "text_file") if name in given]
    if "model" not in given:
        out.problems.append(Problem("--model", "is missing: the tuned model's folder"))
    if len(asked) != 1:
        out.problems.append(
            Problem("", f"one of --text and --text_file must be given, got {' and '.join(asked) or 'none'}")
        )
    flash = out.fields.get("--attention") == "flash_attention_2"
    out.fields["--dtype"] = "bfloat16" if flash else "float32"
    out.notes.append(Note(Became.set, "the early script's own", f"--dtype {out.fields['--dtype']}"))
    out.notes.append(
        Note(
            Became.changed,
            "special tokens in the output",
            "none",
            "the model's own generation settings are not used: the likeliest token is taken",
        )
    )
    return out


def harness(given: Given) -> Translated:
    """The words of `fmstune evaluate harness`."""
    out = Translated()
    for name, values in given.items():
        flag = moves(name, values, HARNESS, out)
        if flag is not None and name not in ("model", "model_args", "tasks"):
            _harness_flag(name, flag.field, values, out)
    model = given.get("model", ["hf"])
    if model[:1] and model[0] not in _MODELS:
        out.problems.append(Problem("--model", f"must be one of {', '.join(_MODELS)}; got {model[0]!r}"))
    missing = {"model_args": "the model, as pretrained=DIR", "tasks": "names of tasks, with commas"}
    for name, read in (("model_args", _model_args), ("tasks", _tasks)):
        if name not in given:
            out.problems.append(Problem(f"--{name}", f"is missing: {missing[name]}"))
            continue
        try:
            read(single(name, given[name]), out)
        except UserError as err:
            out.problems += err.problems
    return out


def _harness_flag(name: str, field: str, values: Sequence[str], out: Translated) -> None:
    """A flag of the harness whose value may be written in another way here."""
    try:
        value = single(name, values)
    except UserError as err:
        out.problems += err.problems
        return
    if name == "batch_size" and value.startswith("auto"):
        out.notes.append(Note(Became.dropped, shown(name, values), why="8 when it is left out"))
        return
    if name == "device":
        value, _, number = value.partition(":")
        if number not in ("", "0"):
            out.problems.append(
                Problem("--device", f"{value}:{number}: set CUDA_VISIBLE_DEVICES={number} before the command")
            )
    if name == "output_path" and not value.endswith(".json"):
        value = f"{value.rstrip('/')}/harness.json"
    out.fields[field] = value
    out.notes.append(Note(moved(name, field), shown(name, values), f"{field} {value}"))


def _model_args(text: str, out: Translated) -> None:
    found = dict(part.partition("=")[::2] for part in text.split(",") if part)
    for name in found:
        if name not in _MODEL_ARGS:
            out.problems.append(Problem("--model_args", f"{name} is not taken; {', '.join(_MODEL_ARGS)} are"))
    if "pretrained" not in found:
        raise UserError("--model_args", "must name the model, as pretrained=DIR")
    out.fields["--model"] = found.get("peft", found["pretrained"])
    out.notes.append(Note(Became.renamed, shown("model_args", [text]), "--model"))
    if "peft" in found:
        why = "the adapter's own base is taken; --base_model_name_or_path names another"
        out.notes.append(Note(Became.changed, "pretrained beside peft", why=why))
    if "dtype" in found:
        out.fields["--dtype"] = found["dtype"]


def _tasks(text: str, out: Translated) -> None:
    tasks = list(dict.fromkeys(re.sub(r"^hendrycksTest-.*$", "mmlu", task) for task in text.split(",") if task))
    out.fields["--tasks"] = ",".join(tasks)
    why = "hendrycksTest-* is mmlu today" if "hendrycksTest" in text else ""
    out.notes.append(Note(Became.kept, shown("tasks", [text]), "--tasks", why))
