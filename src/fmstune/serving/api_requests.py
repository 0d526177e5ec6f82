"""Bodies of OpenAI's API → typed requests; what is wrong with one is an error in the API's own shape.

Fields of the API that would change the answer and cannot be had are refused, unless they have the value of leaving them
out. Those that do not change it are left out and named. Any other field is refused, as OpenAI does.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmstune.errors import did_you_mean

MOST_ANSWERS = 16
"""Choices of one prompt."""
MOST_LOGPROBS = 20
IGNORED = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
"""Fields that change no answer here."""
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that would change the answer, each with its values, besides null, that do not; also some of other servers."""
Stop = Annotated[str, Field(min_length=1)]


class ApiError(Exception):
    """An error for the client, in the shape of OpenAI's."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        # half a character, which JSON can name, cannot be sent
        message, param = (
            None if text is None else text.encode(errors="backslashreplace").decode()
            for text in (self.message, self.param)
        )
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}


class StreamOptions(BaseModel):
    """What a stream tells besides the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class AnswerRequest(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stop: Stop | list[Stop] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MOST_ANSWERS)
    return_token_ids: bool | None = False
    """Tell the tokens of the prompt and of the answer, as vLLM does; no field of OpenAI's."""
    max_tokens: int | None = Field(default=None, ge=1)

    @property
    def stop_texts(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(AnswerRequest):
    """A body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    row: dict[str, Any] | None = None
    """In place of messages, a row of the data format that the model was tuned in; no field of OpenAI's."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, as vLLM has them; those of the run alone are taken."""


class TextRequest(AnswerRequest):
    """A body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = False
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)


Request = TypeVar("Request", ChatRequest, TextRequest)


class Parsed(NamedTuple, Generic[Request]):
    """A request, and the fields that were left out of it."""

    request: Request
    ignored: tuple[str, ...]


def parse_request(kind: type[Request], body: Any) -> Parsed[Request]:
    """The body as a request; raises ApiError for the first thing that is wrong with it."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    ignored = tuple(name for name in IGNORED if body.get(name) is not None)
    for name, harmless in REFUSED.items():
        if body.get(name) is not None and body[name] not in harmless:
            text = f"{name} is not supported by this server, as it would change the answer; leave it out."
            raise ApiError(400, text, param=name, code="unsupported_parameter")
    left = {name: value for name, value in body.items() if name not in IGNORED and name not in REFUSED}
    for name in left.keys() - kind.model_fields.keys():
        raise _unknown(name, kind)
    try:
        request = kind.model_validate(left)
    except ValidationError as err:
        raise _as_api_error(err, kind) from None
    _check_together(request)
    return Parsed(request, ignored)


def _unknown(name: str, kind: type[BaseModel]) -> ApiError:
    hint = did_you_mean(name, [*kind.model_fields, *IGNORED])
    return ApiError(400, f"Unrecognized request argument supplied: {name}{hint}", param=name)


def _as_api_error(err: ValidationError, kind: type[BaseModel]) -> ApiError:
    first = err.errors(include_url=False)[0]
    # of a union such as `stop`, the names of its parts follow the field's
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return _unknown(".".join(map(str, first["loc"])), kind)
    if first["type"] == "missing":
        return ApiError(400, f"you must provide a {field} parameter", param=field)
    said = "; ".join(dict.fromkeys(one["msg"] for one in err.errors(include_url=False) if one["loc"][0] == field))
    return ApiError(400, f"{field}: {said}, got {first['input']!r:.80}", param=field, code="invalid_value")


def _check_together(request: ChatRequest | TextRequest) -> None:
    """Raise ApiError for fields that do not go together."""
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options goes with stream: true.", param="stream_options")
    if request.stream and request.return_token_ids:
        raise ApiError(400, "return_token_ids goes with stream: false.", param="return_token_ids")
    if isinstance(request, TextRequest):
        if request.echo and request.stream:
            raise ApiError(400, "echo goes with stream: false.", param="echo")
        if request.prompt in ([], [[]]):
            raise ApiError(400, "prompt is an empty list; give a text, token ids, or a list of these.", param="prompt")
        return
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs goes with logprobs: true.", param="top_logprobs")
    if len({request.max_tokens, request.max_completion_tokens} - {None}) > 1:
        text = "max_tokens and max_completion_tokens are one setting; give one of them."
        raise ApiError(400, text, param="max_tokens")
    if request.row is None and not request.messages:
        raise ApiError(400, "messages is empty; give at least one message.", param="messages")
    if request.row is not None and request.messages:
        raise ApiError(400, "row takes the place of messages; send messages: [] with it.", param="row")
