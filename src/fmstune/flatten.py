"""A tree of mappings as one level of names."""

from collections.abc import Callable, Iterator, Mapping
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


def flat_differences(one: Any, other: Any, show: Callable[[Any], str], absent: str) -> Iterator[tuple[str, str, str]]:
    """Yield the dotted name and both values, as `show` writes them, of what differs; an empty mapping is absent."""
    first, second = ({name: show(leaf) for name, leaf in flatten(tree).items() if leaf != {}} for tree in (one, other))
    for name in {**first, **second}:
        if (here := first.get(name, absent)) != (there := second.get(name, absent)):
            yield name, here, there
