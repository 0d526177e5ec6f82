"""A token is trained when it ends inside a trained segment; two slow references say the same without the code."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from fmstune.data import tokens
from fmstune.data.tokens import IGNORED, Encoded, Segment, Templated, Texts
from fmstune.errors import UserError
from tests.small import byte_level_tokenizer
from tests.tokenizers_for_tests import ALL, gpt2_style, llama_style, llama_style_with_end, normalising

NO_LIMIT = 10_000
END = "<|endoftext|>"


def encode(tokenizer: Any, *segments: tuple[str, bool], max_length: int = NO_LIMIT) -> Encoded:
    return tokens.encode_rows([[Segment(*segment) for segment in segments]], tokenizer, max_length)[0]


def trained_tokens(tokenizer: Any, *segments: tuple[str, bool], max_length: int = NO_LIMIT) -> list[str]:
    """The row's tokens, the trained ones in brackets."""
    row = encode(tokenizer, *segments, max_length=max_length)
    names = tokenizer.convert_ids_to_tokens(row.input_ids)
    assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))
    return [name if label == IGNORED else f"[{name}]" for name, label in zip(names, row.labels, strict=True)]


LLAMA_TABLE = {
    "an answer with its space": (
        [("### Text: my phone\n\n### Label:", False), (" no complaint", True)],
        "<s> ▁###▁Te xt:▁ my▁ phon e <0x0A> <0x0A> ###▁ [Label:▁] [no▁comp] [laint] [</s>]",
    ),
    "an answer without one": ([("### Label:", False), ("yes", True)], "<s> ▁###▁ Label: [yes] [</s>]"),
    "template at the very start": ([("\n### Label:", False), ("yes", True)], "<s> ▁ <0x0A> ###▁ Label: [yes] [</s>]"),
    "an empty answer": ([("### Label:", False), ("", True)], "<s> ▁###▁ Label: [</s>]"),
    "characters made of bytes": ([("é", False), ("👀", True)], "<s> ▁ é [<0xF0>] [<0x9F>] [<0x91>] [<0x80>] [</s>]"),
    "a token on both sides": ([("thanks :", False), (")", True)], "<s> ▁ tha nks [▁:)] [</s>]"),
    "a token that holds all of the answer": ([("### Label:", False), ("no", True)], "<s> ▁###▁ [Label:no] [</s>]"),
    "spaces at all ends": ([("a ", False), ("  no  ", True)], "<s> ▁a ▁ [▁] [▁] [no] [▁] [▁] [</s>]"),
    "two answers": ([("yes", True), ("no", False), ("yes", True)], "<s> [▁] [yes] no [yes] [</s>]"),
    "end-of-sequence written in the text": ([("a", False), ("no</s>", True)], "<s> ▁a [no] [</s>]"),
    "all of the text": ([("no", True)], "<s> [▁] [no] [</s>]"),
    "no text": ([("", True)], "<s> [</s>]"),
}
GPT2_TABLE = {
    "an answer with its space": (
        [("### Text: my phone\n\n### Label:", False), (" no complaint", True)],
        "### ĠText : Ġmy Ġphon e Ċ Ċ ### ĠLabel : [Ġno] [Ġcomplaint] [<|endoftext|>]",
    ),
    "template at the very start": ([("\n### Label:", False), (" no", True)], "Ċ ### ĠLabel : [Ġno] [<|endoftext|>]"),
    "an empty answer": ([("### Label:", False), ("", True)], "### ĠLabel : [<|endoftext|>]"),
    "characters made of bytes": ([("é", False), ("👀", True)], "Ã© [ð] [Ł] [ĳ] [Ģ] [<|endoftext|>]"),
    "a token on both sides": ([("thanks :", False), (")", True)], "t h a nks [Ġ:)] [<|endoftext|>]"),
    "bytes of two characters in one token": ([("日", False), ("本", True)], "æĹ [¥æ] [ľ] [¬] [<|endoftext|>]"),
    "spaces at all ends": ([("a ", False), ("  no  ", True)], "a Ġ [Ġ] [Ġno] [Ġ] [Ġ] [<|endoftext|>]"),
    "end-of-sequence written in the text": ([("a", False), ("b<|endoftext|>", True)], "a [b] [<|endoftext|>]"),
    "no text": ([("", True)], "[<|endoftext|>]"),
}


@pytest.mark.parametrize("name", LLAMA_TABLE)
def test_what_a_llama_style_tokenizer_trains(name: str) -> None:
    segments, expected = LLAMA_TABLE[name]
    assert " ".join(trained_tokens(llama_style(), *segments)) == expected


@pytest.mark.parametrize("name", GPT2_TABLE)
def test_what_a_byte_level_tokenizer_trains(name: str) -> None:
    segments, expected = GPT2_TABLE[name]
    assert " ".join(trained_tokens(gpt2_style(), *segments)) == expected


def test_ids_and_labels_are_these_numbers() -> None:
    assert encode(gpt2_style(), ("### Label:", False), (" complaint", True)) == Encoded(
        input_ids=[258, 265, 26, 290, 0],
        labels=[-100, -100, -100, 290, 0],
        length=5,
        trained=2,
        answered=True,
        straddling=0,
        answer=3,
    )
    assert encode(llama_style(), ("### Label:", False), ("yes", True)) == Encoded(
        input_ids=[1, 300, 311, 324, 2],
        labels=[-100, -100, -100, 324, 2],
        length=5,
        trained=2,
        answered=True,
        straddling=0,
        answer=3,
    )


def test_end_of_sequence_is_not_added_where_the_tokenizer_adds_it() -> None:
    row = encode(llama_style_with_end(), ("### Label:", False), ("yes", True))
    assert row.input_ids == [1, 300, 311, 324, 2]
    assert row.labels == [-100, -100, -100, 324, 2]


def test_what_a_tokenizer_puts_behind_the_text_is_not_trained() -> None:
    shown = trained_tokens(normalising(), ("### Label:", False), (" no", True))
    assert shown == ["[CLS]", "label", ":", "[no]", "[SEP]", "[[END]]"]


@pytest.mark.parametrize("tokenizer", ALL)
@pytest.mark.parametrize(
    ("max_length", "kept"), [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5)], ids=lambda number: str(number)
)
def test_end_of_sequence_survives_cutting(tokenizer: Callable[[], Any], max_length: int, kept: int) -> None:
    segments = [("### Label:", False), (" complaint " * 9, True)]
    whole, cut = encode(tokenizer(), *segments), encode(tokenizer(), *segments, max_length=max_length)
    end = tokenizer().eos_token_id
    assert cut.input_ids == [*whole.input_ids[:kept], end]
    assert cut.labels == [*whole.labels[:kept], end]
    assert cut.length == whole.length == len(whole.input_ids)


def test_a_row_of_exactly_max_length_is_not_cut() -> None:
    row = encode(gpt2_style(), ("### Label:", False), (" complaint", True))
    assert row.length == 5
    assert encode(gpt2_style(), ("### Label:", False), (" complaint", True), max_length=5) == row


def test_an_answer_that_is_cut_away_leaves_one_trained_token() -> None:
    row = encode(gpt2_style(), ("### Label:", False), (" complaint", True), max_length=4)
    assert (row.input_ids, row.labels) == ([258, 265, 26, 0], [-100, -100, -100, 0])
    assert row.trained == 1


@pytest.mark.parametrize(
    ("segments", "straddling"),
    [
        ([("thanks :", False), (")", True)], 1),
        ([("thanks :", True), (")", False)], 1),
        ([("thanks ", False), (":)", True)], 1),
        ([("thanks", False), (" :)", True)], 0),
        ([("thanks :", True), (")", True)], 0),
        ([(" ", False), (":", True), (")", False)], 2),
    ],
    ids=["start", "end", "space", "none", "no boundary", "both ends of a short answer"],
)
def test_tokens_on_both_sides_of_a_boundary_are_counted(segments: list[tuple[str, bool]], straddling: int) -> None:
    assert encode(gpt2_style(), *segments).straddling == straddling


def test_a_straddling_token_that_was_cut_off_is_not_counted() -> None:
    for answer_first in (False, True):
        segments = [("thanks :", answer_first), (")", not answer_first)]
        assert encode(gpt2_style(), *segments, max_length=5).straddling == 0


PARTS = {
    "plain": (gpt2_style, [("### Label:", False), (" complaint", True)], "### ĠLabel :", f"Ġcomplaint {END}"),
    "a token on both sides": (gpt2_style, [("thanks :", False), (")", True)], "t h a nks", f"Ġ:) {END}"),
    "all is trained": (gpt2_style, [(" no", True)], "", f"Ġno {END}"),
    "several answers": (
        gpt2_style,
        [("a", False), (" no", True), (":", False), (" no", True)],
        "a Ġno :",
        f"Ġno {END}",
    ),
    "special tokens around": (
        llama_style_with_end,
        [("### Label:", False), ("yes", True)],
        "<s> ▁###▁ Label:",
        "yes </s>",
    ),
    "one behind the text": (normalising, [("### Label:", False), (" no", True)], "[CLS] label :", "no [END]"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_row_is_divided_where_its_last_answer_begins(name: str) -> None:
    tokenizer, segments, prompt, answer = PARTS[name]
    row = encode(tokenizer(), *segments)
    named = [" ".join(tokenizer().convert_ids_to_tokens(ids)) for ids in (row.prompt_ids, row.answer_ids)]
    assert named == [prompt, answer]


def test_a_row_is_divided_as_it_was_cut() -> None:
    row = encode(gpt2_style(), ("### Label:", False), (" no no no", True), max_length=5)
    assert (row.prompt_ids, row.answer_ids) == ([258, 265, 26], row.input_ids[3:])
    cut = encode(gpt2_style(), ("### Label:", False), (" no", True), max_length=3)
    assert (cut.answered, cut.answer_ids) == (False, [0])


def test_a_text_above_the_tokenizers_own_limit_is_not_cut_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_style(), "model_max_length", 4)
    assert encode(gpt2_style(), ("x" * 50, True)).length == 51


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UserError) as raised:
        tokens.check_tokenizer(ByT5Tokenizer())
    assert str(raised.value) == (
        "model.tokenizer: ByT5Tokenizer does not tell which text a token spans; use a fast one"
    )


def test_a_tokenizer_without_end_of_sequence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpt2_style()._special_tokens_map, "eos_token", None)
    with pytest.raises(UserError) as raised:
        tokens.check_tokenizer(gpt2_style())
    assert str(raised.value) == ("model.tokenizer has no end-of-sequence token; set model.special_tokens.eos_token")


def test_several_texts_of_a_row_are_tokenised_as_each_would_be_alone() -> None:
    tokenizer = llama_style()
    chosen, rejected = ([Segment("a b", trained=False), Segment(answer, trained=True)] for answer in (" c d e", " f"))
    one, other = tokens.encode_rows([chosen, rejected], tokenizer, NO_LIMIT)
    (both,) = tokens.encode_rows([Texts(chosen_ids=chosen, rejected_ids=rejected)], tokenizer, NO_LIMIT)
    assert both.texts == {"chosen_ids": one.input_ids, "rejected_ids": other.input_ids}
    assert (both.input_ids, both.labels) == (one.input_ids + other.input_ids, one.labels + other.labels)
    assert (both.length, both.trained) == (max(one.length, other.length), one.trained + other.trained)
    (cut,) = tokens.encode_rows([Texts(chosen_ids=chosen, rejected_ids=rejected)], tokenizer, 3)
    assert cut.length == both.length and {len(ids) for ids in cut.texts.values()} == {3}


def test_no_rows_are_no_tokens() -> None:
    assert tokens.encode_rows([], gpt2_style(), NO_LIMIT) == []


# Properties, on texts made of what has been trouble: templates, spaces, line breaks, bytes, what normalisers fold.
PIECES = [
    "### Label:",
    "\n",
    "  ",
    " ",
    "yes",
    " complaint",
    ":)",
    ":",
    ")",
    "é",
    "日本",
    "👀",
    "e\u0301",
    "\t",
    "ﬁ",
    "#",
]
characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
texts = st.lists(st.sampled_from(PIECES) | st.text(characters, max_size=3), max_size=5).map("".join)
rows = st.lists(st.builds(Segment, text=texts, trained=st.booleans()), max_size=5)
many = settings(max_examples=100, deadline=None)


def ends_in_training(end: int, segments: list[Segment]) -> bool:
    """Whether a token that ends behind so many characters of the text ends inside a trained segment."""
    position = 0
    for segment in segments:
        if position < end <= position + len(segment.text):
            return segment.trained
        position += len(segment.text)
    return False


def labels_by_offsets(segments: list[Segment], tokenizer: Any) -> list[int]:
    """From the offsets that the tokenizer hands out, one token after the other."""
    made = tokenizer(text_of(segments), return_offsets_mapping=True, return_special_tokens_mask=True)
    tokens_made = zip(made["input_ids"], made["offset_mapping"], made["special_tokens_mask"], strict=True)
    return [
        token if not special and ends_in_training(end, segments) else IGNORED
        for token, (_, end), special in tokens_made
    ]


def labels_by_bytes(
    segments: list[Segment], tokenizer: Any, byte_ends: Callable[[list[str], str], list[int]]
) -> list[int]:
    """Without offsets: a token ends in the character that holds the last of the bytes so far."""
    text = text_of(segments)
    ids = tokenizer(text)["input_ids"]
    ends = byte_ends(tokenizer.convert_ids_to_tokens(ids), text)
    begun = [sum(byte & 0xC0 != 0x80 for byte in text.encode()[:end]) for end in ends]
    return [token if ends_in_training(end, segments) else IGNORED for token, end in zip(ids, begun, strict=True)]


def byte_level_ends(names: list[str], text: str) -> list[int]:
    """Every character of a name stands for a byte."""
    return list(accumulate(len(name) for name in names))


def llama_ends(names: list[str], text: str) -> list[int]:
    """A byte token is one byte, and others are the text they spell, but for the ▁ that is put before the text."""
    counts = [1 if name.startswith("<0x") else len(name.replace("▁", " ").encode()) for name in names[1:]]
    put_before = bool(text) and not text.startswith(" ")
    ends = [end - put_before for end in accumulate(counts)]
    # <s> ends before the text, and the ▁ before it belongs to its first character
    return [0, *(max(1, end) for end in ends)]


def text_of(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def with_end(labels: list[int], ids: list[int], end: int) -> list[int]:
    return [*(labels[:-1] if ids[-1:] == [end] else labels), end]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("tokenizer", ALL)
@many
@given(segments=rows)
def test_labels_are_those_of_the_offsets(tokenizer: Callable[[], Any], segments: list[Segment]) -> None:
    ids = tokenizer()(text_of(segments))["input_ids"]
    expected = with_end(labels_by_offsets(segments, tokenizer()), ids, tokenizer().eos_token_id)
    assert tokens.encode_rows([segments], tokenizer(), NO_LIMIT)[0].labels == expected


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("tokenizer", "byte_ends"), [(llama_style, llama_ends), (gpt2_style, byte_level_ends)], ids=["llama", "gpt2"]
)
@many
@given(segments=rows)
def test_labels_are_those_of_the_bytes(
    tokenizer: Callable[[], Any], byte_ends: Callable[[list[str], str], list[int]], segments: list[Segment]
) -> None:
    expected = [*labels_by_bytes(segments, tokenizer(), byte_ends), tokenizer().eos_token_id]
    assert tokens.encode_rows([segments], tokenizer(), NO_LIMIT)[0].labels == expected


@pytest.mark.sampled(4)
@pytest.mark.parametrize("tokenizer", ALL)
@many
@given(segments=rows, max_length=st.integers(2, 12))
def test_a_cut_row_is_a_beginning_of_the_whole_one_and_its_counts_are_right(
    tokenizer: Callable[[], Any], segments: list[Segment], max_length: int
) -> None:
    whole = tokens.encode_rows([segments], tokenizer(), NO_LIMIT)[0]
    cut = tokens.encode_rows([segments], tokenizer(), max_length)[0]
    assert len(cut.input_ids) == len(cut.labels) == min(max_length, whole.length)
    assert cut.input_ids[:-1] == whole.input_ids[: len(cut.input_ids) - 1]
    assert cut.labels[:-1] == whole.labels[: len(cut.labels) - 1]
    assert cut.trained == sum(label != IGNORED for label in cut.labels)
    assert cut.straddling <= whole.straddling
    assert cut.prompt_ids == cut.input_ids[: len(cut.prompt_ids)]
    assert cut.answered == (cut.trained > 1)
    assert len(cut.answer_ids) <= cut.trained


@pytest.mark.sampled(4)
@pytest.mark.parametrize("tokenizer", ALL)
@many
@given(segments=rows)
def test_straddling_tokens_are_those_with_a_boundary_inside(
    tokenizer: Callable[[], Any], segments: list[Segment]
) -> None:
    boundaries = {place for span in tokens.trained_spans(segments) for place in span}
    offsets = tokenizer()(text_of(segments), return_offsets_mapping=True)["offset_mapping"]
    expected = sum(sum(start < place < end for start, end in offsets) > 0 for place in boundaries)
    assert tokens.encode_rows([segments], tokenizer(), NO_LIMIT)[0].straddling == expected


@many
@given(batch=st.lists(rows, max_size=4))
def test_a_row_does_not_depend_on_the_rows_beside_it(batch: list[list[Segment]]) -> None:
    alone = [tokens.encode_rows([segments], gpt2_style(), NO_LIMIT)[0] for segments in batch]
    assert tokens.encode_rows(batch, gpt2_style(), NO_LIMIT) == alone


@pytest.mark.parametrize(
    ("question", "answer"), [("### Label:\n", "\nyes"), ("### Label: ", "yes"), ("### Label:", " yes"), ("", "yes")]
)
def test_the_question_of_a_conversation_is_tokenised_as_it_is_asked(question: str, answer: str) -> None:
    tokenizer = byte_level_tokenizer(vocabulary=330)
    tokenizer.add_tokens(["\n\n"])
    more = "### Text: thank you so much"
    row = Templated(
        [Segment(question, False), Segment(answer, True), Segment(more + question, False), Segment(answer, True)]
    )
    row.ended = True
    (encoded,) = tokens.encode_rows([row], tokenizer, NO_LIMIT)
    asked = tokenizer(question)["input_ids"]
    assert encoded.input_ids[: len(asked)] == asked
    assert encoded.labels[: len(asked)] == [IGNORED] * len(asked)
    assert tokenizer.decode(encoded.input_ids) == (question + answer + more + question + answer)
    trained = [label for label in encoded.labels if label != IGNORED]
    assert tokenizer.decode(trained) == answer * 2 and encoded.straddling == 0
    assert tokenizer.decode(encoded.answer_ids) == answer


def test_a_tokenizer_that_writes_a_space_before_a_piece_is_given_no_pieces() -> None:
    row = Templated([Segment("thanks, the ", False), Segment("café", True)])
    (encoded,) = tokens.encode_rows([row], llama_style(), NO_LIMIT)
    assert encoded.straddling == 1
    assert llama_style().decode(encoded.input_ids) == "thanks, the café</s>"
