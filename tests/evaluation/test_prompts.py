"""A prompt is what stood before the answer in training, token for token."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from fmstune.config.job import Model
from fmstune.data.format_loading import format_row, load_format
from fmstune.data.read import Row
from fmstune.data.tokens import encode_rows
from fmstune.errors import UserError
from fmstune.evaluation import prompts
from fmstune.models import load
from tests import small

CHATML = Model(path="package:tiny_llama", chat_template="package:chatml.jinja")


@pytest.fixture(scope="module", params=["tiny_llama", "byte level"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "byte level":
        return small.byte_level_tokenizer()
    return load.load_tokenizer(CHATML).tokenizer


def of(name: str, **settings: Any) -> dict[str, Any]:
    return {"_target_": f"fmstune.data.formats.{name}", **settings}


TEXT = of("text", text_field="output", response_template="\\n### Label:")
LABELLED = of("labelled_text", text_field="tweet", label_field="label")
SPACED = of("input_output", input_field="q", output_field="a", separator="\\nA: ")
FORMATS = [
    (TEXT, {"output": "late\n### Label: complaint"}, {"output": "late\n### Label:"}, "late\n### Label:"),
    (LABELLED, {"tweet": "late", "label": "complaint"}, {"tweet": "late"}, "### Text: late\n\n### Label:"),
    (SPACED, {"q": "late?", "a": "yes"}, {"q": "late?"}, "late?\nA:"),
]


@pytest.mark.parametrize(("format", "answered", "asked", "text"), FORMATS)
def test_a_row_is_asked_as_it_was_trained_with_its_answer_or_without(
    format: dict[str, Any],
    answered: dict[str, Any],
    asked: dict[str, Any],
    text: str,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    formatted = format_row(load_format(format, tokenizer), answered)
    trained = encode_rows([formatted], tokenizer, 512)[0]
    for row in (answered, asked):
        (prompt,) = prompts.of_rows([Row("f", 1, row)], format, tokenizer)
        assert prompt.ids == trained.prompt_ids
        assert prompt.text.rstrip() == text


@pytest.mark.parametrize(
    ("format", "ends"),
    [
        (TEXT, "late\n### Label:"),
        (LABELLED, "### Text: late\n\n### Label:"),
        (of("alpaca"), "### Instruction:\nlate\n\n### Response:"),
    ],
)
def test_a_text_takes_the_place_of_the_question(
    format: dict[str, Any], ends: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = prompts.of_rows(prompts.rows_of_texts(["late"], "--text", format), format, tokenizer)
    assert found[0].text.endswith(ends)


def test_a_format_of_the_users_own_says_how_it_asks(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked_stars.py").write_text(
        """
from fmstune.data.formats import Segment, asked_with

@asked_with(lambda text, *, field: {field: text})
def stars(row, *, field, asking=False):
    answer = "a" if asking and "stars" not in row else row["stars"]
    return [Segment(f"Review: {row[field]} Stars:", trained=False), Segment(f" {answer}", trained=True)]
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    format = {"_target_": "asked_stars.stars", "field": "review"}
    (by_text,) = prompts.of_rows(prompts.rows_of_texts(["Good."], "--text", format), format, tokenizer)
    (by_row,) = prompts.of_rows([Row("f", 1, {"review": "Good."})], format, tokenizer)
    formatted = format_row(load_format(format, tokenizer), {"review": "Good.", "stars": "5"})
    assert by_text == by_row
    assert by_row.ids == encode_rows([formatted], tokenizer, 512)[0].prompt_ids
    assert by_row.text == "Review: Good. Stars:"


def test_a_setting_that_the_format_does_not_take_is_named_by_the_flag() -> None:
    with pytest.raises(UserError, match="^--format.fild: alpaca has no such setting"):
        prompts.rows_of_texts(["late"], "--text", of("alpaca", fild="x"))


def test_a_text_that_was_trained_whole_is_gone_on_with(tokenizer: PreTrainedTokenizerBase) -> None:
    format = of("text", text_field="output", response_template=None)
    (prompt,) = prompts.of_rows(prompts.rows_of_texts(["The driver"], "--text", format), format, tokenizer)
    assert prompt == prompts.of_texts(["The driver"], tokenizer)[0]


def test_a_text_alone_is_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt, empty) = prompts.of_texts(["The driver", ""], tokenizer)
    assert prompt == ("The driver", tokenizer("The driver")["input_ids"])
    assert empty.ids == [tokenizer.bos_token_id]


def test_a_conversation_is_asked_up_to_the_answer_and_ends_as_its_template_ends_a_turn() -> None:
    tokenizer = load.load_tokenizer(CHATML).tokenizer
    chat = of("chat", messages_field="messages", tools_field="tools")
    user, said = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
    rows = [Row("f", n, {"messages": turns}) for n, turns in enumerate([[user], [user, said]], start=1)]
    alone, answered = prompts.of_rows(rows, chat, tokenizer)
    trained = encode_rows([format_row(load_format(chat, tokenizer), rows[1].values)], tokenizer, 512)
    assert alone == answered
    assert alone.ids == trained[0].prompt_ids
    assert tokenizer.decode(trained[0].answer_ids) == "ho<|im_end|>"
    # the tokenizer has no token for the template's end of a turn
    assert prompts.turn_ends(chat, tokenizer) == ([], ["<|im_end|>"])
    assert prompts.turn_ends(TEXT, tokenizer) == ([], [])


def test_the_token_that_ends_a_turn_ends_an_answer() -> None:
    tokenizer = load.load_tokenizer(CHATML).tokenizer
    chat = of("chat", messages_field="messages", tools_field="tools")
    tokenizer.add_tokens(["<|im_end|>"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompts.turn_ends(chat, tokenizer) == ([end], ["<|im_end|>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    assert prompts.turn_ends(chat, tokenizer) == ([end], [])


def test_all_rows_of_another_shape_are_reported(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [Row("f.jsonl", n, {"x": "y"}) for n in (1, 2)] + [Row("f.jsonl", 3, {"tweet": "late"})]
    with pytest.raises(UserError, match="^f.jsonl, rows 1, 2: no column 'tweet'"):
        prompts.of_rows(rows, LABELLED, tokenizer)


def test_prompts_in_json_lines_may_have_line_breaks_and_nothing_else_is_one() -> None:
    assert prompts.json_prompts_in('"a\\n b "\n\n""\n') == ["a\n b ", ""]
    for line in ("a", '{"text": "a"}', "1"):
        with pytest.raises(ValueError, match="^line 2 is not a text in JSON$"):
            prompts.json_prompts_in(f'"a"\n{line}\n')


def test_lines_are_prompts_and_empty_ones_are_not() -> None:
    assert prompts.prompts_in("a \r\n\n b\u2028c\n") == ["a", "b\u2028c"]
