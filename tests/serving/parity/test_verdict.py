"""The verdict on literals: which token differs first, and why."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fmstune.serving.parity.verdict import Cause, Compared, Ends, Served, Trained, distance, find_faults

ROW = Trained(
    place="row 1 of data.eval",
    prompt_ids=[1, 7, 8, 9],
    answer_ids=[5, 2],
    log_probs=[-0.5, -0.1],
    greedy=[5, 2],
    margins=[3.0, 4.0],
    base_log_probs=[-4.0, -3.0],
)
SOUND = Served(prompt_ids=[1, 7, 8, 9], prompt_count=4, log_probs=[-0.5, -0.1], greedy=[5, 2], ended=True)


def text(ids: Any) -> str:
    return " ".join(map(str, ids))


def judged(
    served: Served, trained: Trained = ROW, *, padding: int | None = 0, stops: set[int] | None = None, **more: Any
) -> list[tuple[str, str]]:
    ends = Ends(frozenset({2}), padding, None if stops is None else frozenset(stops))
    compared = Compared([trained], [served], ends, text, text, **more)
    return [(fault.cause, fault.text) for fault in find_faults(compared)]


def test_nothing_is_found_where_all_is_equal_or_not_told() -> None:
    assert judged(SOUND, stops={2}) == []
    assert judged(Served(prompt_count=4, greedy_text="5 2", ended=True)) == []
    # a server may leave out the token that ends an answer
    assert judged(replace(SOUND, greedy=[5])) == []
    assert judged(replace(SOUND, log_probs=[-0.501, -0.1])) == []


@pytest.mark.parametrize(
    ("ids", "cause", "first"),
    [
        ([1, 1, 7, 8, 9], Cause.doubled, "token 2 of the prompt is '1' (1), '7' (7) in training"),
        ([8, 9], Cause.cut, "token 1 of the prompt is '8' (8), '1' (1) in training"),
        ([1, 9], Cause.cut, "token 2 of the prompt is '9' (9)"),
        ([1, 7], Cause.cut, "token 3 of the prompt is not there, '8' (8) in training"),
        ([1, 7, 6, 9], Cause.template, "token 3 of the prompt is '6' (6), '8' (8) in training"),
        ([1, 7, 8, 9, 3], Cause.template, "token 5 of the prompt is '3' (3), not there in training"),
    ],
)
def test_a_prompt_of_other_tokens_is_told_by_the_first(ids: list[int], cause: Cause, first: str) -> None:
    ((found, said),) = judged(replace(SOUND, prompt_ids=ids))
    assert found == cause and first in said


def test_a_text_in_other_tokens_is_of_another_vocabulary() -> None:
    assert judged(replace(SOUND, prompt_ids=[1, 78, 9], prompt_text="1 7 8 9"))[0][0] == Cause.base


@pytest.mark.parametrize(("count", "cause"), [(5, Cause.doubled), (2, Cause.cut), (9, Cause.template)])
def test_a_number_of_tokens_is_what_some_servers_tell(count: int, cause: Cause) -> None:
    ((found, said),) = judged(Served(prompt_count=count))
    assert found == cause and "which token differs first is not known" in said


def test_weights_are_told_by_what_explains_the_log_probabilities() -> None:
    def guesses() -> dict[Cause, list[list[float]]]:
        return {Cause.precision: [[-0.6, -0.2]], Cause.end_is_padding: [[-0.9, -2.0]]}

    def cause(found: list[float], explain: Callable[[], Any] = guesses) -> str:
        ((name, said),) = judged(replace(SOUND, log_probs=found), explain=explain)
        assert "token 1 of the answer, '5' (5), has " in said
        return name

    assert cause([-4.0, -3.0]) == Cause.adapter
    assert cause([-0.55, -0.1]) == Cause.precision
    assert cause([-0.9, -2.0]) == Cause.end_is_padding
    assert cause([-9.0, -1.0]) == Cause.base
    assert cause([-2.0, -2.0], lambda: {Cause.adapter: [[-2.0, -2.0]]}) == Cause.adapter
    # meant so
    assert judged(replace(SOUND, log_probs=[-0.6, -0.1]), dtype="bfloat16") == []


def test_an_adapter_that_moves_less_than_rounding_is_still_told_from_its_base() -> None:
    row = replace(ROW, log_probs=[-0.5, -0.1], base_log_probs=[-0.53, -0.14])
    assert judged(replace(SOUND, log_probs=[-0.53, -0.14]), row, dtype="bfloat16")[0][0] == Cause.adapter
    assert judged(replace(SOUND, log_probs=[-0.505, -0.11]), row, dtype="bfloat16") == []


def test_an_end_that_serving_does_not_know_is_missing_or_padding() -> None:
    assert judged(SOUND, stops={3})[0][0] == Cause.end_missing
    assert judged(SOUND, stops={0})[0][0] == Cause.end_is_padding
    on = replace(SOUND, greedy=[5, 2, 7, 7], ended=False)
    ((cause, said),) = judged(on)
    assert cause == Cause.end_missing
    assert "token 2 of the answer, '2' (2), ends it in training, and serving goes on" in said
    assert judged(on, padding=2)[0][0] == Cause.end_is_padding
    assert judged(Served(greedy_text="5 2 7", ended=False))[0][0] == Cause.end_missing


def test_answers_differ_by_an_early_end_or_by_sampling_unless_two_tokens_are_as_likely() -> None:
    row = replace(ROW, answer_ids=[5, 6, 2], log_probs=[-0.1] * 3, greedy=[5, 6, 2], margins=[3.0, 3.0, 3.0])
    row = replace(row, base_log_probs=None)
    equal = replace(SOUND, log_probs=[-0.1] * 3)
    assert judged(replace(equal, greedy=[5]), row)[0][0] == Cause.other_end
    assert judged(replace(equal, greedy=[5, 7, 2]), row)[0][0] == Cause.sampling
    assert judged(replace(equal, greedy=[5, 7, 2]), replace(row, margins=[3.0, 0.001, 3.0])) == []


def test_tokens_that_neither_side_expects_do_not_count() -> None:
    assert distance([[-20.0, -1.0]], [[-30.0, -1.0]]) == 0
    assert distance([[-1.0, -1.0]], [[-1.0, -2.0]]) == pytest.approx(0.5**0.5)
