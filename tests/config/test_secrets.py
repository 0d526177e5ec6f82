"""No secret of an address is written down."""

import pytest

from fmstune.config import secrets


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        (
            "fmstune tracking.mlflow.tracking_uri=https://me:pw@host/x",
            "fmstune tracking.mlflow.tracking_uri=https://…@host/x",
        ),
        ("fmstune model.path=hf_" + "a" * 30, "fmstune model.path=hf_…"),
        ("fmstune data.train=s3://bucket/a@b", "fmstune data.train=s3://bucket/a@b"),
    ],
)
def test_a_password_that_was_typed_is_left_out(typed: str, recorded: str) -> None:
    assert secrets.left_out(typed) == recorded
