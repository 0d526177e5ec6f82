"""The base that an adapter was tuned on, in a file with its weights: a path alone says nothing on another machine."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from fmstune import files

FILE = "base.json"
"""Beside `adapter_config.json`: PEFT warns of keys that it does not know, so they are not put in there."""

_NOT_THE_MODEL = (
    *("architectures", "attn_implementation", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    "quantization_config",
    # training aligns these with the tokenizer
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
)
"""Keys of a configuration that differ between copies of one model."""


@dataclass(frozen=True)
class Base:
    """How a base is recognised."""

    id: str
    """The hub id, the folder, or the `package:` name that the job gave."""
    local: bool
    """Whether it was a folder, which may have moved; a hub id does not."""
    revision: str | None
    config_sha256: str
    """Of the configuration's values as JSON, those left out that differ between copies of one model."""
    config: dict[str, Any]
    """These values, to say in what another base differs."""


def identify_base(place: str, revision: str | None) -> Base:
    """The identity of a model from its configuration; raises what transformers raises where that cannot be read."""
    resolved = files.resolve(place)
    found = AutoConfig.from_pretrained(resolved, revision=revision, trust_remote_code=False).to_diff_dict().items()
    # with an underscore: such as where it was loaded from
    values = {key: value for key, value in found if not (key in _NOT_THE_MODEL or key.startswith("_"))}
    plain: dict[str, Any] = json.loads(json.dumps(values, sort_keys=True, default=str), parse_constant=str)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    return Base(place, Path(resolved).is_dir(), revision, digest, plain)


def write_base(base: Base, folder: Path) -> None:
    """Write `base.json` into an adapter's folder."""
    text = json.dumps(asdict(base), indent=2, ensure_ascii=False, sort_keys=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_base(folder: Path) -> Base | None:
    """The recorded base of an adapter; None where fmstune has not saved it, or the file cannot be read."""
    try:
        return Base(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def base_differences(recorded: Base, found: Base) -> Iterator[str]:
    """How a base differs from the recorded one; a folder may have moved, and a hub id may not."""
    hub = not recorded.local and not found.local
    if hub and recorded.id != found.id:
        yield f"it is {found.id} and not {recorded.id}"
    elif hub and recorded.revision != found.revision:
        yield f"its revision is {found.revision or 'the default'} and not {recorded.revision or 'the default'}"
    if recorded.config_sha256 == found.config_sha256:
        return
    kinds = recorded.config.get("model_type"), found.config.get("model_type")
    if kinds[0] != kinds[1]:
        # next to no value of one architecture means anything in another
        yield f"it is a {kinds[1]} and not a {kinds[0]}"
        return
    for key in sorted({*recorded.config, *found.config}):
        if (was := recorded.config.get(key)) != (now := found.config.get(key)):
            yield f"{key} is {_short(now)} and not {_short(was)}"


def _short(value: Any) -> str:
    text = "left at its default" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
