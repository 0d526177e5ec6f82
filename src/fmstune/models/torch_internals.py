"""Private names of torch: the modes of torch.compile; and tensors without numbers, with a count of their bytes."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Self
from unittest.mock import patch

import torch

from fmstune.models.memory_count.heap import Event
from fmstune.upstream import explain_missing_names

with explain_missing_names("torch"):
    from torch._inductor import list_mode_options as list_mode_options
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch._subclasses.fake_tensor import UnsupportedFakeTensorException as UnsupportedFakeTensorException
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._pytree import tree_leaves

Held = Mapping[str, int]
"""Bytes by what holds them."""


class ByteCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made within it, and keeps the most of each phase.

    It stands above a FakeTensorMode, and answers what that cannot: how many entries of `mask` are true.
    """

    def __init__(self, mask_shape: tuple[int, ...], trues: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: defaultdict[str, list[Event]] = defaultdict(list)
        """By phase what was made and freed, without the weights, and the first use of each trained parameter."""
        self._unused: set[int] = set()
        self.held: defaultdict[str, int] = defaultdict(int)
        self.most: dict[str, Held] = {}
        """What was held when the phase held most."""
        self._phase, self._kind = "", "activations"
        self._known: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._mask_shape, self._trues = mask_shape, trues

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and torch guards each call against that."""
        return False

    def enter_phase(self, phase: str, kind: str = "activations") -> None:
        """Begin a phase, whose new tensors are of this kind."""
        self._phase, self._kind = phase, kind
        self._look()

    def start_over(self) -> None:
        """Forget the phases so far; what is held stays."""
        self.most.clear()

    def count_as(self, kind: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """Count these tensors as this kind from now on."""
        for tensor in tensors:
            if tensor is not None:
                self._count(tensor, kind)

    def watch_use(self, parameters: Iterable[torch.Tensor]) -> None:
        """Keep as an event when each of these is first used."""
        self._unused.update(one.untyped_storage()._cdata for one in parameters)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            # two of three calls ask for the device alone; the answer is that of the FakeTensorMode below
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default:
            return _NUMBERS.get(args[0].dtype, 1)
        if self._unused:
            self._see_use(args)
        made = func(*self._with_positions(func, args), **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self._count(one, None)
        return made

    def _see_use(self, args: tuple[Any, ...]) -> None:
        for one in args:
            if isinstance(one, torch.Tensor) and (key := one.untyped_storage()._cdata) in self._unused:
                self._unused.remove(key)
                self.events[self._phase].append(Event("use", key))

    def _with_positions(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same, with as many positions in place of the mask of positions that are scored."""
        if func not in _INDEXED or len(args) < 2 or len(args[1]) != 1 or args[1][0].dtype is not torch.bool:
            return args
        if tuple(args[1][0].shape) != self._mask_shape:
            return args
        positions = [torch.empty(self._trues, dtype=torch.int64) for _ in self._mask_shape]
        return (args[0], positions, *args[2:])

    def _count(self, tensor: torch.Tensor, kind: str | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            reference, former, size = self._known[key]
            if kind is None or kind == former:
                return
            self.held[former] -= size
        else:
            size = storage.nbytes()
            reference = weakref.ref(storage, self._forgetter(key))
            if kind != "weights":
                self.events[self._phase].append(Event("allocate", key, size))
        self._known[key] = (reference, kind or self._kind, size)
        self.held[kind or self._kind] += size
        self._look()

    def _forgetter(self, key: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            _, kind, size = self._known.pop(key)
            self.held[kind] -= size
            self.events[self._phase].append(Event("free", key))

        return forget

    def _look(self) -> None:
        most, held = self.most.get(self._phase), sum(self.held.values())
        if most is None or held > sum(most.values()):
            self.most[self._phase] = dict(self.held)


_NUMBERS = {torch.bool: False, torch.float32: 1.0, torch.float64: 1.0, torch.bfloat16: 1.0, torch.float16: 1.0}
"""Answers to `.item()`, which decide nothing that takes memory."""
_INDEXED = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class AsOnCuda(ExitStack):
    """Lets a CPU's tensors be kept as CUDA's kernels keep them: dropout's mask as bool, scores never.

    By patches: a TorchFunctionMode does not reach what activation checkpointing computes again.
    """

    def __enter__(self) -> Self:
        functional: Any = torch.nn.functional
        attend = functional.scaled_dot_product_attention

        def attend_without_dropout(*args: Any, **given: Any) -> Any:
            return attend(*args, **{**given, "dropout_p": 0.0})

        def drop(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
            return torch.native_dropout(input, p, training)[0]

        self.enter_context(patch.object(functional, "scaled_dot_product_attention", attend_without_dropout))
        self.enter_context(patch.object(functional, "dropout", drop))
        return super().__enter__()


def give_fake_storage(model: torch.nn.Module) -> None:
    """Replace the parameters and buffers of a model on the meta device; call it within a FakeTensorMode."""
    # by the parameter itself, as tied modules share one
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                data = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                made[parameter] = torch.nn.Parameter(data, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
