"""Model FLOPs of a whole run, its hours and its cost, against literal numbers."""

from dataclasses import replace

import pytest

from fmstune.checks.flops import USUAL_MFU, epoch_flops, sharing_speed, show_flops, show_hours
from fmstune.checks.memory_plan import plan_work, render_plan
from fmstune.checks.plan_inputs import ModelFlops, PassFlops, Rows, Sharing, Training, Work
from fmstune.data.prefix_sharing.saved_positions import LargestBatch, Savings
from tests.checks.test_memory_plan import LLAMA_7B, LORA_GPU

SIMPLE = replace(LLAMA_7B, flops=ModelFlops(PassFlops(1000, 100, (1, 1)), PassFlops(2000, 200, (2, 0)), (None, 2)))
ROWS = Rows(rows=3, tokens=12, longest=6, supervised_share=0.5, lengths=((3, 2), (6, 1)))
WORK = Work(SIMPLE, ROWS, Training(max_length=8, per_device_train_batch_size=1, num_train_epochs=2), LORA_GPU.machine)
# of rows of 3, 3 and 6 tokens: 12 positions, 6 scored; 6 + 6 + 21 pairs, of them within a window of 2: 5 + 5 + 11
EPOCH = 12 * 3000 + 6 * 300 + 33 * 3 + 21


def with_rows(**changes: object) -> Work:
    return replace(WORK, rows=replace(ROWS, **changes))


def test_an_epoch_takes_what_its_rows_take() -> None:
    assert epoch_flops(WORK) == EPOCH


def test_rows_of_unknown_length_are_as_long_as_the_mean() -> None:
    assert epoch_flops(with_rows(lengths=())) == 12 * 3000 + 6 * 300 + 3 * 10 * 3 + 3 * 7


SHARED = with_rows(
    shared=Savings(batch_size=3, rows=3, tokens=12, padded=18, shared=6, largest=LargestBatch(6, 9, 6), packs=2)
)


def test_a_beginning_that_is_shared_is_planned_once() -> None:
    assert epoch_flops(SHARED) == 6 * 3000 + 6 * 300 + (33 * 3 + 21) / 2
    assert sharing_speed(SHARED) == EPOCH / epoch_flops(SHARED)


def test_steps_positions_and_memory_are_those_of_the_shared_batches() -> None:
    packed = replace(SHARED, training=replace(SHARED.training, packing=True))
    made = plan_work(packed)
    assert (made.rows, made.steps_per_epoch, made.positions_per_step) == (2, 2, 6)
    assert "at most 6 positions a step, shared beginnings once; 6 an epoch, 1.9 times the rows a second" in render_plan(
        made
    )
    assert "packing is counted as perfect" not in render_plan(made)
    alone = plan_work(with_rows(longest=6))
    # as many positions as one row, and three keys and values more in each layer
    more = 3 * 2 * LLAMA_7B.kv_heads * LLAMA_7B.head_dim * LLAMA_7B.layers * 2
    assert plan_work(SHARED).memory.activations - alone.memory.activations == more


def test_virtual_tokens_lengthen_each_row_and_those_of_prefix_tuning_its_keys() -> None:
    prompt, prefix = (replace(WORK, dimensions=replace(SIMPLE, virtual_tokens=1, prefix_tokens=n)) for n in (0, 1))
    assert epoch_flops(prompt) == 15 * 3000 + 6 * 300 + (10 + 10 + 28) * 3 + 7 + 7 + 13
    assert epoch_flops(prefix) == EPOCH + 12 * 4


def test_a_frozen_copy_computes_a_forward_pass_more() -> None:
    reference = replace(WORK, training=replace(WORK.training, frozen_copies=1))
    assert epoch_flops(reference) == EPOCH + 12 * 1000 + 6 * 100 + 33 + 21


def test_a_run_takes_all_of_its_epochs_or_steps() -> None:
    assert plan_work(WORK).speed.flops == 2 * EPOCH
    steps = replace(WORK, training=replace(WORK.training, max_steps=9))
    assert plan_work(steps).speed.flops == 3 * EPOCH
    stream = replace(steps, rows=replace(ROWS, streamed=True))
    assert plan_work(stream).speed.flops == EPOCH


KNOWN = replace(LORA_GPU, machine=replace(LORA_GPU.machine, tflops=500.0, price_per_hour=3.0), sharing=Sharing(4))
TAKING = replace(KNOWN, dimensions=replace(KNOWN.dimensions, flops=ModelFlops(PassFlops(12 * 10**12))))
# 200,000 tokens in each of three epochs, on four devices that reach 40 % of 500 TFLOP/s
HOURS = 3 * 200_000 * 12 / (4 * 500 * 0.4) / 3600


def test_hours_and_cost_of_devices_whose_peak_is_known() -> None:
    speed = plan_work(TAKING).speed
    assert (speed.hours, speed.cost) == (pytest.approx(HOURS), pytest.approx(HOURS * 4 * 3))
    shown = render_plan(plan_work(TAKING))
    assert "compute     7.2 EFLOPs of the model, for all steps" in shown
    assert "time        ≈ 2.5 hours of steps: MFU 40.0% (assumed) of 500 TFLOP/s of each of 4 devices" in shown
    assert "cost        ≈ 30.00, at 3 an hour and device" in shown


def test_an_mfu_that_a_former_run_reached_is_planned_with() -> None:
    speed = plan_work(TAKING, mfu=0.2).speed
    assert speed.hours == pytest.approx(HOURS * USUAL_MFU / 0.2)
    assert "MFU 20.0% (as the former run in this folder)" in render_plan(plan_work(TAKING, mfu=0.2))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_price_without_a_peak_gives_no_cost_and_a_note_says_what_does(device: str) -> None:
    even = replace(TAKING, rows=replace(TAKING.rows, rows=1008))
    made = plan_work(replace(even, machine=replace(LORA_GPU.machine, device=device, price_per_hour=2.0)))
    assert (made.speed.hours, made.speed.cost) == (None, None)
    (note,) = made.notes
    assert note.startswith("launcher.price_per_hour gives no cost without launcher.device_tflops, the peak")


def test_the_plan_for_a_gpu_that_is_not_known_says_what_gives_hours() -> None:
    unknown, cpu = (replace(TAKING, machine=replace(LORA_GPU.machine, device=one)) for one in ("cuda", "cpu"))
    line = "compute     7.2 EFLOPs of the model, for all steps"
    assert f"{line}; launcher.device_tflops gives hours\n" in render_plan(plan_work(unknown))
    assert f"{line}\n" in render_plan(plan_work(cpu))


@pytest.mark.parametrize(("hours", "text"), [(30.04, "30.0 hours"), (0.5, "30.0 minutes"), (0.002, "7.2 seconds")])
def test_hours_are_shown_as_a_reader_says_them(hours: float, text: str) -> None:
    assert show_hours(hours) == text


@pytest.mark.parametrize(("flops", "text"), [(3.14159e15, "3.14 PFLOPs"), (2e9, "2 GFLOPs"), (5e5, "0.5 MFLOPs")])
def test_flops_are_shown_with_a_prefix(flops: float, text: str) -> None:
    assert show_flops(flops) == text
