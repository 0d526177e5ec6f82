"""A child's return code becomes the exit code of the command."""

import signal

import pytest

from fmstune.exit_codes import exit_code_of


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, 0),
        (2, 2),
        (75, 75),
        (-signal.SIGINT, 130),
        (-signal.SIGTERM, 130),
        (-signal.SIGKILL, 1),
        (-signal.SIGSEGV, 1),
    ],
)
def test_exit_code(code: int, expected: int) -> None:
    assert exit_code_of(code) == expected
