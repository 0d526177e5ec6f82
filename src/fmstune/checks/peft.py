"""Rules on the peft group that need no model."""

import re
from collections.abc import Iterator
from typing import Any

from fmstune.config import upstream_fields
from fmstune.config.job import FULL, LORA, Job, has_held_out
from fmstune.errors import Problem, did_you_mean

_INITIALISATIONS = ("gaussian", "orthogonal", "mica", "olora", "pissa", "pissa_niter_N")
_DATA_DRIVEN = ("corda", "eva", "lora_ga")
"""Without their pass over the data, PEFT fails (corda) or takes a plain start in silence."""
PREFIXES = ("peft.PrefixTuningConfig", "peft.CartridgeConfig")
"""Methods that learn keys and values."""
_QUANTISABLE = (LORA, "peft.AdaLoraConfig", "peft.IA3Config")
"""Methods with layers around those of bitsandbytes that fmstune lets through (peft/tuners/*/bnb.py)."""


def peft_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each setting that PEFT would refuse late, or ignore."""
    peft = job.peft
    if peft.get("prompt_tuning_init") == "TEXT" and not peft.get("prompt_tuning_init_text"):
        yield Problem("peft.prompt_tuning_init", "=TEXT needs peft.prompt_tuning_init_text, the words to start from")
    if peft.get("prompt_tuning_init_text") and peft.get("prompt_tuning_init") != "TEXT":
        text = "needs peft.prompt_tuning_init=TEXT; set it, or leave the text out"
        yield Problem("peft.prompt_tuning_init_text", text)
    if peft.get("task_type") not in (None, "CAUSAL_LM"):
        yield Problem("peft.task_type", f"must be CAUSAL_LM, got {peft['task_type']!r}; leave it out")
    if peft.get("inference_mode"):
        yield Problem("peft.inference_mode", "=true would leave nothing to train; leave it out")
    if peft["_target_"] == "peft.MultitaskPromptTuningConfig":
        text = "=peft.MultitaskPromptTuningConfig needs a task_id in every row, which fmstune does not give"
        yield Problem("peft._target_", f"{text}; choose another method")
    yield from _module_problems(peft)
    yield from _pattern_problems(peft)
    yield from _initialisation_problems(job)
    target = peft["_target_"]
    if job.model.quantization is not None and target not in (FULL, *_QUANTISABLE) and not learns_a_prompt(peft):
        known = ", ".join(_QUANTISABLE)
        yield Problem("model.quantization", f": {target} adapts no quantised layer; choose {known} or null")
    if job.model.quantization is not None and job.model.quantization.load_in_8bit and peft.get("use_dora"):
        # tried with peft 0.21 and bitsandbytes 0.50: it needs the scales before the first forward pass makes them
        yield Problem("peft.use_dora", "does not work on an 8-bit base; set model.quantization.load_in_4bit instead")


def learns_a_prompt(peft: dict[str, Any]) -> bool:
    """Whether the method puts learnt tokens, or learnt keys and values, before every row."""
    return peft["_target_"] != FULL and "num_virtual_tokens" in upstream_fields.fields_of(peft["_target_"])


def makes_its_prompt(peft: dict[str, Any]) -> bool:
    """Whether a network makes the virtual tokens; PEFT saves the tokens and not the network."""
    return peft["_target_"] == "peft.PromptEncoderConfig" or bool(peft.get("prefix_projection"))


def _module_problems(peft: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each list of modules that has the wrong form; the names are looked up with the model."""
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
        text = f"must be a list of token ids, or such lists by embedding, got {ids!r}"
        yield Problem("peft.trainable_token_indices", text)


def _pattern_problems(peft: dict[str, Any]) -> Iterator[Problem]:
    for name, kinds, words in (("rank_pattern", (int,), "whole numbers"), ("alpha_pattern", (int, float), "numbers")):
        pattern = peft.get(name)
        if pattern is not None and not (
            isinstance(pattern, dict) and all(type(value) in kinds and value > 0 for value in pattern.values())
        ):
            yield Problem(f"peft.{name}", f"must map module names to {words} above 0, got {pattern!r}")


def _initialisation_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for a start of LoRA that needs more than the adapter itself."""
    chosen = job.peft.get("init_lora_weights")
    if not isinstance(chosen, str):
        return
    field = "peft.init_lora_weights"
    changes_base = re.fullmatch(r"olora|pissa(_niter_\d+)?", chosen) is not None
    if chosen in _DATA_DRIVEN:
        yield Problem(field, f"={chosen} needs a pass over the data that fmstune does not make; leave it out")
    elif chosen == "loftq":
        yield Problem(field, f"={chosen} needs an unquantised base, which PEFT quantises itself; leave it out")
    elif changes_base and job.model.quantization is not None:
        yield Problem(field, f"={chosen} changes the base weights, and quantised weights cannot change; leave it out")
    elif not changes_base and chosen not in _INITIALISATIONS[:3]:
        hint = did_you_mean(chosen, _INITIALISATIONS)
        yield Problem(field, f"must be true, false or one of {', '.join(_INITIALISATIONS)}; got {chosen!r}{hint}")
    elif changes_base and job.evaluation.enabled and job.evaluation.base and has_held_out(job.data):
        yield Problem(field, f"={chosen} changes the base to compare with; set evaluation.base=false")


def are_names(value: Any) -> bool:
    """Whether this is a list of text, none of it empty."""
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
