"""The legs of a run, each from a start to an end, and what a resumed run takes over from its checkpoint."""

import json
import operator
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch.distributed import DistError

from fmstune.errors import UserError, one_line
from fmstune.launch.agent import tells_of_another

FILE = "figures.json"
"""File of a checkpoint: its Figures."""


@dataclass(frozen=True)
class Begun:
    """What is known of a leg when its training begins."""

    preparation_seconds: float = 0.0
    load_seconds: float = 0.0
    memory_before_model_bytes: int = 0
    from_cache: bool = False
    """Whether the tokenised rows were made by an earlier run."""
    device: str = "cpu"
    device_tflops: float | None = None
    """Dense peak of one device, in TFLOP/s; None where it is not known."""


class Done(NamedTuple):
    """What was computed until now, by all processes together."""

    tokens: int = 0
    """Padding not included."""
    flops: float = 0.0
    """Model FLOPs."""
    seconds: float = 0.0
    """Of the optimizer steps."""

    def since(self, former: "Done") -> "Done":
        """What was computed after `former`."""
        return Done(self.tokens - former.tokens, self.flops - former.flops, self.seconds - former.seconds)

    def speed(self, devices: int, device_tflops: float | None) -> dict[str, float]:
        """Return the speed of each of these devices, by its names in the table of metrics; `seconds` are above 0."""
        return _speed(self, self.seconds * devices, device_tflops and self.seconds * devices * device_tflops)


def _speed(done: Done, device_seconds: float, possible: float | None) -> dict[str, float]:
    """Return the speed of a device; `possible` are the TFLOPs that the devices could compute in the time."""
    found = {"tokens_per_second_per_device": round(done.tokens / device_seconds, 1)}
    if done.flops:
        found["tflops_per_device"] = float(f"{done.flops / device_seconds / 1e12:.5g}")
    if done.flops and possible:
        found["mfu"] = round(done.flops / 1e12 / possible, 5)
    return found


@dataclass(frozen=True)
class Leg:
    """The steps from a start to the end, or to the checkpoint that the next leg resumes from; in `summary.json`."""

    from_step: int
    """Steps that were taken before."""
    to_step: int
    train_seconds: float
    step_seconds: float
    preparation_seconds: float
    load_seconds: float
    memory_before_model_bytes: int
    peak_memory_bytes: int
    processes: int
    from_cache: bool
    device_tflops: float | None
    warm: Done
    """What the steps after the first one computed, which itself waits for compilers, caches and the allocator."""


@dataclass(frozen=True)
class Figures:
    """The figures of a run at one of its checkpoints."""

    legs: tuple[Leg, ...]
    tokens: int
    positions: int
    flops: float
    """Model FLOPs of all processes."""
    loss_logged: float
    """Sum of the losses of the steps up to `last_logged_step`."""
    loss_since_log: tuple[float, ...]
    """The same of the later steps, of each process."""
    last_logged_step: int
    at_last_log: Done
    metrics: Mapping[str, list[float]] = field(default_factory=dict)
    """What the trainer has measured since the last log, by name."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What the summary holds of the objective alone."""

    @property
    def step_seconds(self) -> float:
        """Seconds of the optimizer steps so far."""
        return sum(leg.step_seconds for leg in self.legs)

    def loss_of(self, process: int, processes: int) -> float:
        """Return a process's part of the loss since the last log; of another number of processes, the mean."""
        losses = self.loss_since_log
        return losses[process] if len(losses) == processes else sum(losses) / len(losses)


def write_figures(figures: Figures, checkpoint: Path) -> None:
    """Write the figures into a checkpoint."""
    (checkpoint / FILE).write_text(json.dumps(asdict(figures), indent=1, default=float) + "\n", encoding="utf-8")


def read_figures(checkpoint: Path) -> Figures | None:
    """Read the figures of a checkpoint; None where it has none, as those that other programs write."""
    try:
        found = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
        legs = tuple(Leg(**{**leg, "warm": Done(*leg["warm"])}) for leg in found.pop("legs"))
        last, losses = Done(*found.pop("at_last_log")), tuple(found.pop("loss_since_log"))
        return Figures(legs=legs, loss_since_log=losses, at_last_log=last, **found)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def sum_legs(legs: Sequence[Leg]) -> dict[str, Any]:
    """Return the seconds and the memory of all legs, by their names in `summary.json`, and the legs themselves."""
    names = ("train_seconds", "step_seconds", "preparation_seconds", "load_seconds")
    most = max(legs, key=lambda leg: leg.peak_memory_bytes)
    return {
        **{name: round(sum(getattr(leg, name) for leg in legs), 3) for name in names},
        "memory_before_model_bytes": most.memory_before_model_bytes,
        "peak_memory_bytes": most.peak_memory_bytes,
        "legs": [{name: value for name, value in asdict(leg).items() if name != "warm"} for leg in legs],
    }


def speed_of_legs(legs: Sequence[Leg]) -> dict[str, float]:
    """Return the speed of a device over the steps of all legs but the first of each; empty where there are none."""
    warm = Done(*map(sum, zip(*(leg.warm for leg in legs), strict=True)))
    if not warm.seconds:
        return {}
    spent = [leg.warm.seconds * leg.processes for leg in legs]
    peaks = [leg.device_tflops for leg in legs]
    possible = None if None in peaks else sum(map(operator.mul, spent, peaks))
    return _speed(warm, sum(spent), possible)


_UNREADABLE = (
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, OSError),
    *(SafetensorError, pickle.UnpicklingError),
)


@contextmanager
def explain_load_errors(what: str) -> Iterator[None]:
    """Turn what the libraries raise on a file of a checkpoint into a UserError; of a lack of memory, nothing."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, DistError):
        raise
    # files of other programs, or for another model: each fails at its own depth of torch, PEFT or safetensors
    except _UNREADABLE as err:
        if tells_of_another(str(err)):
            raise
        text = f": the checkpoint's {what} cannot be loaded ({one_line(err)}); give another checkpoint"
        raise UserError("training.resume", text) from err
