"""`README.md` beside the weights: what the model is made of, as the Hugging Face hub reads it and a person does.

Folders are called by their last name, as paths of one machine say nothing on another.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fmstune import files as package_files
from fmstune.config.job import FULL, Job, Source, sources
from fmstune.config.metrics import Table, metrics_of
from fmstune.runs.report import terminal_summary

MODEL_CARD = "README.md"
_UNKNOWN_LICENCE = "Not known: the base names none. Fill in `license` at the head of this file before you publish it."


class MergedModel(NamedTuple):
    """What a merged model is made of."""

    base: str
    adapters: Sequence[tuple[str, float]]
    """Each with its weight."""
    dtype: str
    difference: str
    """How the logits differ from those of the adapters on their base, in words."""
    versions: Mapping[str, str]


def run_card(job: Job, lock: Mapping[str, Any], summary: Mapping[str, Any], licence: Mapping[str, str]) -> str:
    """The card of a tuned model or adapter; `lock` is what `lock.json` holds, `licence` that of the base."""
    adapter = job.peft["_target_"] != FULL
    base, method = short_name(job.model.path), _method(job)
    head = {
        "base_model": base,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **licence,
        **({"datasets": hub} if (hub := _hub_data(job)) else {}),
        "tags": ["fmstune", "trl", "sft", *([method.lower()] if adapter else [])],
    }
    text = [
        f"# {job.name}",
        f"[{base}]({_hub(base)})" if _is_hub_id(job.model.path) else f"`{base}`",
        f", tuned by {method if adapter else 'full tuning'} with fmstune {lock['fmstune']}.",
    ]
    lines = [
        text[0],
        "",
        text[1] + text[2],
        "",
        *_section("Base model", _base(job, lock)),
        *_section("Data", _data(job, lock, summary)),
        *_section("Result", _result(summary, metrics_of(job))),
        *_section("How to load it", _loading(job, adapter)),
        *_section("How it was made", _made(job, lock, summary)),
        *_section("Licence", [_licence_line(licence)]),
        *_section("Limits", _limits(summary)),
    ]
    return _page(head, lines)


def merge_card(merged: MergedModel, licence: Mapping[str, str]) -> str:
    """The card of a model that adapters were merged into."""
    base = short_name(merged.base)
    head = {
        "base_model": base,
        "base_model_relation": "merge" if len(merged.adapters) > 1 else "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **licence,
        "tags": ["fmstune", "merge"],
    }
    parts = [f"- `{short_name(adapter)}`, weight {weight:g}" for adapter, weight in merged.adapters]
    versions = ", ".join(f"{name} {version}" for name, version in merged.versions.items())
    lines = [
        f"# {base}, merged",
        "",
        f"`{base}` with these adapters in its weights ({merged.dtype}):",
        "",
        *parts,
        "",
        f"{merged.difference} `merge.json` has the figures.",
        "",
        *_section("How to load it", ["```python", *_whole("A prompt as the training rows have it"), "```"]),
        *_section("How it was made", [f"`fmstune merge`, with {versions}."]),
        *_section("Licence", [_licence_line(licence)]),
    ]
    return _page(head, lines)


def read_licence(folder: Path) -> dict[str, str]:
    """`license` and what belongs to it, as the card of the model in this folder has them; empty where it has none."""
    try:
        text = (folder / MODEL_CARD).read_text(encoding="utf-8")
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, flags=re.DOTALL)
        head = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(head, dict) or not head.get("license"):
        return {}
    return {key: str(head[key]) for key in ("license", "license_name", "license_link") if key in head}


def _licence_line(licence: Mapping[str, str]) -> str:
    """What a reader is told of it."""
    if not licence:
        return _UNKNOWN_LICENCE
    return f"That of the base: {', '.join(f'`{value}`' for value in licence.values())}."


def short_name(place: str) -> str:
    """The hub id, or the last part of a folder's path."""
    if place.startswith(package_files.PREFIX):
        return place.removeprefix(package_files.PREFIX).strip("/")
    path = Path(place).expanduser()
    if path.is_dir() or not _is_hub_id(place):
        # of a run, the folder above says more
        name = path.resolve().name
        return f"{path.resolve().parent.name}/{name}" if name == "model" else name
    return place


def _page(head: Mapping[str, Any], lines: Sequence[str]) -> str:
    front = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(lines).rstrip() + "\n"


def _section(title: str, lines: Sequence[str] | Iterator[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _hub(hub_id: str) -> str:
    return f"https://huggingface.co/{hub_id}"


def _is_hub_id(place: str) -> bool:
    """Whether it has the form of a hub id and is no folder here."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) is not None and not Path(place).exists()


def _method(job: Job) -> str:
    """The PEFT method by its usual name."""
    if job.peft["_target_"] == FULL:
        return "full"
    named = str(job.peft["_target_"]).removeprefix("peft.").removesuffix("Config")
    return "DoRA" if job.peft.get("use_dora") else "LoRA" if named == "Lora" else named


def _hub_data(job: Job) -> list[str]:
    """The hub ids among the training data, a place of their own in the front matter."""
    found = [place for source in sources(job.data, "train").values() for place in _places(source)]
    return [place for place in found if "/" in place and not Path(place).suffix and _is_hub_id(place)]


def _places(source: Source) -> list[str]:
    return [str(place) for place in (source.path if isinstance(source.path, list | tuple) else [source.path])]


def _base(job: Job, lock: Mapping[str, Any]) -> Iterator[str]:
    yield f"`{short_name(job.model.path)}`" + (f", revision `{job.model.revision}`" if job.model.revision else "")
    commit = (lock.get("model_commits") or {}).get("model.path")
    if commit:
        yield f"(commit `{commit}`)"
    files = (lock.get("model_files") or {}).get("model.path") or {}
    if files:
        yield from ["", "| file | sha256 |", "| --- | --- |"]
        yield from (f"| `{name}` | `{digest}` |" for name, digest in files.items())


def _data(job: Job, lock: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    counts = summary["data"]
    yield (
        f"{counts['train']['rows_trained']:,} rows trained"
        + (f", {counts['held_out']['rows_trained']:,} held out" if counts["held_out"] else ", none held out")
        + (f", {counts['train']['rows_dropped']:,} dropped" if counts["train"]["rows_dropped"] else "")
        + f"; {counts['train']['tokens_trained']:,} of {counts['train']['tokens_total']:,} tokens were learnt."
    )
    yield from ["", "| field | file | rows | sha256 |", "| --- | --- | --- | --- |"]
    for field, digest in lock["data_hashes"].items():
        rows = lock["data_rows"].get(field)
        files = (lock.get("data_files") or {}).get(field) or {_source_name(job, field): digest}
        for number, (name, one) in enumerate(files.items()):
            count = f"{rows:,}" if rows is not None and number == 0 else ""
            yield f"| `{field}` | `{Path(name).name}` | {count} | `{one}` |"
    if job.data.eval is None and job.data.eval_fraction:
        yield from ["", f"Held out: a share of {job.data.eval_fraction:g} of the rows, drawn with seed {job.seed}."]


def _source_name(job: Job, field: str) -> str:
    _, part, *name = field.split(".")
    return ", ".join(_places(sources(job.data, part)[".".join(name)]))


def _result(summary: Mapping[str, Any], table: Table) -> Iterator[str]:
    if not summary.get("tuned"):
        yield f"Mean training loss {summary['train_loss']:.4f}; nothing was held out to compare with the base."
        return
    yield from _table(summary.get("base"), summary["tuned"], "held-out rows", table)


def _table(base: Mapping[str, Any] | None, tuned: Mapping[str, Any], name: str, table: Table) -> Iterator[str]:
    yield from [f"{name}: {tuned['rows']:,}", "", "| | base | tuned |", "| --- | --- | --- |"]
    for label, before, after, _ in terminal_summary.metric_rows(base, tuned, table):
        yield f"| {label} | {before} | {after} |"
    for inner, one in tuned.get("sets", {}).items():
        yield ""
        yield from _table(base["sets"][inner] if base else None, one, inner, table)


def _loading(job: Job, adapter: bool) -> Iterator[str]:
    template = (job.data.format or {}).get("response_template") or ""
    prompt = f"A prompt as the training rows have it{template}"
    yield "```python"
    yield from _adapter(prompt) if adapter else _whole(prompt)
    yield "```"
    if adapter:
        base = short_name(job.model.path)
        yield from [
            "",
            f"`adapter_config.json` says where the base `{base}` was. Where it is elsewhere now, "
            "`fmstune generate --base_model_name_or_path` takes its place, or PEFT's "
            "`PeftModel.from_pretrained(base, folder)`.",
        ]


def _adapter(prompt: str) -> list[str]:
    return [
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        'folder = "."  # the folder of this file',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoPeftModelForCausalLM.from_pretrained(folder)",
        *_asking(prompt),
    ]


def _whole(prompt: str) -> list[str]:
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # the folder of this file',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        *_asking(prompt),
    ]


def _asking(prompt: str) -> list[str]:
    return [
        f"inputs = tokenizer({prompt!r}, return_tensors='pt')",
        'output = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(output, skip_special_tokens=True))",
    ]


def _made(job: Job, lock: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    if lock.get("command"):
        yield from ["```bash", str(lock["command"]), "```", ""]
    device = lock["cpu"] if lock["device"] == "cpu" else ", ".join(dict.fromkeys(lock["device_names"]))
    yield (
        f"{summary['steps']:,} steps, {summary['epochs']:.4g} epochs, seed {job.seed}, {lock['processes']} "
        f"{'process' if lock['processes'] == 1 else 'processes'} on {device}."
    )
    given = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type")
    yield from ["", "| setting | value |", "| --- | --- |"]
    yield from (f"| `training.{name}` | {job.training[name]} |" for name in given if name in job.training)
    if lock["git_commit"]:
        yield from ["", f"fmstune's commit: `{lock['git_commit']}`."]
    versions = {"Python": lock["python"], **lock["packages"]}
    yield from ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]


def _limits(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "- It was tuned on the rows above alone, and has what is wrong with its base and with them."
    if summary.get("tuned"):
        yield f"- The figures are of {summary['tuned']['rows']:,} held-out rows of the same kind, and of no others."
    else:
        yield "- It was not compared with its base on held-out rows."
