"""OpenAI's API over an engine: routes, streams, limits and errors."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fmstune import files
from fmstune.errors import did_you_mean
from fmstune.serving.api_answers import Shape, Usage, joined
from fmstune.serving.api_requests import ApiError, ChatRequest, Parsed, TextRequest, parse_request
from fmstune.serving.counters import Counters
from fmstune.serving.engine import Engine, Piece, Question, QueueFull
from fmstune.serving.guard import Guard
from fmstune.serving.questions import Limits, chat_questions, text_questions
from fmstune.serving.served_models import BASE, TUNED, Served

MOST_BYTES = 4 << 20
"""Bytes of a body: more than any prompt that a model takes."""
PAGE = Path(__file__).with_name("page.html.jinja")
_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass
class Service:
    """What the routes share."""

    served: Served
    engine: Engine
    limits: Limits
    title: str
    """What the page names the model."""
    begun: int = field(default_factory=lambda: int(time.time()))
    closing: bool = False
    """Whether no further request is taken."""

    def __post_init__(self) -> None:
        """Make the counters."""
        engine = self.engine
        self.counters = Counters(waiting=lambda: engine.waiting, running=lambda: engine.running)


class Answering:
    """The questions of one request while they are answered."""

    def __init__(self, engine: Engine, questions: Sequence[Question]) -> None:
        """Let the questions wait; raises ApiError where the queue is full."""
        self.engine, self.questions = engine, questions
        self.counts = [0] * len(questions)
        self._told: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        try:
            self.tickets = engine.ask([(one, partial(self._tell, number)) for number, one in enumerate(questions)])
        except QueueFull:
            text = f"{engine.waiting} requests wait already, and the queue holds {engine.max_waiting}; try again later."
            raise ApiError(429, text, code="queue_full") from None

    def _tell(self, number: int, piece: Piece | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told.put_nowait, (number, piece))

    @property
    def usage(self) -> Usage:
        """Tokens so far; a prompt that is asked several times counts once, as OpenAI's."""
        prompts = {id(one.prompt): len(one.prompt) for one in self.questions}
        return Usage(sum(prompts.values()), sum(self.counts))

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """What the answers grow by, to the end of the last; who stops listening frees their places."""
        left = len(self.questions)
        try:
            while left:
                number, piece = await self._told.get()
                if isinstance(piece, Exception):
                    raise ApiError(500, "The model failed to answer; the server's log says why.")
                self.counts[number] = piece.count or self.counts[number]
                if piece.finish == "cancelled":
                    raise ApiError(503, "The server is shutting down.")
                left -= piece.finish is not None
                yield number, piece
        finally:
            self.engine.cancel(self.tickets)


def build_app(service: Service, *, key: str | None, local: bool) -> FastAPI:
    """The application; `key` is what clients must send, `local` whether only this machine reaches it."""
    # no pages of its own for documentation: they load scripts from other servers
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key, local=local)
    asker = service.served.asker
    facts = {
        "title": service.title,
        "models": list(service.served.models),
        "format": asker.name,
        "is_chat": asker.is_chat,
        "continues": asker.format is None,
        "needs_key": key is not None,
        "most": service.limits.max_new_tokens,
    }

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, err: HTTPException) -> Response:
        method, path = request.method, request.url.path
        text = {404: f"Unknown request URL: {method} {path}.", 405: f"{path} does not take {method}."}
        return JSONResponse(ApiError(err.status_code, text.get(err.status_code, str(err.detail))).body, err.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return JSONResponse(ApiError(500, "The server failed to answer; its log says why.").body, 500)

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> Response:
        nonce = secrets.token_urlsafe()
        headers = {"Content-Security-Policy": _POLICY.format(nonce), "X-Content-Type-Options": "nosniff"}
        page = files.render_template(PAGE, **facts, nonce=nonce)
        return HTMLResponse(page, headers={**headers, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"})

    @app.get("/health")
    async def health() -> Response:
        well = service.engine.is_alive and not service.closing
        return JSONResponse({"status": "ok" if well else "closing"}, 200 if well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.served.models]})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        try:
            _known(service, name)
        except ApiError as err:
            return JSONResponse(err.body, err.status)
        return JSONResponse(_model(service, name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _counted(service, request, "chat", partial(_answer, service, request, ChatRequest))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _counted(service, request, "completions", partial(_answer, service, request, TextRequest))

    return app


def _model(service: Service, name: str) -> dict[str, Any]:
    told = {"id": name, "object": "model", "created": service.begun, "owned_by": "fmstune"}
    return {**told, "parent": BASE if name == TUNED and BASE in service.served.models else None}


def _known(service: Service, name: str) -> None:
    models = service.served.models
    if name not in models:
        text = f"The model {name!r:.80} does not exist; this server has {' and '.join(models)}"
        raise ApiError(404, f"{text}{did_you_mean(name, models)}.", param="model", code="model_not_found")


class _Gone(Exception):
    """The client has gone away."""


class _Seen:
    """What of a request the counters name."""

    def __init__(self) -> None:
        self.model = ""


async def _counted(
    service: Service, request: Request, endpoint: str, answer: Callable[[_Seen], Awaitable[Response]]
) -> Response:
    """The answer of a route, or its error in the API's shape, counted."""
    seen, begun = _Seen(), time.perf_counter()
    try:
        response = await answer(seen)
    except ApiError as err:
        headers = {"Retry-After": "1"} if err.status in (429, 503) else {}
        response = JSONResponse(err.body, err.status, headers)
    except _Gone:
        service.counters.cancelled.inc()
        # no client reads it; the status is the one that nginx counts such requests under
        response = Response(status_code=499)
    service.counters.requests.labels(endpoint, seen.model, response.status_code).inc()
    if not isinstance(response, StreamingResponse):
        service.counters.seconds.labels(endpoint).observe(time.perf_counter() - begun)
    return response


async def _answer(
    service: Service, request: Request, kind: type[ChatRequest] | type[TextRequest], seen: _Seen
) -> Response:
    """The answer to one body; raises ApiError."""
    if service.closing:
        raise ApiError(503, "The server is shutting down.")
    parsed: Parsed[Any] = parse_request(kind, await _body(request))
    asked, headers = parsed.request, {"X-Ignored-Fields": ", ".join(parsed.ignored)} if parsed.ignored else {}
    _known(service, asked.model)
    seen.model = asked.model
    for name in parsed.ignored:
        service.counters.ignored.labels(name).inc()
    make = chat_questions if isinstance(asked, ChatRequest) else text_questions
    questions = await run_in_threadpool(make, asked, service.served, service.limits)
    if len(questions) > service.engine.max_waiting:
        text = f"{len(questions)} answers are asked for at once, and the queue holds {service.engine.max_waiting}."
        raise ApiError(400, text, param="n" if isinstance(asked, ChatRequest) else "prompt")
    prompts = [question.prompt for question in questions] if asked.return_token_ids else None
    shape = Shape(asked.model, isinstance(asked, ChatRequest), questions[0].top_logprobs is not None, prompts)
    answering = Answering(service.engine, questions)
    if asked.stream:
        tells = asked.stream_options is not None and asked.stream_options.include_usage
        events = _events(service, answering, shape, tells_usage=tells)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={**headers, "Cache-Control": "no-store"}
        )
    body = await _unless_gone(request, _whole(service, answering, shape))
    return JSONResponse(body, headers=headers)


async def _body(request: Request) -> Any:
    """The JSON of the body; raises ApiError where it is none, or too long."""
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > MOST_BYTES:
            raise ApiError(413, f"The body is longer than {MOST_BYTES:,} bytes.")
    try:
        return json.loads(found)
    except (ValueError, RecursionError) as err:
        raise ApiError(400, f"The body is not JSON ({err}).") from None


async def _whole(service: Service, answering: Answering, shape: Shape) -> dict[str, Any]:
    grown: list[list[Piece]] = [[] for _ in answering.questions]
    async with aclosing(answering.pieces()) as pieces:
        async for number, piece in pieces:
            grown[number].append(piece)
    _count_tokens(service, answering, shape)
    return shape.whole([joined(one) for one in grown], answering.usage)


async def _unless_gone(request: Request, answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The answer; where the client goes away before it, the places of its questions are freed."""

    async def goes() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answered, gone = asyncio.ensure_future(answer), asyncio.ensure_future(goes())
    try:
        await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise _Gone
        return answered.result()
    finally:
        for task in (answered, gone):
            task.cancel()
        await asyncio.gather(answered, gone, return_exceptions=True)


async def _events(service: Service, answering: Answering, shape: Shape, *, tells_usage: bool) -> AsyncIterator[str]:
    """The answer as server-sent events, the last of which says that it is the last."""
    begun, whole = time.perf_counter(), False
    # with usage told at the end, the other chunks say that they do not tell it
    more = {"usage": None} if tells_usage else {}
    try:
        for index in range(len(answering.questions)) if shape.is_chat else ():
            yield _event({**shape.begin(index), **more})
        async with aclosing(answering.pieces()) as pieces:
            async for number, piece in pieces:
                yield _event({**shape.grow(number, piece), **more})
        if tells_usage:
            yield _event(shape.close(answering.usage))
        whole = True
        yield "data: [DONE]\n\n"
    except ApiError as err:
        yield _event(err.body)
    finally:
        answering.engine.cancel(answering.tickets)
        if not whole:
            service.counters.cancelled.inc()
        service.counters.seconds.labels("chat" if shape.is_chat else "completions").observe(time.perf_counter() - begun)
        _count_tokens(service, answering, shape)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _count_tokens(service: Service, answering: Answering, shape: Shape) -> None:
    usage = answering.usage
    service.counters.prompt_tokens.labels(shape.model).inc(usage.prompt_tokens)
    service.counters.completion_tokens.labels(shape.model).inc(usage.completion_tokens)
