"""A vocabulary in a GGUF file splits texts as the tokenizer does, or is refused."""

from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import Regex, pre_tokenizers

from fmstune.errors import UserError
from fmstune.serving.llama_cpp.vocabulary import begins_with_bos, read_vocabulary
from tests import ROOT
from tests.small import byte_level_tokenizer
from tests.tokenizers_for_tests import gpt2_style, llama_style, normalising

TINY = ROOT / "src/fmstune/assets/tiny_llama"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
NO_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def test_pieces_have_scores_in_the_order_in_which_they_are_joined() -> None:
    tokenizer = llama_style()
    found = read_vocabulary(tokenizer, len(tokenizer) + 2)
    assert found.kind == "llama" and begins_with_bos(tokenizer)
    assert [found.types[number] for number in (0, 1, 2, 3)] == [
        TokenType.UNKNOWN,
        *(TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE),
    ]
    scores = [found.scores[found.tokens.index(pair.replace(" ", ""))] for pair in found.merges]
    assert scores == sorted(scores, reverse=True) and scores[0] == 0
    assert found.tokens[-1] == f"[PAD{len(tokenizer) + 1}]" and found.types[-1] is TokenType.UNUSED


CONVERSATION = {"_target_": "fmstune.data.formats.chat"}


@pytest.mark.parametrize(
    ("template", "begins", "spaced"),
    [("<s>[user] a", True, False), ("<u>a", False, False), ("user: a", False, True)],
    ids=["first token", "another special token", "words"],
)
def test_a_file_of_conversations_begins_as_its_template_does(template: str, begins: bool, spaced: bool) -> None:
    tokenizer = llama_style()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<u>"]})
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.chat_template = template
    found = read_vocabulary(tokenizer, len(tokenizer), CONVERSATION)
    assert (found.begins, found.spaced) == (begins, spaced)
    # texts are asked as the tokenizer takes them
    found = read_vocabulary(tokenizer, len(tokenizer))
    assert (found.begins, found.spaced) == (True, True)


@pytest.mark.parametrize(
    ("splitter", "name"),
    [
        (BYTES, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]), "smollm"),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"), NO_SPLIT]), "qwen2"),
    ],
)
def test_the_way_of_splitting_is_named_as_llama_cpp_names_it(splitter: Any, name: str) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = splitter
    found = read_vocabulary(tokenizer, len(tokenizer))
    assert (found.kind, found.split) == ("gpt2", name)
    assert found.types[0] is TokenType.CONTROL and found.merges


@pytest.mark.parametrize(
    ("splitter", "why"),
    [
        (pre_tokenizers.Whitespace(), "its tokens are not bytes of the text"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "its tokens are not bytes of the text"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x+"), "isolated"), NO_SPLIT]),
            "llama.cpp does not split texts in its way",
        ),
    ],
)
def test_a_way_of_splitting_that_llama_cpp_lacks_is_refused(splitter: Any, why: str) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = splitter
    with pytest.raises(UserError, match=f"^--export gguf: the tokenizer cannot be written, as {why}"):
        read_vocabulary(tokenizer, len(tokenizer))


def test_a_tokenizer_that_changes_texts_is_refused() -> None:
    with pytest.raises(UserError, match="it changes texts before it splits them"):
        read_vocabulary(normalising(), len(normalising()))


@pytest.mark.parametrize("make", [llama_style, gpt2_style], ids=["pieces", "bytes"])
def test_llama_cpp_reads_the_tokens_of_a_text_as_the_tokenizer_does(make: Any, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="make llama-cpp builds it")
    from fmstune.config.requests import GgufType
    from fmstune.serving.llama_cpp.gguf_file import write_gguf
    from tests.small import LLAMA, model

    tokenizer = make()
    made = model({**LLAMA, "vocab_size": len(tokenizer)})
    path = tmp_path / "model.gguf"
    write_gguf(made, tokenizer, read_vocabulary(tokenizer, len(tokenizer)), path, GgufType.f16)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in (
        "### Text: the screen of my phone broke again\n\n### Label: complaint",
        "Below is an  instruction,   with spaces \n\n\n and lines",
        "3 4 15 926, 53589! € and über 日本",
        "tabs\tand don't, we'll, I'm",
    ):
        assert theirs.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"]
