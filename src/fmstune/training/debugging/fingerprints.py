"""What each module computed in the first steps, as a few numbers, so that two runs can be compared by them."""

import math
import operator
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from fmstune import ranks
from fmstune.models import sharding
from fmstune.runs.fingerprints import SAMPLES, STEPS, ModulePrint, Numbers, StepPrint, write_fingerprints

_EACH = 2
"""Times that each place of the last axis is looked at, at least."""
_TOGETHER = 32
"""Samples of one length that are added up together: one by one, the calls would take longer than the sums."""
_KNOWN = 4
"""Tensors that are held, as the next modules are likely to take them too."""


class _Seen(NamedTuple):
    """What a module took or gave."""

    samples: range
    """Places of its tensors among the samples of the step."""
    kind: str


class _Call(NamedTuple):
    """A call of a module."""

    module: str
    kind: str
    given: _Seen | None
    output: _Seen


class Samples:
    """Samples of tensors, and their sums on the device until the step ends."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: dict[tuple[int, torch.dtype, torch.device], list[tuple[int, torch.Tensor]]] = {}
        self._sums: dict[torch.device, list[torch.Tensor]] = {}
        self._places: dict[torch.device, list[int]] = {}

    def take(self, tensor: torch.Tensor) -> int:
        """Take numbers that are spread over the tensor; the place of the sample."""
        flat, last = tensor.reshape(-1), tensor.shape[-1] if tensor.ndim else 1
        sample = flat[:: _stride(flat.numel(), last)].clone()
        key = (len(sample), sample.dtype, sample.device)
        waiting = self._waiting.setdefault(key, [])
        waiting.append((self._count, sample))
        if len(waiting) == _TOGETHER:
            self._add_up(self._waiting.pop(key))
        self._count += 1
        return self._count - 1

    def _add_up(self, waiting: list[tuple[int, torch.Tensor]]) -> None:
        """Sum, sum weighted by position, and sum of absolute values, in float64."""
        numbers = torch.stack([sample for _, sample in waiting]).double()
        sizes = torch.linalg.vector_norm(numbers, 1, dim=1, keepdim=True)
        sums = torch.cat([numbers @ _weights(numbers.shape[1], numbers.device), sizes], dim=1)
        self._sums.setdefault(sums.device, []).append(sums)
        self._places.setdefault(sums.device, []).extend(place for place, _ in waiting)

    def read(self) -> list[list[float]]:
        """Bring the sums from the device, all at once, in the order of their places."""
        for waiting in self._waiting.values():
            self._add_up(waiting)
        found: dict[int, list[float]] = {}
        for device, sums in self._sums.items():
            found |= zip(self._places[device], torch.cat(sums).tolist(), strict=True)
        return [found[place] for place in range(self._count)]


class Fingerprints(TrainerCallback):
    """Records the first batch of each of the first steps with forward hooks, which only read; the main process alone.

    The hooks look at the training's own forward pass. Activations that are computed again in the backward pass come
    after the end of that pass, and are not recorded. Numbers stay on the device until the step ends.
    """

    def __init__(self, folder: Path, *, modules: bool = True) -> None:
        """Without `modules`, hooks are left out: those of compiled blocks would be compiled with them."""
        self._folder, self._with_modules = folder, modules
        self._hooks: list[Any] = []
        self._armed = self._inside = False
        self._samples = Samples()
        self._calls: list[_Call] = []
        self._known: list[tuple[list[torch.Tensor], _Seen]] = []
        self._loss: torch.Tensor | None = None
        self._gradients: dict[str, torch.Tensor] = {}
        self._steps: list[StepPrint] = []
        self._left_out = [] if modules else ["modules: their blocks are compiled"]

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put hooks on the modules; a resumed run keeps the record of its first leg."""
        if state.global_step or not ranks.here().is_main:
            return
        model = kwargs["model"]
        self._hooks.append(model.register_forward_pre_hook(self._enter))
        for name, module in model.named_modules() if self._with_modules else ():
            # an Identity, such as the dropout of LoRA in many jobs, gives what it took
            if module is not model and not isinstance(module, torch.nn.Identity):
                self._hooks.append(module.register_forward_hook(self._hook_of(name), with_kwargs=True))
        # after the others, as it ends the pass
        self._hooks.append(model.register_forward_hook(self._hook_of(""), with_kwargs=True))
        if sharding.holds_shard(model):
            self._left_out.append("gradients: each process holds a part of them")

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._armed = bool(self._hooks)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the norms of the gradients, where this process has them whole."""
        if self._hooks and not sharding.holds_shard(kwargs["model"]):
            self._gradients = _gradient_norms(kwargs["model"])

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Bring the numbers of the step from the device, all at once."""
        if not self._hooks:
            return
        self._steps.append(self._read_step(state.global_step - 1))
        if state.global_step >= STEPS:
            self._finish()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._hooks:
            self._finish()

    def _finish(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._armed = self._inside = False
        write_fingerprints(self._folder, self._steps, self._left_out)

    def _enter(self, module: torch.nn.Module, _given: Any) -> None:
        self._inside = self._armed and module.training

    def _hook_of(self, name: str) -> Any:
        def record(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self._inside:
                return
            if not name:
                self._inside = self._armed = False
                loss = output.get("loss") if isinstance(output, Mapping) else None
                self._loss = loss.detach() if isinstance(loss, torch.Tensor) else None
            if self._with_modules and (found := list(_tensors(output))):
                given = next(_tensors([args, kwargs]), None)
                with torch.no_grad():
                    taken = None if given is None else self._look([given])
                    self._calls.append(_Call(name, type(module).__name__, taken, self._look(found)))

        return record

    def _look(self, tensors: list[torch.Tensor]) -> _Seen:
        """Take samples of these tensors.

        The input of a module is often that of the one before, or its output, and is not looked at again.
        """
        for place, (known, seen) in enumerate(self._known):
            if len(known) == len(tensors) and all(map(operator.is_, known, tensors)):
                self._known.insert(0, self._known.pop(place))
                return seen
        first = self._samples.take(tensors[0])
        for tensor in tensors[1:]:
            self._samples.take(tensor)
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        seen = _Seen(range(first, first + len(tensors)), _kind(tensors[0].dtype, tensors[0].shape) + more)
        self._known = [(tensors, seen), *self._known[: _KNOWN - 1]]
        return seen

    def _read_step(self, step: int) -> StepPrint:
        sums = self._samples.read()
        modules = tuple(
            ModulePrint(call.module, call.kind, call.given and _numbers(call.given, sums), _numbers(call.output, sums))
            for call in self._calls
        )
        loss = None if self._loss is None else float(self._loss)
        self._samples = Samples()
        self._calls.clear()
        self._known.clear()
        return StepPrint(step, loss, modules, _owned(self._gradients))


def _numbers(seen: _Seen, sums: list[list[float]]) -> Numbers:
    """The sums of what was seen; those of several tensors are weighted by their order, and added."""
    each = [[one * order for one in sums[place]] for order, place in enumerate(seen.samples, start=1)]
    total, weighted, size = map(sum, zip(*each, strict=True))
    return Numbers(total, weighted, size, seen.kind)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in what a module takes or gives, which may be a tuple or a mapping of them."""
    if isinstance(value, torch.Tensor):
        if value.numel():
            yield torch.view_as_real(value) if value.is_complex() else value
    elif isinstance(value, Mapping):
        yield from (tensor for one in value.values() for tensor in _tensors(one))
    elif isinstance(value, tuple | list):
        yield from (tensor for one in value for tensor in _tensors(one))


@lru_cache(maxsize=64)
def _stride(numbers: int, last: int) -> int:
    """How far apart the numbers of a sample lie, in a tensor of so many with this last axis."""
    stride = max(numbers // max(SAMPLES, _EACH * last), 1)
    while math.gcd(stride, last) > 1:  # or some places of the last axis would never be looked at
        stride += 1
    return stride


@lru_cache(maxsize=32)
def _weights(count: int, device: torch.device) -> torch.Tensor:
    """For each number 1, and a weight from 1 to 2."""
    weights = torch.linspace(1, 2, count, dtype=torch.float64, device=device)
    return torch.stack([torch.ones_like(weights), weights], dim=1)


@lru_cache(maxsize=64)
def _kind(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape)) or 'number'}"


@torch.no_grad()
def _gradient_norms(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The norm of the gradient of each weight, by its name, in the order of the model; on the device."""
    return {
        name: torch.linalg.vector_norm(weight.grad)
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def _owned(norms: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The norm of the gradients of each module's own weights; read from a device all at once."""
    read: dict[str, float] = {}
    for device in {norm.device for norm in norms.values()}:
        there = {name: norm.double() for name, norm in norms.items() if norm.device == device}
        read |= zip(there, torch.stack(list(there.values())).tolist(), strict=True)
    squares: dict[str, float] = {}
    for name in norms:
        owner = name.rpartition(".")[0]
        squares[owner] = squares.get(owner, 0.0) + read[name] ** 2
    return {owner: math.sqrt(square) for owner, square in squares.items()}
