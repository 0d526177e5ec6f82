"""An OpenAI-compatible server → what it makes of training's rows, as far as it tells.

A server is asked for what OpenAI's API defines: `/v1/completions` with token ids, `echo` and `logprobs`, and
`/v1/chat/completions`. vLLM also tells the prompt's tokens (`return_token_ids`). A server that refuses one of these is
asked without it, and the report says what could not be compared.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from fmstune.errors import UserError, one_line
from fmstune.serving.parity.reference import limit
from fmstune.serving.parity.training_rows import TrainedRow
from fmstune.serving.parity.verdict import Served

KEY = "OPENAI_API_KEY"
"""The environment variable of the key, as the openai client reads it."""
CLIENTS = 4
"""Requests at a time."""
SECONDS = 120
Json = dict[str, Any]


class Refused(Exception):
    """The server does not take this request."""


class Said(NamedTuple):
    """One answer of the server."""

    text: str
    ended: bool
    prompt_ids: list[int] | None
    prompt_count: int | None
    ids: list[int] | None
    tokens: list[str] | None
    """Of the prompt too, where it was to be echoed."""
    log_probs: list[float | None] | None


@dataclass
class Endpoint:
    """A server, the model to ask there, and what it was found not to take."""

    url: str
    model: str
    tokenizer: PreTrainedTokenizerBase
    lacks: dict[str, str] = field(default_factory=dict)
    """What it refuses, and what it said then."""

    def ask_all(self, rows: Sequence[TrainedRow]) -> list[Served]:
        """What the server makes of each row; raises UserError where it does not answer."""
        # alone, so that what it refuses is found once
        first = self._row(rows[0])
        with ThreadPoolExecutor(CLIENTS) as threads:
            return [first, *threads.map(self._row, rows[1:])]

    def stops_at(self, row: TrainedRow, token: int) -> bool | None:
        """Whether an answer that must begin with this token ends there; None where that cannot be asked."""
        free, forced = self._asked(row, 2, {}), self._asked(row, 2, {"logit_bias": {str(token): 100}})
        if free is None or forced is None or (free.text == forced.text and free.ended == forced.ended):
            return None
        return forced.ended

    def _row(self, row: TrainedRow) -> Served:
        said = self._asked(row, limit(row), {})
        if said is None:
            why = "; ".join(self.lacks.values())
            text = f": {self.url} answers neither text nor chat ({why}); give the URL of an OpenAI-compatible server"
            raise UserError("--endpoint", text)
        prompt_ids = said.prompt_ids
        if prompt_ids is None and row.messages is None:
            prompt_ids = self._echoed(row)
        known = [one for one in prompt_ids or () if one >= 0]
        words = None if prompt_ids is None else str(self.tokenizer.decode(known))
        return Served(prompt_ids, words, said.prompt_count, self._scored(row), said.ids, said.text, said.ended)

    def _asked(self, row: TrainedRow, most: int, more: Json) -> Said | None:
        """The greedy answer to the row as a client asks it; None where the server refuses."""
        body: Json = {"max_tokens": most, "temperature": 0, **more}
        if row.messages is None:
            return self._said("/v1/completions", {**body, "prompt": row.prompt}, "text", "return_token_ids")
        body |= {"messages": row.messages, **({"tools": row.tools} if row.tools else {})}
        if variables := self.tokenizer.init_kwargs.get("chat_template_kwargs"):
            body["chat_template_kwargs"] = variables
        return self._said("/v1/chat/completions", body, "chat", "return_token_ids")

    def _echoed(self, row: TrainedRow) -> list[int] | None:
        """The tokens of a text by their words, where the server echoes them."""
        body = {"prompt": row.prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        said = self._said("/v1/completions", body, "echo of a text")
        if said is None or said.tokens is None or said.prompt_count is None:
            return None
        return ids_of_tokens(said.tokens[: said.prompt_count], row.prompt_ids, self.tokenizer)

    def _scored(self, row: TrainedRow) -> list[float] | None:
        """The log-probabilities of the known answer behind training's own prompt."""
        ids = [*row.prompt_ids, *row.answer_ids]
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        said = self._said("/v1/completions", body, "token ids with echo")
        found = (said.log_probs or []) if said is not None else []
        scored = [one for one in found[len(row.before) : len(ids)] if one is not None]
        return scored if len(scored) == len(row.scored) else None

    def _said(self, path: str, body: Json, what: str, extra: str | None = None) -> Said | None:
        """The answer; None where the server refuses it. `extra` is a field that only some servers take."""
        if what in self.lacks:
            return None
        if extra is not None and extra not in self.lacks:
            try:
                return read_answer(post(self.url, path, {"model": self.model, **body, extra: True}))
            except Refused as err:
                self.lacks[extra] = str(err)
        try:
            return read_answer(post(self.url, path, {"model": self.model, **body}))
        except Refused as err:
            self.lacks[what] = str(err)
            return None


def find_endpoint(url: str, model: str | None, tokenizer: PreTrainedTokenizerBase) -> Endpoint:
    """The server at this URL, with or without `/v1`, and the tuned model that it serves; raises UserError."""
    url = url.rstrip("/").removesuffix("/v1")
    try:
        listed = _sent(urllib.request.Request(f"{url}/v1/models", headers=_headers()))["data"]
        names = [str(one["id"]) for one in listed]
        # an adapter names its base as `parent` (vLLM)
        adapters = [str(one["id"]) for one in listed if one.get("parent")]
    except (Refused, KeyError, TypeError, AttributeError) as err:
        text = f": {url}/v1/models lists no models ({one_line(err)}); give the URL of an OpenAI-compatible server"
        raise UserError("--endpoint", text) from err
    usual = names if len(names) == 1 else [name for name in names if name == "tuned"] or adapters
    if model is not None and model not in names:
        raise UserError("--served_model", f": {url} serves {', '.join(names)}, and no {model}")
    if model is None and len(usual) != 1:
        raise UserError("--served_model", f"must be given: {url} serves {', '.join(names) or 'no model'}")
    return Endpoint(url, model or usual[0], tokenizer)


def post(url: str, path: str, body: Mapping[str, Any]) -> Json:
    """The JSON that the server answers; raises Refused for a request that it does not take, UserError without one."""
    data, headers = json.dumps(body).encode(), {**_headers(), "Content-Type": "application/json"}
    return _sent(urllib.request.Request(url + path, data, headers))


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _sent(request: urllib.request.Request) -> Json:
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as err:
        said = one_line(err.read(2000).decode(errors="replace"))
        if err.code in (401, 403):
            raise UserError("--endpoint", f": {request.full_url} wants a key ({err.code}); set {KEY}") from err
        if err.code in (429, 500, 502, 503, 504):
            raise UserError("--endpoint", f": {request.full_url} fails ({err.code}: {said}); see its log") from err
        raise Refused(f"{err.code}: {said}") from err
    except (OSError, ValueError, TypeError) as err:
        reason = one_line(getattr(err, "reason", err))
        text = f": {request.full_url} does not answer ({reason}); start the server, or correct the URL"
        raise UserError("--endpoint", text) from err


def read_answer(found: Json) -> Said:
    """One answer of `/v1/completions` or `/v1/chat/completions`; raises Refused for another shape."""
    try:
        choice = found["choices"][0]
        text = choice["message"].get("content") if "message" in choice else choice["text"]
        logs = choice.get("logprobs") or {}
        return Said(
            text or "",
            choice.get("finish_reason") in ("stop", "tool_calls"),
            found.get("prompt_token_ids") or choice.get("prompt_token_ids"),
            (found.get("usage") or {}).get("prompt_tokens"),
            choice.get("token_ids"),
            logs.get("tokens"),
            logs.get("token_logprobs"),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as err:
        raise Refused(f"an answer of another shape ({type(err).__name__}: {err})") from err


def ids_of_tokens(tokens: Sequence[str], expected: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of tokens that are told by their text: of several with one text the expected one; -1 for none."""
    known = {*expected, *tokenizer.all_special_ids}
    near = {one: {str(tokenizer.decode([one])), str(tokenizer.convert_ids_to_tokens(one))} for one in known}
    found = []
    for at, token in enumerate(tokens):
        # the expected one, or with one more or less before it
        order = [expected[place] for place in (at, at - 1, at + 1) if 0 <= place < len(expected)]
        fits = next((one for one in (*order, *near) if token in near[one]), None)
        found.append(_id_of(token, tokenizer) if fits is None else fits)
    return found


def _id_of(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a token that stands in the vocabulary under this text, or is the whole of it; else -1."""
    known = tokenizer.get_vocab().get(token)
    ids = [known] if known is not None else tokenizer(token, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if len(ids) == 1 else -1
