"""Numbers out of their range are found in every group of the job, and in every request."""

from typing import Any

import pytest

from fmstune.checks.limits import flag_problems, number_problems
from fmstune.config.requests import Generation, Harness
from tests.checks.test_job import job


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 2**32}, f"seed must be at least 0 and below 2**32, got {2**32}"),
        ({"launcher": {"threads": 0}}, "launcher.threads must be from 1 to 1,024, got 0"),
        ({"launcher": {"threads": 2**31}}, "launcher.threads must be from 1 to 1,024, got 2147483648"),
        ({"launcher": {"rdzv_timeout": 0}}, "launcher.rdzv_timeout must be at least 1 and below 2**31 seconds, got 0"),
        ({"training__ddp_timeout": 0}, "training.ddp_timeout must be at least 1 and below 2**31 seconds, got 0"),
        (
            {"training__ddp_timeout": 2**31},
            f"training.ddp_timeout must be at least 1 and below 2**31 seconds, got {2**31}",
        ),
        (
            {"launcher": {"main_process_port": 70000}},
            "launcher.main_process_port must be at least 1 and below 65536, got 70000",
        ),
        (
            {"launcher": {"transformer_layer_cls_to_wrap": [1]}},
            "launcher.transformer_layer_cls_to_wrap must be a class name or a list of them, got [1]",
        ),
        ({"launcher": {"num_processes": 0}}, "launcher.num_processes must be at least 1, got 0"),
        ({"launcher": {"device_gib": 0}}, "launcher.device_gib must be above 0 and finite, got 0"),
        ({"launcher": {"device_tflops": -1}}, "launcher.device_tflops must be above 0 and finite, got -1"),
        ({"launcher": {"price_per_hour": 0}}, "launcher.price_per_hour must be above 0 and finite, got 0"),
        ({"training__learning_rate": 10.0}, "training.learning_rate must be above 0 and below 10, got 10"),
        ({"data__max_length": 1}, "data.max_length must be at least 2, got 1"),
        ({"evaluation": {"sample": -1}}, "evaluation.sample must be at least 0, got -1"),
        ({"training__data_seed": -1}, "training.data_seed must be at least 0 and below 2**32, got -1"),
        ({"training__max_steps": 2**31}, "training.max_steps must be below 2**31, got 2147483648"),
        (
            {"training__per_device_train_batch_size": 2**63},
            f"training.per_device_train_batch_size must be below 2**31, got {2**63}",
        ),
        # fields without a range of their own, too
        (
            {"training__eval_accumulation_steps": 2**31},
            "training.eval_accumulation_steps must be below 2**31, got 2147483648",
        ),
        ({"peft": {"_target_": "peft.LoraConfig", "r": 2**40}}, f"peft.r must be below 2**31, got {2**40}"),
        ({"launcher": {"machine_rank": 2**31}}, "launcher.machine_rank must be below 2**31, got 2147483648"),
    ],
)
def test_a_number_out_of_its_range_is_a_problem_of_its_field(changes: dict[str, Any], says: str) -> None:
    (problem,) = number_problems(job(**changes))
    assert str(problem) == says


def test_numbers_at_the_ends_of_their_ranges_are_right() -> None:
    ends = job(seed=0, data__max_length=2, data__eval_fraction=0.0, training__warmup_steps=0, training__max_steps=-1)
    assert list(number_problems(ends)) == []
    assert list(flag_problems(Generation(model="m", batch_size=1, seed=2**32 - 1, top_p=1.0))) == []


def test_a_number_of_a_request_is_a_problem_of_its_flag() -> None:
    found = [str(problem) for problem in flag_problems(Generation(model="m", batch_size=0, top_p=1.5, top_k=0))]
    assert found == [
        "--batch_size must be at least 1, got 0",
        "--top_p must be above 0 and at most 1, got 1.5",
        "--top_k must be at least 1, got 0",
    ]
    (shots,) = flag_problems(Harness(model="m", tasks=("boolq",), num_fewshot=-1))
    assert str(shots) == "--num_fewshot must be at least 0, got -1"
