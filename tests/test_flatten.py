"""A tree of mappings becomes dotted names."""

from fmstune.flatten import flatten, leaves


def test_lists_and_empty_mappings_are_values() -> None:
    tree = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": {}, 3: None}
    assert flatten(tree) == {"a.b": 1, "a.c": [1, {"d": 2}], "e": {}, "3": None}


def test_paths_keep_a_dot_within_a_key_apart_from_one_between_keys() -> None:
    assert list(leaves({"a.b": {"c": 1}})) == [(("a.b", "c"), 1)]
