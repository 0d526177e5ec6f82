"""Rows are tokenised once, every one of them is accounted for, and the cache never gives back what changed."""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest
from datasets import Dataset

from fmstune import cache
from fmstune.config.choices import Overlap, OverLength, Untrainable
from fmstune.config.job import Data
from fmstune.data import tokenized, tokens
from fmstune.data.dataset import Prepared, prepare_data
from fmstune.errors import UserError
from tests.fixtures import forked
from tests.tokenizers_for_tests import gpt2_style, llama_style

TEMPLATE = "\n### Label:"
FORMAT = {"_target_": "fmstune.data.formats.text", "text_field": "output", "response_template": TEMPLATE}
SEED = 42
END = "<|endoftext|>"


def text(prompt: str, answer: str) -> str:
    return f"{prompt}{TEMPLATE}{answer}"


GOOD = [text("a", " yes"), text("the phone broke", " complaint"), text("thanks", " no")]


def write(texts: list[Any], name: str = "train.jsonl") -> str:
    Path(name).write_text("".join(json.dumps({"output": text}) + "\n" for text in texts), encoding="utf-8")
    return name


def job_data(**changes: Any) -> Data:
    return Data(**{"format": FORMAT, "train": "train.jsonl", "max_length": 64} | changes)


def prepare(seed: int = SEED, tokenizer: Any = None, **changes: Any) -> Prepared:
    return prepare_data(job_data(**changes), tokenizer or gpt2_style(), seed)


def problems_of(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        prepare(**changes)
    return tuple(map(str, raised.value.problems))


def gpt2_style_with_smile() -> Any:
    """One that makes a single token of `:)`, wherever it stands."""
    tokenizer = type(gpt2_style())(vocab=gpt2_style().get_vocab(), merges=[])
    tokenizer.add_tokens([":)"])
    return tokenizer


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the size of each batch that is tokenised."""
    sizes: list[int] = []
    encode = tokens.encode_rows

    def counting(batch: list[Any], *rest: Any) -> Any:
        sizes.append(len(batch))
        return encode(batch, *rest)

    monkeypatch.setattr(tokens, "encode_rows", counting)
    return sizes


# What comes out


def test_training_rows_have_ids_and_labels_in_file_order_and_are_named_by_source_and_number() -> None:
    write(GOOD[:2])
    made = prepare().train
    assert [(row["source"], row["number"]) for row in made] == [(0, 1), (0, 2)]
    assert texts_and_labels(made) == [
        {"input_ids": [65, 199, 258, 265, 26, 221, 282, 0], "labels": [-100, -100, -100, -100, -100, 221, 282, 0]},
        {"input_ids": [84, 72, 69, 337, 69, 330, 313, 199, 258, 265, 26, 290, 0], "labels": [*[-100] * 11, 290, 0]},
    ]


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [(text("a", " yes"), "a\n### Label:", " yes"), ("thanks\n### Label:)", "thanks\n### Label", ":)")],
    ids=["plain", "a token on both sides of the boundary"],
)
def test_held_out_rows_keep_the_tokens_before_the_first_trained_one_and_the_trained_ones_with_their_end(
    row: str, prompt: str, answer: str
) -> None:
    write(GOOD)
    write([row], "eval.jsonl")
    (part,) = prepare(eval="eval.jsonl", tokenizer=gpt2_style_with_smile()).held_out
    decoded = [gpt2_style_with_smile().decode(part.rows[0][name]) for name in ("prompt_ids", "answer_ids")]
    assert decoded == [prompt, answer + END]
    assert part.rows[0]["prompt_ids"] + part.rows[0]["answer_ids"] == part.rows[0]["input_ids"]


def test_the_prompt_of_several_answers_ends_at_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("chats.py").write_text(
        "from fmstune.data.formats import Segment\n"
        "def chat(row):\n"
        "    return [Segment(text, n % 2 == 1) for n, text in enumerate(row['output'].split('|'))]\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    write(["q|a"])
    write(["q1|a1|q2|a2"], "eval.jsonl")
    (part,) = prepare(eval="eval.jsonl", format={"_target_": "chats.chat"}).held_out
    decoded = [gpt2_style().decode(part.rows[0][name]) for name in ("prompt_ids", "answer_ids")]
    assert decoded == ["q1a1q2", "a2" + END]


def test_rows_in_more_than_one_batch_are_all_there(tokenised: list[int]) -> None:
    write([text(f"row {number}", " yes") for number in range(2500)])
    prepared = prepare()
    assert tokenised == [1000, 1000, 500]
    assert len(prepared.train) == prepared.ledger.rows_trained == 2500
    assert gpt2_style().decode(prepared.train[2499]["input_ids"]).startswith("row 2499\n")


def test_the_rows_that_ship_prepare_without_a_loss() -> None:
    prepared = prepare(train="package:complaints/train.jsonl", eval="package:complaints/held_out.jsonl", max_length=400)
    assert prepared.ledger.rows_read == prepared.ledger.rows_trained == 480
    assert [part.ledger.rows_trained for part in prepared.held_out] == [120]
    assert prepared.shared == ()


# What is wrong with the data


def test_all_problems_of_both_splits_are_told_of_at_once() -> None:
    write([GOOD[0], "no template", 3, text("a", ""), text("a" * 99, " yes"), text("a", " yes" * 99), "none either"])
    Path("eval.jsonl").write_text('{"outptu": "x"}\nbroken\n')
    assert problems_of(eval="eval.jsonl", over_length=OverLength.error) == (
        r"train.jsonl, rows 2, 7: column 'output' does not contain the response template '\n### Label:'; "
        "fix the row, set data.response_template or data.untrainable=drop",
        "train.jsonl, row 3: column 'output' must hold a string, found the int 3; write it as text",
        "train.jsonl, row 4: the answer is empty; fix the row, or set data.untrainable=drop",
        "train.jsonl, rows 5, 6: more than data.max_length=64 tokens; "
        "raise it, or set data.over_length to truncate or drop",
        "eval.jsonl, row 1: no column 'output'; did you mean 'outptu'?; its columns are 'outptu'",
        "eval.jsonl:2: broken JSON (Expecting value at column 1); each line is one row",
    )


def test_an_answer_that_is_cut_away_is_a_problem() -> None:
    write([*GOOD, text("long prompt " * 9, " yes")])
    assert problems_of(max_length=20) == (
        "train.jsonl, row 4: data.max_length=20 leaves no token of the answer; raise it, or set data.untrainable=drop",
    )


def test_a_column_that_is_missing_is_a_problem_also_where_rows_may_be_dropped() -> None:
    Path("train.jsonl").write_text('{"text": "x"}\n')
    assert "no column 'output'" in problems_of(untrainable=Untrainable.drop)[0]


def test_a_split_without_a_row_left_is_a_problem() -> None:
    write(["no template"])
    (problem,) = problems_of(untrainable=Untrainable.drop)
    assert problem.startswith("data.train: no row is left in the train split\nrows    1 = 0 trained + 1 dropped")


def test_a_format_that_fails_says_at_which_row(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("failing.py").write_text("def fail(row):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(Path.cwd())
    write(GOOD)
    with pytest.raises(ZeroDivisionError) as raised:
        prepare(format={"_target_": "failing.fail"})
    assert raised.value.__notes__ == ["while formatting train.jsonl, row 1"]


def test_nothing_is_left_in_the_cache_by_rows_that_were_refused() -> None:
    write(["no template"])
    problems_of()
    assert list((cache.place() / "tokenized").iterdir()) == []


# Holding out


def texts_and_labels(rows: Any) -> list[dict[str, list[int]]]:
    """The rows without what names them."""
    return rows.select_columns(["input_ids", "labels"]).to_list()


def texts_of(rows: Any) -> list[str]:
    return [gpt2_style().decode(row["input_ids"]).split("\n")[0] for row in rows]


SAME = (
    "data.eval holds the same rows as data.train; name other rows, "
    "or set data.eval=null and data.eval_fraction to hold some out"
)


def test_held_out_rows_that_are_trained_are_a_problem_under_whatever_name() -> None:
    write(GOOD)
    write(GOOD, "eval.jsonl")
    assert problems_of(eval="eval.jsonl") == problems_of(eval="train.jsonl", max_rows=1) == (SAME,)


def test_files_of_both_splits_that_are_not_there_are_told_of_at_once() -> None:
    assert problems_of(train="none.jsonl", eval="neither.jsonl") == (
        "data.train: no file none.jsonl",
        "data.eval: no file neither.jsonl",
    )


# The cache


def test_a_second_call_maps_what_the_first_one_tokenised(tokenised: list[int]) -> None:
    write(GOOD)
    write(GOOD[:1], "eval.jsonl")
    first, second = prepare(eval="eval.jsonl"), prepare(eval="eval.jsonl")
    assert tokenised == [3, 1]
    assert (first.cached, second.cached) == (False, True)
    assert second.train.to_list() == first.train.to_list()
    assert second.ledger == first.ledger
    assert [part.ledger for part in second.held_out] == [part.ledger for part in first.held_out]
    assert second.identity["data_hashes"] == first.identity["data_hashes"]
    assert set(first.identity["data_hashes"]) == {"data.train", "data.eval"}
    assert second.train.cache_files


def test_the_same_rows_under_another_name_need_no_second_tokenising(tokenised: list[int]) -> None:
    write(GOOD)
    prepare()
    Path("train.jsonl").rename("renamed.jsonl")
    assert prepare(train="renamed.jsonl").cached


def other_template() -> Prepared:
    return prepare(format=FORMAT | {"response_template": "Label:"})


def other_rows() -> Prepared:
    write(GOOD[:2])
    return prepare()


def other_tokenizer() -> Prepared:
    return prepare(tokenizer=llama_style())


CHANGES: dict[str, Callable[[], Prepared]] = {
    "rows": other_rows,
    "template": other_template,
    "tokenizer": other_tokenizer,
    "max_length": lambda: prepare(max_length=63),
    "over_length": lambda: prepare(over_length=OverLength.drop),
    "untrainable": lambda: prepare(untrainable=Untrainable.drop),
    "max_rows": lambda: prepare(max_rows=3),
    "held-out rows": lambda: prepare(eval=write(GOOD[:1], "eval.jsonl")),
    "fraction": lambda: prepare(eval_fraction=0.4),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_is_tokenised_again(name: str, tokenised: list[int]) -> None:
    write(GOOD)
    prepare()
    assert not CHANGES[name]().cached
    assert len(tokenised) >= 2


def test_every_change_of_the_tokenizer_makes_another_one() -> None:
    write(GOOD)
    changed = type(gpt2_style())(vocab=gpt2_style().get_vocab(), merges=[])
    assert not prepare(tokenizer=changed).cached
    changed.add_tokens(["phone"])
    assert not prepare(tokenizer=changed).cached
    changed.split_special_tokens = True
    assert not prepare(tokenizer=changed).cached
    changed.eos_token = "phone"
    assert not prepare(tokenizer=changed).cached
    assert prepare(tokenizer=changed).cached


def test_padding_and_truncation_of_the_tokenizer_do_not_matter() -> None:
    write(GOOD)
    own = type(gpt2_style())(vocab=gpt2_style().get_vocab(), merges=[])
    own.backend_tokenizer.enable_truncation(max_length=3)
    assert len(prepare(tokenizer=own).train[0]["input_ids"]) > 3
    assert prepare(tokenizer=own).cached


def test_the_seed_matters_only_where_rows_are_drawn() -> None:
    write(GOOD)
    assert not prepare(seed=1).cached
    assert prepare(seed=2).cached
    assert not prepare(seed=1, eval_fraction=0.4).cached
    assert not prepare(seed=2, eval_fraction=0.4).cached


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [path.stem for path in tokenized.CODE])
def test_changed_code_is_not_given_old_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(GOOD)
    prepare()
    assert prepare().cached
    changed = Path(f"{name}.py")
    (original,) = (path for path in tokenized.CODE if path.stem == name)
    changed.write_bytes(original.read_bytes() + b"\n")
    monkeypatch.setattr(tokenized, "CODE", tuple(changed if path.stem == name else path for path in tokenized.CODE))
    assert not prepare().cached


def test_a_changed_format_of_the_user_is_not_given_old_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from fmstune.data.formats import Segment\ndef own(row):\n    return [Segment(row['output'] + '{}', True)]\n"
    )
    write(GOOD)
    for mark in ("!", "?"):
        Path("own_format.py").write_text(source.format(mark))
        monkeypatch.syspath_prepend(Path.cwd())
        monkeypatch.delitem(sys.modules, "own_format", raising=False)
        # written within the same second, so the compiled file would be taken for it
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        prepared = prepare(format={"_target_": "own_format.own"})
        assert not prepared.cached
        assert gpt2_style().decode(prepared.train[0]["input_ids"][:-1]).endswith(mark)


def test_a_changed_module_beside_the_format_of_the_user_is_not_given_old_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("own_shapes/below").mkdir(parents=True)
    Path("own_shapes/shape.py").write_text(
        "from fmstune.data.formats import Segment\ndef own(row):\n    return [Segment(row['output'], True)]\n"
    )
    helper = Path("own_shapes/below/helper.py")
    helper.write_text("MARK = '!'\n")
    monkeypatch.syspath_prepend(Path.cwd())
    write(GOOD)
    format = {"_target_": "own_shapes.shape.own"}
    assert [prepare(format=format).cached for _ in range(2)] == [False, True]
    helper.write_text("MARK = '?'\n")
    assert not prepare(format=format).cached


def test_equal_bytes_that_are_read_differently_are_not_given_each_others_tokens() -> None:
    write(GOOD, "rows.txt")
    prepare(train="rows.txt")
    Path("rows.txt").rename("rows.csv")
    assert "rows.csv" in problems_of(train="rows.csv")[0]


def made_entries() -> list[Path]:
    return sorted((cache.place() / "tokenized").iterdir())


def cut_off(entry: Path) -> None:
    arrow = entry / "train.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-100])


def without_facts(entry: Path) -> None:
    (entry / "facts.json").unlink()


def broken_facts(entry: Path) -> None:
    (entry / "facts.json").write_text('{"ledgers": {"train": {"rows_red": 3}}}')


def not_arrow(entry: Path) -> None:
    (entry / "train.arrow").write_bytes(b"x" * (entry / "train.arrow").stat().st_size)


def rows_of_another(entry: Path) -> None:
    rows = Dataset.from_dict({"input_ids": [[1]], "labels": [[1]]})
    rows.save_to_disk("other")
    (written,) = Path("other").glob("*.arrow")
    written.replace(entry / "train.arrow")


@pytest.mark.parametrize("damage", [cut_off, without_facts, broken_facts, not_arrow, rows_of_another])
def test_a_damaged_entry_is_made_again_with_a_word(damage: Callable[[Path], None]) -> None:
    write(GOOD)
    expected = prepare().train.to_list()
    (entry,) = made_entries()
    damage(entry)
    with TestCase().assertLogs(level=logging.WARNING) as logged:
        again = prepare()
    assert not again.cached
    assert again.train.to_list() == expected
    assert f"cache entry {entry} is made again" in "".join(logged.output)
    assert prepare().cached
    assert made_entries() == [entry]


def test_the_entry_of_a_process_that_was_faster_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    write(GOOD)
    publish = cache.publish

    def late(made: Path, entry: Path, usable: Callable[[Path], bool]) -> None:
        monkeypatch.setattr(cache, "publish", publish)
        prepare()
        publish(made, entry, usable)

    monkeypatch.setattr(cache, "publish", late)
    assert len(prepare().train) == 3
    assert len(made_entries()) == 1


def test_a_damaged_entry_that_another_process_puts_away_meanwhile_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("aside/entry", "entry"):
        Path(name).mkdir(parents=True)
        Path(name, "facts.json").write_text(name)

    def put_away(entry: Path) -> bool:
        shutil.rmtree(entry)
        return False

    cache.publish(Path("aside/entry"), Path("entry"), usable=put_away)
    assert Path("entry/facts.json").read_text() == "aside/entry"


WRITER = """
import sys, time
from pathlib import Path
from fmstune.config.job import Data
from fmstune.data.dataset import prepare_data
from tests.tokenizers_for_tests import gpt2_style
tokenizer = gpt2_style()
Path(sys.argv[1]).touch()
while not Path("go").exists():
    time.sleep(0.005)
prepared = prepare_data(Data(format={format!r}, train="train.jsonl"), tokenizer, 42)
print(len(prepared.train), prepared.train[4999]["labels"][-1], prepared.ledger.rows_trained)
"""


@pytest.mark.slow
def test_two_processes_that_prepare_the_same_at_once_both_get_it() -> None:
    write([text(f"row {number}", " yes") for number in range(5000)])
    Path("writer.py").write_text(WRITER.format(format=FORMAT))
    writers = [forked.Started([sys.executable, "-P", "writer.py", name]) for name in ("first", "second")]
    while not (Path("first").exists() and Path("second").exists()):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.01)
    Path("go").touch()
    assert [writer.communicate()[0] for writer in writers] == ["5000 0 5000\n"] * 2
    assert len(made_entries()) == 1


def test_what_a_killed_process_left_is_never_used_and_is_cleared() -> None:
    left = cache.place() / "tokenized" / ".unfinished-x" / "entry"
    left.mkdir(parents=True)
    (left / "train.arrow").write_bytes(b"half")
    write(GOOD)
    assert not prepare().cached
    assert cache.size() > 4
    assert cache.clear() > 4
    assert (cache.size(), cache.clear()) == (0, 0)
    assert not prepare().cached


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"FMSTUNE_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/fmstune"),
        ({"HOME": "/c"}, "/c/.cache/fmstune"),
        ({"FMSTUNE_CACHE": "~/x", "HOME": "/c"}, "/c/x"),
    ],
)
def test_the_place_of_the_cache(variables: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FMSTUNE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.place() == Path(place)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write(GOOD)
    Path("a-file").touch()
    monkeypatch.setenv("FMSTUNE_CACHE", "a-file")
    assert problems_of() == (
        "cannot write to the cache a-file (Not a directory); set FMSTUNE_CACHE to a folder where you can write",
    )


def test_one_line_of_the_log_says_what_was_made() -> None:
    write(GOOD)
    with TestCase().assertLogs("fmstune.data.dataset", logging.INFO) as logged:
        prepare()
    assert [one.getMessage() for one in logged.records] == [
        "data tokenised: 3 rows, 31 tokens, 7 trained, 0 rows dropped"
    ]


# Several sources


INPUT_OUTPUT = {"_target_": "fmstune.data.formats.input_output", "input_field": "q", "output_field": "a"}


def write_pairs(name: str, *pairs: tuple[str, str]) -> str:
    Path(name).write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs), encoding="utf-8")
    return name


def test_each_source_has_its_format_its_ledger_and_its_limit() -> None:
    write(GOOD, "a.jsonl")
    write_pairs("b.jsonl", ("b1: ", "x"), ("b2: ", "y"), ("b3: ", " "))
    sources = {"a": {"path": "a.jsonl", "max_rows": 2}, "b": {"path": "b.jsonl", "format": INPUT_OUTPUT}}
    prepared = prepare(train=sources, untrainable=Untrainable.drop)
    assert [(part.name, part.ledger.rows_read, part.ledger.rows_trained) for part in prepared.sources] == [
        ("a", 2, 2),
        ("b", 3, 2),
    ]
    assert prepared.ledger.rows_read == 5 and prepared.ledger.rows_dropped == 1
    assert texts_of(prepared.train) == ["a", "the phone broke", "b1: x" + END, "b2: y" + END]
    assert set(prepared.identity["data_hashes"]) == {"data.train.a", "data.train.b"}
    assert "        a  2 of 4 rows an epoch (50.0%)" in prepared.lines()


def test_an_epoch_has_the_proportions_of_the_weights_and_is_the_same_each_time() -> None:
    write([text(f"a{n}", " yes") for n in range(4)], "a.jsonl")
    write([text(f"b{n}", " yes") for n in range(4)], "b.jsonl")
    sources = {"a": {"path": "a.jsonl", "weight": 5.0}, "b": {"path": "b.jsonl", "weight": 2.0}}
    prepared = prepare(train=sources)
    names = texts_of(prepared.train)
    assert sum(name.startswith("a") for name in names) == 10
    assert sorted(name for name in names if name.startswith("b")) == ["b0", "b1", "b2", "b3"]
    assert texts_of(prepare(train=sources).train) == names
    lengths = [len(row["input_ids"]) for row in prepared.train]
    assert prepared.epoch_tokens == sum(lengths)


def test_a_source_that_was_prepared_before_is_not_prepared_again(tokenised: list[int]) -> None:
    write(GOOD, "a.jsonl")
    write(GOOD[:2], "b.jsonl")
    prepare(train="a.jsonl")
    assert not prepare(train={"one": "a.jsonl", "two": "b.jsonl"}).cached
    assert tokenised == [3, 2]


def test_held_out_sets_have_names_and_each_source_gives_its_share() -> None:
    write([text(f"a{n}", " yes") for n in range(10)], "a.jsonl")
    write([text(f"b{n}", " yes") for n in range(20)], "b.jsonl")
    drawn = prepare(train={"a": "a.jsonl", "b": "b.jsonl"}, eval_fraction=0.1)
    assert [(part.name, len(part.rows)) for part in drawn.held_out] == [("a", 1), ("b", 2)]
    given = prepare(train="a.jsonl", eval={"near": "b.jsonl"})
    assert [(part.name, len(part.rows)) for part in given.held_out] == [("near", 20)]


def test_all_problems_of_all_sources_are_told_of_at_once() -> None:
    write(["no template"], "a.jsonl")
    write([3], "b.jsonl")
    write([text("c", "")], "c.jsonl")
    assert [
        problem.partition(":")[0]
        for problem in problems_of(train={"a": "a.jsonl", "b": "b.jsonl"}, eval={"c": "c.jsonl"})
    ] == ["a.jsonl, row 1", "b.jsonl, row 1", "c.jsonl, row 1"]
    assert problems_of(
        train={"a": "a.jsonl", "b": {"path": "b.jsonl", "format": {"_target_": "fmstune.data.formats.txt"}}}
    ) == ("data.train.b.format._target_: fmstune.data.formats has no function 'txt'; did you mean 'text'?",)


# Rows that are trained and held out


def test_training_rows_that_are_held_out_too_are_found_and_named() -> None:
    write(GOOD)
    write([text("other", " yes"), GOOD[2], GOOD[0]], "eval.jsonl")
    prepared = prepare(eval="eval.jsonl")
    assert len(prepared.train) == 3
    assert list(prepared.notes()) == [
        "2 training rows are also held out: row 1 of data.train is row 3 of the held-out rows; "
        "data.overlap=drop leaves them out of training"
    ]


def test_they_can_be_dropped_and_are_counted() -> None:
    write(GOOD)
    write([text("other", " yes"), GOOD[2]], "eval.jsonl")
    prepared = prepare(eval="eval.jsonl", overlap=Overlap.drop)
    assert texts_of(prepared.train) == ["a", "the phone broke"]
    ledger = prepared.ledger
    assert (ledger.rows_read, ledger.rows_trained, ledger.rows_held_out_too, ledger.rows_dropped) == (3, 2, 1, 1)
    assert ledger.tokens_total == sum(len(row["input_ids"]) for row in prepared.train)
    assert ledger.tokens_trained == sum(label != -100 for row in prepared.train for label in row["labels"])
    assert "1 also held out" in "\n".join(ledger.lines())
    # the cache holds them still
    assert len(prepare(eval="eval.jsonl").train) == 3


def test_they_can_be_an_error() -> None:
    write(GOOD)
    write([text("other", " yes"), GOOD[2]], "eval.jsonl")
    assert problems_of(eval="eval.jsonl", overlap=Overlap.error) == (
        "data.overlap=error: 1 training row is also held out: row 3 of data.train is row 2 of the held-out rows; "
        "remove them",
    )


def test_dropping_all_rows_of_a_source_is_a_problem() -> None:
    write(GOOD[:1])
    write(GOOD[:2], "eval.jsonl")
    assert problems_of(eval="eval.jsonl", overlap=Overlap.drop) == (
        "data.overlap=drop leaves no row of data.train: all are also held out",
    )


# Rows that are no plain text


def test_a_chat_row_ends_where_its_template_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = type(gpt2_style())(vocab=gpt2_style().get_vocab(), merges=[])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] + ':' + m.content + (eos_token if m.role == 'assistant' else ' ') }}"
        "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
    Path("train.jsonl").write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns * 2}) + "\n")
    prepared = prepare(format={"_target_": "fmstune.data.formats.chat"}, tokenizer=tokenizer)
    one, two = prepared.train.to_list()
    assert tokenizer.decode(one["input_ids"]) == "u:q a:x" + END
    assert tokenizer.decode([label for label in two["labels"] if label != -100]) == f"x{END}x{END}"
    assert two["input_ids"] == one["input_ids"] * 2


def test_a_chat_row_whose_template_writes_no_end_is_closed_like_any_other() -> None:
    tokenizer = type(gpt2_style())(vocab=gpt2_style().get_vocab(), merges=[])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] + ':' + m.content + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
    rows = [{"messages": turns}, {"messages": [*turns, {"role": "user", "content": "more"}]}]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    closed, left_open = prepare(format={"_target_": "fmstune.data.formats.chat"}, tokenizer=tokenizer).train.to_list()
    assert closed["input_ids"][-1] == closed["labels"][-1] == tokenizer.eos_token_id
    # a turn of the user's after the last answer is not what a text ends with
    assert left_open["labels"][-1] == -100


def test_token_rows_are_taken_as_they_are() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9]}, {"input_ids": list(range(70))}]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(format={"_target_": "fmstune.data.formats.tokenized"})
    assert texts_and_labels(prepared.train) == [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [8, 9], "labels": [8, 9]},
        {"input_ids": list(range(64)), "labels": list(range(64))},
    ]
    assert (prepared.ledger.rows_truncated, prepared.ledger.tokens_cut) == (1, 6)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"ids": [1]}, "no column 'input_ids'; its columns are 'ids'"),
        ({"input_ids": []}, "column 'input_ids' must hold a list of token ids, found the list []"),
        ({"input_ids": [1, "2"]}, "column 'input_ids': number 2 must be a token's id, found the str '2'"),
        ({"input_ids": [1, -1]}, "column 'input_ids': number 2 must be a token's id, found the int -1"),
        ({"input_ids": [1, 99999]}, "token 99999 is above the ids of the tokenizer, which end at 339"),
        ({"input_ids": [1, 2], "labels": [1]}, "column 'labels' has 1 numbers for 2 in 'input_ids'"),
        ({"input_ids": [1, 2], "labels": [1, -5]}, "column 'labels' holds a negative number that is not -100"),
        ({"input_ids": [1], "labels": [-100]}, "the answer is empty; fix the row, or set data.untrainable=drop"),
    ],
)
def test_token_rows_that_are_none_are_problems(row: dict[str, Any], problem: str) -> None:
    Path("train.jsonl").write_text(json.dumps(row) + "\n")
    assert problems_of(format={"_target_": "fmstune.data.formats.tokenized"}) == (f"train.jsonl, row 1: {problem}",)


def test_a_changed_template_file_is_not_given_old_tokens() -> None:
    format = {"_target_": "fmstune.data.formats.template", "template_file": "row.jinja"}
    write(["x"])
    for mark in ("!", "?"):
        Path("row.jinja").write_text("{% generation %}{{ output }}" + mark + "{% endgeneration %}")
        prepared = prepare(format=format)
        assert not prepared.cached
        assert gpt2_style().decode(prepared.train[0]["labels"]) == f"x{mark}{END}"
