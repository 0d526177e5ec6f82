"""What FSDP is told, beyond what two processes show in tests/end_to_end/test_fsdp.py."""

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

from fmstune.models import sharding
from tests import small


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


def test_an_adapter_stays_marked_as_trained_while_the_base_answers() -> None:
    model = get_peft_model(small.model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    ids = torch.tensor([[5, 6, 7]])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        tuned = model(input_ids=ids).logits
        with sharding.as_base(model):
            assert all(parameter.requires_grad for parameter in trained)
            base = model(input_ids=ids).logits
    assert torch.equal(base, small.model()(input_ids=ids).logits)
    assert not torch.allclose(tuned, base)
    assert [parameter for parameter in model.parameters() if parameter.requires_grad] == trained
