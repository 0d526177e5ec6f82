"""Rules on `model.backend=fms`, without ibm-fms itself."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from fmstune.config.choices import Attention, Backend
from fmstune.config.job import Job
from fmstune.errors import Problem

MODEL_TYPES = ("llama", "gpt_bigcode")
"""Architectures whose blocks are taken from ibm-fms, by transformers' names."""
_INSTEAD = "set model.backend=transformers"
_NAMES = {
    **dict.fromkeys(("in_proj", "qkv_fused"), "q_proj, k_proj, v_proj in Llama, c_attn in GPTBigCode"),
    **dict.fromkeys(("query", "key", "value"), "q_proj, k_proj, v_proj in Llama"),
    "dense": "o_proj in Llama, attn.c_proj in GPTBigCode",
    **dict.fromkeys(("wg1_fused", "wg"), "gate_proj, up_proj in Llama"),
    "w1": "up_proj in Llama, c_fc in GPTBigCode",
    "w2": "down_proj in Llama, mlp.c_proj in GPTBigCode",
}
"""What ibm-fms calls the linear layers of a block, and what they are called here."""
_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "mish", "relu", "sigmoid", "silu", "swish", "tanh")
"""Those that ibm-fms and transformers know by the same name (fms/utils/activation.py)."""
_ROPE_TYPES = ("default", "llama3")
"""Rotary positions that both compute alike; transformers' linear, dynamic and longrope are not in ibm-fms."""


def fms_problems(job: Job) -> Iterator[Problem]:
    """Yield the problems of `model.backend=fms` that need no model."""
    model = job.model
    if model.backend is not Backend.fms:
        return
    yield from package_problems()
    if model.attention in (Attention.eager, Attention.flash_attention_2, Attention.varlen):
        text = f"={model.attention.value}: ibm-fms computes with torch's SDPA; set auto, or {_INSTEAD}"
        yield Problem("model.attention", text)
    if model.quantization is not None:
        yield Problem("model.quantization", f": bitsandbytes is untested on the blocks of ibm-fms; {_INSTEAD}")
    asked = job.peft.get("target_modules")
    for name in asked if isinstance(asked, list) else ():
        if (here := _NAMES.get(str(name).rpartition(".")[2])) is not None:
            text = f": {name!r} is a name of ibm-fms; give the names of transformers, which the adapter is saved with"
            yield Problem("peft.target_modules", f"{text}: {here}")


def package_problems() -> Iterator[Problem]:
    """Yield a problem where ibm-fms is not installed; a folder that is called fms does not count."""
    spec = importlib.util.find_spec("fms")
    if spec is None or spec.origin is None:
        yield Problem("model.backend", f"=fms needs the package ibm-fms; pip install 'fmstune[fms]', or {_INSTEAD}")


def architecture_problems(config: Any) -> Iterator[Problem]:
    """Yield a problem for each value of a transformers configuration that ibm-fms cannot build."""
    if config.model_type not in MODEL_TYPES:
        text = f"=fms takes {' and '.join(MODEL_TYPES)}, and this model is {config.model_type}; {_INSTEAD}"
        yield Problem("model.backend", text)
        return
    if getattr(config, "quantization_config", None) is not None:
        yield Problem("model.backend", f"=fms: the weights of {config.model_type} are quantised; {_INSTEAD}")
    for name, value, taken, words in _wanted(config):
        if value not in taken:
            text = f"=fms: ibm-fms has no {config.model_type} with {name}={value!r}, only {words}; {_INSTEAD}"
            yield Problem("model.backend", text)


def _wanted(config: Any) -> Iterator[tuple[str, Any, Sequence[Any], str]]:
    """Values, those that ibm-fms takes, and the words for them."""
    if config.model_type == "llama":
        width = config.hidden_size // config.num_attention_heads
        yield "head_dim", config.head_dim, [width], f"{width} (hidden_size / num_attention_heads)"
        yield "rope_type", config.rope_parameters["rope_type"], _ROPE_TYPES, ", ".join(_ROPE_TYPES)
        yield "hidden_act", config.hidden_act, _ACTIVATIONS, ", ".join(_ACTIVATIONS)
        return
    # several heads of keys: transformers keeps q, k and v of a head together, ibm-fms all q, all k and all v
    for name, wanted in (("multi_query", True), ("scale_attn_weights", True), ("add_cross_attention", False)):
        yield name, getattr(config, name), [wanted], str(wanted)
    yield "activation_function", config.activation_function, _ACTIVATIONS, ", ".join(_ACTIVATIONS)
