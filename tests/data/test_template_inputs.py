"""What a chat template reads decides in which form it gets roles and calls, and which variables can be given."""

from typing import Any

import jinja2
import pytest

from fmstune import files
from fmstune.data.messages import check_messages
from fmstune.data.template_inputs import check_variables, check_written, fitted, variables
from fmstune.data.tokens import RowProblem
from fmstune.errors import UserError

OBJECTS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% endfor %}"
)
TEXT = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '=' + c.function.arguments }}{% endfor %}{% endfor %}"
)
ANY_TEXT = TEXT.replace("'=' +", "'=' ~")
WITH_CONTENT = OBJECTS.replace("{% for c", "{{ m.content | trim }}{% for c")
NEEDS_CONTENT = OBJECTS.replace("{% for c", "{{ m.content + '' }}{% for c")
BOTH = TEXT.replace(
    "c.function.arguments",
    "(c.function.arguments if c.function.arguments is string else c.function.arguments | tojson)",
)


def trl(name: str) -> str:
    with open(files.resolve(f"trl:{name}"), encoding="utf-8") as file:
        return file.read()


def turns(*given: dict[str, Any]) -> Any:
    return check_messages(list(given), "messages")


def roles(template: str, *given: str) -> list[str]:
    return [turn.role for turn in fitted(turns(*({"role": role, "content": "x"} for role in given)), template)]


@pytest.mark.parametrize(
    ("template", "given", "expected"),
    [
        ("{{ messages[0].role }}", ("developer", "ipython"), ["developer", "ipython"]),
        ("{% if m.role == 'system' %}{% elif m.role == 'tool' %}", ("developer", "ipython"), ["system", "tool"]),
        ('{% if m["role"] == "developer" %}', ("developer", "system"), ["developer", "developer"]),
        ("{% if m.role == 'observation' %}", ("tool", "ipython", "observation"), ["observation"] * 3),
        ("{% if m.role in ('tool', 'ipython') %}", ("tool", "ipython", "observation"), ["tool", "ipython", "tool"]),
    ],
)
def test_a_role_has_the_name_that_the_template_tests_for(
    template: str, given: tuple[str, ...], expected: list[str]
) -> None:
    assert roles(template, *given) == expected


@pytest.mark.parametrize(
    ("template", "arguments", "content"),
    [
        (OBJECTS, {"a": 1}, None),
        (BOTH, {"a": 1}, None),
        (TEXT, '{"a": 1}', None),
        (ANY_TEXT, '{"a": 1}', None),
        (WITH_CONTENT, {"a": 1}, None),
        (NEEDS_CONTENT, {"a": 1}, ""),
        (trl("qwen3_training"), {"a": 1}, None),
        (trl("llama3_1"), {"a": 1}, None),
    ],
)
def test_a_call_is_given_as_the_template_writes_it(template: str, arguments: Any, content: str | None) -> None:
    given = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    message = fitted(turns({"role": "user", "content": "x"}, given), template)[1].message
    assert (message["tool_calls"][0]["function"]["arguments"], message.get("content")) == (arguments, content)


def test_the_variables_of_a_template_are_those_that_it_does_not_set() -> None:
    template = (
        "{% set a = 1 %}{% for m in messages %}{{ a ~ m }}"
        "{% if thinks is defined and thinks %}{% break %}{% endif %}{% endfor %}"
    )
    assert variables(template) == {"messages", "thinks"}
    assert "enable_thinking" in variables(trl("qwen3_training"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("enable_thinkin", ": the chat template reads no such variable; did you mean 'enable_thinking'?"),
        ("effort", ": the chat template reads no such variable; it reads enable_thinking"),
        ("messages", ": the row decides this variable; remove it"),
    ],
)
def test_a_variable_that_the_template_does_not_read_is_a_problem(name: str, problem: str) -> None:
    with pytest.raises(UserError) as raised:
        check_variables("{{ messages }}{{ enable_thinking }}", {"enable_thinking": False, name: 1})
    assert [str(found) for found in raised.value.problems] == [f"data.format.template_kwargs.{name}{problem}"]


CALL = {"name": "weather", "arguments": {}}
TALK = (
    {"role": "critic", "content": " Be brief. "},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "<think>x</think>\n\nLet me look.", "tool_calls": [CALL, CALL | {"name": "time"}]},
)


TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}() {% endfor %}{% for m in messages %}{{ m.role }}: "
    "{{ m.content.split('</think>')[-1].strip() | upper }}{% for c in m.tool_calls or [] %} {{ c.function.name }}"
    "{% endfor %}{% endfor %}"
)


def check(template: str) -> None:
    made = jinja2.Template(template)

    def write(said: Any, tools: Any) -> str:
        return made.render(messages=[turn.message for turn in said], tools=tools)

    tools = [{"type": "function", "function": {"name": "weather"}}]
    check_written(turns(*TALK), tools, write(turns(*TALK), tools), write)


def test_a_template_that_writes_words_in_other_letters_leaves_nothing_out() -> None:
    check(TEMPLATE)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("in messages %}", "in messages if m.role != 'critic' %}"), "what turn 1 (critic) says"),
        (("in messages %}", "in messages if not m.tool_calls %}"), "what turn 3 (assistant) says"),
        (("in m.tool_calls or []", "in []"), "the call of 'weather' in turn 3"),
        (("in m.tool_calls or []", "in (m.tool_calls or [])[:1]"), "the call of 'time' in turn 3"),
        (("in tools or []", "in []"), "the tool 'weather'"),
    ],
)
def test_what_a_template_leaves_out_is_a_problem(change: tuple[str, str], problem: str) -> None:
    with pytest.raises(RowProblem) as raised:
        check(TEMPLATE.replace(*change))
    assert str(raised.value).startswith(f"the chat template leaves out {problem}; choose a template that writes it")
