"""What `fmstune serve` and `fmstune chat` can be asked."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from fmstune.config.after_training.places import File, Loading, OnBase, Trusting
from fmstune.config.flags import NOT_TYPED, POSITIONAL, As

ServingEngine = StrEnum("ServingEngine", ["transformers", "vllm"])
"""What computes the answers of `fmstune serve`."""
API_KEY = "FMSTUNE_API_KEY"
"""Environment variable: the key that clients of the server must send."""
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
"""Addresses that only programs of this machine reach."""


@dataclass(frozen=True, kw_only=True)
class _Answering(Loading, OnBase, Trusting):
    model: Annotated[str, POSITIONAL]
    data_format: Annotated[str | None, As("CHOICE", ("--format",))] = None
    """Data format that the model is asked in (the run's own)."""
    format: Annotated[dict[str, Any] | None, NOT_TYPED] = None
    """`_target_` and settings of that format."""
    no_base: bool = False
    """Leave the base out."""
    run_base: Annotated[str | None, NOT_TYPED] = None
    run_base_revision: Annotated[str | None, NOT_TYPED] = None
    max_new_tokens: int = 512
    """Most tokens of an answer."""


@dataclass(frozen=True, kw_only=True)
class Serving(_Answering):
    """Serve a tuned model and its base at an address, as OpenAI's API does."""

    host: Annotated[str, As("ADDRESS")] = "127.0.0.1"
    """Address to listen at; others need a key in FMSTUNE_API_KEY."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    batch_size: int | None = None
    """Most greedy requests in one batch (8 in float32, else 1)."""
    max_waiting: int = 64
    """Most requests that wait; further ones are refused with 429."""
    grace: int = 10
    """Seconds that running requests have to end after Ctrl-C or SIGTERM."""
    engine: ServingEngine = ServingEngine.transformers
    """vllm prints its commands, and runs them if installed."""


@dataclass(frozen=True, kw_only=True)
class Talk(_Answering):
    """Talk with a tuned model in the terminal."""

    compare: bool = False
    """Let the tuned model and its base answer, side by side."""
    system: Annotated[str | None, As("TEXT")] = None
    """What the conversation begins with, as its system turn."""
    temperature: float | None = None
    """Draw tokens, above 1 more evenly; else take the likeliest."""
    top_p: float | None = None
    """With --temperature: draw from tokens of this total probability."""
    seed: int | None = None
    """With --temperature: seed of the draws."""
    history: File | None = None
    """File of what was typed, for the arrow keys (chat_history in the cache)."""
