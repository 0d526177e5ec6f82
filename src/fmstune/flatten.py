"""A tree of mappings as one level of names."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value with its path; a list is one value, and so is an empty mapping."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*above, str(key)))
    else:
        yield above, tree


def flatten(tree: Any) -> dict[str, Any]:
    """Return every value by its dotted name."""
    return {".".join(path): value for path, value in leaves(tree)}
