"""`model.dtype` and `training.bf16/fp16` resolved in one pure function, torch-free.

`auto` means:

    CPU, MPS              float32 weights, no autocast
    GPU, full tuning      float32 weights, bfloat16 autocast
    GPU, adapter          bfloat16 base, float32 adapter, bfloat16 autocast
    GPU without bfloat16  float32 weights, no autocast

An explicit dtype is taken as it is. `training.bf16` or `training.fp16`, where set, choose the autocast;
under `auto` the base of an adapter follows that choice. On a GPU that has TF32, products of float32 numbers are
computed in it, unless `training.tf32` is false.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fmstune.config.choices import Dtype
from fmstune.errors import Problem

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number."""


@dataclass(frozen=True)
class Precision:
    weights: str
    """Dtype of the base weights as they are loaded."""
    trained: str
    """Dtype of the trained parameters: float32 for adapters (PEFT upcasts them), else the weights' own."""
    autocast: str | None
    """Dtype that torch.autocast computes in; null computes in the dtype of the weights."""
    reason: str
    """Why, in one sentence for the check's output."""
    tf32: bool = False
    """Products of float32 numbers are computed in TF32, with their 10 bits of mantissa, and summed in float32."""

    def describe(self) -> str:
        """One line for the terminal."""
        autocast = f"{self.autocast} autocast" if self.autocast else "no autocast"
        return f"{self.weights} weights, {self.trained} trained, {autocast}{', TF32 for float32' if self.tf32 else ''}"


@dataclass(frozen=True)
class Situation:
    """What the precision depends on."""

    dtype: Dtype
    adapter: bool
    """An adapter is trained and the base is frozen."""
    device: str
    """`cpu`, `cuda` or `mps`."""
    bf16_supported: bool
    """The device computes in bfloat16."""
    bf16: bool | None = None
    """`training.bf16`; null when the user has not set it."""
    fp16: bool | None = None
    """`training.fp16`; null when the user has not set it."""
    tf32_supported: bool = False
    """The device has TF32: CUDA from compute capability 8.0 on."""
    tf32: bool | None = None
    """`training.tf32`; null when the user has not set it."""


def resolve_precision(situation: Situation) -> Precision:
    """The precision of a run in which `precision_problems` finds nothing."""
    tf32 = situation.tf32_supported and situation.tf32 is not False
    return replace(_dtypes(situation), tf32=tf32)


def _dtypes(s: Situation) -> Precision:
    if s.dtype is not Dtype.auto:
        weights = s.dtype.value
        autocast = _asked(s, weights if weights != "float32" and s.adapter and s.device == "cuda" else None)
        trained = "float32" if s.adapter else weights
        return Precision(weights, trained, autocast, f"model.dtype is {weights}, and taken as it is")
    if s.device != "cuda":
        return Precision("float32", "float32", _asked(s, None), f"model.dtype=auto on {s.device}: float32")
    autocast = _asked(s, "bfloat16" if s.bf16_supported else None)
    if autocast is None:
        why = "training.bf16 is false" if s.bf16_supported else "this GPU has no bfloat16"
        return Precision("float32", "float32", None, f"model.dtype=auto, and {why}: float32")
    if s.adapter:
        why = f"the base is frozen, so {autocast} loses nothing to small updates; the adapter stays float32"
        return Precision(autocast, "float32", autocast, f"model.dtype=auto: {why}")
    why = "weights stay float32, as bfloat16 would round away an AdamW update below about 1/256 of a weight"
    return Precision("float32", "float32", autocast, f"model.dtype=auto: {why}")


def precision_problems(situation: Situation) -> Iterator[Problem]:
    """Yield a problem for each dtype that cannot be trained on this device."""
    s = situation
    if s.bf16 and s.fp16:
        yield Problem("training.bf16", "and training.fp16 are both true; set one of them to false or null")
    if s.fp16 and s.device == "cpu":
        yield Problem("training.fp16", "is true, but the device is the CPU; set it to false, or training.bf16 to true")
    if s.tf32 and not s.tf32_supported:
        where = "this GPU has no TF32" if s.device == "cuda" else f"the device is {s.device}"
        yield Problem("training.tf32", f"is true, but {where}; set it to false, or leave it out")
    if s.dtype is Dtype.float16 and not s.adapter:
        text = "is float16, with which full tuning fails: small gradients underflow to 0, and torch's GradScaler"
        yield Problem("model.dtype", f"{text} refuses float16 gradients; set it to auto, float32 or bfloat16")
    if s.device == "cuda" and not s.bf16_supported:
        if s.bf16:
            yield Problem("training.bf16", "is true, but this GPU has no bfloat16; set training.fp16=true, or neither")
        if s.dtype is Dtype.bfloat16:
            yield Problem("model.dtype", "is bfloat16, but this GPU has no bfloat16; set it to auto or float32")


def precision_notes(precision: Precision, adapter: bool) -> Iterator[str]:
    """Yield a note on a dtype that works and loses accuracy."""
    if precision.trained == "bfloat16" and not adapter:
        text = "full tuning of bfloat16 weights rounds every update: with 8 bits of mantissa an update below about"
        yield f"{text} 1/256 of its weight is lost; model.dtype=auto keeps the weights in float32"


def _asked(situation: Situation, default: str | None) -> str | None:
    """The autocast that `training.bf16/fp16` ask for, or the default where they are silent."""
    if situation.fp16:
        return "float16"
    if situation.bf16:
        return "bfloat16"
    is_refused = {None: False, "bfloat16": situation.bf16 is False, "float16": situation.fp16 is False}
    return None if is_refused[default] else default
