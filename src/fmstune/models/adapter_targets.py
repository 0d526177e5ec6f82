"""Modules that an adapter can target, by the names that PEFT takes, and problems with the names that were asked."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import IA3Config, PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import constants
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fmstune.errors import Problem, did_you_mean

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output layer; it is a string of its own and no list entry."""


@dataclass(frozen=True)
class Target:
    """Modules that an adapter can target under one name."""

    name: str
    """Ending of the module names: the last part, or the last two where the last alone has several shapes."""
    kind: str
    """`Linear` or `Conv1D`."""
    count: int
    inputs: int
    outputs: int

    def lora_parameters(self, r: int) -> int:
        """Parameters of a LoRA of rank `r` on all of them (Hu et al. 2021, arXiv:2106.09685, section 4.1)."""
        return self.count * r * (self.inputs + self.outputs)


def targets(model: PreTrainedModel) -> list[Target]:
    """The modules that an adapter can target, in the model's order, without the output layer, as in `all-linear`."""
    found: dict[str, list[torch.nn.Module]] = {}
    for name, module in linear_layers(model):
        found.setdefault(".".join(name.split(".")[-2:]), []).append(module)
    groups: dict[str, list[torch.nn.Module]] = {}
    for ending, modules in found.items():
        last = ending.rpartition(".")[2]
        same = [other for name, other in found.items() if name.rpartition(".")[2] == last]
        uniform = len({matrix_shape(module) for others in same for module in others}) == 1
        groups.setdefault(last if uniform else ending, []).extend(modules)
    return [
        Target(name, type(modules[0]).__name__, len(modules), *matrix_shape(modules[0]))
        for name, modules in groups.items()
    ]


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            yield name, module


def matrix_shape(module: torch.nn.Module) -> tuple[int, int]:
    """(inputs, outputs); Conv1D keeps its matrix the other way round than Linear."""
    rows, columns = module.get_parameter("weight").shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def target_problems(model: PreTrainedModel, peft_config: PeftConfig) -> Iterator[Problem]:
    """Names of the adapter's configuration that the model does not have; PEFT is silent when one of two matches."""
    asked, model_type = getattr(peft_config, "target_modules", None), model.config.model_type
    texts: list[str] = []
    if isinstance(asked, str):
        texts += _pattern_problems(model, asked) if asked.lower() != ALL_LINEAR else ()
    elif asked is not None:
        texts += [text for name in sorted(asked) for text in _name_problems(model, name)]
    elif hasattr(peft_config, "target_modules") and not getattr(peft_config, "target_parameters", None):
        tuner, is_ia3 = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(peft_config.peft_type)], isinstance(peft_config, IA3Config)
        # None where the method has no such list
        listed = getattr(tuner, "target_module_mapping", None)
        defaults = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING if is_ia3 else listed
        if defaults is not None and model_type not in defaults:
            # IA3 would scale the inputs of all of them, or the outputs
            change = f"set it to {'' if is_ia3 else f'{ALL_LINEAR} or to '}some of {_available(model)}"
            texts.append(f": PEFT has no default for {model_type}; {change}")
    yield from (Problem("peft.target_modules", text) for text in texts)
    feedforward = getattr(peft_config, "feedforward_modules", ())
    if feedforward is None and model_type not in constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING:
        scaled = "the modules of peft.target_modules that are scaled at their input (the last linear layer of the MLP)"
        text = f": PEFT has no default for {model_type}; name {scaled}, or [] for none"
        yield Problem("peft.feedforward_modules", text)
    for field, kind, known, hint in (
        ("feedforward_modules", "module", model.named_modules, f"; available are {_available(model)}"),
        ("modules_to_save", "module", model.named_modules, ""),
        ("target_parameters", "parameter", model.named_parameters, "; the names end like q_proj.weight"),
    ):
        given = getattr(peft_config, field, None) or ()
        for name in () if isinstance(given, str) else sorted(given):
            if not any(_ends_with(one, name) for one, _ in known()):
                yield Problem(f"peft.{field}", f": no {kind} is named {name!r}{hint}")


def _pattern_problems(model: PreTrainedModel, pattern: str) -> Iterator[str]:
    """A string is a regular expression for the whole module name."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        yield f": {pattern!r} is not a regular expression: {error}"
        return
    matched = [module for name, module in model.named_modules() if expression.fullmatch(name)]
    hint = "(a string is a regular expression for the whole name; write a list to match endings)"
    yield from _match_problems(model, pattern, matched, f"{pattern!r} matches no module {hint}")


def _name_problems(model: PreTrainedModel, name: str) -> Iterator[str]:
    """A list entry is a module name or its ending."""
    if name.lower() == ALL_LINEAR:
        yield f": {ALL_LINEAR} works as a string, not in a list; write it without brackets"
        return
    matched = [module for module_name, module in model.named_modules() if _ends_with(module_name, name)]
    hint = did_you_mean(name, (target.name for target in targets(model)))
    yield from _match_problems(model, name, matched, f"no module is named {name!r}{hint}")


def _match_problems(model: PreTrainedModel, asked: str, matched: Sequence[torch.nn.Module], lack: str) -> Iterator[str]:
    if not matched:
        yield f": {lack}; available are {_available(model)}"
    if any(module is model.get_output_embeddings() for module in matched):
        why = "TRL's fused loss reads the base weight alone and would never train the adapter"
        yield f": {asked!r} matches the output layer, where {why}; leave it out, or name it in peft.modules_to_save"
    bare = {type(m).__name__ for m in matched if "weight" not in dict(m.named_parameters(recurse=False))}
    if bare:
        without = f"{', '.join(sorted(bare))}, without a weight of its own to adapt"
        yield f": {asked!r} matches {without}; available are {_available(model)}"


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _available(model: PreTrainedModel) -> str:
    return ", ".join(target.name for target in targets(model))


def render_modules(model: PreTrainedModel, lora_targets: Any = None) -> str:
    """A table of the modules that an adapter can target; `*` marks LoRA's where `target_modules` is null."""
    model_type, found = model.config.model_type, targets(model)
    default = lora_targets or constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, ())
    lines = [f"  {'module':<24}{'kind':<8}{'count':>6}{'in':>8}{'out':>8}{'LoRA r=8':>14}"]
    for t in found:
        mark = "*" if _is_default(t.name, default) else " "
        shape = f"{t.kind:<8}{t.count:>6}{t.inputs:>8}{t.outputs:>8}{t.lora_parameters(8):>14,}"
        lines.append(f"{mark} {t.name:<24}{shape}")
    modules, total = sum(t.count for t in found), sum(t.lora_parameters(8) for t in found)
    lines.append(f"* {model_type}'s default, taken where peft.target_modules is null")
    all_of_these = f"all of these ({modules} modules, {total:,} parameters with r=8), without the output layer"
    return "\n".join([*lines, f"peft.target_modules={ALL_LINEAR} takes {all_of_these}"])


def _is_default(name: str, default: str | Collection[str]) -> bool:
    if isinstance(default, str):
        return default == ALL_LINEAR or bool(re.fullmatch(default, name))
    return any(_ends_with(name, ending) or _ends_with(ending, name) for ending in default)
