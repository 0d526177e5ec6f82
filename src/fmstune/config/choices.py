"""The fields of the job that take one of a few words: each an Enum whose values are the words."""

from enum import Enum


class Dtype(Enum):
    """How weights are held; `auto` is resolved in one place, `fmstune.checks.precision`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Attention(Enum):
    """The attention kernel, by transformers' own names; `auto` takes FlashAttention-2 where it can run."""

    auto = "auto"
    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Backend(Enum):
    """Whose blocks the model is made of: transformers' own, or those of ibm-fms (foundation-model-stack)."""

    transformers = "transformers"
    fms = "fms"


class Device(Enum):
    """Where the run computes; `auto` takes the first accelerator that there is, else the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class OverLength(Enum):
    """What happens to a row of more than `max_length` tokens."""

    truncate = "truncate"
    drop = "drop"
    error = "error"


class Untrainable(Enum):
    """What happens to a row that would train on nothing (no response template, or no answer left)."""

    error = "error"
    drop = "drop"


class StoppingStrategy(Enum):
    """When a weighted mixture of sources has made its epoch, by the names of `datasets.interleave_datasets`."""

    all_exhausted = "all_exhausted"
    first_exhausted = "first_exhausted"


class Overlap(Enum):
    """What happens to training rows that are also held out."""

    keep = "keep"
    drop = "drop"
    error = "error"


class QuantType(Enum):
    """The 4-bit numbers of bitsandbytes: spaced as normal weights are (QLoRA's), or floating point."""

    nf4 = "nf4"
    fp4 = "fp4"


class Direction(Enum):
    """Which values of a number are better."""

    minimize = "minimize"
    maximize = "maximize"


class Strategy(Enum):
    """How several processes share the work."""

    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"


class Sharding(Enum):
    """What FSDP shares out among the processes."""

    full_shard = "full_shard"
    shard_grad_op = "shard_grad_op"
    hybrid_shard = "hybrid_shard"


class Prefetch(Enum):
    """When FSDP1 fetches the next weights in the backward pass, by torch's own names."""

    BACKWARD_PRE = "BACKWARD_PRE"
    BACKWARD_POST = "BACKWARD_POST"
    NO_PREFETCH = "NO_PREFETCH"
