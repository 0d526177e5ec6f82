"""One can read off what is trained: in colour, in brackets, in sums and as JSON."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from fmstune import files
from fmstune.config.job import Data
from fmstune.data import show, tokens
from fmstune.data.dataset import Prepared, prepare_data
from fmstune.data.prefix_sharing.tree import batch_tree
from fmstune.data.show import render_rows, write_rows_json
from fmstune.data.tokens import Segment
from tests.data.test_dataset import texts_and_labels
from tests.tokenizers_for_tests import gpt2_style, llama_style

TEXTS = ["a\tb \n### Label: yes", "the phone broke\n### Label: no complaint", "x" * 60 + "\n### Label:" + " no" * 9]


@pytest.fixture
def job_data() -> Data:
    Path("rows.jsonl").write_text("".join(json.dumps({"output": text}) + "\n" for text in TEXTS))
    named = {"_target_": "fmstune.data.formats.text", "text_field": "output", "response_template": "\n### Label:"}
    return Data(format=named, train="rows.jsonl", max_length=70)


@pytest.fixture
def prepared(job_data: Data) -> Prepared:
    return prepare_data(job_data, gpt2_style(), 42)


def test_without_colour_brackets_stand_around_what_is_trained(prepared: Prepared) -> None:
    shown = render_rows(prepared, gpt2_style(), rows=2, color=False)
    assert shown.startswith(
        "⟦trained⟧·masked; ↵ is a line break, · a space, → a tab\n"
        "\n"
        "row 1: 11 tokens, 3 trained\n"
        "a→b ↵\n"
        "### Label:⟦·yes<|endoftext|>⟧\n"
        "\n"
        "row 2: 14 tokens, 3 trained\n"
        "the phone broke↵\n"
        "### Label:⟦·no complaint<|endoftext|>⟧\n"
        "\n"
        "training rows\n"
    )
    assert "\x1b" not in shown


def test_with_colour_there_are_no_brackets(prepared: Prepared) -> None:
    shown = render_rows(prepared, gpt2_style(), rows=1, color=True)
    assert "\x1b[2ma→b ↵\n### Label:\x1b[0m\x1b[1;32m·yes<|endoftext|>\x1b[0m" in shown
    assert "⟦" not in shown


def test_sums_follow_the_rows(prepared: Prepared) -> None:
    shown = render_rows(prepared, gpt2_style(), rows=0, color=False).splitlines()
    assert "rows    3 = 3 trained + 0 dropped" in shown
    assert "        formatted: 3 of 3" in shown
    assert "cut     1 of 3 rows lose their end (33.3%)" in shown
    assert "stop    3 of 3 rows train <|endoftext|> (0) as their last token" in shown
    assert "        4 cut off, 0 straddling a boundary" in shown


def test_held_out_rows_have_sums_of_their_own(job_data: Data) -> None:
    prepared = prepare_data(Data(**vars(job_data) | {"eval_fraction": 0.4}), gpt2_style(), 42)
    shown = render_rows(prepared, gpt2_style(), rows=0, color=False)
    assert shown.index("training rows\nrows    2 =") < shown.index("held-out rows\nrows    1 =")


def test_a_run_keeps_the_space_that_it_would_lose_alone() -> None:
    segments = [Segment("thanks", trained=False), Segment(" :)", trained=True)]
    row = tokens.encode_rows([segments], llama_style(), 64)[0]._asdict()
    assert llama_style().decode(row["input_ids"][-2:]) == ":)</s>"
    assert show.mask_runs(row, llama_style()) == [Segment("<s> thanks", False), Segment(" :)</s>", True)]


SHARING = [
    "You are a clerk of the post. Say what this is.\n### Label: " + end for end in ("late\n\ta", "lost €", "hello")
]


def sharing_tree(texts: Sequence[str] = SHARING) -> show.ShownTree:
    tokenizer = gpt2_style()
    encoded = [tokenizer.encode(text) for text in texts]
    labels = [[-100] * (len(ids) - 1) + ids[-1:] for ids in encoded]
    rows = Dataset.from_dict({"input_ids": encoded, "labels": labels})
    return show.show_tree(batch_tree(rows, np.arange(len(texts))), tokenizer)


def test_a_batch_that_shares_is_a_tree_under_the_rows(prepared: Prepared) -> None:
    tree = sharing_tree()
    shown = render_rows(prepared, gpt2_style(), rows=1, color=False, tree=tree)
    after = shown[shown.index(f"One batch as a tree: {tree.title}\n") :]
    first, root, *text = after.splitlines()
    assert first.startswith("One batch as a tree: 3 rows of ")
    assert root == f"─ {tree.nodes[0].title}"
    assert tree.nodes[0].title.startswith("3 rows (1 to 3): ")
    assert text[0] == "  You are a clerk of the post. Say what this is.↵"
    assert f"  ─ {tree.nodes[1].title}" in text
    assert tree.nodes[1].title.startswith("row 1: ")
    assert after.index("One batch") < after.index("training rows")


def test_the_branches_of_a_tree_are_the_texts_of_its_rows() -> None:
    root, *leaves = sharing_tree().nodes
    texts = ["".join(run.text for run in (*root.runs, *leaf.runs)) for leaf in leaves]
    # a space at the beginning of a part is seen
    assert [text.replace("·", " ") for text in texts] == [show.visible(text) for text in SHARING]
    assert all(leaf.runs[-1].trained for leaf in leaves)


def test_a_character_whose_bytes_two_nodes_hold_is_not_lost() -> None:
    tokenizer = gpt2_style()
    euro = tokenizer.encode("€")
    assert len(euro) == 3
    assert show.marked_text(euro[:1], euro[1:], [False, True], tokenizer)[-1] == Segment("€", True)


def test_a_text_cannot_speak_to_the_terminal() -> None:
    assert show.visible("a\x1b[2J\r") == "a␛[2J␍"


@pytest.mark.parametrize(
    ("lengths", "bars"), [({}, []), ({7: 1}, ["7 to  7 tokens"]), ({1: 1, 10: 2}, ["1 to  1", "2 to  2", "10 to 10"])]
)
def test_the_histogram_covers_all_lengths(lengths: dict[int, int], bars: list[str]) -> None:
    shown = show.histogram(lengths)
    assert [any(bar in line for line in shown) for bar in bars] == [True] * len(bars)
    assert sum(int(line.split()[-1].replace(",", "")) for line in shown) == sum(lengths.values())


def test_bars_are_as_long_as_their_share() -> None:
    assert show.histogram({5: 1, 15: 4, 100: 2}) == [
        "  1 to  10 tokens  ██████████                               1",
        " 11 to  20 tokens  ████████████████████████████████████████ 4",
        " 21 to  30 tokens                                           0",
        " 31 to  40 tokens                                           0",
        " 41 to  50 tokens                                           0",
        " 51 to  60 tokens                                           0",
        " 61 to  70 tokens                                           0",
        " 71 to  80 tokens                                           0",
        " 81 to  90 tokens                                           0",
        " 91 to 100 tokens  ████████████████████                     2",
    ]


def test_rows_that_do_not_end_in_a_trained_stop_are_seen() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"labels": [[1, 0], [1, -100], [], [0, 1], [-100, 0]]})
    assert show.trained_ends(rows, {0}) == {0: 2}


@pytest.mark.parametrize(
    ("tokens", "stop"),
    [
        (["<|im_end|>"], "stop    1 of 1 rows train <|im_end|> (340) as their last token"),
        (
            [],
            "stop    1 of 1 rows train <|im_end|> as their last tokens; "
            "model.special_tokens.extra_special_tokens=['<|im_end|>'] makes it one token",
        ),
    ],
)
def test_what_ends_a_turn_of_a_chat_template_is_named(tokens: list[str], stop: str) -> None:
    tokenizer = copy.deepcopy(gpt2_style())
    tokenizer.add_tokens(tokens)
    tokenizer.chat_template = Path(files.resolve("package:chatml.jinja")).read_text()
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    Path("chats.jsonl").write_text(json.dumps({"messages": turns}))
    prepared = prepare_data(Data(format={"_target_": "fmstune.data.formats.chat"}, train="chats.jsonl"), tokenizer, 42)
    assert stop in render_rows(prepared, tokenizer, rows=0, color=False).splitlines()


def test_json_holds_every_row_with_what_it_trains(prepared: Prepared) -> None:
    write_rows_json(prepared, gpt2_style(), Path("out.json"))
    written = json.loads(Path("out.json").read_text())
    assert [row["trained_text"] for row in written] == [
        " yes<|endoftext|>",
        " no complaint<|endoftext|>",
        " no no no no no<|endoftext|>",
    ]
    assert [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in written] == texts_and_labels(
        prepared.train
    )
    assert sorted(path.name for path in Path().glob("out*")) == ["out.json"]


def test_a_folder_is_not_written_over(prepared: Prepared) -> None:
    for folder in (Path(), Path("below")):
        folder.mkdir(exist_ok=True)
        with pytest.raises(IsADirectoryError):
            write_rows_json(prepared, gpt2_style(), folder)
