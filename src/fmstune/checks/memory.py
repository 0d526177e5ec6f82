"""Bytes of one device while it trains, from counts alone: arithmetic, torch-free.

All that a step holds is added: without accumulation gradients and activations do not peak together. Not counted:
the CUDA context (0.3 to 0.6 GiB) and what libraries hold on CUDA, fragmentation on CUDA, and temporaries of an unfused
optimizer.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from fmstune.checks.plan_inputs import Dimensions, Work, batch_positions, positions_scored, row_length
from fmstune.checks.precision import BYTES


@dataclass(frozen=True)
class Memory:
    """Bytes of one device while it trains."""

    weights: int
    """Base and adapter, with the 16-bit copies that autocast keeps of float32 weights."""
    gradients: int
    optimizer: int
    activations: int
    logits: int
    fragmentation: int = 0
    """Holes that glibc's malloc leaves between the tensors; known on a CPU only."""
    libraries: int = 0
    """Code, threads and workspace that the first step adds to the process; known on a CPU only."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def counted(self, held: Mapping[str, int]) -> "Memory":
        """The same with the parts that were counted of a step, which has run some of the libraries' code."""
        return replace(self, **held, libraries=max(self.libraries - CODE_OF_A_COUNT, 0))


CODE_ON_CPU, CODE_OF_A_COUNT = 14 * 2**20, 3 * 2**20
"""Bytes of the libraries' code that the first step touches, and those of them that a count touches before it.

Measured with torch 2.13: 14.3 and 14.4 MiB, and 10.6 to 11.5 behind a count.
"""
PACKED_BY_A_THREAD, PACKED_OF_A_TILE = 3 * 2**20, 9 * 2**20
"""Bytes in which a thread of MKL packs matrices, and which it keeps; and those for a whole tile of the output layer.

Measured with torch 2.13: 2.7 and 3.0 MiB with 1,536 tokens, 11.7 MiB with 49,152.
"""


def device_memory(work: Work) -> Memory:
    """Bytes that one device holds in a step, part by part."""
    d, precision, sharing = work.dimensions, work.machine.precision, work.sharing
    trained = BYTES[precision.trained]
    base = (d.base_parameters - d.quantised_parameters) * BYTES[precision.weights] + d.quantised_bytes
    weights = (1 + work.training.frozen_copies) * base + d.adapter_parameters * BYTES["float32"]
    gradients = d.trainable_parameters * trained
    optimizer = optimizer_bytes(work.training.optim, d, trained)
    if sharing.sharded_over > 1 or sharing.cpu_offload:
        # offloaded weights reach the device block by block
        parts = 0 if sharing.cpu_offload else 1
        weights = parts * weights // sharing.sharded_over + whole_bytes(work)
        gradients = parts * gradients // sharing.sharded_over + whole_gradient_bytes(work)
        optimizer = parts * optimizer // sharing.sharded_over
    else:
        weights += autocast_copies(work)
        # DDP keeps buckets to send in addition to the gradients (torch's "gradient_as_bucket_view")
        gradients *= 2 if sharing.processes > 1 else 1
    libraries = library_bytes(work)
    activations, holes = activation_bytes(work), fragmentation_bytes(work)
    return Memory(weights, gradients, optimizer, activations, logit_bytes(work), holes, libraries)


def library_bytes(work: Work) -> int:
    """Bytes of code and workspace that the first step adds to a process on a CPU."""
    if work.machine.device != "cpu":
        return 0
    packed = PACKED_BY_A_THREAD + PACKED_OF_A_TILE * min(work.dimensions.vocabulary, 32768) // 32768
    return CODE_ON_CPU + work.machine.threads * packed


def fragmentation_bytes(work: Work) -> int:
    """Bytes that glibc's malloc holds on a CPU and does not use: half of the activations.

    Measured with torch 2.13 and glibc 2.36 on a model of 3 MiB: 26 to 50 % for five adapters and batches. Half
    is the most of these, as a run whose plan was too low ends without memory. The formulas hold more than a step does.
    So under full tuning the gradients are taken off, which are not there with the activations; without padding the
    formulas take every row as full, and nothing is added.
    """
    t, d = work.training, work.dimensions
    if work.machine.device != "cpu" or (t.padding_free and not t.packing):
        return 0
    gradients = 0 if d.adapter_parameters else d.trainable_parameters * BYTES[work.machine.precision.trained]
    return max(activation_bytes(work) // 2 - gradients, 0)


def whole_bytes(work: Work) -> int:
    """Weights that FSDP holds whole at the same time, in the dtype that is computed in.

    With `full_shard` those of the block at work and of the next one, which is fetched meanwhile, and the output layer,
    which stays from forward to backward (accelerate/utils/fsdp_utils.py, `fsdp2_prepare_model`); with `shard_grad_op`
    all of them.
    """
    d, precision = work.dimensions, work.machine.precision
    size = BYTES[precision.autocast or precision.weights]
    if not work.sharing.reshard:
        return d.base_parameters * size
    return (2 * _block_parameters(d) + d.vocabulary * d.hidden_size) * size


def whole_gradient_bytes(work: Work) -> int:
    """Gradients that FSDP holds whole: of this block and the one before, as each batch's are shared out at once."""
    d, precision = work.dimensions, work.machine.precision
    size = BYTES[precision.autocast or precision.trained]
    if d.adapter_parameters:
        return 2 * d.trainable_parameters // max(d.layers, 1) * size
    return max(2 * _block_parameters(d), d.vocabulary * d.hidden_size) * size


def _block_parameters(d: Dimensions) -> int:
    return max(d.base_parameters - (1 if d.tied else 2) * d.vocabulary * d.hidden_size, 0) // max(d.layers, 1)


def autocast_copies(work: Work) -> int:
    """Autocast casts every float32 matrix in the forward pass, and autograd keeps the copy for the backward.

    The embedding is looked up and not cast (torch's documentation of amp, "Autocast Op Reference").
    """
    d, precision = work.dimensions, work.machine.precision
    if precision.autocast is None or precision.weights != "float32":
        return 0
    embedding = 0 if d.tied else d.vocabulary * d.hidden_size
    return (d.base_parameters - d.quantised_parameters - embedding) * BYTES[precision.autocast]


def quantised_bytes(parameters: int, rows: int, *, bits: int, double: bool) -> int:
    """Bytes of quantised linear layers, with their scales, as bitsandbytes holds them.

    In 4 bits each 64 weights share a float32, which double quantisation holds in 8 bits with one more float32 for each
    256 of them: 0.5 and 0.127 bits a weight (Dettmers et al. 2023, arXiv:2305.14314, section 3). In 8 bits each row
    of a matrix has a float32 (Dettmers et al. 2022, arXiv:2208.07339). Biases, norms, embeddings and the output layer
    stay in the dtype of the weights.
    """
    if bits == 8:
        return parameters + 4 * rows
    return int(parameters / 2 + parameters / 64 * (1 + 4 / 256 if double else 4))


OPTIMIZER_STATES = {"adamw": 2, "ademamix": 3, "lion": 1, "sgd": 0, "adagrad": 1, "rmsprop": 1}
"""State tensors that a family of `optim` keeps, each of the parameter's size (torch.optim, bitsandbytes)."""

_STATE_BYTES = {"4bit": 0.5, "8bit": 1, "32bit": 4}
"""Bytes of one state where the optimizer's name says so; else torch.optim takes the parameter's dtype."""


def optimizer_bytes(optim: str, dimensions: Dimensions, trained: int) -> int:
    """State of the optimizer, for parameters of `trained` bytes each.

    Adafactor keeps the row and column sums of a matrix instead of its entries (Shazeer and Stern 2018,
    arXiv:1804.04235); an unknown optimizer counts as AdamW in float32, and `plan_work` notes it.
    """
    d = dimensions
    if optim == "adafactor":
        return 2 * 4 * d.trainable_parameters // d.hidden_size
    if (states := OPTIMIZER_STATES.get(optimizer_family(optim))) is None:
        return 2 * 4 * d.trainable_parameters
    return int(states * _STATE_BYTES.get(optim.rpartition("_")[2], trained) * d.trainable_parameters)


def optimizer_family(optim: str) -> str:
    return optim.removeprefix("paged_").removeprefix("stable_").partition("_")[0]


def activation_bytes(work: Work) -> int:
    """What autograd keeps of a forward pass for the backward pass.

    After Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), with today's blocks: a position of one
    block keeps the inputs of two norms (float32), q, k, v and the attention's output, what the activation
    function needs, and the inputs of the trained linears, which is all that LoRA and prompt tuning spare.
    Only eager attention, or dropout of scores off CUDA, keeps scores. DoRA keeps two outputs of a module more, the
    base's and LoRA's, which its magnitude multiplies. With activation checkpointing a block
    keeps its input, and one block at a time is computed again (Chen et al. 2016, arXiv:1604.06174).
    """
    d, t, precision = work.dimensions, work.training, work.machine.precision
    positions = batch_positions(work) - t.texts_in_batch * d.prefix_tokens
    block, last_norm = _block_bytes(work), 2 * 4 * d.hidden_size
    size = BYTES[precision.autocast or precision.weights]
    masks_and_keys = attention_mask_bytes(work) + shared_key_bytes(work)
    if not t.activation_checkpointing:
        # keys and values that prefix tuning puts before those of the rows
        prefix = t.texts_in_batch * d.layers * d.prefix_tokens * 2 * d.kv_heads * d.head_dim * size
        return int(positions * (d.layers * block + last_norm) + prefix) + masks_and_keys
    block_input = d.hidden_size * BYTES[precision.weights]
    return int(positions * (d.layers * block_input + block + last_norm)) + masks_and_keys


def shared_key_bytes(work: Work) -> int:
    """Bytes of the keys and values of shared beginnings that are laid out once more for the segments behind them."""
    d, precision = work.dimensions, work.machine.precision
    if (shared := work.rows.shared) is None:
        return 0
    again = shared.largest.keys - shared.largest.positions
    blocks = 1 if work.training.activation_checkpointing else d.layers
    return blocks * again * 2 * d.kv_heads * d.head_dim * BYTES[precision.autocast or precision.weights]


def attention_mask_bytes(work: Work) -> int:
    """Bytes of the mask that keeps packed documents apart, one entry for each pair of positions of a row.

    FlashAttention and `varlen` need none. `sdpa` makes its own copy of the mask, in the dtype that it computes in, and
    a block keeps that for the backward pass (torch 2.13: ATen's native/transformers/attention.cpp,
    `convert_boolean_attn_mask`).
    """
    d, t, precision = work.dimensions, work.training, work.machine.precision
    if not (t.packing or t.padding_free) or not work.machine.masks_pairs:
        return 0
    pairs = t.texts_in_batch * row_length(work) * positions_scored(work)
    size = BYTES[precision.autocast or precision.weights]
    if work.machine.attention == "eager":
        return pairs * size
    return pairs * (1 + size * (1 if t.activation_checkpointing else d.layers))


def _block_bytes(work: Work) -> float:
    """Bytes that one block keeps of one position."""
    d, precision = work.dimensions, work.machine.precision
    size = BYTES[precision.autocast or precision.weights]
    mask = _mask_bytes(work, size)
    norms = 2 * 4 * d.hidden_size
    if d.adapter_parameters == 0 and d.rms_norm:
        norms += 2 * BYTES[precision.weights] * d.hidden_size
    attention = 2 * (d.heads + d.kv_heads) * d.head_dim * size
    mlp = d.mlp_kept * d.intermediate_size * size
    residual_masks = 2 * d.hidden_size * mask if d.dropout else 0
    dora = 2 * d.dora_outputs * size / d.layers
    return norms + attention + _score_bytes(work, size, mask) + mlp + residual_masks + dora + _input_bytes(work, size)


def _mask_bytes(work: Work, size: int) -> int:
    """Bytes of dropout's mask a number: bool on CUDA, else of the input's dtype (ATen's native/Dropout.cpp)."""
    return 1 if work.machine.device == "cuda" else size


def _score_bytes(work: Work, size: int, mask: int) -> int:
    """Bytes of one position's attention scores: the softmax in float32, its 16-bit copy, and dropout's."""
    d, machine = work.dimensions, work.machine
    scores = d.heads * positions_scored(work)
    if machine.attention != "eager":
        # torch's math kernel does it all in float32
        return scores * 3 * 4 if d.dropout and machine.device != "cuda" else 0
    copy = size if d.dropout or size < 4 else 0
    return scores * (4 + copy + (mask if d.dropout else 0))


def _input_bytes(work: Work, size: int) -> float:
    """Bytes of the inputs of trained linears, a position and block; autocast casts each its own."""
    d = work.dimensions
    if d.adapter_dropout:
        # PEFT lifts the input to the adapter's float32 before it drops any out
        return d.linear_inputs_each * (size + _mask_bytes(work, 4)) / d.layers
    return (d.linear_inputs_each if work.machine.precision.autocast else d.linear_inputs) * size / d.layers


def logit_bytes(work: Work) -> int:
    """Bytes of the logits: of supervised positions only, in tiles of 4,096 positions and 32,768 tokens.

    These are the tiles of TRL's fused output layer (trl 1.16: kernels/chunked_logprob.py:31, trainer/utils.py:1506). On
    CUDA a tile is held once. Elsewhere no kernel is there to work in place: log-probability, entropy and likeliest
    token of a position take eight tiles in float32 and a mask.
    """
    d, machine = work.dimensions, work.machine
    if not work.training.scores_vocabulary:
        return 0
    positions = batch_positions(work) - work.training.texts_in_batch * d.virtual_tokens
    shared, most = work.rows.shared, work.rows.most_trained
    supervised = shared.largest.trained if shared else most or math.ceil(positions * work.rows.supervised_share)
    rows = min(supervised, 4096)
    if machine.device == "cuda":
        return rows * 32768 * BYTES[machine.precision.autocast or machine.precision.weights]
    # pages of a tile that no token reaches are never touched
    return rows * min(d.vocabulary, 32768) * (8 * 4 + 1)
