"""Under every template that TRL ships, a row trains exactly what the model writes when it is asked in that place."""

import re
from functools import cache
from typing import Any, NamedTuple

import pytest
from jinja2.exceptions import TemplateError

from fmstune.data import formats
from fmstune.data.chat import chat_rows
from fmstune.data.chat_template import chat_template, trl_templates
from fmstune.data.messages import check_messages
from fmstune.data.tokens import RowProblem, Rows, Templated, encode_rows
from tests.small import byte_level_tokenizer

CALL = {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}},
    },
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "sunny"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "single": [user("Hi"), said("Hello there.")],
    "several turns": [user("Hi"), said("Hello."), user("More?"), said("Sure."), user("Why?"), said("So.")],
    "system": [{"role": "system", "content": "Be kind."}, user("Hi"), said("Hello.")],
    "tools": [user("Weather?"), said("Where?")],
    "a call and its result": [user("Weather?"), said("", tool_calls=[CALL]), RESULT, said("Sunny.")],
    "thoughts": [user("Hi"), said("Hello.", reasoning_content="They greet."), user("Why?"), said("So.")],
    "thoughts in every turn": [
        user("Hi"),
        said("Hello.", reasoning_content="They greet."),
        user("Why?"),
        said("So.", thinking="They doubt."),
    ],
    "thoughts in the text": [user("Hi"), said("<think>\nThey greet.\n</think>\n\nHello.")],
    "an empty answer": [user("Hi"), said(""), user("Hello?"), said("Yes.")],
    "white space": [user(" Hi \n"), said("  Hello. \n"), user("\n"), said(" Yes.\n")],
    "Unicode": [user("日本 naïve 🎉"), said("Ω — “ünïcode” 👩‍🚀 한국")],
    "ends with the user": [user("Hi"), said("Hello."), user("More?")],
}
OFFERS_TOOLS = ("tools", "a call and its result")
TAGS = re.compile(
    r"<[|｜][^<>\s'\"{}]+>|<[^<>\s'\"{}]+[|｜]>|</?(?:s|eos|bos|start_of_turn|end_of_turn)>|<end_of_utterance>"
)
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "",
    "glm4moe_training": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}
"""What ends an answer in words, by how the names of templates begin; the longest counts."""
TAKE_A_FIELD = re.compile(
    "(glm4moe|gptoss|lfm2_2_5|muse|nemotron|qwen3_5|qwen3_6|qwen3_8|diffusion_gemma).*|gemma4_v5|qwen3(_training)?"
)
"""The names of templates that write thoughts given in a field."""
TAKE_PARTS = ("idefics3", "llava_next", "smolvlm")
ASK_FOR_THOUGHTS = (
    "deepseek_r1_distill_training",
    "deepseekv3_training",
    "nemotron_3_nano_training",
    "nemotron_3_super_training",
    "nemotron_3_ultra_training",
    "nemotron_3_5_lightning_training",
)
"""Templates for training that ask with <think>: an answer without thoughts has empty ones."""
UNMARKED = {("diffusion_gemma_training", "a call and its result"): "<|turn>model\n"}
"""What a template writes at the beginning of an answer and does not mark."""
REFUSED = {
    # no tools; some have no system turn, or want turns by turns
    "cohere": 2,
    "cohere2": 2,
    "cohere2_training": 2,
    "cohere_training": 2,
    "gemma": 3,
    "gemma3": 2,
    "phi3": 2,
    "gemma3_training": 2,
    "gemma_training": 3,
    "idefics3": 2,
    "idefics3_training": 2,
    "lfm2": 1,
    "llama3": 2,
    "lfm2_training": 1,
    "llama3_training": 2,
    "llava_next": 2,
    "llava_next_training": 2,
    "phi3_5": 2,
    "phi3_training": 2,
    "phi3_5_training": 2,
    "qwen2_5_vl": 2,
    "qwen2_5_vl_training": 2,
    "smolvlm": 2,
    "smolvlm_training": 2,
    "deepseek_r1_distill_training": 2,
    # they ask for thoughts, and write other answers without them
    "deepseek_r1_distill": 12,
    "deepseekv3": 12,
    "deepseekv3_training": 12,
    "nemotron_3_5_lightning": 10,
    "nemotron_3_nano": 10,
    "nemotron_3_super": 10,
    "nemotron_3_ultra": 10,
    # they ask for none
    "qwen3_5_nothink": 3,
    "qwen3_5_nothink_training": 3,
}
"""How many of the conversations a template cannot train."""
END_OF_SEQUENCE = "<|the_end|>"
NAMES = sorted(trl_templates())


class Asked(NamedTuple):
    """What the model reads when it is asked, and what it then writes."""

    question: str
    answer: str


@cache
def tokenizer() -> Any:
    """One tokenizer with the control tokens of all templates."""
    tags = sorted({tag for source in trl_templates().values() for tag in TAGS.findall(source)})
    made = byte_level_tokenizer(special=(END_OF_SEQUENCE, *tags), vocabulary=900)
    made.add_special_tokens({"extra_special_tokens": tags})
    return made


def end_of(name: str) -> str:
    return ENDS[max((begin for begin in ENDS if name.startswith(begin)), key=len)]


def written(name: str, turns: list[dict[str, Any]], tools: Any, *, asks: bool) -> str:
    source = trl_templates()[name]
    settings = {"tools": tools, "chat_template": source, "tokenize": False, "add_generation_prompt": asks}
    return str(tokenizer().apply_chat_template(turns, **settings))


def prepared(name: str, turn: dict[str, Any], *, asked: bool = False) -> dict[str, Any]:
    """The turn in the form that the template reads, by hand: thoughts in a field or in the text, content in parts."""
    more = {key: value for key, value in turn.items() if key not in ("reasoning_content", "thinking")}
    thoughts = turn.get("reasoning_content") or turn.get("thinking")
    takes_field = TAKE_A_FIELD.fullmatch(name) is not None
    if "</think>" in turn["content"] and takes_field:
        thoughts, more["content"] = "They greet.", "Hello."
    if thoughts is not None and takes_field:
        more["reasoning_content"] = thoughts
    elif thoughts is not None or (asked and "</think>" not in turn["content"]):
        more["content"] = f"<think>\n{thoughts or ''}\n</think>\n\n" + more["content"]
    if name.startswith(TAKE_PARTS):
        more["content"] = [{"type": "text", "text": more["content"]}]
    return more


def asked(name: str, conversation: str) -> list[Asked] | None:
    """Each answer as the model is asked for it, slowly; None where the template does not begin it with the question."""
    tools, found = [TOOL] if conversation in OFFERS_TOOLS else None, []
    turns = CONVERSATIONS[conversation]
    if tools is not None and not writes_tools(name, turns):
        return None
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = [prepared(name, one) for one in turns[:number]]
            try:
                question = written(name, before, tools, asks=True)
                opens = name in ASK_FOR_THOUGHTS and question.rstrip().endswith("<think>")
                whole = written(name, [*before, prepared(name, turn, asked=opens)], tools, asks=False)
            except (TemplateError, TypeError):
                return None
            if not whole.startswith(question):
                return None
            answer, end = whole[len(question) :], end_of(name)
            if end and end in answer:
                answer = answer[: answer.rindex(end) + len(end)]
            found.append(Asked(question, answer.rstrip() if end else answer))
    return found


def writes_tools(name: str, turns: list[dict[str, Any]]) -> bool:
    """Whether the template writes the tools, and the arguments of a call."""
    try:
        whole = written(name, [prepared(name, one) for one in turns], [TOOL], asks=False)
    except (TemplateError, TypeError):
        return False
    return "The weather of a city." in whole and ("Rome" in whole or "tool_calls" not in turns[1])


def trained(name: str, conversation: str) -> list[Asked] | None:
    """Each stretch that the rows of the conversation train, with all that stands before it; None of refused rows."""
    made, found = tokenizer(), []
    made.chat_template = trl_templates()[name]
    tools = [TOOL] if conversation in OFFERS_TOOLS else None
    try:
        rows = formats.chat({"messages": CONVERSATIONS[conversation], "tools": tools}, tokenizer=made)
    except RowProblem:
        return None
    for row in rows if isinstance(rows, Rows) else [rows]:
        text = ""
        for segment in row:
            if segment.trained:
                found.append(Asked(text, segment.text))
            text += segment.text
        # nothing follows, unless the template ends no turn at all
        closing = "" if end_of(name) or not row[-1].trained else END_OF_SEQUENCE
        assert made.decode(encode_rows([row], made, 10_000)[0].input_ids) == text + closing
    return joined(found)


def joined(stretches: list[Asked]) -> list[Asked]:
    """Stretches that follow one another, which a template marks one by one, as one."""
    found: list[Asked] = []
    for question, answer in stretches:
        if found and question == "".join(found[-1]):
            question, before = found.pop()
            answer = before + answer
        found.append(Asked(question, answer))
    return found


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if n % 3 == 0 else [pytest.mark.soak]) for n, name in enumerate(NAMES)]
)
def test_a_row_trains_what_the_model_writes_when_it_is_asked(name: str) -> None:
    refused = 0
    for conversation in CONVERSATIONS:
        expected, found = asked(name, conversation), trained(name, conversation)
        if (name, conversation) in UNMARKED and expected is not None:
            begin = UNMARKED[name, conversation]
            expected = [Asked(q + begin, a.removeprefix(begin)) if a.startswith(begin) else (q, a) for q, a in expected]
        assert found == expected, conversation
        refused += found is None
    assert len(CONVERSATIONS) == 12
    assert refused == REFUSED.get(name, 0)


def test_the_table_has_the_templates_of_the_families() -> None:
    assert len(NAMES) >= 60
    assert {name for name in ENDS if not any(one.startswith(name) for one in NAMES)} == set()


GPT_OSS_QUESTION = "<|start|>user<|message|>Weather?<|end|>"
GPT_OSS_CALL = '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
GPT_OSS_THOUGHTS = "<|start|>assistant<|channel|>analysis<|message|>I look.<|end|>"


def test_gpt_oss_answers_behind_the_thoughts_of_its_call_though_the_template_then_drops_them() -> None:
    made = tokenizer()
    made.chat_template = trl_templates()["gptoss_training"]
    turns = [user("Weather?"), {**said("", tool_calls=[CALL]), "thinking": "I look."}, RESULT, said("Sunny.")]
    rows = chat_rows(check_messages(turns, "messages"), [TOOL], chat_template(made, [TOOL]))
    assert isinstance(rows, Templated)
    text = "".join(f"⟦{segment.text}⟧" if segment.trained else segment.text for segment in rows)
    result = '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"sunny"<|end|>'
    bare = "<|start|>assistant"
    call = f"{bare}⟦{(GPT_OSS_THOUGHTS + GPT_OSS_CALL).removeprefix(bare)}⟧"
    final = f"{bare}⟦<|channel|>final<|message|>Sunny.<|return|>⟧"
    assert text.endswith(GPT_OSS_QUESTION + call + result + final)


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_nano"])
def test_a_template_for_inference_names_its_variant_for_training(name: str) -> None:
    made = tokenizer()
    made.chat_template = trl_templates()[name]
    with pytest.raises(RowProblem, match=rf"model.chat_template=trl:{name}_training is its variant for training$"):
        chat_rows(check_messages(CONVERSATIONS["single"], "messages"), None, chat_template(made))
