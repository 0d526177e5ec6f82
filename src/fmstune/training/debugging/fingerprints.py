"""What each module computed in the first steps, as a few numbers, so that two runs can be compared by them."""

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from fmstune import ranks
from fmstune.models import sharding
from fmstune.runs.fingerprints import STEPS, ModulePrint, Numbers, StepPrint, write_fingerprints

SAMPLES = 1 << 13
"""Numbers of a tensor that are looked at, at least as far as it has them; more where its last axis is long."""
_EACH = 4
"""Times that each place of the last axis is looked at, at least."""
_Waiting = tuple[str, str, int | None, int]
"""Module, class, and the places of its input and output among the numbers of the step."""


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
        self._calls: list[_Waiting] = []
        self._numbers: list[torch.Tensor] = []
        self._kinds: list[str] = []
        self._last: list[tuple[Any, int, list[torch.Tensor]]] = []
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
            if module is not model:
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
                place = None if given is None else self._keep([given])
                self._calls.append((name, type(module).__name__, place, self._keep(found)))

        return record

    @torch.no_grad()
    def _keep(self, tensors: list[torch.Tensor]) -> int:
        """Keep the numbers of these tensors together; the place where they are.

        The input of a module is often that of the one before, or its output, and is not looked at again.
        """
        key = [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]
        for known, place, _ in self._last:
            if known == key:
                return place
        numbers = torch.stack([_sums(tensor) * place for place, tensor in enumerate(tensors, start=1)]).sum(0)
        self._numbers.append(numbers)
        self._kinds.append(", ".join(map(_kind, tensors[:1])) + (f" and {len(tensors) - 1} more" * (len(tensors) > 1)))
        place = len(self._numbers) - 1
        # held, so that no other tensor comes to lie at its address
        self._last = [(key, place, tensors), *self._last[:1]]
        return place

    def _read_step(self, step: int) -> StepPrint:
        sums = torch.stack([one.cpu() for one in self._numbers]).tolist() if self._numbers else []
        found = [Numbers(one[0], one[1], one[2], kind) for one, kind in zip(sums, self._kinds, strict=True)]
        modules = tuple(
            ModulePrint(name, kind, None if given is None else found[given], found[output])
            for name, kind, given, output in self._calls
        )
        norms = torch.stack(list(self._gradients.values())).tolist() if self._gradients else []
        loss = None if self._loss is None else float(self._loss)
        for kept in (self._numbers, self._kinds, self._calls, self._last):
            kept.clear()
        return StepPrint(step, loss, modules, dict(zip(self._gradients, norms, strict=True)))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in what a module takes or gives, which may be a tuple or a mapping of them."""
    if isinstance(value, torch.Tensor):
        whole = value.detach()
        yield from (torch.view_as_real(whole) if whole.is_complex() else whole,) if whole.numel() else ()
    elif isinstance(value, Mapping):
        yield from (tensor for one in value.values() for tensor in _tensors(one))
    elif isinstance(value, tuple | list):
        yield from (tensor for one in value for tensor in _tensors(one))


def _sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sum, sum weighted by position, and sum of absolute values, in float64, of numbers spread over the tensor."""
    flat, last = tensor.reshape(-1), tensor.shape[-1] if tensor.ndim else 1
    stride = max(flat.numel() // max(SAMPLES, _EACH * last), 1)
    while math.gcd(stride, last) > 1:  # or some places of the last axis would never be looked at
        stride += 1
    sample = flat[::stride].double()
    return torch.stack([sample.sum(), sample @ _weights(len(sample), sample.device), sample.abs().sum()])


@lru_cache(maxsize=32)
def _weights(count: int, device: torch.device) -> torch.Tensor:
    return torch.linspace(1, 2, count, dtype=torch.float64, device=device)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape)) or 'number'}"


@torch.no_grad()
def _gradient_norms(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The norm of the gradients of each module's own weights, in the order of the model."""
    squares: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            owner = name.rpartition(".")[0]
            norm = torch.linalg.vector_norm(weight.grad).double().cpu().square()
            squares[owner] = squares[owner] + norm if owner in squares else norm
    return {owner: square.sqrt() for owner, square in squares.items()}
