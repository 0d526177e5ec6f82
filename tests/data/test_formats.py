"""A row becomes segments of text, some of them trained; whatever does not fit is said in full."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from fmstune.config.job import Model
from fmstune.data import formats
from fmstune.data.read import read_rows
from fmstune.data.tokens import RowProblem, Segment, Templated, TemplateMissing
from fmstune.models.load import load_tokenizer

TEMPLATE = "\n### Label:"


def only_read(text: str) -> Segment:
    return Segment(text, trained=False)


def trained(text: str) -> Segment:
    return Segment(text, trained=True)


@pytest.mark.parametrize(
    ("text", "template", "expected"),
    [
        ("Hi\n### Label: yes", TEMPLATE, [only_read("Hi\n### Label:"), trained(" yes")]),
        ("\n### Label: yes", TEMPLATE, [only_read("\n### Label:"), trained(" yes")]),
        ("Hi\n### Label:", TEMPLATE, [only_read("Hi\n### Label:"), trained("")]),
        ("a\n### Label: b\n### Label: c", TEMPLATE, [only_read("a\n### Label: b\n### Label:"), trained(" c")]),
        ("Hi\n### Label: yes", r"\n### Label:", [only_read("Hi\n### Label:"), trained(" yes")]),
        ("naïve → 日本", " →", [only_read("naïve →"), trained(" 日本")]),
        ("Hi\n### Label: yes", None, [trained("Hi\n### Label: yes")]),
    ],
    ids=["plain", "at the start", "nothing behind", "the last counts", "typed in a shell", "not ASCII", "none"],
)
def test_text_is_trained_behind_the_last_template(text: str, template: str | None, expected: list[Segment]) -> None:
    assert formats.text({"output": text}, text_field="output", response_template=template) == expected


def test_text_without_its_template_is_a_problem_that_shows_the_template() -> None:
    with pytest.raises(TemplateMissing) as raised:
        formats.text({"output": "### Label: yes"}, text_field="output", response_template=r"\n### Label:")
    assert str(raised.value) == r"column 'output' does not contain the response template '\n### Label:'"


@pytest.mark.slow
@given(prompt=st.text(), answer=st.text(), template=st.text(min_size=1))
def test_text_puts_every_character_into_exactly_one_segment(prompt: str, answer: str, template: str) -> None:
    whole = prompt + formats.unescape(template) + answer
    segments = formats.text({"t": whole}, text_field="t", response_template=template)
    assert "".join(segment.text for segment in segments) == whole
    assert segments[0].text.endswith(formats.unescape(template))
    assert len(segments[1].text) <= len(answer)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n### Label:", "\n### Label:"),
        (r"\t\r", "\t\r"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        ("é日本", "é日本"),
        (r"\x41\u00e9\q\"", r"\x41\u00e9\q\""),
        ("\n", "\n"),
        ("\\", "\\"),
    ],
)
def test_unescape_knows_line_break_tab_return_and_backslash_only(typed: str, meant: str) -> None:
    assert formats.unescape(typed) == meant


@pytest.mark.parametrize(
    ("prompt", "repeated"),
    [("a\n### Label:", False), ("\n### Label: b\n### Label:", True), ("\n### Label:\n### Label:", True)],
)
def test_a_template_that_the_prompt_repeats_is_noticed(prompt: str, repeated: bool) -> None:
    assert formats.repeats_template([only_read(prompt), trained(" c")], r"\n### Label:") is repeated


def test_templates_that_overlap_are_several() -> None:
    assert formats.repeats_template([only_read("a\n\n\n"), trained("b")], "\n\n")


def test_alpaca_with_input_has_the_published_prompt() -> None:
    row = {"instruction": "Add {them}.", "input": "1 and 2", "output": "3"}
    assert formats.alpaca(row) == [
        only_read(
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd {them}.\n\n### Input:\n1 and 2\n\n### Response:"
        ),
        trained(" 3"),
    ]


@pytest.mark.parametrize("row", [{}, {"input": ""}, {"input": None}], ids=["missing", "empty", "null"])
def test_alpaca_without_input_has_the_prompt_for_that(row: dict[str, Any]) -> None:
    assert formats.alpaca(row | {"instruction": "Sing.", "output": "La"}) == [
        only_read(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nSing.\n\n### Response:"
        ),
        trained(" La"),
    ]


def test_labelled_text_has_the_shape_of_twitter_complaints() -> None:
    row = {"Tweet text": "@you it broke", "text_label": "complaint", "ID": 7}
    assert formats.labelled_text(row, text_field="Tweet text", label_field="text_label") == [
        only_read("### Text: @you it broke\n\n### Label:"),
        trained(" complaint"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"outptu": "x", "id": 1}, "no column 'output'; did you mean 'outptu'?; its columns are 'outptu', 'id'"),
        ({"output": 3}, "column 'output' must hold a string, found the int 3; write it as text"),
        ({"output": True}, "column 'output' must hold a string, found the bool True; write it as text"),
        ({"output": None}, "column 'output' must hold a string, found null; write it as text"),
    ],
)
def test_a_column_that_holds_no_text_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowProblem) as raised:
        formats.text(row, text_field="output", response_template=None)
    assert str(raised.value) == message


def test_blank_trained_text_is_no_answer() -> None:
    assert formats.has_answer([only_read("a"), trained(" b")])
    assert not formats.has_answer([only_read("a"), trained(" \n")])
    assert not formats.has_answer(Templated([only_read("a")]))


def test_the_formats_that_a_job_may_name_are_these() -> None:
    assert formats.FORMATS == ("text", "alpaca", "labelled_text", "input_output", "template", "chat", "tokenized")
    assert all(callable(getattr(formats, name)) for name in formats.FORMATS)


def test_what_is_trusted_whatever_a_job_says_can_import_nothing() -> None:
    modules = {name for name, value in vars(formats).items() if isinstance(value, ModuleType)}
    assert modules == {"re"}


# Chat rows of several shapes


CHATML = load_tokenizer(Model(path="package:tiny_llama", chat_template="package:chatml.jinja")).tokenizer
CALL = {"city": "Rome", "day": "2025-08-01"}


def called(arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "Weather in Rome?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny."},
        ]
    }


def test_arguments_as_an_object_and_as_json_text_make_the_same_segments() -> None:
    as_object, as_text = (formats.chat(called(a), tokenizer=CHATML) for a in (CALL, json.dumps(CALL)))
    assert as_object == as_text
    assert '{"name": "weather", "arguments": {"city": "Rome", "day": "2025-08-01"}}' in as_object[1].text


@pytest.mark.parametrize(
    ("train", "expected"), [("all", ["Five.", "Four."]), ("last", ["Four."]), ("marked", ["Four."])]
)
def test_which_answers_of_a_conversation_are_trained(train: str, expected: list[str]) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Two and two?"},
            {"role": "assistant", "content": "Five."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Four.", "weight": 1},
        ]
    }
    made = formats.chat(row, tokenizer=CHATML, train=train)  # type: ignore[arg-type]
    assert [segment.text.removesuffix("<|im_end|>") for segment in made if segment.trained] == expected


def test_rows_of_share_gpt_need_no_setting() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    row = {"conversations": turns, "system": "Be brief."}
    made = formats.chat(row, tokenizer=CHATML)
    assert made[0].text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    with pytest.raises(RowProblem, match="no column 'turns'; its columns are 'conversations', 'system'"):
        formats.chat(row, tokenizer=CHATML, messages_field="turns")


def test_variables_of_the_template_are_the_same_for_a_row_and_for_a_question() -> None:
    tokenizer = load_tokenizer(Model(path="package:tiny_llama", chat_template="package:chatml.jinja")).tokenizer
    tokenizer.chat_template = "{{ mood }}: " + tokenizer.chat_template
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    settings: dict[str, Any] = {"tokenizer": tokenizer, "template_kwargs": {"mood": "kind"}}
    asked, made = formats.chat(row, asking=True, **settings), formats.chat(row, **settings)
    assert asked[0] == made[0]
    assert asked[0].text.startswith("kind:<|im_start|>user")


def test_rows_with_unequal_keys_are_the_same_from_json_parquet_and_arrow() -> None:
    rows: list[dict[str, Any]] = [called(CALL), called({"zone": 3})]
    rows[0]["tools"] = [{"name": "weather", "parameters": {"city": {"type": "string"}}}]
    rows[1]["tools"] = [{"name": "weather", "parameters": {"zone": {"default": 3}}}, {"name": "time"}]
    rows[1]["messages"][-1]["weight"] = 0
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), "rows.parquet")
    Dataset.from_list(rows).save_to_disk("arrow")
    Dataset.from_list(rows, on_mixed_types="use_json").save_to_disk("mixed")
    first, *others = (
        [formats.chat(row.values, tokenizer=CHATML) for row in read_rows(place, "data.train")]
        for place in ("rows.jsonl", "rows.parquet", "arrow", "mixed")
    )
    assert "null" not in first[0][0].text
    assert others == [first] * 3
