"""Weights as safetensors files, known by their headers: whole or damaged, and names, shapes and dtypes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fmstune.errors import Problem, one_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""The two names that transformers looks for, in this order (transformers/utils: SAFE_WEIGHTS_NAME, …_INDEX_NAME)."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's name for the weights of an adapter."""
_WEIGHT_ENDINGS = (".safetensors", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")
"""Other files that may be taken for the weights of a model."""


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it, such as BF16."""


def weight_problems(field: str, folder: Path) -> Iterator[Problem]:
    """Yield a problem for each file of weights in a model's folder that is missing, damaged or no safetensors."""
    if (folder / WEIGHTS).is_file():
        yield from file_problems(field, folder / WEIGHTS)
    elif (folder / INDEX).is_file():
        yield from _index_problems(field, folder / INDEX)
    else:
        yield _no_weights(field, folder, WEIGHTS)


def adapter_weight_problems(field: str, folder: Path) -> Iterator[Problem]:
    """Yield a problem where the weights in an adapter's folder are missing, damaged or no safetensors."""
    if (folder / ADAPTER_WEIGHTS).is_file():
        yield from file_problems(field, folder / ADAPTER_WEIGHTS)
    else:
        yield _no_weights(field, folder, ADAPTER_WEIGHTS)


def _no_weights(field: str, folder: Path, wanted: str) -> Problem:
    # pickled weights can run code on loading
    others = sorted(path.name for ending in _WEIGHT_ENDINGS for path in folder.glob(f"*{ending}"))
    hint = "fmstune reads nothing else; save it again with save_pretrained"
    return Problem(field, f": {folder} holds no {wanted} (found {', '.join(others[:5]) or 'no weights'}); {hint}")


def _index_problems(field: str, index: Path) -> Iterator[Problem]:
    try:
        files = _files_of_index(index)
    except (ValueError, OSError, RecursionError) as err:
        yield Problem(field, f": {index} is not an index of weights ({one_line(err)}); copy the model again")
        return
    for name in files:
        path = index.parent / name
        if path.suffix != ".safetensors":
            hint = "fmstune reads safetensors only; save the model again with save_pretrained"
            yield Problem(field, f": {index} names {name}; {hint}")
        elif not path.is_file():
            yield Problem(field, f": {index} names {name}, which is not there; copy the model again")
        else:
            yield from file_problems(field, path)


def _files_of_index(index: Path) -> list[str]:
    """The files that an index names, each once; raises ValueError where the file is not an index."""
    content = json.loads(index.read_text(encoding="utf-8"))
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not (isinstance(named, dict) and named and all(isinstance(name, str) for name in named.values())):
        raise ValueError("it has no weight_map from names of tensors to names of files")
    return sorted(set(named.values()))


def file_problems(field: str, path: Path) -> Iterator[Problem]:
    """Yield a problem where a safetensors file is damaged; its header and size are read, and no weight."""
    size = path.stat().st_size
    try:
        with safe_open(path, framework="np") as file:
            file.keys()
    except (SafetensorError, OSError) as err:
        # an empty file cannot be mapped into memory, which the operating system says in its own way
        why = "is empty" if size == 0 else f"is damaged or cut short ({one_line(err)})"
        yield Problem(field, f": {path} {why}; copy it again")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model's folder that `weight_problems` finds whole."""
    files = [WEIGHTS] if (folder / WEIGHTS).is_file() else _files_of_index(folder / INDEX)
    found: dict[str, Tensor] = {}
    for name in files:
        with safe_open(folder / name, framework="np") as file:
            slices: dict[str, Any] = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            found |= {key: Tensor(tuple(one.get_shape()), one.get_dtype()) for key, one in slices.items()}
    return found
