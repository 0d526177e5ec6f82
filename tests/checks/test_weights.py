"""Files of weights are told whole from damaged by their headers."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from fmstune.checks.weights import Tensor, adapter_weight_problems, read_tensors, weight_problems

WHOLE = save({"a.weight": np.zeros((2, 3), np.float32), "b.weight": np.zeros(4, np.float16)})


def said(folder: Path) -> list[str]:
    return [
        str(problem).replace(f"{folder}/", "").replace(str(folder), "m") for problem in weight_problems("p", folder)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "p: model.safetensors is empty; copy it again"),
        (b"garbage", "p: model.safetensors is damaged or cut short ("),
        (b"garbage that is long enough for a header", "p: model.safetensors is damaged or cut short ("),
        (WHOLE[: len(WHOLE) // 2], "p: model.safetensors is damaged or cut short ("),
        (WHOLE[:-1], "p: model.safetensors is damaged or cut short ("),
        (WHOLE + b"more", "p: model.safetensors is damaged or cut short ("),
        (b"\xff" * 8 + WHOLE[8:], "p: model.safetensors is damaged or cut short ("),
    ],
    ids=["empty", "garbage", "long garbage", "half", "a byte short", "a tail", "an endless header"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    (problem,) = said(tmp_path)
    assert problem.startswith(message)
    assert problem.endswith("; copy it again")


def test_a_whole_file_has_no_problem_and_is_known_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    assert said(tmp_path) == []
    assert read_tensors(tmp_path) == {"a.weight": Tensor((2, 3), "F32"), "b.weight": Tensor((4,), "F16")}


def index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_every_file_that_an_index_names_is_looked_at(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2)}, tmp_path / "1.safetensors")
    (tmp_path / "2.safetensors").write_bytes(b"x")
    index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors", "d": "pytorch_model.bin"})
    assert said(tmp_path) == [
        "p: 2.safetensors is damaged or cut short (Error while deserializing header: header too small); copy it again",
        "p: model.safetensors.index.json names 3.safetensors, which is not there; copy the model again",
        "p: model.safetensors.index.json names pytorch_model.bin; fmstune reads safetensors only; "
        "save the model again with save_pretrained",
    ]


def test_an_index_of_whole_files_has_no_problem(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2)}, tmp_path / "1.safetensors")
    save_file({"b": np.zeros((3, 1))}, tmp_path / "2.safetensors")
    index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    assert said(tmp_path) == []
    assert read_tensors(tmp_path).keys() == {"a", "b"}


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, "x"])
def test_an_index_without_names_of_files_is_refused(tmp_path: Path, weight_map: object) -> None:
    index(tmp_path, weight_map)
    (problem,) = said(tmp_path)
    assert "model.safetensors.index.json is not an index of weights (it has no weight_map" in problem


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x81", b"[" * 100_000])
def test_an_index_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    (problem,) = said(tmp_path)
    assert problem.startswith("p: model.safetensors.index.json is not an index of weights (")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.safetensors", "model.gguf"])
def test_weights_under_another_name_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WHOLE)
    assert said(tmp_path) == [
        f"p: m holds no model.safetensors (found {name}); fmstune reads nothing else; "
        "save it again with save_pretrained"
    ]


def test_the_weights_of_an_adapter_have_a_name_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    (problem,) = map(str, adapter_weight_problems("p", tmp_path))
    assert "holds no adapter_model.safetensors (found model.safetensors)" in problem
    (tmp_path / "adapter_model.safetensors").write_bytes(WHOLE[:-1])
    (problem,) = map(str, adapter_weight_problems("p", tmp_path))
    assert "adapter_model.safetensors is damaged or cut short" in problem
