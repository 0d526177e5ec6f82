"""`debug=smoke` in the runner: which layers stay, and when the notice is given."""

import signal
from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from fmstune.models.architecture import build_empty
from fmstune.training.debugging.smoke import Smoke, kept_layers, small_configuration


@pytest.mark.parametrize(
    ("kinds", "count", "kept"),
    [
        ((), 32, [0, 1]),
        ((), 1, [0]),
        ([("a",), ("a",), ("a",)], 3, [0, 1]),
        ([("a",), ("a",), ("b",), ("a",)], 4, [0, 2]),
        ([("a",), ("b",), ("a",), ("c",), ("c",)], 5, [0, 1, 3]),
        ([("a", "0"), ("a", "1"), ("a", "1"), ("b", "0")], 4, [0, 1, 3]),
    ],
)
def test_the_first_layer_of_each_kind_is_kept_and_two_at_least(
    kinds: list[tuple[str, ...]], count: int, kept: list[int]
) -> None:
    assert kept_layers(kinds, count) == kept


@pytest.mark.parametrize(
    ("model_type", "sizes", "layers"),
    [
        ("llama", {"num_hidden_layers": 32}, 2),
        ("gpt_bigcode", {"n_layer": 24}, 2),
        ("gemma3_text", {"num_hidden_layers": 12}, 2),
        ("qwen3_moe", {"num_hidden_layers": 4, "num_experts": 4}, 2),
        ("granitemoehybrid", {"num_hidden_layers": 4, "layer_types": ["mamba", "mamba", "attention", "mamba"]}, 2),
    ],
)
def test_a_model_of_few_layers_has_each_kind_and_the_same_widths(
    model_type: str, sizes: dict[str, object], layers: int
) -> None:
    whole = AutoConfig.for_model(model_type, **sizes)
    small = small_configuration(whole)
    assert (small.num_hidden_layers, small.hidden_size, small.vocab_size) == (
        *(layers, whole.hidden_size),
        whole.vocab_size,
    )
    assert set(getattr(small, "layer_types", None) or []) == set(getattr(whole, "layer_types", None) or [])
    build_empty(small)


def test_the_notice_is_given_once_and_not_to_a_resumed_run() -> None:
    seen: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    try:
        for step in (0, 1):
            Smoke().on_train_begin(None, SimpleNamespace(global_step=step), None)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert seen == [signal.SIGUSR1]
