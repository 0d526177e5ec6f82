"""What readers of a run folder count on in its JSON files."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of value."""

    words: str
    holds: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


_TEXT = Kind("a text", _is_text)
_NUMBER = Kind("a number", lambda value: type(value) in (int, float))
_TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(map(_is_text, value)))
_MAPPING = Kind("a mapping", _is_mapping)
_ROWS = Kind("a list of mappings", lambda value: isinstance(value, list) and all(map(_is_mapping, value)))
_MAPPINGS = Kind("a mapping of mappings", lambda value: _is_mapping(value) and all(map(_is_mapping, value.values())))
_NAMED_TEXTS = Kind("a mapping of texts", lambda value: _is_mapping(value) and all(map(_is_text, value.values())))

_EXPECTED: Mapping[str, Mapping[str, Kind]] = {
    "summary.json": {
        "status": _TEXT,
        **dict.fromkeys(("error", "plan", "plan.memory", "base", "tuned", "data"), _MAPPING),
        **dict.fromkeys(("data.train", "data.held_out"), _MAPPING),
        **dict.fromkeys(("base.sets", "tuned.sets", "data.sources", "data.held_out_sets", "tracking"), _MAPPINGS),
        "legs": _ROWS,
    },
    "sources.json": {"words": _TEXTS, "sources": _NAMED_TEXTS},
    "samples.json": {"rows": _ROWS},
    "learning_rate.json": {"rate": _NUMBER, "probes": _ROWS},
    "tracking.json": {"": _MAPPINGS},
    "lock.json": dict.fromkeys(("packages", "data_hashes", "data_rows"), _MAPPING),
}
"""By file and dotted name; null stands for what is not known."""


def faults(file: str, found: Any) -> Iterator[str]:
    """Yield what a run does not write like this into the file of this name."""
    if not isinstance(found, dict):
        yield "must hold a mapping of names to values"
        return
    for place, kind in _EXPECTED.get(file, {}).items():
        value: Any = found
        for part in filter(None, place.split(".")):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and not kind.holds(value):
            yield f"{place or 'it'} must be {kind.words}"
