"""Who may ask the server: those with the key, and of web pages only its own."""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fmstune.config.after_training.serving import API_KEY, LOCAL_HOSTS
from fmstune.serving.api_requests import ApiError

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = ("/", "/health")
"""Paths that tell nothing of the model, and need no key."""


class Guard:
    """An ASGI application in front of another, which it keeps from those who may not ask."""

    def __init__(self, app: App, *, key: str | None, local: bool) -> None:
        """`local`: the server listens at an address that only this machine reaches."""
        self.app, self.key, self.local = app, key, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or answer it with the error."""
        if scope["type"] == "http" and (error := self.refusal(scope)) is not None:
            body = json.dumps(error.body).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers += [(b"www-authenticate", b"Bearer")] if error.status == 401 else []
            await send({"type": "http.response.start", "status": error.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why this request is not answered; None where it is."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        # a page of another site may have its own name lead to this machine (DNS rebinding)
        if self.key is None and self.local and _name(host) not in LOCAL_HOSTS:
            text = f"The server is for this machine, and was asked as {host!r}; ask http://localhost, or set {API_KEY}."
            return ApiError(403, text)
        if origin is not None and origin.partition("://")[2] != host:
            return ApiError(403, f"A page of {origin!r} may not ask this server; only its own page may.")
        if (
            scope["method"] == "POST"
            and headers.get("content-type", "").partition(";")[0].strip() != "application/json"
        ):
            # a form of any page can send the other types
            return ApiError(415, "The body must be JSON; send Content-Type: application/json.")
        if self.key is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.key.encode())
            if kind.lower() != "bearer" or not right:
                text = f"Incorrect or missing API key; send Authorization: Bearer KEY with the key of {API_KEY}."
                return ApiError(401, text, code="invalid_api_key")
        return None


def _name(host: str) -> str | None:
    """The name in a Host header, without the port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
