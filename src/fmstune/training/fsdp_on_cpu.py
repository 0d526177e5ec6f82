"""FSDP2 on the CPU, really sharded: the only module that changes accelerate or uses its private names.

accelerate 1.15 takes an FSDP configuration on the CPU and then trains with DDP: its state looks at the configuration
only where the distributed type is that of an accelerator (accelerate/state.py, `AcceleratorState.__init__`), and
`MULTI_CPU` is none. torch's `fully_shard` itself works on the CPU over gloo. So the state is told, once it is made,
that this is FSDP. Everything after that is the path that a GPU takes: the model is sharded by accelerate's
`fsdp2_prepare_model`, parameters are DTensors, checkpoints are gathered.
"""

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from fmstune.upstream import explain_missing_names, require_attributes

with explain_missing_names("accelerate"):
    require_attributes(PartialState, "_shared_state")
    require_attributes(AcceleratorState, "_mixed_precision")


def enable() -> None:
    """Let an FSDP configuration count on the CPU too, from now on in this process."""
    original = AcceleratorState.__init__
    if original.__module__ == __name__:
        return  # done already

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None or self.distributed_type is not DistributedType.MULTI_CPU:
            return
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init
