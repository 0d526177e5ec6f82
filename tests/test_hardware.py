"""The peaks of cards, by the names that torch gives them."""

import re

import pytest

from fmstune.hardware import CARDS, peak_tflops

NAMES = {
    "NVIDIA B200": (2250, 1125),
    "NVIDIA H200": (989.4, 494.7),
    "NVIDIA H100 80GB HBM3": (989.4, 494.7),
    "NVIDIA H100 PCIe": (756, 378),
    "NVIDIA H100 NVL": (835.5, 417.5),
    "NVIDIA A100-SXM4-80GB": (312, 156),
    "NVIDIA A100 80GB PCIe": (312, 156),
    "NVIDIA A10G": (70, 35),
    "NVIDIA A10": (125, 62.5),
    "NVIDIA L4": (121, 60),
    "NVIDIA L40S": (362, 183),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6),
}


@pytest.mark.parametrize(("card", "peaks"), NAMES.items())
def test_a_card_has_its_dense_peak_in_each_dtype(card: str, peaks: tuple[float, float]) -> None:
    assert peak_tflops(card, "bfloat16") == peak_tflops(card, "float16") == peaks[0]
    assert peak_tflops(card, "float32", tf32=True) == peaks[1]


@pytest.mark.parametrize(("card", "fp16", "fp32"), [("Tesla T4", 65, 8.1), ("Tesla V100-SXM2-16GB", 125, 15.7)])
def test_an_older_card_has_no_bfloat16_and_no_tf32(card: str, fp16: float, fp32: float) -> None:
    assert (peak_tflops(card, "float16"), peak_tflops(card, "float32")) == (fp16, fp32)
    assert (peak_tflops(card, "bfloat16"), peak_tflops(card, "float32", tf32=True)) == (None, None)


@pytest.mark.parametrize(
    "card",
    ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "Other 1"],
)
def test_a_part_of_a_card_and_a_card_of_another_name_are_not_known(card: str) -> None:
    assert peak_tflops(card, "bfloat16") is None


def test_a_card_has_one_entry() -> None:
    found = {name: sum(bool(re.fullmatch(card.names, name)) for card in CARDS.values()) for name in NAMES}
    assert found == dict.fromkeys(NAMES, 1)
