"""Tokenizer and model agree on every special token, and what is added disturbs nothing."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer

from fmstune.checks.precision import Precision
from fmstune.config.choices import Attention, Device
from fmstune.config.job import Model
from fmstune.errors import Problem, UserError, collect_problems
from fmstune.models import load
from fmstune.models.architecture import build_empty, model_configuration
from fmstune.models.saved_weights import check_weights
from tests import small

PLAIN = Precision("float32", "float32", None, "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.save(tmp_path / "model")


def job_model(folder: Path, **changes: object) -> Model:
    return dataclasses.replace(Model(path=str(folder)), **changes)


def loaded(model: Model) -> tuple[load.Tokenizer, torch.nn.Module]:
    tokenizer = load.load_tokenizer(model)
    return tokenizer, load.load_model(model, tokenizer, dtype="float32", attention="sdpa")


def test_a_missing_pad_token_is_added_and_is_never_end_of_sequence(folder: Path) -> None:
    tokenizer = load.load_tokenizer(job_model(folder))
    assert tokenizer.tokenizer.pad_token == "<pad>"
    assert tokenizer.tokenizer.pad_token_id != tokenizer.tokenizer.eos_token_id
    assert tokenizer.added == (tokenizer.tokenizer.pad_token_id,)
    assert tokenizer.to_train == ()


def test_a_pad_token_of_the_vocabulary_is_used_before_one_is_added(tmp_path: Path) -> None:
    own = small.byte_level_tokenizer(special=("<|end|>", "<pad>"))
    tokenizer = load.load_tokenizer(job_model(small.save(tmp_path / "m", tokenizer=own)))
    assert (tokenizer.tokenizer.pad_token, tokenizer.added) == ("<pad>", ())


def test_an_unknown_token_that_is_not_end_of_sequence_pads_without_growing_anything(tmp_path: Path) -> None:
    own = small.byte_level_tokenizer(special=("<|end|>", "<unk>"))
    own.unk_token = "<unk>"
    tokenizer = load.load_tokenizer(job_model(small.save(tmp_path / "m", tokenizer=own)))
    assert (tokenizer.tokenizer.pad_token, tokenizer.added) == ("<unk>", ())


def test_the_shipped_tokenizer_has_all_it_needs() -> None:
    tokenizer = load.load_tokenizer(Model(path="package:tiny_llama"))
    assert tokenizer.added == ()
    assert tokenizer.tokenizer.pad_token_id != tokenizer.tokenizer.eos_token_id


def test_special_tokens_of_the_job_are_added_and_trained(folder: Path) -> None:
    special = {"pad_token": "<blank>", "extra_special_tokens": ["<user>", "<bot>"]}
    tokenizer = load.load_tokenizer(job_model(folder, special_tokens=special))
    ids = tokenizer.tokenizer.convert_tokens_to_ids(["<blank>", "<user>", "<bot>"])
    assert tokenizer.tokenizer.pad_token == "<blank>"
    assert sorted(ids) == list(tokenizer.added) == list(tokenizer.to_train)


def test_the_matrix_does_not_grow_where_it_has_spare_rows(folder: Path) -> None:
    tokenizer, model = loaded(job_model(folder))
    assert len(tokenizer.tokenizer) <= small.LLAMA["vocab_size"]
    assert model.get_input_embeddings().weight.shape[0] == small.LLAMA["vocab_size"]


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_get_the_mean_of_the_old_embeddings(tmp_path: Path, tied: bool) -> None:
    rows = len(small.byte_level_tokenizer())
    architecture = {**small.LLAMA, "vocab_size": rows, "tie_word_embeddings": tied}
    folder = small.save(tmp_path / "full", architecture=architecture)
    before = small.model(architecture).get_input_embeddings().weight
    tokenizer, model = loaded(job_model(folder))
    assert tokenizer.added == (rows,)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert table.weight.shape[0] == rows + 1
        old = table.weight[:rows]
        torch.testing.assert_close(table.weight[rows], old.mean(dim=0))
    torch.testing.assert_close(model.get_input_embeddings().weight[:rows], before)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


def test_weights_have_the_dtype_that_was_asked_for(folder: Path) -> None:
    model = job_model(folder)
    loaded_model = load.load_model(model, load.load_tokenizer(model), dtype="bfloat16", attention="eager")
    assert {p.dtype for p in loaded_model.parameters()} == {torch.bfloat16}
    assert loaded_model.config._attn_implementation == "eager"


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(small.model().state_dict(), folder / "pytorch_model.bin")
    model = job_model(folder)
    with pytest.raises(UserError, match=r"model.path: .* holds no model\.safetensors \(found pytorch_model\.bin\)"):
        load.load_model(model, load.load_tokenizer(model), dtype="float32", attention="sdpa")


def test_a_tokenizer_without_end_of_sequence_is_refused_with_the_field_to_set(tmp_path: Path) -> None:
    own = small.byte_level_tokenizer()
    own.eos_token = None
    folder = small.save(tmp_path / "m", tokenizer=own)
    assert AutoTokenizer.from_pretrained(folder).eos_token is None
    with pytest.raises(UserError, match="set model.special_tokens.eos_token"):
        load.load_tokenizer(job_model(folder))


def test_auto_takes_sdpa_where_flash_attention_cannot_run() -> None:
    assert load.find_attention(Attention.auto, "cpu", PLAIN) == "sdpa"


HALF = Precision("float32", "float32", "bfloat16", "")


@pytest.mark.parametrize(
    ("device", "precision", "end_to_end", "found"),
    [
        ("cuda", HALF, True, "varlen"),
        ("cuda", HALF, False, "sdpa"),
        ("cuda", PLAIN, True, "sdpa"),
        ("cpu", HALF, True, "sdpa"),
    ],
)
def test_auto_takes_varlen_for_rows_end_to_end_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: Precision, end_to_end: bool, found: str
) -> None:
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    assert load.find_attention(Attention.auto, device, precision, end_to_end=end_to_end) == found


def test_varlen_needs_sixteen_bits_on_a_gpu_alone() -> None:
    with pytest.raises(UserError, match=r"=varlen on a CUDA device needs a dtype of bfloat16 or float16; set"):
        load.find_attention(Attention.varlen, "cuda", PLAIN)
    assert load.find_attention(Attention.varlen, "cuda", HALF) == "varlen"
    assert load.find_attention(Attention.varlen, "cpu", PLAIN) == "varlen"


def test_varlen_gives_way_only_where_it_was_not_asked_for() -> None:
    drops = build_empty(AutoConfig.for_model(**{**small.BIGCODE, "attn_pdrop": 0.1}))
    assert load.usable_attention(drops, "varlen") == "sdpa"
    with pytest.raises(UserError, match=r"=varlen: GPTBigCodeForCausalLM has attention dropout, which varlen does not"):
        load.usable_attention(drops, "varlen", asked=True)
    assert load.usable_attention(build_empty(AutoConfig.for_model(**small.BIGCODE)), "varlen", asked=True) == "varlen"


def test_flash_attention_says_all_that_it_misses() -> None:
    with pytest.raises(
        UserError, match=r"needs a CUDA device \(this is cpu\) and .* and a dtype of bfloat16 or float16"
    ):
        load.find_attention(Attention.flash_attention_2, "cpu", PLAIN)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_device_that_is_not_there_is_the_users_error() -> None:
    assert load.find_device(Device.auto) == "cpu"
    with pytest.raises(UserError, match=r"launcher.device=cuda is not available here \(found cpu\)"):
        load.find_device(Device.cuda)


def test_a_model_with_missing_weights_is_refused_and_not_filled_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = job_model(folder)
    with pytest.raises(UserError, match="has no weights for model.layers.0.self_attn.q_proj.weight, which would be"):
        load.load_model(model, load.load_tokenizer(model), dtype="float32", attention="sdpa")


def test_a_model_with_weights_of_another_shape_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = job_model(folder)
    with pytest.raises(UserError, match="model.path: .*model.norm.weight"):
        load.load_model(model, load.load_tokenizer(model), dtype="float32", attention="sdpa")


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    folder = small.save(tmp_path / "tied", architecture={**small.LLAMA, "tie_word_embeddings": True})
    loaded(job_model(folder))


def test_a_tokenizer_that_loses_spaces_is_refused(tmp_path: Path) -> None:
    own = small.byte_level_tokenizer()
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = small.save(tmp_path / "m", tokenizer=own)
    with pytest.raises(
        UserError, match=r"model.path: the tokenizer of .* turns 'a word and more' into .* set model.tokenizer"
    ):
        load.load_tokenizer(job_model(folder))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"{}", b"null", b"\x80\x81", b'{"model": {"type": "x"}}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_a_damaged_file_of_a_tokenizer_is_the_users_error_or_does_no_harm(
    folder: Path, name: str, content: bytes
) -> None:
    (folder / name).write_bytes(content)
    problems: list[Problem] = []
    with collect_problems(problems):
        assert load.load_tokenizer(job_model(folder)).tokenizer.eos_token is not None
    assert all(str(folder) in str(problem) for problem in problems)


@pytest.mark.parametrize("content", ["[]", "null", "3"])
def test_a_generation_config_that_is_no_object_is_found_before_the_weights_are_read(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config\.json holds (null|the .*); it must be a JSON object"):
        check_weights(job_model(folder), build_empty(model_configuration(job_model(folder))))
    with pytest.raises(UserError, match=r"model\.path: the model .* cannot be loaded"):
        load.load_model(job_model(folder), load.load_tokenizer(job_model(folder)), dtype="float32", attention="sdpa")


def test_attention_falls_to_eager_only_where_it_was_not_asked_for() -> None:
    config = AutoConfig.for_model(**{**small.LLAMA, "model_type": "gemma2"})
    model = build_empty(config)
    assert load.usable_attention(model, "sdpa") == "eager"
    with pytest.raises(UserError, match=r"model\.attention=sdpa: transformers' Gemma2ForCausalLM cannot use it"):
        load.usable_attention(model, "sdpa", asked=True)
    assert load.usable_attention(build_empty(AutoConfig.for_model(**small.LLAMA)), "sdpa", asked=True) == "sdpa"
