"""Saved weights against the architecture that is to hold them, by name, shape and dtype; no weight is read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from fmstune import files
from fmstune.checks.weights import read_tensors, weight_problems
from fmstune.config.job import Model
from fmstune.errors import Problem, in_words, one_line, raise_if_any
from fmstune.models.architecture import REFUSALS

_FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes that transformers casts to the asked one; other numbers mean something only with their scales."""


def check_weights(model: Model, empty: PreTrainedModel, new_modules: Sequence[str] = ()) -> None:
    """Raise UserError where the weights in the model's folder are not those of `empty`; a hub id passes."""
    folder = files.user_path(files.resolve(model.path))
    if not folder.is_dir():
        return
    raise_if_any([*weight_problems("model.path", folder), *_generation_problems(folder)])
    # packed weights have names and shapes of their method's own
    if getattr(empty.config, "quantization_config", None) is None:
        raise_if_any(_mismatches(folder, empty, new_modules))


def _generation_problems(folder: Path) -> Iterator[Problem]:
    """A generation_config.json that transformers reads and cannot use; it ignores a file that is not JSON."""
    file = folder / "generation_config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(values, dict):
        text = f": {file} holds {in_words(values)}; it must be a JSON object, or not be there"
        yield Problem("model.path", text)


def _mismatches(folder: Path, model: PreTrainedModel, new_modules: Sequence[str]) -> Iterator[Problem]:
    """Let transformers load weights that are names and shapes alone, with all of its conversions."""
    tensors = read_tensors(folder)
    packed = [name for name, tensor in tensors.items() if tensor.dtype not in _FLOATS and name.endswith(".weight")]
    if packed:
        text = f": the weights of {packed[0]} in {folder} are {tensors[packed[0]].dtype}, and its config.json has no"
        yield Problem("model.path", f"{text} quantization_config that says what they mean; take the whole model")
        return
    empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    was = transformers_logging.get_verbosity()
    # transformers would report what is raised here
    transformers_logging.set_verbosity_error()
    try:
        _, found = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=empty,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except REFUSALS as err:
        text = f": the weights in {folder} do not fit its config.json: {one_line(err)}"
        yield Problem("model.path", f"{text}; take both from one model")
        return
    finally:
        transformers_logging.set_verbosity(was)
    yield from incomplete_problems(str(folder), found, new_modules)


def incomplete_problems(place: str, found: Mapping[str, Any], new_modules: Sequence[str]) -> Iterator[Problem]:
    """Weights that transformers would initialise at random, with only a warning."""
    for kind, what in (("missing_keys", "has no weights for"), ("mismatched_keys", "has weights of another shape for")):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(kind) or ())
        names = [name for name in names if name.partition(".")[0] not in new_modules]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lacks, change = ", ".join(names[:5]) + more, "give a folder with all weights of its config.json"
            yield Problem("model.path", f": {place} {what} {lacks}, which would be random; {change}")
