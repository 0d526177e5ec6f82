import pytest

from fmstune.units import size


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 MiB"), (2**20, "1.0 MiB"), (3 * 2**29, "1.50 GiB")])
def test_bytes_are_shown_in_mib_or_gib(count: int, text: str) -> None:
    assert size(count) == text
