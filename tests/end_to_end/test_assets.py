# SPDX-License-Identifier: Apache-2.0
"""What the embedded task and the embedded model promise, checked on the files themselves."""

import importlib
import json
import random
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, LlamaTokenizer

from tests import ROOT

ASSETS = ROOT / "src" / "fmstune" / "assets"
COMPLAINTS = ASSETS / "complaints"
TINY_LLAMA = ASSETS / "tiny_llama"

Rows = list[dict[str, str]]


def rows(name: str) -> Rows:
    return [json.loads(line) for line in (COMPLAINTS / name).read_text(encoding="utf-8").splitlines()]


def tool(name: str) -> ModuleType:
    """A script of `tools/`, which is not a package: its folder is on the path while it is imported."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def train() -> Rows:
    return rows("train.jsonl")


@pytest.fixture(scope="module")
def held_out() -> Rows:
    return rows("held_out.jsonl")


@pytest.fixture(scope="module")
def make_complaints() -> ModuleType:
    return tool("make_complaints")


@pytest.fixture(scope="module")
def pretrain_tiny_llama() -> ModuleType:
    return tool("pretrain_tiny_llama")


@pytest.fixture(scope="module")
def tokenizer() -> LlamaTokenizer:
    return AutoTokenizer.from_pretrained(TINY_LLAMA)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(TINY_LLAMA)


def test_the_splits_have_480_and_120_rows(train: Rows, held_out: Rows) -> None:
    assert (len(train), len(held_out)) == (480, 120)


def test_every_row_has_text_label_output_in_this_order(train: Rows, held_out: Rows) -> None:
    assert {tuple(row) for row in train + held_out} == {("text", "label", "output")}


def test_output_is_its_recipe(train: Rows, held_out: Rows) -> None:
    for row in train + held_out:
        assert row["output"] == "### Text: " + row["text"] + "\n\n### Label: " + row["label"]


def test_half_of_each_split_are_complaints(train: Rows, held_out: Rows) -> None:
    assert Counter(row["label"] for row in train) == {"complaint": 240, "no complaint": 240}
    assert Counter(row["label"] for row in held_out) == {"complaint": 60, "no complaint": 60}


def test_a_text_is_one_line_without_the_headers_of_the_task(train: Rows, held_out: Rows) -> None:
    for row in train + held_out:
        assert "\n" not in row["text"] and "###" not in row["text"] and row["text"] == row["text"].strip()


def test_no_text_is_twice_in_the_data_nor_nearly(train: Rows, held_out: Rows) -> None:
    bags = [frozenset(re.findall(r"\w+", row["text"].lower())) for row in train + held_out]
    for i, one in enumerate(bags):
        for other in bags[:i]:
            assert len(one & other) < 0.75 * len(one | other)


def test_no_single_word_tells_the_labels_apart(train: Rows, held_out: Rows) -> None:
    every = train + held_out
    bags = [set(re.findall(r"\w+|[^\w\s]", row["text"].lower())) for row in every]
    complaints = [row["label"] == "complaint" for row in every]
    for word in set().union(*bags):
        right = sum((word in bag) == complaint for bag, complaint in zip(bags, complaints, strict=True))
        assert 0.35 <= right / len(every) <= 0.65, word


def test_half_of_the_held_out_rows_show_combinations_that_training_never_does(make_complaints: ModuleType) -> None:
    train, held_out = make_complaints.splits()
    seen = {make_complaints.triple(message) for message in train}
    assert sum(make_complaints.triple(message) not in seen for message in held_out) >= 60


def test_the_tool_writes_the_files_byte_for_byte(
    make_complaints: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_complaints.py", "--out", str(tmp_path)])
    make_complaints.main()
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (COMPLAINTS / name).read_bytes()


def test_the_model_folder_holds_five_files_below_4_mb() -> None:
    assert sorted(path.name for path in TINY_LLAMA.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(path.stat().st_size for path in TINY_LLAMA.iterdir()) < 4_000_000


def test_the_model_is_a_float32_llama_of_at_most_2m_parameters(model: LlamaForCausalLM) -> None:
    assert type(model) is LlamaForCausalLM
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert model.config.max_position_embeddings >= 512


def test_the_second_architecture_is_starcoders_in_small_with_the_same_tokenizer(tokenizer: LlamaTokenizer) -> None:
    folder = TINY_LLAMA.with_name("tiny_gpt_bigcode")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "GPTBigCodeForCausalLM"
    assert model.config.multi_query and model.config.attn_pdrop == 0.1
    assert model.config.vocab_size == len(tokenizer)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, len(tokenizer) - 1)


def test_model_and_tokenizer_agree_on_the_special_tokens(model: LlamaForCausalLM, tokenizer: LlamaTokenizer) -> None:
    assert model.config.vocab_size == len(tokenizer)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )


def test_pad_is_none_of_the_other_special_tokens(tokenizer: LlamaTokenizer) -> None:
    assert isinstance(tokenizer, LlamaTokenizer)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<unk>", "<s>", "</s>", "<pad>")]
    assert ids[:3] == [0, 1, 2] and ids[3] == tokenizer.pad_token_id == len(tokenizer) - 1


def test_a_text_starts_with_one_bos_and_ends_without_eos(tokenizer: LlamaTokenizer) -> None:
    ids = tokenizer("### Text: Hi\n\n### Label: complaint")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids


def test_the_shape_of_a_row_in_tokens(tokenizer: LlamaTokenizer) -> None:
    assert tokenizer.tokenize("### Text: Hi, my\n\n### Label: no complaint") == [
        "▁", "###", "▁Text", ":", "▁Hi", ",", "▁my", "<0x0A>", "<0x0A>",
        "###", "▁Label", ":", "▁no", "▁complaint",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "### Text: the café was 25 € 🙄!\n\n### Label: no complaint",
        "a  b\n\n c\t日本語 Übergröße 👩‍👩‍👧 \\ <x> {y}",
        "LOUD, naïve 'quotes' \"and\" 3.14 %",
    ],
)
def test_a_text_survives_the_tokenizer(tokenizer: LlamaTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_no_row_needs_an_unknown_token_or_more_than_96(tokenizer: LlamaTokenizer, train: Rows, held_out: Rows) -> None:
    for ids in tokenizer([row["output"] for row in train + held_out])["input_ids"]:
        assert tokenizer.unk_token_id not in ids and len(ids) < 96


def test_characters_map_to_their_tokens(tokenizer: LlamaTokenizer) -> None:
    text = "### Text: ça va\n\n### Label: no complaint"
    encoding = tokenizer(text)
    tokens = encoding.tokens()
    assert tokens[encoding.char_to_token(text.index("no c"))] == "▁no"
    assert tokens[encoding.char_to_token(text.index("complaint"))] == "▁complaint"
    assert tokens[encoding.char_to_token(text.index("\n"))] == "<0x0A>"


def test_the_base_model_answers_with_a_label_and_stops_but_does_not_know_which(
    model: LlamaForCausalLM, tokenizer: LlamaTokenizer, held_out: Rows
) -> None:
    prompts = [row["output"].removesuffix(" " + row["label"]) for row in held_out]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    generated = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert (generated == tokenizer.eos_token_id).any(dim=1).all()
    answers = [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]
    right = sum(answer == row["label"] for answer, row in zip(answers, held_out, strict=True))
    assert right / len(held_out) <= 0.6


@pytest.mark.slow
def test_pretraining_reads_no_held_out_message(pretrain_tiny_llama: ModuleType, held_out: Rows) -> None:
    texts = frozenset(row["text"] for row in held_out)
    documents = pretrain_tiny_llama.documents(random.Random(pretrain_tiny_llama.SEED), texts)
    for document in islice(documents, 20_000):
        assert not any(text in document.text for text in texts)


@pytest.mark.slow
def test_pretraining_labels_do_not_depend_on_the_truth(
    make_complaints: ModuleType, pretrain_tiny_llama: ModuleType
) -> None:
    rng = random.Random(5)
    agreements: dict[str, list[bool]] = {"reading": [], "coin": [], "named": []}
    for _ in range(10_000):
        message = make_complaints.message(rng)
        for kind, agreed in agreements.items():
            parts = getattr(pretrain_tiny_llama, kind)(message, rng).parts
            answers = [part.strip() for part in parts[1::2]]
            agreed += [answer == message.label for answer in answers if answer in ("complaint", "no complaint")]
    for kind, agreed in agreements.items():
        assert len(agreed) > 3000
        assert abs(sum(agreed) / len(agreed) - 0.5) < 0.03, kind


def test_every_rule_with_the_words_of_the_task_is_right_on_half_of_the_issues(
    make_complaints: ModuleType, pretrain_tiny_llama: ModuleType
) -> None:
    rules = [rule for rule in pretrain_tiny_llama.RULES.values() if rule.first == "complaint"]
    assert [len(rule.issues) for rule in rules] == [7, 7, 7, 7]
    assert len(make_complaints.ISSUES) == 14


def test_rules_with_other_words_are_right_on_few_issues_as_often_as_on_many(pretrain_tiny_llama: ModuleType) -> None:
    rules = [rule for rule in pretrain_tiny_llama.RULES.values() if rule.first != "complaint"]
    assert sorted(len(rule.issues) for rule in rules) == [3, 3, 4, 4, 6, 7, 7, 8, 10, 10, 11, 11]


def test_no_two_issues_share_the_word_for_an_ending(make_complaints: ModuleType) -> None:
    endings = [state for issue in make_complaints.ISSUES for state in issue.states.split()]
    assert len(endings) == len(set(endings)) == 42
