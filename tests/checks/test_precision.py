"""What `model.dtype` and `training.bf16/fp16` come to."""

import pytest

from fmstune.checks.precision import Situation, precision_notes, precision_problems, resolve_precision
from fmstune.config.choices import Dtype

AUTO = {
    # adapter, device, bf16_supported → weights, trained, autocast
    (False, "cpu", True): ("float32", "float32", None),
    (True, "cpu", True): ("float32", "float32", None),
    (True, "mps", False): ("float32", "float32", None),
    (False, "cuda", True): ("float32", "float32", "bfloat16"),
    (True, "cuda", True): ("bfloat16", "float32", "bfloat16"),
    (False, "cuda", False): ("float32", "float32", None),
    (True, "cuda", False): ("float32", "float32", None),
}


@pytest.mark.parametrize(("situation", "expected"), AUTO.items())
def test_auto_depends_on_device_and_method(situation, expected):
    adapter, device, supported = situation
    precision = resolve_precision(Situation(Dtype.auto, adapter, device, supported))
    assert (precision.weights, precision.trained, precision.autocast) == expected


EXPLICIT = {
    (Dtype.float32, True, "cuda"): ("float32", "float32", None),
    (Dtype.float32, False, "cuda"): ("float32", "float32", None),
    (Dtype.bfloat16, False, "cuda"): ("bfloat16", "bfloat16", None),
    (Dtype.bfloat16, True, "cuda"): ("bfloat16", "float32", "bfloat16"),
    (Dtype.float16, True, "cuda"): ("float16", "float32", "float16"),
    (Dtype.bfloat16, False, "cpu"): ("bfloat16", "bfloat16", None),
    (Dtype.bfloat16, True, "cpu"): ("bfloat16", "float32", None),
}


@pytest.mark.parametrize(("situation", "expected"), EXPLICIT.items())
def test_an_explicit_dtype_is_taken_as_it_is(situation, expected):
    dtype, adapter, device = situation
    precision = resolve_precision(Situation(dtype, adapter, device, True))
    assert (precision.weights, precision.trained, precision.autocast) == expected


ASKED = {
    # dtype, adapter, device, bf16, fp16 → weights, autocast
    (Dtype.auto, True, "cuda", False, None): ("float32", None),
    (Dtype.auto, False, "cuda", False, None): ("float32", None),
    (Dtype.auto, True, "cuda", None, True): ("float16", "float16"),
    (Dtype.auto, False, "cuda", False, True): ("float32", "float16"),
    (Dtype.auto, True, "cuda", None, False): ("bfloat16", "bfloat16"),
    (Dtype.auto, True, "cpu", True, None): ("float32", "bfloat16"),
    (Dtype.float32, False, "cuda", True, None): ("float32", "bfloat16"),
    (Dtype.bfloat16, True, "cuda", False, None): ("bfloat16", None),
    (Dtype.float16, True, "cuda", None, False): ("float16", None),
}


@pytest.mark.parametrize(("situation", "expected"), ASKED.items())
def test_training_bf16_and_fp16_choose_the_autocast(situation, expected):
    dtype, adapter, device, bf16, fp16 = situation
    precision = resolve_precision(Situation(dtype, adapter, device, True, bf16, fp16))
    assert (precision.weights, precision.autocast) == expected


def test_the_reason_of_full_tuning_on_a_gpu_names_the_lost_updates():
    assert "below about 1/256 of a weight" in resolve_precision(Situation(Dtype.auto, False, "cuda", True)).reason


def test_the_reason_names_what_kept_auto_from_bfloat16():
    assert "this GPU has no bfloat16" in resolve_precision(Situation(Dtype.auto, True, "cuda", False)).reason
    assert "training.bf16 is false" in resolve_precision(Situation(Dtype.auto, True, "cuda", True, bf16=False)).reason


def test_describe_is_one_line():
    precision = resolve_precision(Situation(Dtype.auto, True, "cuda", True))
    assert precision.describe() == "bfloat16 weights, float32 trained, bfloat16 autocast"
    assert resolve_precision(Situation(Dtype.auto, True, "cpu", True)).describe() == (
        "float32 weights, float32 trained, no autocast"
    )


PROBLEMS = {
    Situation(Dtype.auto, True, "cuda", True, bf16=True, fp16=True): "training.bf16 and training.fp16 are both true",
    Situation(Dtype.auto, True, "cpu", True, fp16=True): "training.fp16 is true, but the device is the CPU",
    Situation(Dtype.float16, False, "cuda", True): "GradScaler refuses float16 gradients",
    Situation(Dtype.auto, True, "cuda", False, bf16=True): "training.bf16 is true, but this GPU has no bfloat16",
    Situation(Dtype.bfloat16, True, "cuda", False): "model.dtype is bfloat16, but this GPU has no bfloat16",
}


@pytest.mark.parametrize(("situation", "message"), PROBLEMS.items())
def test_what_cannot_be_trained_is_one_problem(situation, message):
    (problem,) = map(str, precision_problems(situation))
    assert message in problem


@pytest.mark.parametrize("situation", [Situation(Dtype.auto, *rest) for rest in AUTO])
def test_auto_alone_is_never_a_problem(situation):
    assert list(precision_problems(situation)) == []


def test_only_pure_bfloat16_full_tuning_gets_a_note():
    (note,) = precision_notes(resolve_precision(Situation(Dtype.bfloat16, False, "cuda", True)), adapter=False)
    assert "1/256 of its weight is lost" in note
    assert list(precision_notes(resolve_precision(Situation(Dtype.bfloat16, True, "cuda", True)), adapter=True)) == []
    assert list(precision_notes(resolve_precision(Situation(Dtype.auto, False, "cuda", True)), adapter=False)) == []


TF32 = {
    # dtype, device, supported, asked → TF32
    (Dtype.auto, "cuda", True, None): True,
    (Dtype.float32, "cuda", True, True): True,
    (Dtype.float32, "cuda", True, False): False,
    (Dtype.float32, "cuda", False, None): False,
    (Dtype.float32, "cpu", False, None): False,
}


@pytest.mark.parametrize(("situation", "expected"), TF32.items())
def test_a_gpu_that_has_tf32_multiplies_float32_numbers_in_it_unless_told_not_to(situation, expected):
    dtype, device, supported, asked = situation
    precision = resolve_precision(Situation(dtype, True, device, True, tf32_supported=supported, tf32=asked))
    assert precision.tf32 is expected
    assert ("TF32 for float32" in precision.describe()) is expected


@pytest.mark.parametrize(("device", "why"), [("cpu", "the device is cpu"), ("cuda", "this GPU has no TF32")])
def test_tf32_is_refused_where_the_device_has_none(device, why):
    (problem,) = precision_problems(Situation(Dtype.auto, True, device, True, tf32=True))
    assert str(problem) == f"training.tf32 is true, but {why}; set it to false, or leave it out"
