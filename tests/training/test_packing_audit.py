"""The audit of a first batch: quiet where documents are kept apart, and loud where they are not."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from fmstune.errors import UserError
from fmstune.models import varlen
from fmstune.training import collate, packing_audit
from fmstune.training.collate import Collator, SharingCollator
from fmstune.training.packing_audit import COUNT, TOKENS, Audit, SharingAudit
from fmstune.training.transformers_internals import reads_document_ends
from tests import small
from tests.conftest import Result
from tests.training.test_collate import PAD, rows

STANDARD = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GPT = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
WINDOWED = {**STANDARD, "head_dim": 8, "sliding_window": 16}
KEPT_APART = {
    "llama": STANDARD,
    "mistral": {**STANDARD, "sliding_window": 16},
    "mixtral": {**STANDARD, "num_local_experts": 2, "num_experts_per_tok": 1},
    "granite": STANDARD,
    "gemma3_text": {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo2": STANDARD,
    "phi3": STANDARD,
    "qwen3": {**STANDARD, "head_dim": 8},
    "starcoder2": STANDARD,
    "gpt_bigcode": GPT,
    "gpt_neox": STANDARD,
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
}
MIXED = {
    "opt": {**STANDARD, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 320, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "falcon": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt_oss": {**WINDOWED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "mamba": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}


def model(model_type: str, values: dict[str, Any], *, attention: str | None = None) -> Any:
    """With weights of four times the usual size, so that a token that is seen makes a difference."""
    made = small.model({"model_type": model_type, **values}, attention=attention)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return made


def documents(lengths: Sequence[int] = (20, 11, 33, 7)) -> list[torch.Tensor]:
    return [torch.tensor(row["input_ids"]) for row in rows(lengths)]


def audited(model: Any, *, packs: bool = True, **settings: Any) -> Audit:
    return packing_audit.audit_packing(model, documents(), Collator(PAD, **settings), packs=packs, tolerance=1e-3)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("flat", [False, True], ids=["rows", "flat"])
@pytest.mark.parametrize("name", KEPT_APART)
def test_architectures_that_tell_documents_apart_by_their_positions_pass(name: str, flat: bool) -> None:
    found = audited(model(name, KEPT_APART[name]), flat=flat)
    assert found.apart
    assert found.conclusive
    assert found.difference < 1e-5
    assert list(found.apart_problems()) == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("packs", [False, True], ids=["padding_free", "packed"])
@pytest.mark.parametrize("name", sorted(KEPT_APART.keys() - {"gptj"}))  # which has attention by code of its own
def test_architectures_pass_by_where_their_segments_begin(name: str, packs: bool) -> None:
    made = model(name, KEPT_APART[name], attention="varlen")
    assert reads_document_ends(made)
    found = audited(made, packs=packs, flat=True, segments=True, padding_free=not packs)
    assert found.conclusive
    assert found.difference < 1e-5


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", MIXED)
def test_architectures_that_do_not_are_found_out(name: str) -> None:
    made = model(name, MIXED[name])
    found = audited(made, flat=reads_document_ends(made))
    assert not found.apart
    (problem,) = map(str, found.apart_problems())
    assert problem.startswith("training.packing: packed documents see each other in this model: their log-prob")
    assert problem.endswith(
        "set training.packing, training.eval_packing and training.padding_free to false "
        "(training.train_sampling_strategy=group_by_length keeps padding low)"
    )


@pytest.mark.parametrize("method", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_a_learnt_prompt_is_found_out(method: Any) -> None:
    """What `fmstune.checks.job` refuses from the job alone: PEFT drops the positions."""
    made = get_peft_model(model("llama", STANDARD), method(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert not audited(made).apart


@pytest.mark.parametrize("name", ["llama", "gpt_bigcode"])
def test_rows_that_are_laid_end_to_end_without_being_packed_are_audited_too(name: str) -> None:
    found = audited(model(name, KEPT_APART[name]), packs=False, padding_free=True)
    assert found.apart
    assert found.conclusive


def test_a_layer_with_a_state_that_cannot_keep_documents_apart_is_refused() -> None:
    """transformers asks for a kernel; without it the message is ours."""
    layers = {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 32}
    made = model("granitemoehybrid", {**STANDARD, **layers, **experts})
    assert reads_document_ends(made)
    with pytest.raises(UserError, match="training.packing: the model refuses packed rows"):
        audited(made, flat=True)


def test_a_difference_too_small_to_tell_is_said() -> None:
    found = Audit(documents=4, difference=0.01, mixed_difference=0.02, tolerance=0.05)
    assert found.apart
    assert not found.conclusive
    assert found.line() == (
        "packing: 4 documents packed and alone differ by 1.0e-02 nats a token "
        "(limit 0.05; 2.0e-02 if they saw each other, which is too little to tell)"
    )


def test_the_model_is_left_in_the_mode_that_it_was_in_and_random_numbers_are_not_drawn() -> None:
    made = model("gpt2", GPT).train()  # GPT-2 has dropout
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert audited(made).difference < 1e-5
    assert made.training
    assert all(parameter.grad is None for parameter in made.parameters())
    assert torch.equal(torch.rand(2), expected)


def test_the_documents_of_a_batch_are_as_many_in_every_process_and_cut() -> None:
    lengths = [2 * TOKENS, 3, 1]
    row = rows([sum(lengths)])[0]
    packed = Collator(PAD)([{**row, "seq_lengths": lengths}])
    found = packing_audit.documents(packed)
    assert len(found) == COUNT
    assert [len(ids) for ids in found] == [TOKENS, 3, TOKENS, 3]
    assert torch.equal(found[1], torch.tensor(row["input_ids"][2 * TOKENS : -1]))
    padded = Collator(PAD)(rows([5, 2]))
    assert [ids.tolist() for ids in packing_audit.documents(padded)[:2]] == [row["input_ids"] for row in rows([5, 2])]


def test_a_batch_without_a_document_of_two_tokens_cannot_be_audited() -> None:
    with pytest.raises(UserError, match="no document of two tokens; set training.packing=false"):
        packing_audit.documents(Collator(PAD)([{"input_ids": [5], "labels": [5]}]))


def shared(name: str, architecture: dict[str, Any]) -> SharingAudit:
    made = model(name, architecture)
    made.set_attn_implementation(varlen.VARLEN)
    return packing_audit.audit_sharing(made, documents(), tolerance=1e-3)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_bigcode", "qwen3", "olmo2"])
def test_rows_that_share_their_beginnings_are_those_alone(name: str) -> None:
    found = shared(name, KEPT_APART[name])
    assert found.difference < 1e-5
    assert found.conclusive
    assert found.line().startswith("prefix sharing: 4 rows that share and alone differ by ")


@pytest.mark.parametrize("name", ["mpt", "falcon", "mamba"])
def test_an_architecture_that_makes_other_rows_of_them_is_found_out(name: str) -> None:
    (problem,) = map(str, shared(name, MIXED[name]).apart_problems())
    assert problem.startswith("data.prefix_sharing: rows that share their beginnings are others in this model: their ")
    assert problem.endswith("; set it to false")


def test_an_attention_that_refuses_segments_is_said() -> None:
    with pytest.raises(
        UserError, match=r"data.prefix_sharing: the model refuses rows .* \(varlen does not compute att"
    ):
        shared("gpt_oss", MIXED["gpt_oss"])


def test_the_rows_of_a_line_are_the_documents_that_are_compared() -> None:
    given = [{"input_ids": ids, "labels": ids} for ids in ([5, 6, 7], [5, 6, 8, 9])]
    found = packing_audit.documents(SharingCollator(least_saved=1)(given))
    assert [ids.tolist() for ids in found] == [[5, 6, 7], [5, 6, 8, 9], [5, 6, 7], [5, 6, 8, 9]]


ONE_STEP = (
    "evaluation=none",
    "training.max_steps=1",
    "training.save_strategy=no",
    "training.per_device_train_batch_size=4",
    "data.max_rows=32",
    "data.max_length=128",
    "launcher.threads=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("packing=true",), ("padding_free=true",), ("packing=true", "bf16=true")])
@pytest.mark.parametrize("peft", ["full", "lora"])
def test_a_run_is_audited_before_its_first_step(fmstune: Callable[..., Result], words: Any, peft: str) -> None:
    run = fmstune(f"peft={peft}", *(f"training.{word}" for word in words), *ONE_STEP)
    assert run.code == 0, run.err
    lines = run.err.splitlines()
    (line,) = (line for line in lines if line.startswith("packing: 4 documents packed and alone differ by "))
    assert lines.index(line) < next(number for number, text in enumerate(lines) if text.startswith("step 1/"))
    found = run.summary["packing"]
    assert found["documents"] == 4
    assert found["difference"] <= found["tolerance"] == (0.05 if "bf16=true" in words else 1e-3)
    assert found["mixed_difference"] > 1


@pytest.mark.slow
def test_a_run_that_would_mix_documents_up_stops_before_its_first_step(
    fmstune: Callable[..., Result], tmp_path: Path
) -> None:
    made = model("opt", MIXED["opt"])
    made.save_pretrained(tmp_path / "opt")
    small.byte_level_tokenizer().save_pretrained(tmp_path / "opt")
    words = ("model=causal_lm", "model.path=opt", "training.packing=true", "evaluation=none", "launcher.threads=1")
    run = fmstune(*words, "data.max_length=200")
    assert run.code == 2
    assert "fmstune: error: training.packing: packed documents see each other in this model" in run.err
    assert run.summary["status"] == "failed"
    assert run.summary["error"]["kind"] == "user"
    assert "train_loss" not in run.summary
    assert not (run.folder / "model").exists()


@pytest.mark.slow
def test_where_nothing_is_packed_nothing_is_audited(fmstune: Callable[..., Result]) -> None:
    run = fmstune(*ONE_STEP)
    assert run.summary["packing"] is None
    assert 0 < run.summary["padding_share"] < 0.5


@pytest.mark.slow
def test_packing_loses_no_row_of_what_was_prepared(fmstune: Callable[..., Result]) -> None:
    words = ("training.packing=true", "training.num_train_epochs=1", "training.save_strategy=no", "evaluation=none")
    run = fmstune(*words, "launcher.threads=1", "data.max_rows=64")
    ledger = run.summary["data"]["train"]
    assert run.summary["tokens_trained_on"] == ledger["tokens_total"]
    assert run.summary["positions"] == run.summary["tokens_trained_on"] + run.summary["tokens_padded"]
    assert run.summary["padding_share"] == pytest.approx(
        run.summary["tokens_padded"] / run.summary["positions"], abs=1e-6
    )


def test_an_audit_of_a_packed_dataset_is_one_of_its_first_batch() -> None:
    """Whatever the batch holds, the rows that are compared are packed as the run packs them."""
    packed = collate.pack(Dataset.from_list(rows([9, 14, 5, 20, 3, 8])), 24)
    batch = Collator(PAD)(list(packed))
    made = model("llama", STANDARD)
    found = packing_audit.audit_packing(made, packing_audit.documents(batch), Collator(PAD), packs=True, tolerance=1e-3)
    assert found.apart
    assert found.documents == COUNT
