"""A user's own accelerate YAML: its values, those that are refused, and the command line over it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fmstune.errors import UserError
from fmstune.launch import accelerate_file
from tests.conftest import Result

EARLY = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
downcast_bf16: 'no'
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_backward_prefetch_policy: BACKWARD_PRE
  fsdp_forward_prefetch: false
  fsdp_offload_params: false
  fsdp_sharding_strategy: 1
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: true
  fsdp_sync_module_states: true
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 1
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""
"""The early tool's fixture."""


def written(text: str, name: str = "accelerate.yaml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_the_early_tools_file_means_what_it_says() -> None:
    assert accelerate_file.values(written(EARLY)) == {
        "strategy": "fsdp",
        "num_processes": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "fsdp_version": 1,
        "backward_prefetch": "BACKWARD_PRE",
        "forward_prefetch": False,
        "cpu_offload": False,
        "sharding_strategy": "full_shard",
        "cpu_ram_efficient_loading": True,
    }


def test_a_file_for_fsdp2_with_blocks_and_a_cpu() -> None:
    text = (
        "distributed_type: FSDP\nuse_cpu: true\nfsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forward: false\n"
    )
    text += "  fsdp_transformer_layer_cls_to_wrap: A, B\n"
    assert accelerate_file.values(written(text)) == {
        "strategy": "fsdp",
        "device": "cpu",
        "fsdp_version": 2,
        "sharding_strategy": "shard_grad_op",
        "transformer_layer_cls_to_wrap": ["A", "B"],
    }


def test_all_that_is_not_taken_is_said_at_once() -> None:
    text = """
distributed_type: DEEPSPEED
num_proceses: 2
deepspeed_config: {zero_stage: 3}
gpu_ids: 0,1
mixed_precision: fp8
fsdp_config:
  fsdp_sharding_strategy: NO_SHARD
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_activation_checkpointing: true
  fsdp_ofload_params: true
"""
    with pytest.raises(UserError) as caught:
        accelerate_file.values(written(text))
    start = "launcher.config_file: accelerate.yaml: "
    assert [problem.removeprefix(start) for problem in tuple(map(str, caught.value.problems))] == [
        "num_proceses is unknown; did you mean 'num_processes'?",
        "deepspeed_config is not taken (FSDP is what shards here); leave it out",
        "distributed_type DEEPSPEED is not one of FSDP, MULTI_GPU, MULTI_CPU, NO",
        "gpu_ids 0,1 is not taken; set the environment variable CUDA_VISIBLE_DEVICES",
        "mixed_precision fp8 is not taken; model.dtype sets the precision",
        "fsdp_sharding_strategy NO_SHARD is not taken; full_shard, shard_grad_op and hybrid_shard are, "
        "and launcher=ddp",
        "fsdp_state_dict_type SHARDED_STATE_DICT is not taken; checkpoints and models are ordinary files, "
        "so leave it out",
        "fsdp_activation_checkpointing True is not taken; training.activation_checkpointing=true sets it",
        "fsdp_ofload_params is unknown; did you mean 'fsdp_offload_params'?",
    ]


@pytest.mark.parametrize(("text", "reason"), [("a: [", "cannot be read"), ("- 1", "is not a mapping of settings")])
def test_a_file_that_is_no_configuration_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"launcher.config_file: accelerate.yaml {reason}"):
        accelerate_file.values(written(text))


def test_the_command_line_is_over_the_file_and_the_file_over_the_group() -> None:
    path = str(written(yaml.safe_dump({"distributed_type": "FSDP", "num_processes": 8, "main_process_port": 1234})))
    group = {"strategy": "single", "num_processes": 2, "main_process_port": None, "config_file": path}
    words = frozenset({"launcher.config_file", "launcher.num_processes"})
    assert {**group, **accelerate_file.taken(group, words)} == {
        "strategy": "fsdp",
        "num_processes": 2,
        "main_process_port": 1234,
        "config_file": path,
    }


def test_a_file_for_another_launcher_than_the_one_chosen_is_refused() -> None:
    path = str(written("distributed_type: MULTI_GPU\n"))
    with pytest.raises(UserError, match="launcher.config_file: accelerate.yaml is for launcher=ddp; choose it"):
        accelerate_file.taken({"strategy": "fsdp", "config_file": path}, frozenset({"launcher"}))


def test_without_a_file_nothing_is_set() -> None:
    assert accelerate_file.taken({"device": "cpu"}, frozenset()) == {}


@pytest.mark.slow
def test_a_job_that_is_printed_to_be_frozen_says_what_the_file_does(fmstune: Callable[..., Result]) -> None:
    """`torchrun` and `accelerate launch` start that job, and a runner does not look at the file."""
    path = written(yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_processes": 8, "main_process_port": 1234}))
    words = ("--cfg", "job", f"launcher.config_file={path}", "launcher.num_processes=2")
    printed = yaml.safe_load(fmstune(*words, "--resolve").out)["launcher"]
    shown = {"strategy": "ddp", "num_processes": 2, "main_process_port": 1234}
    assert {name: printed[name] for name in shown} == shown
    told = [line.split(maxsplit=2) for line in fmstune(*words, "--sources").out.splitlines()]
    sources = {name.removeprefix("launcher."): source for name, _, source in told}
    assert {name: sources[name] for name in shown} == {
        "strategy": str(path),
        "num_processes": "command line",
        "main_process_port": str(path),
    }
