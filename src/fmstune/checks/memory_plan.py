"""Memory, steps and tokens of a run, from counts alone: arithmetic, torch-free. Bytes are of one device.

What is counted is what a step must hold at the same time; gradients and activations are added, though without
accumulation they do not peak together. Not counted: the CUDA context (0.3 to 0.6 GiB), the libraries themselves,
fragmentation (glibc's malloc adds up to half on a CPU), workspace, and temporaries of an optimizer not fused.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fmstune.checks.precision import BYTES, Precision
from fmstune.tables import show_bytes


@dataclass(frozen=True)
class Dimensions:
    """The architecture, and the adapter on it, in numbers; `fmstune.models.shapes.dimensions` measures them."""

    base_parameters: int
    adapter_parameters: int
    trainable_parameters: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary: int
    """Rows of the embedding."""
    tied: bool
    """Embedding and output layer are one matrix, counted once."""
    max_positions: int | None
    """Positions that the model can see; null has no limit of its own."""
    mlp_kept: int
    """Tensors of `intermediate_size` that the activation function keeps: 3 gated, else 1 (4 for gelu_new)."""
    rms_norm: bool
    """Norms are transformers' RMSNorm, which keeps the normalised input too when its weight is trained."""
    dropout: bool
    """The architecture itself drops out attention scores or residuals in training."""
    linear_inputs: int
    """Numbers a position that are kept because a trained linear reads them, in all blocks; shared once."""
    linear_inputs_each: int
    """The same, with an input counted for every module that reads it."""
    adapter_dropout: bool
    """The adapter drops out its inputs, so that every adapted module keeps its own, and a mask."""
    virtual_tokens: int
    """Positions that a prompt-learning adapter puts before every row."""
    prefix_tokens: int = 0
    """Those of them that are keys and values alone, as in prefix tuning, and go through no block."""
    quantised_parameters: int = 0
    """Those of `base_parameters` that are held in 4 or 8 bits."""
    quantised_bytes: int = 0
    """Bytes that they take together, scales included."""
    dora_outputs: int = 0
    """Numbers a position that the modules adapted by DoRA put out, in all blocks."""


@dataclass(frozen=True)
class Rows:
    """The training rows in numbers."""

    rows: int
    tokens: int
    """Tokens of all rows, cut to `max_length`."""
    longest: int
    """Tokens of the longest row."""
    estimated: bool = False
    """`tokens` and `longest` are estimated from characters, not counted."""
    supervised_share: float = 1.0
    """Share of the tokens that are trained, 0 to 1."""
    streamed: bool = False
    """They are read while training: `rows` are those that `max_steps` takes, and what they are like is estimated."""


@dataclass(frozen=True)
class Training:
    """The values of `training` and `data` that a plan depends on, under their own names."""

    max_length: int
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1
    optim: str = "adamw_torch"
    activation_checkpointing: bool = False
    packing: bool = False
    padding_free: bool = False
    dataloader_drop_last: bool = False


@dataclass(frozen=True)
class Machine:
    """Where the run computes, and how."""

    device: str
    """`cpu`, `cuda` or `mps`."""
    attention: str
    """Attention kernel, by transformers' name; `eager` alone keeps the scores of every pair of positions."""
    precision: Precision


@dataclass(frozen=True)
class Sharing:
    """How processes, one for each device, share the work."""

    processes: int = 1
    """On all machines."""
    sharded_over: int = 1
    """Processes that one copy of weights, gradients and optimizer is shared out over; 1 without FSDP."""
    reshard: bool = True
    """Weights are given back between forward and backward: `full_shard` and `hybrid_shard`."""
    cpu_offload: bool = False
    """Shards, and the optimizer with them, are kept in the machine's memory."""


@dataclass(frozen=True)
class Work:
    """All that a plan is computed from."""

    dimensions: Dimensions
    rows: Rows
    training: Training
    machine: Machine
    sharing: Sharing = Sharing()


@dataclass(frozen=True)
class Memory:
    """Bytes of one device while it trains."""

    weights: int
    """Base and adapter, with the 16-bit copies that autocast keeps of float32 weights."""
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Steps:
    """The arithmetic of `transformers.Trainer`."""

    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int


@dataclass(frozen=True)
class Plan:
    """What a run will take; `dataclasses.asdict` gives plain values for JSON, `total` included."""

    base_parameters: int
    adapter_parameters: int
    trainable_parameters: int
    memory: Memory
    total: int
    """Bytes of `memory` together."""
    rows: int
    """Rows that the trainer sees: with packing, the packed ones (at least that many)."""
    steps_per_epoch: int
    total_steps: int
    tokens_per_epoch: int
    tokens_estimated: bool
    positions_per_step: int
    """Upper bound, padding and virtual tokens included: as if every row were as long as the longest."""
    checkpoint_bytes: int
    """Trained parameters and optimizer state, as one checkpoint holds them."""
    notes: tuple[str, ...]
    """What the plan assumes and the reader should know."""
    work: Work
    """What it was computed from."""


def make(work: Work) -> Plan:
    """The plan of this work."""
    d, t = work.dimensions, work.training
    rows = row_count(work.rows, t)
    step_counts = steps(rows, t, work.sharing.processes)
    held = memory(work)
    trained = d.trainable_parameters * BYTES[work.machine.precision.trained]
    return Plan(
        base_parameters=d.base_parameters,
        adapter_parameters=d.adapter_parameters,
        trainable_parameters=d.trainable_parameters,
        memory=held,
        total=held.total,
        rows=rows,
        steps_per_epoch=step_counts.steps_per_epoch,
        total_steps=step_counts.total_steps,
        tokens_per_epoch=work.rows.tokens,
        tokens_estimated=work.rows.estimated,
        positions_per_step=work.sharing.processes
        * t.per_device_train_batch_size
        * t.gradient_accumulation_steps
        * row_length(work),
        checkpoint_bytes=trained + optimizer_bytes(t.optim, d, BYTES[work.machine.precision.trained]),
        notes=tuple(_notes(work)),
        work=work,
    )


def row_count(rows: Rows, training: Training) -> int:
    """Rows that the trainer sees; packed rows are full ones but the last, which no packing can beat."""
    return math.ceil(rows.tokens / training.max_length) if training.packing else rows.rows


def row_length(work: Work) -> int:
    """Positions of the longest row that the model sees."""
    t = work.training
    longest = t.max_length if t.packing else min(work.rows.longest, t.max_length)
    return longest + work.dimensions.virtual_tokens


def steps(rows: int, training: Training, processes: int = 1) -> Steps:
    """Batches and updates as in transformers/trainer.py, `set_initial_training_values` (5.23).

    Processes take turns at the batches; where they do not come out even, accelerate fills up from the first rows, or
    with `dataloader_drop_last` leaves some out (accelerate/data_loader.py, `BatchSamplerShard`).
    """
    t = training
    share = rows / t.per_device_train_batch_size
    whole = math.floor(share) if t.dataloader_drop_last else math.ceil(share)
    batches = whole // processes if t.dataloader_drop_last else math.ceil(whole / processes)
    full, rest = divmod(batches, t.gradient_accumulation_steps)
    updates = max(full + (rest > 0), 1)
    total = t.max_steps if t.max_steps >= 0 else math.ceil(t.num_train_epochs * updates)
    return Steps(batches, updates, total)


def memory(work: Work) -> Memory:
    """Bytes that one device holds in a step, part by part."""
    d, precision, sharing = work.dimensions, work.machine.precision, work.sharing
    trained = BYTES[precision.trained]
    whole = d.base_parameters - d.quantised_parameters
    weights = whole * BYTES[precision.weights] + d.quantised_bytes + d.adapter_parameters * BYTES["float32"]
    gradients = d.trainable_parameters * trained
    optimizer = optimizer_bytes(work.training.optim, d, trained)
    if sharing.sharded_over > 1 or sharing.cpu_offload:
        # what is offloaded comes to the device block by block
        parts = 0 if sharing.cpu_offload else 1
        weights = parts * weights // sharing.sharded_over + whole_bytes(work)
        gradients = parts * gradients // sharing.sharded_over + whole_gradient_bytes(work)
        optimizer = parts * optimizer // sharing.sharded_over
    else:
        weights += _autocast_copies(work)
        # DDP keeps buckets to send beside the gradients (torch's "gradient_as_bucket_view")
        gradients *= 2 if sharing.processes > 1 else 1
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activation_bytes(work),
        logits=logit_bytes(work),
    )


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
    """Gradients that FSDP holds whole: of the block at work, and of the one before, which is on its way to the others.

    They are shared out after each batch, also while gradients are accumulated.
    """
    d, precision = work.dimensions, work.machine.precision
    size = BYTES[precision.autocast or precision.trained]
    if d.adapter_parameters:
        return 2 * d.trainable_parameters // max(d.layers, 1) * size
    return max(2 * _block_parameters(d), d.vocabulary * d.hidden_size) * size


def _block_parameters(d: Dimensions) -> int:
    tables = (1 if d.tied else 2) * d.vocabulary * d.hidden_size
    return max(d.base_parameters - tables, 0) // max(d.layers, 1)


def _autocast_copies(work: Work) -> int:
    """Autocast casts every float32 matrix in the forward pass, and autograd keeps the copy for the backward.

    The embedding is looked up and not cast (torch's documentation of amp, "Autocast Op Reference").
    """
    d, precision = work.dimensions, work.machine.precision
    if precision.autocast is None or precision.weights != "float32":
        return 0
    embedding = 0 if d.tied else d.vocabulary * d.hidden_size
    return (d.base_parameters - d.quantised_parameters - embedding) * BYTES[precision.autocast]


_BLOCK, _BLOCK_OF_SCALES = 64, 256
"""Weights that share a scale, and scales that share one, in bitsandbytes and in QLoRA (section 3)."""


def quantised_bytes(parameters: int, rows: int, *, bits: int, double: bool) -> int:
    """Bytes of quantised linear layers, with their scales.

    In 4 bits each 64 weights share a float32, which double quantisation holds in 8 bits with one more float32 for each
    256 of them: 0.5 and 0.127 bits a weight (Dettmers et al. 2023, arXiv:2305.14314, section 3). In 8 bits each row
    of a matrix has a float32 (Dettmers et al. 2022, arXiv:2208.07339). Biases, norms, embeddings and the output layer
    stay in the dtype of the weights.
    """
    if bits == 8:
        return parameters + 4 * rows
    scales = parameters / _BLOCK
    return int(parameters / 2 + (scales * (1 + 4 / _BLOCK_OF_SCALES) if double else 4 * scales))


_STATES = {"adamw": 2, "ademamix": 3, "lion": 1, "sgd": 0, "adagrad": 1, "rmsprop": 1}
"""State tensors that a family of `optim` keeps, each of the parameter's size (torch.optim, bitsandbytes)."""
_STATE_BYTES = {"4bit": 0.5, "8bit": 1, "32bit": 4}
"""Bytes of one state where the optimizer's name says so; else torch.optim takes the parameter's dtype."""


def optimizer_bytes(optim: str, dimensions: Dimensions, trained: int) -> int:
    """State of the optimizer, for parameters of `trained` bytes each.

    Adafactor keeps the row and column sums of a matrix instead of its entries (Shazeer and Stern 2018,
    arXiv:1804.04235); an unknown optimizer counts as AdamW in float32, and `make` notes it.
    """
    d = dimensions
    if optim == "adafactor":
        return 2 * 4 * d.trainable_parameters // d.hidden_size
    if (states := _STATES.get(_family(optim))) is None:
        return 2 * 4 * d.trainable_parameters
    size = _STATE_BYTES.get(optim.rpartition("_")[2], trained)
    return int(states * size * d.trainable_parameters)


def _family(optim: str) -> str:
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
    d, t = work.dimensions, work.training
    positions = t.per_device_train_batch_size * (row_length(work) - d.prefix_tokens)
    block = _block_bytes(work)
    last_norm = 2 * 4 * d.hidden_size
    if not t.activation_checkpointing:
        return int(positions * (d.layers * block + last_norm) + _prefix_bytes(work)) + attention_mask_bytes(work)
    block_input = d.hidden_size * BYTES[work.machine.precision.weights]
    return int(positions * (d.layers * block_input + block + last_norm)) + attention_mask_bytes(work)


def attention_mask_bytes(work: Work) -> int:
    """Bytes of the mask that keeps packed documents apart, one entry for each pair of positions of a row.

    FlashAttention needs none. `sdpa` makes its own copy of the mask, in the dtype that it computes in, and a block
    keeps that for the backward pass (torch 2.13: ATen's native/transformers/attention.cpp,
    `convert_boolean_attn_mask`).
    """
    d, t, precision = work.dimensions, work.training, work.machine.precision
    if not (t.packing or t.padding_free) or work.machine.attention.startswith("flash"):
        return 0
    pairs = t.per_device_train_batch_size * row_length(work) * _scores(work)
    size = BYTES[precision.autocast or precision.weights]
    if work.machine.attention == "eager":
        return pairs * size
    return pairs * (1 + size * (1 if t.activation_checkpointing else d.layers))


def _block_bytes(work: Work) -> float:
    """Bytes that one block keeps of one position."""
    d, precision = work.dimensions, work.machine.precision
    size = BYTES[precision.autocast or precision.weights]
    mask = _mask_bytes(work, size)
    full = d.adapter_parameters == 0
    norms = 2 * 4 * d.hidden_size
    if full and d.rms_norm:
        norms += 2 * BYTES[precision.weights] * d.hidden_size
    attention = 2 * (d.heads + d.kv_heads) * d.head_dim * size
    mlp = d.mlp_kept * d.intermediate_size * size
    residual_masks = 2 * d.hidden_size * mask if d.dropout else 0
    dora = 2 * d.dora_outputs * size / d.layers
    return norms + attention + _score_bytes(work, size, mask) + mlp + residual_masks + dora + _input_bytes(work, size)


def _prefix_bytes(work: Work) -> int:
    """Bytes of the keys and values that prefix tuning puts before those of the rows."""
    d, precision = work.dimensions, work.machine.precision
    numbers = d.layers * d.prefix_tokens * 2 * d.kv_heads * d.head_dim
    return numbers * work.training.per_device_train_batch_size * BYTES[precision.autocast or precision.weights]


def _mask_bytes(work: Work, size: int) -> int:
    """Bytes of dropout's mask a number: bool on CUDA, else of the input's dtype (ATen's native/Dropout.cpp)."""
    return 1 if work.machine.device == "cuda" else size


def _score_bytes(work: Work, size: int, mask: int) -> int:
    """Bytes of one position's attention scores: the softmax in float32, its 16-bit copy, and dropout's."""
    d, machine = work.dimensions, work.machine
    if machine.attention != "eager" and not (d.dropout and machine.device != "cuda"):
        return 0
    if machine.attention != "eager":
        return d.heads * _scores(work) * 3 * 4  # torch's math kernel does it all in float32
    copy = size if d.dropout or size < 4 else 0
    return d.heads * _scores(work) * (4 + copy + (mask if d.dropout else 0))


def _scores(work: Work) -> int:
    """Positions that one position is scored with: those of its row, which `padding_free` alone makes of all rows."""
    t = work.training
    flat = t.padding_free and not t.packing
    return row_length(work) * (t.per_device_train_batch_size if flat else 1)


def _input_bytes(work: Work, size: int) -> float:
    """Bytes of the inputs of trained linears, a position and block; autocast casts each its own."""
    d = work.dimensions
    if d.adapter_dropout:
        # PEFT lifts the input to the adapter's float32 before it drops any out
        return d.linear_inputs_each * (size + _mask_bytes(work, 4)) / d.layers
    kept = d.linear_inputs_each if work.machine.precision.autocast else d.linear_inputs
    return kept * size / d.layers


_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768
"""Tile of TRL's fused output layer (trl 1.16: kernels/chunked_logprob.py:31, trainer/utils.py:1447)."""


def logit_bytes(work: Work) -> int:
    """Bytes of the logits: of supervised positions only, in tiles on CUDA, at once elsewhere.

    At once: log-probabilities, their gradient and the logits' gradient, in float32 (torch's cross-entropy).
    """
    d, machine = work.dimensions, work.machine
    positions = work.training.per_device_train_batch_size * (row_length(work) - d.virtual_tokens)
    supervised = math.ceil(positions * work.rows.supervised_share)
    if machine.device == "cuda":
        size = BYTES[machine.precision.autocast or machine.precision.weights]
        return min(supervised, _TILE_TOKENS) * _TILE_VOCABULARY * size
    return 3 * supervised * d.vocabulary * 4


def _notes(work: Work) -> Iterator[str]:
    d, t = work.dimensions, work.training
    if t.optim != "adafactor" and _family(t.optim) not in _STATES:
        yield f"the memory of optim={t.optim} is not known here; counted as AdamW in float32"
    if t.packing:
        yield "packing is counted as perfect: the real number of rows and steps is a little higher"
    if (slower := packing_slowdown(work)) > _SLOW:
        name = "packing" if t.packing else "padding_free"
        yield (
            f"training.{name}: {work.machine.attention} scores every position with the {_scores(work):,} of its row, "
            f"and documents have {_mean_length(work):,.0f}: at least {slower:.1f} times the arithmetic; "
            "training.train_sampling_strategy=group_by_length pads little without that"
        )
    if d.max_positions is not None and row_length(work) > d.max_positions:
        yield f"the longest row takes {row_length(work):,} positions, but the model sees {d.max_positions:,}"
    if (rows := row_count(work.rows, t)) < t.per_device_train_batch_size:
        yield f"training.per_device_train_batch_size is {t.per_device_train_batch_size}, with {rows:,} rows"


_SLOW = 1.1
"""From this factor on the plan says what packing costs."""


def packing_slowdown(work: Work) -> float:
    """Multiplications of a position in a packed row, by those in a row of its own; 1 without packing.

    In a block, two for each of its parameters, and four for each number of a query and each position that it is scored
    with (Kaplan et al. 2020, arXiv:2001.08361, table 1): FlashAttention alone passes over what the mask hides.
    """
    d, t = work.dimensions, work.training
    if not (t.packing or t.padding_free) or work.machine.attention.startswith("flash"):
        return 1.0
    embeddings = d.vocabulary * d.hidden_size * (1 if d.tied else 2)
    linear = 2 * (d.base_parameters - embeddings) / d.layers
    scored = 4 * d.heads * d.head_dim
    return (linear + scored * _scores(work)) / (linear + scored * _mean_length(work))


def _mean_length(work: Work) -> float:
    return work.rows.tokens / max(work.rows.rows, 1)


def render(plan: Plan) -> str:
    """The plan as a table for the terminal."""
    t, machine, held = plan.work.training, plan.work.machine, plan.memory
    share = 100 * plan.trainable_parameters / (plan.base_parameters + plan.adapter_parameters)
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    split = ", ".join(f"{part} {show_bytes(getattr(held, part))}" for part in parts)
    length = "max_steps" if t.max_steps >= 0 else f"{t.num_train_epochs:g} epochs"
    batch = f"{t.per_device_train_batch_size} rows x {t.gradient_accumulation_steps} accumulated"
    if plan.work.sharing.processes > 1:
        batch += f" x {plan.work.sharing.processes} processes"
    tokens = f"{plan.tokens_per_epoch:,} an epoch"
    epoch = f"{plan.steps_per_epoch:,} an epoch, "
    estimated = f"≈ {tokens}, estimated from characters"
    if plan.work.rows.streamed:
        epoch, estimated = "", f"≈ {plan.tokens_per_epoch:,} in all, if they go on like the first rows"
    d = plan.work.dimensions
    quantised = f"quantised {d.quantised_parameters:,} of the base, in {show_bytes(d.quantised_bytes)}"
    lines = [
        ("parameters", f"base {plan.base_parameters:,}, adapter {plan.adapter_parameters:,}"),
        ("", f"trainable {plan.trainable_parameters:,} ({share:.3g} %)"),
        *([("", quantised)] if d.quantised_parameters else []),
        ("precision", f"{machine.precision.describe()}; {machine.attention} attention on {machine.device}"),
        ("", machine.precision.reason),
        ("memory", f"{show_bytes(plan.total)}{_where(plan.work.sharing)}, estimated"),
        ("", split),
        ("steps", f"{plan.total_steps:,} ({length}, {epoch}{batch})"),
        ("tokens", estimated if plan.tokens_estimated else tokens),
        ("", f"at most {plan.positions_per_step:,} positions a step, padding included"),
        ("checkpoint", show_bytes(plan.checkpoint_bytes)),
        *(("note", note) for note in plan.notes),
    ]
    return "\n".join(f"{label:<12}{text}" for label, text in lines)


def _where(sharing: Sharing) -> str:
    """Which devices hold that, in words."""
    if sharing.processes == 1 and not sharing.cpu_offload:
        return ""
    how = f", sharded over {sharing.sharded_over}" if sharing.sharded_over > 1 else ""
    offload = ", shards offloaded" if sharing.cpu_offload else ""
    return f" on each of {sharing.processes} devices{how}{offload}"
