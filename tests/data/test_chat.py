"""Only what the assistant says is trained, with what ends its turn, whatever the template looks like."""

from pathlib import Path
from typing import Any

import pytest

from fmstune import files
from fmstune.config.job import Model
from fmstune.data import formats
from fmstune.data.chat import chat_rows
from fmstune.data.chat_template import chat_template
from fmstune.data.messages import check_messages
from fmstune.data.tokens import RowProblem, Rows, encode_rows
from fmstune.errors import UserError
from fmstune.models.load import load_tokenizer
from tests.small import byte_level_tokenizer

SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "More?"},
    {"role": "assistant", "content": "Sure."},
]
CHATML = Path(files.resolve("package:chatml.jinja")).read_text()
MARK = "{% generation %}"
MARKS = (MARK, "{% endgeneration %}")
PLAIN_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
WITHOUT_STOP = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
STOP_BEHIND_THE_BLOCK = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
FORGETS_THOUGHTS = (
    "{% for m in messages %}{{ m.role + ': ' }}"
    "{% if not loop.last and m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
ASKS_FOR_THOUGHTS = PLAIN_CHATML.replace("assistant\\n", "assistant\\n<think>\\n")
ALTERNATES = "{{ raise_exception('roles must alternate') }}"


def tokenizer(template: str | None) -> Any:
    made = byte_level_tokenizer(special=SPECIAL, vocabulary=400)
    made.add_special_tokens({"extra_special_tokens": list(SPECIAL[1:])})
    made.chat_template = template
    return made


def shown(template: str, turns: list[dict[str, Any]] = TURNS, tools: Any = None, **settings: Any) -> str:
    """The conversation with its trained text in brackets; rows are a line apart."""
    found = chat_rows(check_messages(turns, "messages"), tools, chat_template(tokenizer(template), tools), **settings)
    rows = found if isinstance(found, Rows) else [found]
    return "\n\n".join("".join(f"⟦{text}⟧" if trained else text for text, trained in row) for row in rows)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            CHATML,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello<|im_end|>⟧\n"
            "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n⟦Sure.<|im_end|>⟧",
        ),
        (
            PLAIN_CHATML,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello<|im_end|>⟧\n"
            "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n⟦Sure.<|im_end|>⟧",
        ),
        (LLAMA_2, "[INST] Hi [/INST]⟦ Hello <|end|>⟧[INST] More? [/INST]⟦ Sure. <|end|>⟧"),
        (WITHOUT_STOP, "user: Hi\nassistant: ⟦Hello\n⟧user: More?\nassistant: ⟦Sure.\n⟧"),
        (
            STOP_BEHIND_THE_BLOCK,
            "user: Hi<|im_end|>\nassistant: ⟦Hello<|im_end|>⟧\nuser: More?<|im_end|>\nassistant: ⟦Sure.<|im_end|>⟧",
        ),
    ],
    ids=["marked", "not marked", "Llama 2", "without a stop token", "a stop token behind the block"],
)
def test_what_each_kind_of_template_trains(template: str, expected: str) -> None:
    assert shown(template) == expected


def test_templates_that_mark_nothing_get_the_masks_that_transformers_gives_to_marked_ones() -> None:
    made = tokenizer(CHATML)
    reference = made.apply_chat_template(TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    for template in (CHATML, PLAIN_CHATML):
        row = formats.chat({"messages": TURNS}, tokenizer=tokenizer(template))
        text = "".join(segment.text for segment in row)
        # the last line break goes: nobody writes it
        assert made(text)["input_ids"] == reference["input_ids"][:-1]
        trained = "".join(segment.text for segment in row if segment.trained)
        said = [i for i, m in zip(reference["input_ids"], reference["assistant_masks"], strict=True) if m]
        assert made.decode(said) == trained


def test_a_system_turn_and_a_turn_after_the_last_answer_are_only_read() -> None:
    turns = [{"role": "system", "content": "Be kind."}, *TURNS[:3]]
    for template in (CHATML, PLAIN_CHATML):
        assert shown(template, turns) == (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n⟦Hello<|im_end|>⟧\n<|im_start|>user\nMore?<|im_end|>\n"
        )


def test_tools_and_their_results_are_only_read_and_calls_are_trained() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ]
    found = shown(CHATML, turns, [{"type": "function", "function": {"name": "add"}}])
    assert '{"type": "function", "function": {"name": "add"}}\n' in found.split("⟦")[0]
    assert '⟦<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>⟧' in found
    assert found.endswith("<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n⟦Two.<|im_end|>⟧")


@pytest.mark.parametrize(
    ("template", "turns", "problem"),
    [
        (ASKS_FOR_THOUGHTS, TURNS, "the chat template does not begin turn 2 with what it writes to ask for it"),
        (ALTERNATES, TURNS, "the chat template refuses the conversation: roles must alternate"),
        (PLAIN_CHATML, TURNS[1:], "the conversation begins with the assistant; begin with a turn of user or system"),
    ],
    ids=["the question for an answer is not its beginning", "refused", "no question"],
)
def test_a_conversation_whose_mask_cannot_be_right_is_refused(
    template: str, turns: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(RowProblem) as raised:
        shown(template, turns)
    assert str(raised.value).startswith(problem)


THOUGHTFUL = [
    TURNS[0],
    {"role": "assistant", "content": "<think>x</think>Hello"},
    TURNS[2],
    {"role": "assistant", "content": "<think>y</think>Sure."},
]


def test_a_template_that_forgets_earlier_thoughts_gets_a_row_for_each_turn_as_it_is_asked() -> None:
    assert shown(FORGETS_THOUGHTS, THOUGHTFUL) == (
        "user: Hi<|im_end|>assistant: ⟦<think>x</think>Hello<|im_end|>⟧\n\n"
        "user: Hi<|im_end|>assistant: Hello<|im_end|>user: More?<|im_end|>"
        "assistant: ⟦<think>y</think>Sure.<|im_end|>⟧"
    )


def test_turns_that_the_template_leaves_as_they_were_stay_in_one_row() -> None:
    turns = [*THOUGHTFUL[:2], *TURNS[2:], TURNS[2], {"role": "assistant", "content": "Yes."}]
    first, second = shown(FORGETS_THOUGHTS, turns).split("\n\n")
    assert first.endswith("⟦<think>x</think>Hello<|im_end|>⟧")
    assert second.count("⟦") == 2 and "assistant: Hello<|im_end|>" in second


def test_a_conversation_that_may_not_be_split_is_refused() -> None:
    with pytest.raises(RowProblem, match=r"writes turn 2 differently when later .* set data.format.split_turns=true"):
        shown(FORGETS_THOUGHTS, THOUGHTFUL, split_turns=False)


def test_a_turn_after_the_last_answer_that_rewrites_it_is_left_out() -> None:
    assert shown(FORGETS_THOUGHTS, THOUGHTFUL[:3]) == shown(FORGETS_THOUGHTS, THOUGHTFUL[:2])


@pytest.mark.parametrize(
    ("reasoning", "trained"),
    [
        ("train", "⟦<think>x</think>Hello<|im_end|>⟧"),
        ("mask", "<think>x</think>⟦Hello<|im_end|>⟧"),
        ("drop", "⟦Hello<|im_end|>⟧"),
    ],
)
def test_thoughts_are_trained_masked_or_dropped(reasoning: str, trained: str) -> None:
    assert shown(FORGETS_THOUGHTS, THOUGHTFUL[:2], reasoning=reasoning) == f"user: Hi<|im_end|>assistant: {trained}"


NEWLINE_IN_THE_BLOCK = CHATML.replace(
    "{{- '<|im_end|>' }}\n            {%- endgen", "{{- '<|im_end|>\\n' }}\n            {%- endgen"
)
TWO_ENDS = PLAIN_CHATML.replace("<|im_end|>", "<|im_start|>") + "{% if not add_generation_prompt %}<|end|>{% endif %}"


@pytest.mark.parametrize("end", ["<|im_end|>", "<|not_a_token|>"])
@pytest.mark.parametrize("template", [NEWLINE_IN_THE_BLOCK, PLAIN_CHATML], ids=["marked", "not marked"])
def test_the_end_of_a_turn_is_trained_once_and_nothing_follows(template: str, end: str) -> None:
    made = tokenizer(template.replace("<|im_end|>", end))
    row = formats.chat({"messages": TURNS}, tokenizer=made)
    assert [text for text, trained in row if trained] == [f"Hello{end}", f"Sure.{end}"]
    encoded = encode_rows([row], made, 512)[0]
    assert made.decode(encoded.input_ids).endswith(f"Sure.{end}")
    assert made.decode(encoded.answer_ids) == f"Sure.{end}"


def test_of_two_ends_the_one_that_also_ends_earlier_turns_is_trained() -> None:
    found = shown(TWO_ENDS)
    assert [part.split("⟧")[0] for part in found.split("⟦")[1:]] == ["Hello<|im_start|>", "Sure.<|im_start|>"]
    assert found.endswith("Sure.<|im_start|>⟧")


EOT_NEWLINE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ m.content + '</s>\\n' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '</s>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_end_of_sequence_that_the_template_writes_before_a_newline_is_trained_once() -> None:
    made = load_tokenizer(Model(path="package:tiny_llama")).tokenizer
    made.chat_template = EOT_NEWLINE
    encoded = encode_rows([formats.chat({"messages": TURNS[:2]}, tokenizer=made)], made, 512)[0]
    assert made.decode(encoded.input_ids) == "<|im_start|>user\nHi</s>\n<|im_start|>assistant\nHello</s>"
    assert made.decode(encoded.answer_ids) == "Hello</s>"


def test_a_template_that_ends_no_turn_is_closed_with_end_of_sequence() -> None:
    made = tokenizer(WITHOUT_STOP)
    encoded = encode_rows([formats.chat({"messages": TURNS}, tokenizer=made)], made, 512)[0]
    assert encoded.answer_ids[-1] == made.eos_token_id


def test_a_template_that_forgets_is_good_for_rows_of_one_answer() -> None:
    turns = [TURNS[0], {"role": "assistant", "content": "<think>x</think>Hello"}]
    assert shown(FORGETS_THOUGHTS, turns) == "user: Hi<|im_end|>assistant: ⟦<think>x</think>Hello<|im_end|>⟧"


def test_a_tokenizer_without_template_says_how_to_give_one() -> None:
    with pytest.raises(UserError, match=r"has no chat template; set model\.chat_template to a Jinja file"):
        chat_template(tokenizer(None))


def test_without_a_tokenizer_the_words_are_there() -> None:
    found = chat_rows(check_messages(TURNS[:2], "messages"), None, None)
    assert [tuple(segment) for segment in found] == [("Hi", False), ("Hello", True)]


FLAGGED = [
    TURNS[0],
    TURNS[1] | {"weight": 0},
    TURNS[2],
    TURNS[3] | {"content": [{"type": "text", "text": "Su", "train": False}, {"type": "text", "text": "re."}]},
]
TWO_BLOCKS_A_TURN = CHATML.replace(
    "{{- message.content or '' }}", "{{- message.content }}{% endgeneration %}{% generation %}"
)


@pytest.mark.parametrize("template", [CHATML, PLAIN_CHATML], ids=["marked", "not marked"])
def test_a_turn_or_a_part_that_its_flag_leaves_out_is_only_read(template: str) -> None:
    assert shown(template, FLAGGED) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\nSu⟦re.<|im_end|>⟧"
    )


def test_a_flag_is_of_all_blocks_that_the_template_marks_in_its_turn() -> None:
    assert shown(TWO_BLOCKS_A_TURN, FLAGGED[:3]).count("⟦") == 0
    found = shown(TWO_BLOCKS_A_TURN, [*FLAGGED[:3], TURNS[3]])
    assert "assistant\nHello<|im_end|>\n" in found
    assert "assistant\n⟦Sure." in found
