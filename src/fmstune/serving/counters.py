"""What the server counts, as Prometheus reads it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Counters:
    """The counters of one server."""

    def __init__(self, *, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """`waiting` and `running` say how many requests do at the moment."""
        self._registry = own = CollectorRegistry()
        names = ("endpoint", "model", "status")
        self.requests = Counter("fmstune_requests", "Requests by status", names, registry=own)
        self.prompt_tokens = Counter("fmstune_prompt_tokens", "Tokens of prompts", ["model"], registry=own)
        self.completion_tokens = Counter("fmstune_completion_tokens", "Tokens of answers", ["model"], registry=own)
        self.cancelled = Counter("fmstune_cancelled", "Requests whose client went away", registry=own)
        self.ignored = Counter(
            "fmstune_ignored_fields", "Fields of requests that have no effect", ["field"], registry=own
        )
        self.seconds = Histogram(
            "fmstune_request_seconds", "Time to the end of an answer", ["endpoint"], buckets=SECONDS, registry=own
        )
        for name, text, value in (
            ("fmstune_requests_waiting", "Prompts that wait", waiting),
            ("fmstune_requests_running", "Prompts that are being answered", running),
        ):
            Gauge(name, text, registry=own).set_function(value)

    def text(self) -> bytes:
        """All counters in Prometheus' text format."""
        return bytes(generate_latest(self._registry))
