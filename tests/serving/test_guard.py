"""Who may ask: those with the key, and of web pages only the server's own."""

import pytest

from fmstune.serving.guard import Guard

KEY = "s3cret"


async def _app(*_: object) -> None: ...


def refused(key: str | None, method: str = "POST", path: str = "/v1/completions", **given: str) -> int | None:
    """The status of the refusal; None where the request is handed on."""
    headers = {"host": "127.0.0.1:8000", "content-type": "application/json", **given}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    error = Guard(_app, key=key, local=True).refusal({"method": method, "path": path, "headers": raw})
    return None if error is None else error.status


@pytest.mark.parametrize(
    ("key", "given", "status"),
    [
        (None, {}, None),
        (None, {"host": "localhost:8000"}, None),
        (None, {"host": "[::1]:8000"}, None),
        (None, {"host": "evil.example:8000"}, 403),
        (None, {"host": ""}, 403),
        (None, {"host": "["}, 403),
        (None, {"origin": "http://127.0.0.1:8000"}, None),
        (None, {"origin": "http://evil.example"}, 403),
        (None, {"origin": "http://127.0.0.1:9000"}, 403),
        (None, {"origin": "null"}, 403),
        (None, {"content_type": "text/plain"}, 415),
        (None, {"content_type": "application/json; charset=utf-8"}, None),
        (KEY, {}, 401),
        (KEY, {"authorization": f"Bearer {KEY}"}, None),
        (KEY, {"authorization": f"bearer {KEY}"}, None),
        (KEY, {"authorization": f"Basic {KEY}"}, 401),
        (KEY, {"authorization": "Bearer s3cre"}, 401),
        (KEY, {"authorization": "Bearer ünïcode"}, 401),
        # behind a proxy with a name of its own
        (KEY, {"host": "models.example", "authorization": f"Bearer {KEY}"}, None),
    ],
)
def test_a_request_is_handed_on_or_refused(key: str | None, given: dict[str, str], status: int | None) -> None:
    assert refused(key, **given) == status


def test_the_page_and_the_health_need_no_key_and_the_metrics_do() -> None:
    assert [refused(KEY, "GET", path) for path in ("/", "/health", "/metrics", "/v1/models")] == [None, None, 401, 401]
