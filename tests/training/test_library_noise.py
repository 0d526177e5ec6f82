"""Logs, threads and the hub's client in a runner."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import http_backoff

from fmstune.errors import UserError
from fmstune.models import hub_internals
from fmstune.training import library_noise


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("4,2", 4), (" 2 ", 2)])
def test_the_first_number_of_openmp_counts(given: str, threads: int) -> None:
    assert library_noise.first_level(given) == threads


@pytest.mark.parametrize("given", ["abc", "0", "-1", ",2", "1.5", "1025", "99999999999"])
def test_a_number_of_threads_that_openmp_would_ignore_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=f"^OMP_NUM_THREADS must be a number from 1 to 1,024, got '{given}'; unset"):
        library_noise.first_level(given)


def test_a_wrong_number_of_threads_ends_like_any_wrong_input(
    fmstune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "abc")
    result = fmstune("modules")
    assert (result.code, result.out) == (2, "")
    said = "OMP_NUM_THREADS must be a number from 1 to 1,024, got 'abc'; unset it, or set launcher.threads"
    assert result.err == f"fmstune: error: {said}\n"


def test_the_hub_is_not_tried_again_where_no_connection_comes_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would wait a second before the second try, and 23 in all; an answer that breaks off is tried again."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_internals.fail_at_once_without_a_network()
    began = time.monotonic()
    with pytest.raises(Exception, match="refused") as raised:
        http_backoff("HEAD", "http://127.0.0.1:9/none")
    assert type(raised.value).__name__ == "ConnectError"
    assert time.monotonic() - began < 1
    kept = {kind.__name__ for kind in http_backoff.__kwdefaults__["retry_on_exceptions"]}
    assert {"TimeoutException", "ReadError"} <= kept
