"""What FSDP is told, beyond what two processes show in tests/test_fsdp.py."""

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

from fmstune import sharding


@pytest.mark.parametrize(
    ("version", "policy"),
    [
        (1, MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, buffer_dtype=None)),
        (2, MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None)),
    ],
)
def test_only_the_computing_is_in_half_precision(version: int, policy: object) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
    plugin.set_mixed_precision("bf16")
    sharding.keep_exact(plugin)
    assert plugin.mixed_precision_policy == policy


def test_a_run_in_one_dtype_has_no_policy() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    sharding.keep_exact(plugin)
    assert plugin.mixed_precision_policy is None
