"""Job → problems of its peft group that show without the model."""

import math
import re
from collections.abc import Iterator
from typing import Any

from fmstune.config import upstream_fields
from fmstune.config.job import FULL, LORA, LORAPLUS_LR_RATIO, Job, has_held_out
from fmstune.errors import Problem, did_you_mean

_INITIALISATIONS = ("gaussian", "orthogonal", "mica", "olora", "pissa", "pissa_niter_N")
_DATA_DRIVEN = ("corda", "eva", "lora_ga")
"""Without their pass over the data, PEFT fails (corda) or takes a plain start in silence."""
PREFIXES = ("peft.PrefixTuningConfig", "peft.CartridgeConfig")
"""Methods that learn keys and values."""
_QUANTISABLE = (LORA, "peft.AdaLoraConfig", "peft.IA3Config")
"""Methods with layers around those of bitsandbytes that fmstune lets through (peft/tuners/*/bnb.py)."""


def problems(job: Job) -> Iterator[Problem]:
    """What PEFT would refuse late, or take and not use."""
    peft = job.peft
    for name in ("r", "lora_alpha", "num_virtual_tokens"):
        if name in peft and peft[name] < 1:
            yield Problem(f"peft.{name}", f"must be at least 1, got {peft[name]}")
    for name in ("lora_dropout",):
        if name in peft and not 0 <= peft[name] < 1:
            yield Problem(f"peft.{name}", f"must be at least 0 and below 1, got {peft[name]}")
    ratio = peft.get(LORAPLUS_LR_RATIO)
    if ratio is not None and not 1 <= ratio < math.inf:
        yield Problem(
            f"peft.{LORAPLUS_LR_RATIO}", f"is the rate of B by that of A, at least 1 (1 is plain LoRA), got {ratio:g}"
        )
    if peft.get("prompt_tuning_init") == "TEXT" and not peft.get("prompt_tuning_init_text"):
        yield Problem("peft.prompt_tuning_init", "=TEXT needs peft.prompt_tuning_init_text, the words to start from")
    if peft.get("prompt_tuning_init_text") and peft.get("prompt_tuning_init") != "TEXT":
        yield Problem("peft.prompt_tuning_init_text", "is used only with peft.prompt_tuning_init=TEXT")
    if peft.get("task_type") not in (None, "CAUSAL_LM"):
        yield Problem("peft.task_type", f"is CAUSAL_LM here, got {peft['task_type']!r}; leave it out")
    if peft.get("inference_mode"):
        yield Problem("peft.inference_mode", "=true would leave nothing to train; leave it out")
    if peft["_target_"] == "peft.MultitaskPromptTuningConfig":
        yield Problem(
            "peft._target_", "=peft.MultitaskPromptTuningConfig needs a task_id with every row, which fmstune has not"
        )
    yield from _places(peft)
    yield from _patterns(peft)
    yield from _initialisation(job)
    target = peft["_target_"]
    if job.model.quantization is not None and target not in (FULL, *_QUANTISABLE) and not learns_a_prompt(peft):
        yield Problem(
            "model.quantization", f": {target} adapts no quantised layer; choose {', '.join(_QUANTISABLE)} or null"
        )
    if job.model.quantization is not None and job.model.quantization.load_in_8bit and peft.get("use_dora"):
        # tried with peft 0.21 and bitsandbytes 0.50: it needs the scales before the first forward pass makes them
        yield Problem("peft.use_dora", "does not work on an 8-bit base; set model.quantization.load_in_4bit instead")


def learns_a_prompt(peft: dict[str, Any]) -> bool:
    """Whether the method puts tokens of its own before every row, or keys and values as if there were some."""
    return peft["_target_"] != FULL and "num_virtual_tokens" in upstream_fields.fields_of(peft["_target_"])


def makes_its_prompt(peft: dict[str, Any]) -> bool:
    """Whether a network makes the virtual tokens; PEFT saves what it makes, and not the network."""
    return peft["_target_"] == "peft.PromptEncoderConfig" or bool(peft.get("prefix_projection"))


def _places(peft: dict[str, Any]) -> Iterator[Problem]:
    """Names and numbers of what an adapter is put on; what they match is found with the model."""
    targets = peft.get("target_modules")
    if targets == []:
        yield Problem("peft.target_modules", "is empty, so nothing would be trained; give names or all-linear")
    elif targets is not None and not (isinstance(targets, str) or are_names(targets)):
        yield Problem("peft.target_modules", f"must be a list of names, one name or all-linear, got {targets!r}")
    for name in ("target_parameters", "modules_to_save"):
        if peft.get(name) is not None and not are_names(peft[name]):
            yield Problem(f"peft.{name}", f"must be a list of names, got {peft[name]!r}")
    layers = peft.get("layers_to_transform")
    if layers is not None and not _are_numbers(layers if isinstance(layers, list) else [layers]):
        yield Problem("peft.layers_to_transform", f"must be a layer's number or a list of them, got {layers!r}")
    ids = peft.get("trainable_token_indices")
    if ids is not None and not all(map(_are_numbers, ids.values() if isinstance(ids, dict) else [ids])):
        yield Problem(
            "peft.trainable_token_indices", f"must be a list of token ids, or such lists by embedding, got {ids!r}"
        )


def _patterns(peft: dict[str, Any]) -> Iterator[Problem]:
    """Ranks and scales of single modules."""
    for name, kinds, words in (("rank_pattern", (int,), "whole numbers"), ("alpha_pattern", (int, float), "numbers")):
        pattern = peft.get(name)
        if pattern is not None and not (
            isinstance(pattern, dict) and all(type(value) in kinds and value > 0 for value in pattern.values())
        ):
            yield Problem(f"peft.{name}", f"must map module names to {words} above 0, got {pattern!r}")


def _initialisation(job: Job) -> Iterator[Problem]:
    """Ways to start LoRA that need more than the adapter itself."""
    chosen = job.peft.get("init_lora_weights")
    if not isinstance(chosen, str):
        return
    field = f"peft.init_lora_weights={chosen}"
    changes_base = re.fullmatch(r"olora|pissa(_niter_\d+)?", chosen) is not None
    if chosen in _DATA_DRIVEN:
        yield Problem(field, "needs a pass over the data before training, which fmstune does not make; leave it out")
    elif chosen == "loftq":
        yield Problem(field, "wants a base that PEFT quantises itself, from all of its weights; leave it out")
    elif changes_base and job.model.quantization is not None:
        yield Problem(field, "changes the base weights, and those of model.quantization stay as they are; leave it out")
    elif not changes_base and chosen not in _INITIALISATIONS[:3]:
        known = ", ".join(_INITIALISATIONS)
        yield Problem(
            "peft.init_lora_weights",
            f"must be true, false or one of {known}; got {chosen!r}{did_you_mean(chosen, _INITIALISATIONS)}",
        )
    elif changes_base and job.evaluation.enabled and job.evaluation.base and has_held_out(job.data):
        yield Problem(field, "changes the base weights, so there is no base to compare with; set evaluation.base=false")


def are_names(value: Any) -> bool:
    """Whether this is a list of text, none of it empty."""
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
