"""A batch that shares is shown as a tree: each segment once, the rows that go through it, and what that saves."""

from typing import Any

import numpy as np
from datasets import Dataset

from fmstune.data.prefix_sharing.savings import Batching, estimate_savings, first_batch
from fmstune.data.prefix_sharing.tree import CONTEXT, BatchTree, Node, batch_tree


def dataset(*rows: tuple[list[int], int]) -> Dataset:
    """Rows of tokens, of which the last ones are trained."""
    labels = [[-100] * (len(ids) - trained) + ids[len(ids) - trained :] for ids, trained in rows]
    return Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "labels": labels})


SHARED, BRANCH = list(range(100, 140)), list(range(200, 220))
ROWS = dataset(
    ([*SHARED, 1, 2], 2), ([*SHARED, *BRANCH, 3], 1), ([*SHARED, *BRANCH, 4], 1), ([9] * 20, 3), (SHARED[:-1], 5)
)


def tree(*numbers: int, rows: Dataset = ROWS) -> BatchTree:
    return batch_tree(rows, np.array(numbers))


def outline(found: BatchTree) -> list[tuple[Any, ...]]:
    return [(node.depth, node.rows, node.length) for node in found.nodes]


def test_each_segment_stands_once_below_the_one_before_it() -> None:
    # where two branches train their next token, each has the last shared one
    assert outline(tree(2, 1, 0)) == [(0, (0, 1, 2), 40), (1, (0,), 2), (1, (1, 2), 19), (2, (1,), 2), (2, (2,), 2)]


def test_what_a_batch_takes_is_said_with_sharing_and_without() -> None:
    found = tree(0, 1, 2, 3)
    assert (found.rows, found.tokens, found.padded) == (4, 42 + 61 + 61 + 20, 4 * 61)
    assert found.positions == sum(node.length for node in found.nodes) == 40 + 2 + 19 + 2 + 2 + 20
    assert sum(node.saved for node in found.nodes) == found.tokens - found.positions
    assert found.title == "4 rows of 184 tokens in 85 positions (53.8% saved; 244 positions padded)"


def test_a_token_is_trained_by_as_many_rows_as_train_it() -> None:
    found = tree(0, 1, 4)
    root: Node = found.nodes[0]
    assert root.rows == (0, 1, 4)
    # the last row trains the end of what the others only read
    assert root.trained_by[-5:] == (1, 1, 1, 1, 1)
    assert sum(root.trained_by) == 5


def test_a_row_that_others_go_on_from_ends_at_its_node() -> None:
    root, *others = tree(0, 1, 4).nodes
    assert root.ends == (4,)
    assert all(node.ends == () for node in others)
    # a row that stands twice is one node, which both end with
    (twice,) = tree(0, 1, rows=dataset((SHARED, 1), (SHARED, 1))).nodes
    assert (twice.rows, twice.ends, twice.trained_by[-1]) == ((0, 1), (), 2)


def test_a_node_knows_the_tokens_before_it_that_its_own_may_need_to_be_written() -> None:
    root, leaf, *_ = tree(0, 1).nodes
    assert root.before == ()
    assert leaf.before == tuple(SHARED[-CONTEXT:])
    assert leaf.tokens == (1, 2)


def test_rows_that_share_nothing_are_trees_of_one_node() -> None:
    assert outline(tree(0, 3)) == [(0, (0,), 42), (0, (3,), 20)]


def test_the_batch_that_is_shown_is_the_first_of_the_run() -> None:
    alike = dataset(*(([number % 2] * 32 + [number], 1) for number in range(16)))
    batch = first_batch(alike, Batching(8, seed=3))
    assert len(tree(*batch, rows=alike).nodes) == 9
    packed = Batching(1, seed=3, pack_length=64)
    shown = tree(*first_batch(alike, packed), rows=alike)
    assert shown.positions <= 64
    assert shown.positions <= estimate_savings(alike, packed).largest.positions
    in_order = Batching(4, seed=3, grouped=False)
    assert first_batch(alike, in_order).tolist() == [0, 1, 2, 3]
