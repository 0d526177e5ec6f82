"""Rows of a batch as one line: each shared beginning once, each position with what it sees and what it predicts."""

import random
from typing import Any

import numpy as np
import pytest

from fmstune.data.prefix_sharing import layout
from fmstune.data.prefix_sharing.layout import LEAST_SAVED, Layout, Stretch, line_arguments

Row = dict[str, Any]


def row(tokens: str, trained: str = "") -> Row:
    """A token for each letter; those under a `t` are trained."""
    ids = [ord(letter) for letter in tokens]
    marks = trained.ljust(len(tokens))
    return {"input_ids": ids, "labels": [i if mark == "t" else -100 for i, mark in zip(ids, marks, strict=True)]}


def text(tokens: Any) -> str:
    return "".join(map(chr, tokens))


def lay_out(rows: list[Row]) -> Layout:
    """Share whatever can be shared, a token by chance too."""
    return layout.lay_out(rows, least_saved=1)


def segments(rows: list[Row]) -> list[str]:
    """Each segment with the rows that go through it."""
    found = lay_out(rows)
    return [f"{text(rows[s.rows[0]]['input_ids'][s.start : s.end])} {s.rows}" for s in found.segments]


def test_a_shared_beginning_stands_once_before_its_branches() -> None:
    assert segments([row("systemuser"), row("systemtool"), row("systemuses")]) == [
        "system (0, 1, 2)",
        "use (0, 2)",
        "tool (1,)",
        "r (0,)",
        "s (2,)",
    ]


def test_rows_that_share_nothing_stand_end_to_end() -> None:
    assert segments([row("ab"), row("cd")]) == ["ab (0,)", "cd (1,)"]


def test_equal_rows_stand_once() -> None:
    assert segments([row("abc", "  t"), row("abc", "  t")]) == ["abc (0, 1)"]


def test_a_row_that_is_the_beginning_of_another_has_no_segment_of_its_own() -> None:
    assert segments([row("abc"), row("abcde", "    t")]) == ["abc (0, 1)", "de (1,)"]


def test_each_branch_has_its_own_last_shared_token_where_two_train_what_follows() -> None:
    assert segments([row("abcx", "   t"), row("abcy", "   t")]) == ["ab (0, 1)", "cx (0,)", "cy (1,)"]


def test_the_last_shared_token_is_shared_where_one_branch_trains_what_follows() -> None:
    assert segments([row("abcx", "   t"), row("abcy", "    ")]) == ["abc (0, 1)", "x (0,)", "y (1,)"]


def test_a_trained_token_that_parts_from_two_others_beyond_an_untrained_neighbour_is_seen() -> None:
    """In the order of their tokens, the two neighbours at the parting train nothing there; their groups do."""
    rows = [row("aax", " t "), row("aay", "   "), row("aba", "   "), row("abz", " t ")]
    assert segments(rows)[:1] == ["aa (0, 1)"]


def test_split_turns_of_a_conversation_share_their_history_though_each_trains_its_own_answer() -> None:
    rows = [row("u1a1", "  tt"), row("u1a1u2a2", "      tt"), row("u1a1u2a2u3a3", "          tt")]
    found = lay_out(rows)
    assert segments(rows) == ["u1a1 (0, 1, 2)", "u2a2 (1, 2)", "u3a3 (2,)"]
    assert (found.tokens, found.positions, found.depth()) == (24, 12, 3)
    assert text(line_arguments(found, rows)["shift_labels"][line_arguments(found, rows)["targets"]]) == "a1a2a3"


def test_a_shared_trained_token_counts_as_often_as_rows_train_it() -> None:
    rows = [row("abcx", " t t"), row("abcy", " t t"), row("abcz", "   t")]
    line = line_arguments(lay_out(rows), rows)
    assert text(line["input_ids"]) == "abcxcycz"
    assert line["targets"].tolist() == [0, 2, 0, 4, 6]
    assert text(line["shift_labels"][line["targets"]]) == "bxbyz"


def test_the_line_says_where_segments_begin_and_which_keys_they_attend_to() -> None:
    rows = [row("abx"), row("aby")]
    line = line_arguments(lay_out(rows), rows)
    assert line["position_ids"].tolist() == [0, 1, 2, 2]
    assert line["cu_seq_lens_q"].tolist() == [0, 2, 3, 4]
    assert line["cu_seq_lens_k"].tolist() == [0, 2, 5, 8]
    assert line["key_index"].tolist() == [0, 1, 0, 1, 2, 0, 1, 3]
    assert (line["max_length_q"], line["max_length_k"]) == (2, 3)
    assert {line[name].dtype for name in ("cu_seq_lens_q", "cu_seq_lens_k")} == {np.dtype("int32")}
    assert line["key_index"].dtype == np.dtype("int64")


def test_segments_of_equal_shape_stand_together_after_their_parents() -> None:
    rows = [row(one) for one in ("abcdx", "abcdyz", "abcdz", "abxxx", "lmnopqr", "lmnopqs")]
    shapes = [(one.end, one.length) for one in lay_out(rows).segments]
    assert shapes == [(2, 2), (4, 2), (5, 3), (5, 1), (5, 1), (6, 6), (6, 2), (7, 1), (7, 1)]
    for number, one in enumerate(lay_out(rows).segments):
        assert one.parent is None or one.parent < number
        assert one.parent is None or lay_out(rows).segments[one.parent].end == one.start


def test_a_beginning_that_saves_next_to_nothing_stands_in_each_branch() -> None:
    rows = [row(LEAST_SAVED * "a" + one) for one in "xy"]
    assert layout.lay_out(rows).positions == LEAST_SAVED + 2
    shorter = [row((LEAST_SAVED - 1) * "a" + one) for one in "xy"]
    assert [one.parent for one in layout.lay_out(shorter).segments] == [None, None]
    # of three rows the same beginning saves twice as much
    assert layout.lay_out([*shorter, row((LEAST_SAVED - 1) * "a" + "z")]).positions == LEAST_SAVED + 2


def test_a_short_beginning_goes_to_the_longer_ones_that_follow_it() -> None:
    rows = [row(one) for one in ("ab" + 20 * "c" + "x", "ab" + 20 * "c" + "y", "abq")]
    assert [(one.start, one.end, one.rows) for one in layout.lay_out(rows).segments] == [
        (0, 3, (2,)),
        (0, 22, (0, 1)),
        (22, 23, (0,)),
        (22, 23, (1,)),
    ]


def test_rows_of_equal_tokens_with_labels_that_are_other_tokens_part_there() -> None:
    one, other = row("abcd", "tttt"), row("abcd", "tttt")
    other["labels"][2] = ord("z")
    line = line_arguments(lay_out([one, other]), [one, other])
    assert text(line["shift_labels"][line["targets"]]) == "bcdbzd"


@pytest.mark.slow
def test_a_path_may_be_longer_than_pythons_recursion() -> None:
    rows = [row("ab" * (turn + 1)) for turn in range(1100)]
    assert lay_out(rows).depth() == 1100


def test_the_first_token_is_not_shared_where_two_branches_train_the_second() -> None:
    assert segments([row("ab", " t"), row("ac", " t")]) == ["ab (0,)", "ac (1,)"]


def random_rows(seed: int) -> list[Row]:
    """Of few letters, so that they share at every depth, with any part of them trained."""
    draw = random.Random(seed)
    rows = []
    for _ in range(draw.randint(1, 9)):
        length = draw.randint(1, 12)
        rows.append(row("".join(draw.choices("ab", k=length)), "".join(draw.choices(" t", k=length))))
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_every_row_is_on_the_line_whole_and_predicts_what_it_would_alone(seed: int) -> None:
    rows = random_rows(seed)
    found = lay_out(rows)
    line = line_arguments(found, rows)
    wanted = []
    for number, (one, places) in enumerate(zip(rows, found.places, strict=True)):
        assert line["input_ids"][places].tolist() == one["input_ids"]
        assert line["position_ids"][places].tolist() == list(range(len(places)))
        assert (np.diff(places) > 0).all(), number
        wanted += [label for label in one["labels"][1:] if label != -100]
    assert line["shift_labels"][line["targets"]].tolist() == wanted
    assert set(np.flatnonzero(line["shift_labels"] != -100)) == set(line["targets"].tolist())
    # each position sees the tokens before it in its row, and itself
    for segment, at, keys in zip(found.segments, found.starts, found.keys(), strict=False):
        seen = line["input_ids"][keys].tolist()
        for one in segment.rows:
            assert rows[one]["input_ids"][: segment.end] == seen
        assert keys[segment.start :].tolist() == list(range(at, at + segment.length))
    assert found.positions <= found.tokens


def test_a_segment_tells_its_length() -> None:
    assert Stretch(3, 8, None, (0,)).length == 5
