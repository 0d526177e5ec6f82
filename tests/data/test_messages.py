"""Rows in the shapes of OpenAI, ShareGPT and axolotl become turns that know what of them is trained."""

import json
from datetime import date
from typing import Any

import pytest

from fmstune.data.messages import Columns, Conversation, Turn, check_messages, check_tools, read_conversation, stretches
from fmstune.data.tokens import RowProblem, Segment

ADD = {"name": "add", "parameters": {"type": "object"}}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
FOUR = [*TURNS, {"role": "user", "content": "More?"}, {"role": "assistant", "content": "Sure."}]


def messages(value: Any) -> list[dict[str, Any]]:
    return [turn.message for turn in check_messages(value, "messages")]


def parts(*given: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text, **flags} for text, flags in given]}


def test_turns_in_the_share_gpt_shape_and_nulls_of_parquet_are_understood() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "weight": None}]
    assert messages(turns) == TURNS
    assert messages([TURNS[0] | {"tool_calls": None}]) == TURNS[:1]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "column 'messages' must hold a list of turns, found null"),
        ([], "column 'messages' must hold a list of turns, found the list []"),
        (["Hi"], "column 'messages': turn 1 must be an object, found the str 'Hi'"),
        ([TURNS[0], {"content": "x"}], "column 'messages': turn 2 has no role; turns have role and content"),
        ([{"role": "user"}], "column 'messages': turn 1 has no content (text), found null"),
        ([{"role": "user", "content": 3}], "column 'messages': turn 1 has no content (text), found the int 3"),
        ([{"from": ["gpt"], "value": "x"}], "column 'messages': turn 1 is from ['gpt']; the names are human, gpt"),
        ([{"from": "me", "value": "x"}], "column 'messages': turn 1 is from 'me'; the names are human, gpt"),
    ],
)
def test_turns_that_are_none_are_problems(value: Any, problem: str) -> None:
    with pytest.raises(RowProblem) as raised:
        check_messages(value, "messages")
    assert str(raised.value).startswith(problem)


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, None), ("", None), ([], None), (json.dumps([ADD]), [{"type": "function", "function": ADD}])],
)
def test_tools_may_be_missing_or_text(value: Any, found: Any) -> None:
    assert check_tools(value, "tools") == found


@pytest.mark.parametrize("value", ["[{", {"name": "add"}, ["add"]])
def test_tools_that_are_none_are_problems(value: Any) -> None:
    with pytest.raises(RowProblem, match="column 'tools'"):
        check_tools(value, "tools")


@pytest.mark.parametrize(
    ("train", "flags", "trained"),
    [
        ("all", [{}, {}], [True, True]),
        ("all", [{"weight": 0}, {"weight": 1}], [False, True]),
        ("all", [{"train": False}, {}], [False, True]),
        ("all", [{"weight": 0.0, "train": None}, {"train": True, "weight": 1.0}], [False, True]),
        ("last", [{}, {}], [False, True]),
        ("last", [{"weight": 1}, {"weight": 0}], [False, False]),
        ("marked", [{}, {}], [False, False]),
        ("marked", [{"train": True}, {"weight": 0}], [True, False]),
    ],
)
def test_which_turns_are_trained(train: str, flags: list[dict[str, Any]], trained: list[bool]) -> None:
    turns = check_messages([FOUR[0], FOUR[1] | flags[0], FOUR[2], FOUR[3] | flags[1]], "messages", train)
    assert [turn.trained for turn in turns] == [False, trained[0], False, trained[1]]
    assert [turn.message for turn in turns] == FOUR


def test_parts_of_a_turn_are_joined_and_keep_their_flags() -> None:
    turn = check_messages([TURNS[0], parts(("Hm. ", {"train": False}), ("Hello", {}))], "messages")[1]
    assert turn == Turn(TURNS[1] | {"content": "Hm. Hello"}, True, (Segment("Hm. ", False), Segment("Hello", True)))
    assert check_messages([TURNS[0], parts(("Hel", {}), ("lo", {"weight": 1}))], "messages")[1] == Turn(TURNS[1], True)
    marked = check_messages([TURNS[0], parts(("Hm. ", {}), ("Hello", {"train": True}))], "messages", "marked")[1]
    assert (marked.trained, marked.trains) == (False, True)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (TURNS[1] | {"weight": 0.5}, "weight must be 0 or 1, found the float 0.5"),
        (TURNS[1] | {"train": "no"}, "train must be true or false, found the str 'no'"),
        (TURNS[1] | {"train": True, "weight": 0}, "has train True and weight 0, which contradict each other"),
        (TURNS[0] | {"train": True}, "(user) is marked to be trained, and only the assistant's turns can be"),
        (parts(("Hi", {"weight": 2})), "part 1: weight must be 0 or 1, found the int 2"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "part 1 must be text, such as {'type': 'text'"),
    ],
)
def test_flags_and_parts_that_are_none_are_problems(value: Any, problem: str) -> None:
    with pytest.raises(RowProblem) as raised:
        check_messages([TURNS[0], value], "messages")
    assert str(raised.value).startswith("column 'messages': turn 2")
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("pieces", "more", "text", "expected"),
    [
        ([("Hm. ", False), ("Yes", True)], {}, "Hm. Yes<end>", "Hm. ⟦Yes<end>⟧"),
        ([("Yes", True), (" Hm", False)], {}, "Yes Hm<end>", "⟦Yes⟧ Hm<end>"),
        ([("  Hm. ", False), ("Yes ", True)], {}, "Hm. Yes<end>", "Hm. ⟦Yes<end>⟧"),
        ([("a", False), ("b", True), ("a", False)], {}, "aba<end>", "a⟦b⟧a<end>"),
        (
            [("a", False), ("b", True)],
            {"reasoning_content": "ab"},
            "<think>ab</think>ab<end>",
            "⟦<think>ab</think>⟧a⟦b<end>⟧",
        ),
        (
            [("<think>x</think>", False), ("Yes", True)],
            {},
            "<think>x</think>\n\nYes<end>",
            "<think>x</think>\n\n⟦Yes<end>⟧",
        ),
        ([("Hm", False)], {"tool_calls": [{}]}, "Hm<call>f()<end>", "Hm⟦<call>f()<end>⟧"),
    ],
)
def test_what_of_a_text_is_trained(
    pieces: list[tuple[str, bool]], more: dict[str, Any], text: str, expected: str
) -> None:
    said = "".join(piece for piece, _ in pieces)
    turn = Turn({"role": "assistant", "content": said} | more, True, tuple(Segment(*piece) for piece in pieces))
    shown = "assistant: " + text
    for start, end in reversed(stretches(turn, shown, (11, len(shown)))):
        shown = f"{shown[:start]}⟦{shown[start:end]}⟧{shown[end:]}"
    assert shown == "assistant: " + expected


def test_a_piece_that_the_template_rewrites_is_a_problem() -> None:
    turn = Turn({"role": "assistant", "content": "ab"}, True, (Segment("a", False), Segment("b", True)))
    with pytest.raises(RowProblem, match="the chat template rewrites 'a', so its flag cannot be heeded"):
        stretches(turn, "A B", (0, 3))


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "day": "2025-08-01"}}}
FUNCTION = CALL["function"]
AS_TEXT = {"name": "weather", "arguments": json.dumps({"city": "Rome", "day": "2025-08-01"})}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": AS_TEXT}]},
        {"role": "assistant", "tool_calls": [FUNCTION]},
        {"role": "assistant", "tool_calls": json.dumps([AS_TEXT])},
        {"role": "assistant", "function_call": AS_TEXT},
        {"from": "function_call", "value": json.dumps(FUNCTION)},
        {"from": "gpt", "value": None, "tool_calls": [AS_TEXT]},
    ],
)
def test_a_call_is_the_same_in_every_shape(turn: dict[str, Any]) -> None:
    assert messages([TURNS[0], turn])[1] == {"role": "assistant", "tool_calls": [CALL]}


def test_a_null_among_arguments_stays_and_no_arguments_are_an_empty_object() -> None:
    for given, kept in (({"day": None}, {"day": None}), ('{"day": null}', {"day": None}), ("", {}), (None, {})):
        call = {"function": {"name": "weather", "arguments": given}}
        turn = messages([TURNS[0], {"role": "assistant", "tool_calls": [call]}])[1]
        assert turn["tool_calls"][0]["function"] == {"name": "weather", "arguments": kept}


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"function": {"name": "f", "arguments": "{"}}, "call 1: arguments is broken JSON (Expecting property name"),
        (
            {"function": {"name": "f", "arguments": "[1]"}},
            "call 1: arguments must be an object, or its JSON text, found",
        ),
        ({"function": {"arguments": {}}}, "call 1 names no function, found the dict"),
        ("f()", "call 1 is broken JSON"),
    ],
)
def test_calls_that_are_none_are_problems(call: Any, problem: str) -> None:
    with pytest.raises(RowProblem) as raised:
        check_messages([TURNS[0], {"role": "assistant", "tool_calls": [call]}], "messages")
    assert str(raised.value).startswith(f"column 'messages': turn 2: {problem}")


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ({"from": "human", "value": "x"}, "user"),
        ({"from": "user", "value": "x"}, "user"),
        ({"from": "assistant", "content": "x"}, "assistant"),
        ({"role": "human", "value": "x"}, "user"),
        ({"from": "observation", "value": "x"}, "observation"),
        ({"from": "function_response", "value": "x"}, "tool"),
        ({"role": "developer", "content": "x"}, "developer"),
        ({"role": "ipython", "content": "x"}, "ipython"),
        ({"role": "critic", "content": "x"}, "critic"),
    ],
)
def test_roles_by_the_names_of_several_shapes(given: dict[str, Any], role: str) -> None:
    assert messages([given])[0] == {"role": role, "content": "x"}


def read(nulls: bool = True, **columns: Any) -> Conversation:
    return read_conversation({"messages": TURNS, **columns}, Columns(), "all", nulls=nulls)


def test_the_columns_beside_the_turns_are_read() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert [turn.message for turn in read(system="Be brief.").turns] == [system, *TURNS]
    assert [turn.message for turn in read(system="Be brief.", messages=[system, *TURNS]).turns] == [system, *TURNS]
    assert [turn.message for turn in read(system="").turns] == TURNS
    for name in ("functions", "tools"):
        assert read(**{name: [ADD]}).tools == [{"type": "function", "function": ADD}]
    assert read(messages=json.dumps(TURNS)) == read()


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"system": 3}, "column 'system' must hold text, found the int 3"),
        (
            {"system": "a", "messages": [{"role": "system", "content": "b"}, *TURNS]},
            "column 'system' and the first turn are two system turns; keep one of them",
        ),
        ({"tools": [ADD], "functions": [ADD]}, "columns 'tools' and 'functions' both offer tools; keep one of them"),
    ],
)
def test_columns_that_contradict_each_other_are_problems(columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem) as raised:
        read(**columns)
    assert str(raised.value) == problem


def test_a_null_of_parquet_is_a_missing_key_and_one_of_json_is_a_value() -> None:
    tool = {"name": "add", "parameters": {"default": None}}
    for nulls, parameters in ((True, {"default": None}), (False, {})):
        tools = read(tools=[tool], nulls=nulls).tools
        assert tools == [{"type": "function", "function": {"name": "add", "parameters": parameters}}]


def test_thoughts_among_the_parts_are_the_thoughts_of_the_turn() -> None:
    content = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello"}]
    assert messages([{"role": "assistant", "content": content}])[0] == {
        "role": "assistant",
        "reasoning_content": "Hm.",
        "content": "Hello",
    }


def test_a_date_of_parquet_is_a_problem_since_its_text_is_not_known() -> None:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"day": date(2025, 8, 1)}}}]}
    with pytest.raises(RowProblem) as raised:
        read(messages=[TURNS[0], turn], nulls=False)
    assert str(raised.value) == (
        "column 'messages': 2: tool_calls: 1: function: arguments: day must be text, "
        "found the date datetime.date(2025, 8, 1); write it as text"
    )


def test_stretches_of_the_content_by_offsets_are_left_out_as_in_axolotl() -> None:
    details = [
        {"begin_offset": 0, "end_offset": 3, "train": False},
        {"begin_offset": 4, "end_offset": 6, "train": True},
    ]
    turn = {"role": "assistant", "content": "Hm. Yes. Or no.", "train_detail": details}
    found = check_messages([TURNS[0], turn], "messages")[1]
    assert found.pieces == (
        Segment("", True),
        Segment("Hm. ", False),
        Segment("", True),
        Segment("Yes", True),
        Segment(". Or no.", True),
    )
    assert "train_detail" not in found.message


@pytest.mark.parametrize("bounds", [(0, 5), (3, 2), (-1, 2), ("0", 2)])
def test_offsets_beyond_the_content_are_a_problem(bounds: tuple[Any, int]) -> None:
    detail = {"begin_offset": bounds[0], "end_offset": bounds[1], "train": False}
    with pytest.raises(RowProblem, match=r"turn 2: train_detail: number 1 must have begin_offset and end_offset"):
        check_messages([TURNS[0], TURNS[1] | {"train_detail": [detail]}], "messages")
