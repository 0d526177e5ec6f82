"""Every row and every token is counted, and the sums add up."""

import copy
import dataclasses
import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.choices import OverLength, Untrainable
from fmstune.config.job import Data
from fmstune.data.dataset import prepare_data
from fmstune.data.ledger import Ledger
from tests.data.test_dataset import GOOD, TEMPLATE, prepare, text, write
from tests.tokenizers_for_tests import gpt2_style


def test_every_fate_of_a_row_is_counted() -> None:
    write(
        [
            *GOOD,
            text("a" + TEMPLATE + " b", " yes"),
            "no template",
            text("empty", " "),
            text("long prompt " * 9, " yes"),
            text("a", " yes" * 20),
            "also none",
            text("thanks :", ""),
        ]
    )
    ledger = prepare(max_length=20, untrainable=Untrainable.drop).ledger
    assert dataclasses.replace(ledger, lengths={}) == Ledger(
        rows_read=10,
        rows_formatted=8,
        rows_with_several_templates=1,
        rows_without_template=2,
        rows_without_answer=3,
        rows_too_long=0,
        rows_trained=5,
        rows_truncated=1,
        tokens_total=65,
        tokens_trained=25,
        tokens_cut=26,
        tokens_straddling=0,
        longest=88,
        longest_row=7,
    )
    assert sum(ledger.lengths.values()) == 6
    assert (ledger.rows_dropped, ledger.tokens_masked) == (5, 40)


def test_of_rows_of_the_same_length_the_first_is_the_longest() -> None:
    write([GOOD[0], GOOD[1], GOOD[1]])
    assert prepare().ledger.longest_row == 2


def test_rows_too_long_can_be_dropped() -> None:
    write([*GOOD, text("a", " yes" * 20)])
    ledger = prepare(max_length=20, over_length=OverLength.drop).ledger
    assert (ledger.rows_trained, ledger.rows_too_long, ledger.rows_truncated) == (3, 1, 0)


ANYTHING = st.lists(
    st.sampled_from(
        ["", "x", TEMPLATE, text("a", " yes"), text("thanks :", ")"), text("a" * 30, "b"), text("a", "b" * 30)]
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=ANYTHING, over_length=st.sampled_from([OverLength.truncate, OverLength.drop]))
def test_rows_and_tokens_add_up(texts: list[str], over_length: OverLength) -> None:
    write([*texts, GOOD[0]])
    prepared = prepare(max_length=12, over_length=over_length, untrainable=Untrainable.drop)
    ledger, rows = prepared.ledger, prepared.train.to_list()
    assert ledger.rows_read == len(texts) + 1 == ledger.rows_trained + ledger.rows_dropped
    assert ledger.rows_formatted == ledger.rows_read - ledger.rows_without_template
    assert ledger.rows_trained == len(rows)
    assert ledger.tokens_total == sum(len(row["input_ids"]) for row in rows)
    assert ledger.tokens_trained == sum(label != -100 for row in rows for label in row["labels"])
    assert all(row["labels"][-1] == 0 and sum(label != -100 for label in row["labels"]) > 1 for row in rows)
    assert max(ledger.lengths) == ledger.longest


def test_the_ledger_is_printed_with_its_sums() -> None:
    write([*GOOD, "no template"])
    assert prepare(untrainable=Untrainable.drop).ledger.lines() == [
        "rows    4 = 3 trained + 1 dropped",
        "        formatted: 3 of 4",
        "        dropped: 1 without template, 0 without answer, 0 too long",
        "        trained: 0 truncated; 0 with more than one response template (the last one counts)",
        "tokens  31 = 7 trained (22.6%) + 24 masked",
        "        0 cut off, 0 straddling a boundary",
        "length  13 tokens in row 2, the longest",
    ]


def test_rows_of_split_conversations_are_counted() -> None:
    tokenizer = copy.deepcopy(gpt2_style())
    # earlier answers lose their first letter
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + (m.content if loop.last or m.role == 'user' else m.content[1:]) }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 3, "abcdef", strict=True)]
    rows = [{"messages": turns}, {"messages": turns[:2]}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepare_data(Data(format={"_target_": "fmstune.data.formats.chat"}, train="rows.jsonl"), tokenizer, 42)
    ledger = found.ledger
    assert (ledger.rows_read, ledger.rows_split, ledger.rows_added, ledger.rows_trained) == (2, 1, 2, 4)
    assert ledger.lines()[0] == "rows    2 + 2 by splitting 1 conversation = 4 trained + 0 dropped"
    assert found.sources[0].rows["number"] == [1, 1, 1, 2]


def test_the_sum_of_ledgers_counts_all_rows_and_has_the_longest() -> None:
    one = Ledger(rows_read=3, tokens_total=10, longest=7, longest_row=2, lengths={7: 1, 3: 2})
    two = Ledger(rows_read=2, tokens_total=5, longest=9, longest_row=1, lengths={9: 1, 3: 1})
    assert Ledger.total([one, two]) == Ledger(
        rows_read=5, tokens_total=15, longest=9, longest_row=1, lengths={7: 1, 3: 3, 9: 1}
    )


def test_rows_that_are_also_held_out_leave_the_ledger() -> None:
    ledger = Ledger(rows_read=3, rows_trained=3, tokens_total=9, tokens_trained=4)
    assert ledger.without([[-100, 5, 6], [-100, -100, 7]]) == Ledger(
        rows_read=3, rows_trained=1, rows_held_out_too=2, tokens_total=3, tokens_trained=1
    )
