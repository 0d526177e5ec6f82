"""What would make a plan fit that does not."""

from dataclasses import replace

from peft import LoraConfig
from transformers import AutoConfig

from fmstune.checks import advice
from fmstune.checks.advice import memory_advice
from fmstune.checks.memory_plan import plan_work
from fmstune.checks.plan_inputs import Sharing
from fmstune.models import shapes
from fmstune.models.architecture import build_empty
from tests.checks.test_memory_plan import FULL_7B_CPU, FULL_7B_GPU, LORA_GPU, SMALL_GQA


def test_a_plan_that_fits_needs_no_advice():
    assert memory_advice(plan_work(LORA_GPU), 24_000_000_000) == []


def test_advice_tells_what_each_change_comes_to():
    assert memory_advice(plan_work(LORA_GPU), 20 * 2**30) == [
        "training.per_device_train_batch_size=2 training.gradient_accumulation_steps=8 (the same updates): "
        "17.18 GiB, fits",
        "training.activation_checkpointing=true (slower by about a third): 13.49 GiB, fits",
        "data.max_length=256 (longer rows are cut): 17.18 GiB, fits",
    ]


def test_full_tuning_is_advised_lora():
    changes = memory_advice(plan_work(FULL_7B_GPU), 30 * 2**30)
    assert [line.rpartition(" ")[2] for line in changes] == ["much", "much", "much", "fits"]
    assert changes[-1].startswith("peft=lora (r=8 on queries and values): 21.7")


def test_when_no_change_is_enough_all_are_tried_together():
    changes = memory_advice(plan_work(LORA_GPU), 13 * 2**30)
    assert changes[-1] == "all of these, with a batch of 1: 12.72 GiB, fits"


def test_when_nothing_fits_it_says_so():
    changes = memory_advice(plan_work(LORA_GPU), 2**30)
    assert changes[-1] == "take a smaller model or a larger device"
    assert changes[-2].endswith("still too much")


def test_one_device_that_nothing_fits_is_advised_more_of_them():
    changes = memory_advice(plan_work(FULL_7B_GPU), 12 * 2**30)
    assert changes[-2].startswith("all of these, and launcher=fsdp launcher.num_processes=2 (more devices): ")
    assert changes[-2].endswith(" GiB, fits")


def test_processes_on_the_cpu_are_not_advised_to_be_more_as_they_share_its_memory():
    sharded = replace(FULL_7B_CPU, sharing=Sharing(2, 2))
    changes = memory_advice(plan_work(sharded), plan_work(sharded).total - 1)
    assert changes and not [line for line in changes if "num_processes" in line]


def test_the_lora_of_the_advice_is_the_lora_that_peft_builds():
    config = AutoConfig.for_model(**SMALL_GQA)
    full = replace(FULL_7B_CPU, dimensions=shapes.dimensions(build_empty(config), None))
    lora = shapes.dimensions(
        build_empty(config), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"])
    )
    # its advice is on memory, and no FLOPs are computed from it
    assert replace(advice.with_lora(full).dimensions, flops=lora.flops) == lora


def test_a_smaller_batch_keeps_the_rows_of_an_update():
    t = advice.with_batch(LORA_GPU, 1).training
    assert (t.per_device_train_batch_size, t.gradient_accumulation_steps) == (1, 16)


# rendering


def test_several_devices_are_advised_to_share_more_to_offload_or_to_be_more():
    copies = memory_advice(plan_work(replace(FULL_7B_GPU, sharing=Sharing(8))), 40 * 2**30)
    assert [line for line in copies if line.startswith("launcher")] == [
        "launcher=fsdp (weights shared out): 28.77 GiB, fits"
    ]
    sharded = memory_advice(plan_work(replace(FULL_7B_GPU, sharing=Sharing(8, 8))), 22 * 2**30)
    assert [line for line in sharded if line.startswith("launcher")] == [
        "launcher.cpu_offload=true (slower): 16.22 GiB, fits",
        "launcher.num_processes=32 (more devices): 19.36 GiB, fits",
    ]
