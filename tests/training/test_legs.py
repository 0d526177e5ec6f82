"""The speed of a run over its legs; what else a leg holds is tested with resumed runs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fmstune.training.legs import Done, Figures, Leg, read_figures, speed_of_legs, sum_legs, write_figures

LEG = Leg(
    from_step=0,
    to_step=4,
    train_seconds=9.0,
    step_seconds=8.0,
    preparation_seconds=1.0,
    load_seconds=1.0,
    memory_before_model_bytes=1,
    peak_memory_bytes=2,
    processes=2,
    from_cache=False,
    device_tflops=10.0,
    warm=Done(tokens=600, flops=60e12, seconds=6.0),
)
OTHER = replace(LEG, processes=1, device_tflops=20.0, warm=Done(400, 40e12, 8.0))


def test_the_speed_of_a_device_is_that_of_all_legs_without_the_first_step_of_each() -> None:
    # 1,000 tokens and 100 TFLOPs, in 6 seconds of two devices of 10 TFLOP/s and 8 of one of 20
    assert speed_of_legs([LEG, OTHER]) == {
        "tokens_per_second_per_device": 50.0,
        "tflops_per_device": 5.0,
        "mfu": round(100 / (6 * 2 * 10 + 8 * 20), 5),
    }


def test_a_leg_whose_peak_is_not_known_leaves_the_utilisation_out() -> None:
    assert "mfu" not in speed_of_legs([LEG, replace(OTHER, device_tflops=None)])


def test_one_step_has_no_speed_and_what_counts_no_flops_has_tokens_alone() -> None:
    assert speed_of_legs([replace(LEG, warm=Done())]) == {}
    assert speed_of_legs([replace(LEG, warm=Done(600, 0.0, 6.0))]) == {"tokens_per_second_per_device": 50.0}


def test_the_speed_between_two_logs_is_that_of_each_of_the_devices() -> None:
    done = Done(1600, 160e12, 10.0).since(LEG.warm)
    assert done.speed(5, 100.0) == {"tokens_per_second_per_device": 50.0, "tflops_per_device": 5.0, "mfu": 0.05}


def test_the_summary_lists_the_legs_without_what_they_are_added_up_from() -> None:
    (leg,) = sum_legs([LEG])["legs"]
    assert {**leg, "warm": LEG.warm} == asdict(LEG) and "warm" not in leg


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = Figures((LEG, OTHER), 5, 6, 7e12, 1.5, (0.5,), 4, Done(3, 2e12, 1.0), {"loss": [0.5]})
    write_figures(made, tmp_path)
    assert read_figures(tmp_path) == made


@pytest.mark.parametrize("missing", ["flops", "at_last_log"])
def test_a_checkpoint_without_one_of_the_figures_has_none(tmp_path: Path, missing: str) -> None:
    write_figures(Figures((LEG,), 5, 6, 7e12, 1.5, (0.5,), 4, Done()), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != missing}))
    assert read_figures(tmp_path) is None
