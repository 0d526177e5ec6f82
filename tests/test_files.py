"""Names of shipped files become paths."""

from pathlib import Path

import pytest

from fmstune.errors import UserError
from fmstune.files import resolve


def test_a_shipped_file_is_found() -> None:
    assert Path(resolve("package:tiny_llama/config.json")).is_file()


def test_other_text_is_left_as_it_is() -> None:
    assert resolve("owner/name") == "owner/name"


@pytest.mark.parametrize("name", ["package:tiny_lama", "package:tiny_llama/../../job.py", "package:"])
def test_what_is_not_shipped_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="package:"):
        resolve(name)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'tiny_llama'"):
        resolve("package:tiny_lama")
