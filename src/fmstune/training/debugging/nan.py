"""`debug=nan`: the run stops at the first module whose output, or gradient, holds a NaN or an infinity."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from fmstune.errors import UserError
from fmstune.training.collate import rows_with_tokens


class FindNan(TrainerCallback):
    """Looks at every output in the forward pass and at its gradient in the backward pass, which takes time.

    Hooks and not `torch.autograd.set_detect_anomaly`, which names a function of autograd and never the module.
    """

    def __init__(self) -> None:
        self._hooks: list[Any] = []
        self._ids: torch.Tensor | None = None
        self._step = 0
        self._dataset: Any = None
        self._packs = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put a hook on every module; raises UserError for weights that are not finite to begin with."""
        model, self._dataset = kwargs["model"], kwargs["train_dataloader"].dataset
        self._packs = bool(getattr(args, "packing", False) or getattr(args, "padding_free", False))
        if broken := [name for name, weight in model.named_parameters() if not _is_finite(weight)]:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            text = f"before the first step: the weights {broken[0]}{more} hold a NaN or an infinity"
            raise UserError("", f"{text}; the files of the model are damaged, or its dtype is too small for them")
        self._hooks.append(model.register_forward_pre_hook(self._remember_rows, with_kwargs=True))
        for name, module in model.named_modules():
            self._hooks.append(module.register_forward_hook(self._forward_hook(name or type(module).__name__)))

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step = state.global_step + 1

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Name the first weights that the optimizer has broken, as no module has computed anything with them yet."""
        for name, weight in kwargs["model"].named_parameters():
            if weight.requires_grad and not _is_finite(weight):
                self._stop(f"the optimizer's step makes the weights {name} NaN or infinite")

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the hooks away: the model is evaluated and saved next."""
        while self._hooks:
            self._hooks.pop().remove()

    def _remember_rows(self, _module: torch.nn.Module, _args: Any, given: dict[str, Any]) -> None:
        self._ids = given.get("input_ids")

    def _forward_hook(self, name: str) -> Any:
        def look(module: torch.nn.Module, given: Any, output: Any) -> None:
            if not module.training:
                return
            for tensor in _tensors(output):
                if not _is_finite(tensor):
                    how = "" if all(map(_is_finite, _tensors(given))) else ", and so does its input"
                    self._stop(f"the output of {name} ({type(module).__name__}) holds {_kind(tensor)}{how}")
                if tensor.requires_grad:
                    tensor.register_hook(look_back)  # type: ignore[no-untyped-call]

        def look_back(gradient: torch.Tensor) -> None:
            if not _is_finite(gradient):
                self._stop(f"in the backward pass, the gradient of the output of {name} holds {_kind(gradient)}")

        return look

    def _stop(self, found: str) -> NoReturn:
        rows = "packed rows" if self._packs else "rows unknown"
        if self._ids is not None and not self._packs:
            rows = rows_with_tokens(self._dataset, self._ids)
        hints = "lower training.learning_rate, set training.max_grad_norm=1 or model.dtype=float32, or look at the rows"
        raise UserError("", f"step {self._step} ({rows}): {found}; it is the first of its step. {hints}")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of numbers with a point in an output, which may be a tuple or a mapping of them."""
    if isinstance(value, torch.Tensor):
        yield from (value,) if value.is_floating_point() else ()
    elif isinstance(value, Mapping):
        yield from (tensor for one in value.values() for tensor in _tensors(one))
    elif isinstance(value, tuple | list):
        yield from (tensor for one in value for tensor in _tensors(one))


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) if tensor.is_floating_point() else True


def _kind(tensor: torch.Tensor) -> str:
    """What of the two it holds, and how many."""
    nan, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    parts = [f"{count:,} {word}" for count, word in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(parts)} of {tensor.numel():,} numbers"
