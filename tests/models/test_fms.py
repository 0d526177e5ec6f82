"""model.backend=fms: the blocks of ibm-fms compute what transformers' do, and leave the same files."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from fmstune.config.choices import Backend
from fmstune.config.job import Model
from fmstune.errors import UserError
from fmstune.models import load
from tests import small
from tests.conftest import FSDP_JOB, Result

pytest.importorskip("fms")

from fms.models import get_model
from fms.models.gpt_bigcode import GPTBigCodeBlock
from fms.models.llama import LLaMABlock
from fms.modules.attention import MultiHeadAttention

Command = Callable[..., Result]

TOLERANCE = 1e-6
"""Losses and gradients, absolute, in float32; measured: no difference at all, both of them of the order of 1."""

GROUPED = {**small.LLAMA, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}
ROPE_OF_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SCALED = {**small.LLAMA, "rope_parameters": ROPE_OF_LLAMA3, "tie_word_embeddings": True}
DROPPING = {**small.BIGCODE, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.2}
ARCHITECTURES = {"llama": GROUPED, "llama3": SCALED, "bigcode": small.BIGCODE, "dropout": DROPPING}

SHORT = (
    "training.max_steps=3",
    "training.logging_steps=1",
    "training.save_steps=2",
    "training.save_strategy=steps",
    "data.max_rows=32",
    "evaluation=none",
)


def both(folder: Path) -> Iterator[PreTrainedModel]:
    """The model of the folder with the blocks of transformers, and with those of ibm-fms."""
    for backend in Backend:
        model = Model(path=str(folder), backend=backend)
        yield load.load_model(model, load.load_tokenizer(model), dtype="float32", attention="sdpa")


@pytest.fixture(params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> list[PreTrainedModel]:
    return list(both(small.save(tmp_path / "model", architecture=ARCHITECTURES[request.param])))


def batch(*, rows: int = 3, length: int = 12) -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded at their ends."""
    ids = torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, length - 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def step(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss in training, and the gradient of each weight by its name."""
    model.train()
    torch.manual_seed(7)
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


def same_step(pair: list[PreTrainedModel], inputs: dict[str, torch.Tensor]) -> None:
    (loss, gradients), (fms_loss, fms_gradients) = (step(model, inputs) for model in pair)
    assert list(gradients) == list(fms_gradients)
    assert abs(loss - fms_loss) <= TOLERANCE
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(fms_gradients[name], gradient, rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.sampled(2)
def test_the_blocks_are_those_of_ibm_fms(pair: list[PreTrainedModel]) -> None:
    found = [
        [sum(isinstance(module, kind) for module in model.modules()) for kind in ((LLaMABlock, GPTBigCodeBlock),)]
        for model in pair
    ]
    assert found == [[0], [2]]
    assert sum(isinstance(module, MultiHeadAttention) for module in pair[1].modules()) == 2


@pytest.mark.sampled(2)
def test_loss_and_gradients_of_a_step_are_those_of_transformers(pair: list[PreTrainedModel]) -> None:
    same_step(pair, batch())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("length", [1, 2, 4])
def test_rows_of_as_many_tokens_as_there_are_heads_too(pair: list[PreTrainedModel], length: int) -> None:
    """There ibm-fms itself takes heads for positions."""
    ids = batch(length=16)["input_ids"][:, :length]
    with torch.no_grad():
        expected, found = (model.eval()(ids, use_cache=False).logits for model in pair)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "architecture", [GROUPED, {**small.BIGCODE, "n_inner": 128, "activation_function": "gelu_pytorch_tanh"}]
)
def test_ibm_fms_itself_computes_the_same_from_the_folder(tmp_path: Path, architecture: dict[str, Any]) -> None:
    folder = small.save(tmp_path / "model", architecture=architecture)
    theirs, (_, ours) = get_model("hf_pretrained", str(folder)).eval(), both(folder)
    ids, known = batch()["input_ids"], len(small.byte_level_tokenizer())
    with torch.no_grad():
        # loading gives the pad token a row that the folder has not
        found, expected = (model(ids) for model in (ours.eval(), theirs))
    torch.testing.assert_close(found.logits[..., :known], expected[..., :known], rtol=0, atol=1e-5)


@pytest.mark.sampled(2)
def test_packed_documents_are_kept_apart_as_in_transformers(pair: list[PreTrainedModel]) -> None:
    ids = batch()["input_ids"][:1]
    positions = torch.tensor([[*range(5), *range(7)]])
    same_step(pair, {"input_ids": ids, "position_ids": positions, "labels": ids})


@pytest.mark.sampled(2)
def test_activation_checkpointing_changes_no_gradient(pair: list[PreTrainedModel]) -> None:
    for model in pair:
        model.activation_checkpointing_enable()
    assert sum(getattr(module, "gradient_checkpointing", False) for module in pair[1].modules()) >= 2
    same_step(pair, batch())


@pytest.mark.sampled(2)
def test_generation_with_a_cache_is_that_of_transformers(pair: list[PreTrainedModel]) -> None:
    inputs = {key: value.flip(1) for key, value in batch().items() if key != "labels"}
    expected, found = (model.eval().generate(**inputs, max_new_tokens=8, do_sample=False) for model in pair)
    assert torch.equal(expected, found)


@pytest.mark.sampled(2)
def test_what_is_saved_is_a_plain_transformers_model(pair: list[PreTrainedModel], tmp_path: Path) -> None:
    model = pair[1]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    model.save_pretrained(tmp_path / "saved")
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert type(again).__module__.startswith("transformers.")
    assert not any(found.values())
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_added_tokens_get_rows(tmp_path: Path) -> None:
    rows = len(small.byte_level_tokenizer())
    folder = small.save(tmp_path / "model", architecture={**small.LLAMA, "vocab_size": rows})
    expected, found = both(folder)
    assert found.get_input_embeddings().weight.shape[0] == rows + 1
    assert torch.equal(expected.get_output_embeddings().weight, found.get_output_embeddings().weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 16}, "has no llama with head_dim=16, only 8 (hidden_size / num_attention_heads); set model.back"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "with rope_type='linear'"),
        ({"hidden_act": "quick_gelu"}, "with hidden_act='quick_gelu', only gelu, "),
    ],
)
def test_a_llama_that_ibm_fms_would_compute_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = small.save(tmp_path / "model", architecture={**small.LLAMA, **changes})
    with pytest.raises(UserError) as refused:
        list(both(folder))
    assert message in str(refused.value)


def test_heads_with_keys_of_their_own_are_refused_in_gpt_bigcode(tmp_path: Path) -> None:
    folder = small.save(tmp_path / "model", architecture={**small.BIGCODE, "multi_query": False})
    with pytest.raises(UserError, match="ibm-fms has no gpt_bigcode with multi_query=False, only True"):
        list(both(folder))


def test_missing_weights_are_refused_as_they_are_with_transformers(tmp_path: Path) -> None:
    folder = small.save(tmp_path / "model", architecture={**small.LLAMA, "tie_word_embeddings": False})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"has no weights for model.layers.2.input_layernorm.weight"):
        list(both(folder))


@contextmanager
def without_fms() -> Iterator[None]:
    """As if ibm-fms were not installed: Python finds and imports no module that is None here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fms", None)
        yield


def test_a_missing_package_is_named_with_the_command_that_installs_it(fmstune: Command) -> None:
    with without_fms():
        result = fmstune("check", "model.backend=fms")
    assert result.code == 2
    assert "model.backend=fms needs the package ibm-fms; pip install 'fmstune[fms]'" in result.err


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method"), [("tiny_llama", "lora"), ("tiny_gpt_bigcode", "full")])
def test_training_takes_the_same_course_and_each_backend_loads_what_the_other_saved(
    fmstune: Command, model: str, method: str
) -> None:
    words = (f"model={model}", f"peft={method}", *SHORT)
    for backend in ("transformers", "fms"):
        assert fmstune(*words, f"model.backend={backend}", f"output_dir={backend}").code == 0
    assert losses(Path("fms")) == pytest.approx(losses(Path("transformers")), abs=1e-5)
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    saved, expected = (load_file(f"{backend}/model/{file}") for backend in ("fms", "transformers"))
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-5)
    _go_on_across(fmstune, words, method)


def _go_on_across(fmstune: Command, words: tuple[str, ...], method: str) -> None:
    """Go on with what the other backend saved, and ask it."""
    for backend, other in (("transformers", "fms"), ("fms", "transformers")):
        field = "adapter" if method == "lora" else "path"
        done = fmstune(*words, f"model.backend={backend}", f"model.{field}={other}/model", f"output_dir=on_{backend}")
        assert done.code == 0, done.err
    assert losses(Path("on_fms")) == pytest.approx(losses(Path("on_transformers")), abs=1e-5)
    assert fmstune("generate", "--model", "fms", "--text", "a", "--max_new_tokens", "3").code == 0


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_never_stopped(fmstune: Command) -> None:
    words = ("model.backend=fms", "peft=lora", *SHORT)
    assert fmstune(*words, "output_dir=whole").code == 0
    resumed = fmstune(*words, "training.resume=whole/checkpoint-2", "output_dir=resumed")
    assert resumed.code == 0, resumed.err
    assert json.loads(Path("whole/lock.json").read_text())["packages"]["ibm-fms"] == metadata.version("ibm-fms")
    one, other = (load_file(f"{run}/model/adapter_model.safetensors") for run in ("whole", "resumed"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_an_adapter_on_the_blocks_of_ibm_fms_is_merged(fmstune: Command) -> None:
    assert fmstune("model.backend=fms", "peft=lora", *SHORT, "output_dir=run").code == 0
    merged = fmstune("merge", "--model", "run", "--out", "merged")
    assert merged.code == 0, merged.err
    plain = Model(path="merged")
    tokenizer = load.load_tokenizer(plain)
    ids = batch()["input_ids"]
    expected, found = (
        load.load_model(dataclasses.replace(plain, backend=backend), tokenizer, dtype="float32", attention="sdpa")
        for backend in Backend
    )
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(ids).logits, expected.eval()(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.soak
def test_sharded_training_takes_the_same_course(two_processes: Path, fmstune: Command) -> None:
    sharded = fmstune(*FSDP_JOB, "model.backend=fms", "training.save_strategy=no")
    assert sharded.code == 0, sharded.err
    assert losses(Path("run")) == pytest.approx(losses(two_processes / "run"), abs=1e-5)
    held = sharded.summary["weight_bytes_by_rank"]
    assert len(held) == 2 and max(held) < 0.6 * sum(held)
