"""A saved model's folder tells a server where an answer ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fmstune import files
from fmstune.models.load import Tokenizer
from fmstune.models.save import save
from tests import small

CHATML = Path(files.resolve("package:chatml.jinja")).read_text(encoding="utf-8")


def tokenizer(template: str | None, *tokens: str) -> PreTrainedTokenizerBase:
    made = small.byte_level_tokenizer()
    made.add_tokens(list(tokens))
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("made", "expected"),
    [(tokenizer(None), 0), (tokenizer(CHATML), 0), (tokenizer(CHATML, "<|im_end|>"), [0, 300])],
    ids=["no template", "a template whose end is no token", "a template whose end is a token"],
)
def test_a_saved_model_stops_where_its_template_ends_a_turn(
    tmp_path: Path, made: PreTrainedTokenizerBase, expected: Any
) -> None:
    model = small.model()
    save(model, Tokenizer(made), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == expected
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == expected
    assert model.generation_config.eos_token_id == 0


@pytest.mark.parametrize(("tokens", "expected"), [((), None), (("<|im_end|>",), [0, 300])])
def test_an_adapter_whose_turns_end_otherwise_than_its_base_says_so(
    tmp_path: Path, tokens: tuple[str, ...], expected: Any
) -> None:
    base = small.model()
    base.generation_config.max_length = 77
    save(get_peft_model(base, LoraConfig()), Tokenizer(tokenizer(CHATML, *tokens)), tmp_path / "model")
    file = tmp_path / "model" / "generation_config.json"
    assert file.is_file() == (expected is not None)
    if expected is not None:
        found = GenerationConfig.from_pretrained(tmp_path / "model")
        assert (found.eos_token_id, found.max_length) == (expected, 77)
    assert base.generation_config.eos_token_id == 0
