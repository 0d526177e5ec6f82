"""A Modelfile asks a model as it was asked in training."""

import re

import pytest

from fmstune.serving.llama_cpp.modelfile import read_turns, write_modelfile
from tests import ROOT
from tests.small import byte_level_tokenizer

CHATML = (ROOT / "src/fmstune/assets/chatml.jinja").read_text(encoding="utf-8")
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<s>Be kind.<e>' }}{% endif %}"
TURNS = "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] + '<e>' }}{% endfor %}"
BEGIN = "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
ALPACA = {"_target_": "fmstune.data.formats.alpaca"}


def tokenizer_with(template: str | None):  # type: ignore[no-untyped-def]
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def go(template: str, messages: list[tuple[str, str]]) -> str:
    """What Ollama makes of the template, of which it needs three words: range, if and else if."""
    inner, begins = re.fullmatch(r"(?s)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template).groups()  # type: ignore[union-attr]
    cases = dict(re.findall(r'(?s)\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', inner))
    return "".join(cases[role].replace("{{ .Content }}", text) for role, text in messages) + begins


@pytest.mark.parametrize("template", [CHATML, TURNS + BEGIN, DEFAULT_SYSTEM + TURNS + BEGIN])
def test_a_template_of_turns_is_written_for_ollama(template: str) -> None:
    tokenizer = tokenizer_with(template)
    text, note = write_modelfile("m.gguf", tokenizer, None, 256)
    assert note is None
    found = re.search(r'(?s)TEMPLATE """(.*?)"""', text)
    assert found is not None
    asked = [("system", "S"), ("user", "one"), ("assistant", "two"), ("user", "three")]
    messages = [{"role": role, "content": content} for role, content in asked]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert go(found[1], asked) == expected
    assert ('SYSTEM """Be kind."""' in text) == ("Be kind" in template)
    assert "FROM ./m.gguf\n" in text and "PARAMETER num_ctx 256" in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}" + BEGIN,
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS + BEGIN,
    ],
    ids=["numbers its turns", "refuses a system text"],
)
def test_a_template_that_does_more_is_left_to_ollama(template: str) -> None:
    tokenizer = tokenizer_with(template)
    assert read_turns(tokenizer) is None
    text, note = write_modelfile("m.gguf", tokenizer, None, 256)
    assert "TEMPLATE" not in text and note is not None and "takes it from the file" in note


def test_the_words_of_a_data_format_go_around_the_prompt() -> None:
    text, note = write_modelfile("m.gguf", tokenizer_with(None), ALPACA, 256)
    assert note is None
    assert "### Instruction:\n{{ .Prompt }}\n\n### Response:" in text
    assert 'PARAMETER stop "<|end|>"' in text
