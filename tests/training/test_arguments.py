"""What the job's training arguments are, field by field: a golden dictionary for each kind of job."""

from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoConfig

from fmstune.checks.precision import Precision
from fmstune.config.choices import Strategy
from fmstune.config.job import Data, Job, Launcher, Model
from fmstune.models import sharding
from fmstune.training import fsdp_on_cpu
from fmstune.training.arguments import training_arguments
from fmstune.training.objectives.base import load_objective
from fmstune.training.preflight import Checked


@pytest.fixture(autouse=True)
def _as_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what SFTConfig does with the fields, which looks for devices."""
    monkeypatch.setattr(trl, "SFTConfig", dict)


def arguments(device: str, autocast: str | None, launcher: Launcher | None = None, **training: Any) -> dict[str, Any]:
    """The arguments of a job that sets its learning rate and these fields."""
    job = Job(
        name="try",
        model=Model(path="m"),
        peft={},
        data=Data(train="rows.jsonl", format={}, max_length=96),
        launcher=launcher or Launcher(),
        training={"learning_rate": 1e-4, **training},
    )
    precision = Precision(weights="float32", trained="float32", autocast=autocast, reason="because")
    of_the_model: Any = None
    checked = Checked(AutoConfig.for_model("llama"), None, of_the_model, device, precision, "sdpa")
    return dict(training_arguments(job, load_objective(job), checked, Path("run")))


CPU_FLOAT32 = {
    "output_dir": "run",
    "run_name": "try",
    "seed": 42,
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "max_length": None,
    "report_to": "none",
    "disable_tqdm": True,
    "completion_only_loss": False,
    "activation_checkpointing": False,
    "logging_nan_inf_filter": False,
    "dataloader_pin_memory": False,
    "learning_rate": 1e-4,
}
GPU = {"use_cpu": False, "tf32": False, "dataloader_pin_memory": True}


@pytest.mark.parametrize(
    ("device", "autocast", "training", "expected"),
    [
        ("cpu", None, {}, {}),
        ("cpu", "bfloat16", {}, {"bf16": True}),
        ("cuda", "bfloat16", {}, {"bf16": True, **GPU}),
        ("cuda", "float16", {}, {"fp16": True, **GPU}),
        ("cpu", None, {"packing": True}, {"packing": True, "max_length": 96}),
        ("cpu", None, {"eval_packing": True}, {"eval_packing": True, "max_length": 96}),
        ("cpu", None, {"activation_checkpointing": True}, {"activation_checkpointing": True}),
        ("cpu", None, {"logging_nan_inf_filter": True}, {"logging_nan_inf_filter": True}),
        # fields of ours, and one that the job sets elsewhere
        ("cpu", None, {"resume": "auto", "seed": 7}, {}),
    ],
)
def test_one_process(device: str, autocast: str | None, training: dict[str, Any], expected: dict[str, Any]) -> None:
    assert arguments(device, autocast, **training) == {**CPU_FLOAT32, **expected}


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    # which the job writes into the environment
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_STATE_DICT_TYPE", "FSDP_OFFLOAD_PARAMS"):
        monkeypatch.setenv(name, "of another job")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "of another job")


@pytest.mark.usefixtures("second_of_two")
def test_processes_that_hold_whole_weights_look_for_no_unused_ones() -> None:
    ddp = Launcher(strategy=Strategy.ddp, num_processes=2)
    assert arguments("cpu", None, ddp) == {**CPU_FLOAT32, "ddp_find_unused_parameters": False}


SHARDED = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_offload": False,
        "cpu_ram_efficient_loading": True,
        "reshard_after_forward": True,
    },
    "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
}


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(("device", "changed"), [("cpu", {}), ("cuda", GPU)])
def test_sharded_processes_share_gradients_after_each_batch(
    monkeypatch: pytest.MonkeyPatch, device: str, changed: dict[str, Any]
) -> None:
    enabled: list[str] = []
    monkeypatch.setattr(fsdp_on_cpu, "enable", lambda: enabled.append("cpu"))
    fsdp = Launcher(strategy=Strategy.fsdp, num_processes=2)
    assert arguments(device, None, fsdp) == {**CPU_FLOAT32, **SHARDED, **changed}
    assert enabled == (["cpu"] if device == "cpu" else [])


def test_a_check_that_is_started_alone_shards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "set_environment", lambda _launcher: pytest.fail("the environment is changed"))
    assert arguments("cpu", None, Launcher(strategy=Strategy.fsdp, num_processes=2)) == CPU_FLOAT32
