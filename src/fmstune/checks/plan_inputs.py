"""The numbers that a memory plan is computed from."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmstune.checks.precision import Precision
from fmstune.config.choices import Attention

if TYPE_CHECKING:
    from fmstune.data.prefix_sharing.saved_positions import Savings


@dataclass(frozen=True)
class PassFlops:
    """Floating-point operations of a forward or a backward pass, by what they grow with."""

    position: int = 0
    """Of each position that goes through the blocks."""
    scored: int = 0
    """Of each position that the output layer scores."""
    pair: tuple[int, ...] = ()
    """Of each pair of a query and a key, of each of the windows."""


@dataclass(frozen=True)
class ModelFlops:
    """What a step of this model takes; `fmstune.models.flop_count` finds it, and counts it in a test."""

    forward: PassFlops = PassFlops()
    backward: PassFlops = PassFlops()
    windows: tuple[int | None, ...] = ()
    """The kinds of attention: the keys that a query sees at most; None sees all before it."""

    def total(self, positions: float, scored: float, pairs: Sequence[float], *, frozen_copies: int = 0) -> float:
        """Floating-point operations of so many positions and pairs; a frozen copy takes a forward pass more."""
        forward, backward = (
            one.position * positions + one.scored * scored + sum(map(operator.mul, one.pair, pairs))
            for one in (self.forward, self.backward)
        )
        return float((1 + frozen_copies) * forward + backward)


def pairs_of_row(length: int, window: int | None = None) -> int:
    """Pairs of a query and a key of a causal row: each position sees itself and those before it, within the window."""
    full = min(length, window or length)
    return full * (full + 1) // 2 + (length - full) * full


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
    idle_parameters: int = 0
    """Those of `base_parameters` that compute no part of one token: the experts of a mixture that it is not sent to."""
    missed_experts: tuple[str, ...] = ()
    """Parameters of experts that the adapter leaves as they are, by the names that `peft.target_parameters` takes."""
    flops: ModelFlops = ModelFlops()
    """Floating-point operations of forward and backward pass."""

    @property
    def active_parameters(self) -> int:
        """Those of `base_parameters` that compute one token, embedding and output layer included."""
        return self.base_parameters - self.idle_parameters


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
    most_trained: int | None = None
    """Trained tokens of the batch that trains most; None where the share is all that is known."""
    streamed: bool = False
    """They are read while training: `rows` are those that `max_steps` takes, and what they are like is estimated."""
    lengths: tuple[tuple[int, int], ...] = ()
    """Lengths of rows with how many have each; empty where only the mean is known."""
    shared: "Savings | None" = None
    """What sharing their beginnings saves; None where they do not, or are not tokenised yet."""


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
    texts_in_row: int = 1
    """Texts that the model reads of each row, such as the two of a pair."""
    frozen_copies: int = 0
    """Models of the same size that are held and not trained."""
    scores_vocabulary: bool = True
    """The model scores every token of the vocabulary, as a head of one label does not."""

    @property
    def texts_in_batch(self) -> int:
        """Texts that go through the model together."""
        return self.per_device_train_batch_size * self.texts_in_row


@dataclass(frozen=True)
class Machine:
    """Where the run computes, and how."""

    device: str
    """`cpu`, `cuda` or `mps`."""
    attention: str
    """Attention kernel, by transformers' name; `eager` alone keeps the scores of every pair of positions."""
    precision: Precision
    tflops: float | None = None
    """Dense peak of one device in TFLOP/s, for the dtype that is computed in; null where it is not known."""
    price_per_hour: float | None = None
    """Of one device."""
    threads: int = 2
    """That compute on a CPU."""

    @property
    def masks_pairs(self) -> bool:
        """Whether packed documents are kept apart by a mask, rather than by a kernel that passes over what it hides."""
        return not (self.attention.startswith("flash") or self.attention == Attention.varlen)


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


def row_count(rows: Rows, training: Training) -> int:
    """Rows that the trainer sees; packed rows are full ones but the last, which no packing can beat.

    Where rows share, packs are filled as the run fills them.
    """
    if rows.shared is not None and rows.shared.packs is not None:
        return rows.shared.packs
    return math.ceil(rows.tokens / training.max_length) if training.packing else rows.rows


def row_length(work: Work) -> int:
    """Positions of the longest row that the model sees."""
    t = work.training
    longest = max(work.rows.tokens, 1) if t.packing else work.rows.longest
    return min(longest, t.max_length) + work.dimensions.virtual_tokens


def batch_positions(work: Work) -> int:
    """Positions that go through the model together, as if every row were as long as the longest."""
    if work.rows.shared is not None:
        return work.rows.shared.largest.positions
    return work.training.texts_in_batch * row_length(work)


def positions_scored(work: Work) -> int:
    """Positions that one position is scored with: those of its row, which `padding_free` alone makes of all rows."""
    t = work.training
    return row_length(work) * (t.texts_in_batch if t.padding_free and not t.packing else 1)
