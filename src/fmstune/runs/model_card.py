"""The card (`README.md`) of a tuned or merged model, for readers and for the Hugging Face hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fmstune import files as package_files
from fmstune.config.job import FULL, Job, Source, sources
from fmstune.config.metrics import metrics_of
from fmstune.runs.report.terminal_summary import metric_rows
from fmstune.runs.run_folder import CHAT

MODEL_CARD = "README.md"
_PROMPT = "A prompt as the training rows have it"


def run_card(job: Job, lock: Mapping[str, Any], summary: Mapping[str, Any], licence: Mapping[str, str]) -> str:
    """The card of a tuned model or adapter; `lock` is the content of `lock.json`, `licence` the base's."""
    adapter, base = job.peft["_target_"] != FULL, short_name(job.model.path)
    named = str(job.peft["_target_"]).removeprefix("peft.").removesuffix("Config")
    method = "DoRA" if job.peft.get("use_dora") else "LoRA" if named == "Lora" else named
    places = [place for source in sources(job.data, "train").values() for place in _places(source)]
    hub = [place for place in places if "/" in place and not Path(place).suffix and _is_hub_id(place)]
    head = {
        "base_model": base,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **licence,
        **({"datasets": hub} if hub else {}),
        "tags": ["fmstune", "trl", "sft", *([method.lower()] if adapter else [])],
    }
    return _render_card(
        head,
        job=job,
        lock=lock,
        summary=summary,
        licence=licence,
        adapter=adapter,
        base=base,
        from_hub=_is_hub_id(job.model.path),
        method=method,
        model_files=(lock["model_files"] or {}).get("model.path"),
        data_files=list(_data_files(job, lock)),
        table=metrics_of(job),
        **({"chat": dict(job.data.format.get("template_kwargs") or {})} if _is_chat(job) else {}),
        prompt=repr(_PROMPT + ((job.data.format or {}).get("response_template") or "")),
    )


def _is_chat(job: Job) -> bool:
    """Whether the model was tuned on turns, and is asked in its chat template."""
    return bool(job.data.format["_target_"] == CHAT)


def merge_card(
    base: str,
    adapters: Sequence[tuple[str, float]],
    licence: Mapping[str, str],
    *,
    dtype: str,
    difference: str,
    versions: Mapping[str, str],
    chat: Mapping[str, Any] | None = None,
) -> str:
    """The card of a model with the weighted adapters merged in; `difference` compares its logits with the adapters'.

    `chat` has the values for the template of a model that was tuned on turns.
    """
    head = {
        "base_model": short_name(base),
        "base_model_relation": "merge" if len(adapters) > 1 else "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **licence,
        "tags": ["fmstune", "merge"],
    }
    return _render_card(
        head,
        base=short_name(base),
        adapters=[(short_name(adapter), weight) for adapter, weight in adapters],
        licence=licence,
        dtype=dtype,
        difference=difference,
        versions=versions,
        adapter=False,
        **({} if chat is None else {"chat": dict(chat)}),
        prompt=repr(_PROMPT),
    )


def _render_card(head: Mapping[str, Any], **facts: Any) -> str:
    file = Path(__file__).with_name("model_card.md.jinja")
    front = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)
    return package_files.render_template(file, front=front, metric_rows=metric_rows, **facts)


def read_licence(folder: Path) -> dict[str, str]:
    """`license` and what belongs to it, as the card of the model in this folder has them; empty where it has none."""
    try:
        text = (folder / MODEL_CARD).read_text(encoding="utf-8")
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, flags=re.DOTALL)
        head = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(head, dict) or not head.get("license"):
        return {}
    return {key: str(head[key]) for key in ("license", "license_name", "license_link") if key in head}


def short_name(place: str) -> str:
    """The hub id, or the last part of a folder's path, since paths of one machine say nothing on another."""
    if place.startswith(package_files.PREFIX):
        return place.removeprefix(package_files.PREFIX).strip("/")
    path = package_files.user_path(place)
    if path.is_dir() or not _is_hub_id(place):
        # of a run, the folder above says more
        name = path.resolve().name
        return f"{path.resolve().parent.name}/{name}" if name == "model" else name
    return place


def _is_hub_id(place: str) -> bool:
    """Whether the text has the form of a hub id, and no file or folder has this name."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) is not None and not Path(place).exists()


def _places(source: Source) -> list[str]:
    return [str(place) for place in (source.path if isinstance(source.path, list | tuple) else [source.path])]


def _data_files(job: Job, lock: Mapping[str, Any]) -> Iterator[tuple[str, str, int | None, str]]:
    """Field, name and digest of each data file, and with the first of a field the number of its rows."""
    for field, digest in lock["data_hashes"].items():
        _, part, *name = field.split(".")
        unnamed = ", ".join(_places(sources(job.data, part)[".".join(name)]))
        rows = lock["data_rows"].get(field)
        for file, one in ((lock["data_files"] or {}).get(field) or {unnamed: digest}).items():
            yield field, Path(file).name, rows, one
            rows = None
