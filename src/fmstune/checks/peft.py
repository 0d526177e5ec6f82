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
    if peft.get("target_modules") == []:
        yield Problem("peft.target_modules", "is empty, so nothing would be trained; give names or all-linear")
    if (names := peft.get("target_parameters")) and isinstance(names, list) and peft.get("lora_dropout"):
        text = f"must be 0 with peft.target_parameters, got {peft['lora_dropout']:g}: PEFT cannot drop out there"
        yield Problem("peft.lora_dropout", text)
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
