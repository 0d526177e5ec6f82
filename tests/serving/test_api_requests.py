"""Bodies of OpenAI's API are read as they are documented, and what cannot be had is said."""

from typing import Any

import pytest

from fmstune.serving.api_requests import ApiError, ChatRequest, TextRequest, parse_request

HI = {"model": "tuned", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "tuned", "prompt": "Hi"}


def refusal(kind: type[ChatRequest] | type[TextRequest], body: Any) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as raised:
        parse_request(kind, body)
    assert raised.value.status == 400
    assert raised.value.body["error"]["type"] == "invalid_request_error"
    return raised.value.message, raised.value.param


@pytest.mark.parametrize(
    ("kind", "body", "param", "said"),
    [
        (ChatRequest, [], None, "The body must be a JSON object."),
        (ChatRequest, {"model": "tuned"}, "messages", "you must provide a messages parameter"),
        (ChatRequest, {**HI, "max_token": 1}, "max_token", "…: max_token; did you mean 'max_tokens'?"),
        (
            ChatRequest,
            {**HI, "temperature": "1"},
            "temperature",
            "temperature: Input should be a valid number, got '1'",
        ),
        (ChatRequest, {**HI, "n": 0}, "n", "n: Input should be greater than or equal to 1, got 0"),
        (ChatRequest, {**HI, "stop": ["a", ""]}, "stop", "…"),
        (ChatRequest, {**HI, "top_logprobs": 2}, "top_logprobs", "top_logprobs goes with logprobs: true."),
        (ChatRequest, {**HI, "stream_options": {}}, "stream_options", "stream_options goes with stream: true."),
        (ChatRequest, {**HI, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "max_tokens and max_compl…"),
        (ChatRequest, {**HI, "row": {}}, "row", "row takes the place of messages; send messages: [] with it."),
        (
            ChatRequest,
            {**HI, "response_format": {"type": "json_object"}},
            "response_format",
            "response_format is not …",
        ),
        *(
            (ChatRequest, {**HI, name: value}, name, f"{name} is not supported by this server, … leave it out.")
            for name, value in {
                "frequency_penalty": 0.5,
                "logit_bias": {"5": 1},
                "presence_penalty": -1,
                "reasoning_effort": "low",
                "repetition_penalty": 1.1,
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "top_k": 40,
            }.items()
        ),
        (TextRequest, {**TEXT, "echo": True, "stream": True}, "echo", "echo goes with stream: false."),
        (ChatRequest, {**HI, "return_token_ids": True, "stream": True}, "return_token_ids", "return_token_ids goes …"),
        (TextRequest, {**TEXT, "prompt": []}, "prompt", "prompt is an empty list; …"),
        (TextRequest, {**TEXT, "prompt": [1, "a"]}, "prompt", "prompt: …"),
        (
            TextRequest,
            {**TEXT, "logprobs": 21},
            "logprobs",
            "logprobs: Input should be less than or equal to 20, got 21",
        ),
    ],
)
def test_a_body_that_cannot_be_had_is_refused_by_the_name_of_its_field(
    kind: type[ChatRequest] | type[TextRequest], body: Any, param: str | None, said: str
) -> None:
    message, named = refusal(kind, body)
    assert named == param
    begin, _, end = said.partition("…")
    assert message.startswith(begin) and message.endswith(end) if "…" in said else message == said


def test_harmless_values_are_taken_and_fields_without_effect_are_named() -> None:
    neutral = {"frequency_penalty": 0.0, "tools": [], "response_format": {"type": "text"}, "logit_bias": None}
    parsed = parse_request(ChatRequest, {**HI, **neutral, "user": "me", "store": None, "service_tier": "auto"})
    assert parsed.ignored == ("service_tier", "user")
    assert parsed.request.messages == HI["messages"]


@pytest.mark.parametrize(("stop", "texts"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"])])
def test_stop_is_one_text_or_several(stop: Any, texts: list[str]) -> None:
    assert parse_request(TextRequest, {**TEXT, "stop": stop}).request.stop_texts == texts


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_a_prompt_is_text_or_tokens_one_or_several(prompt: Any) -> None:
    assert parse_request(TextRequest, {**TEXT, "prompt": prompt}).request.prompt == prompt


def test_each_status_has_its_type_of_error() -> None:
    kinds = {status: ApiError(status, "x").body["error"]["type"] for status in (400, 401, 403, 404, 429, 500, 503)}
    assert kinds == {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "invalid_request_error",
        429: "rate_limit_error",
        500: "server_error",
        503: "server_error",
    }
