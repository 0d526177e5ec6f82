"""What glibc's malloc takes from the system for a sequence of allocations: the tensors, and the holes between them.

torch takes every tensor of a CPU from `posix_memalign` (c10/core/impl/alloc_cpu.cpp). The model is malloc's: the
smallest hole that fits, neighbours merge when they are freed, blocks do not move, only the end of the heap is given
back. Small objects lie in the gaps between tensors and keep holes from merging. In the forward pass some gaps are held
by the objects of the next tensor, such as its node of the graph, for as long as that tensor is there. And each trained
parameter leaves an object of 32 bytes where the forward pass first uses it, until the next one does: the counts of
references to its AccumulateGrad, to which the parameter refers weakly (torch 2.13: csrc/autograd/variable.h,
`grad_accumulator_`). Of 272 parameters of a Llama of 135M under full tuning, 233 left such an object alone between
holes after the backward pass; with activation checkpointing none did.
"""

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LOST = 96
"""Bytes that a hole must have in addition, so that one tensor's hole takes no other of its size.

glibc looks for a block that is larger by the alignment, 64, and by its own smallest block, 32 (malloc/malloc.c,
`_int_memalign`); what it cuts off at both ends goes to small objects.
"""
HEADER = 16
"""Bytes in front of a block."""
MAPPED_FROM = 32 * 2**20
"""Blocks of this size and larger do not lie in the heap if no hole fits, and leave none (mallopt(3), M_MMAP_THRESHOLD).

The limit begins at 128 KiB and grows with the blocks that are freed, up to this.
"""
TRIMMED_FROM = 2 * MAPPED_FROM
"""Free bytes at the end of the heap that are given back (mallopt(3), M_TRIM_THRESHOLD)."""
SMALL = 1024
"""Blocks up to this size come from caches of their own, and leave no hole."""
HELD = 3
"""One gap in so many is held in the forward pass.

So that the heap has as many holes at its end as in three traced runs: 62, 93 and 293 (59, 76 and 298 with this model).
"""
STEPS = 8
"""Steps that are replayed: five more than three add 0 to 5 %, four more than eight 0 to 2 %."""
BATCH = ("forward", "head", "backward")
"""The phases in which a batch is computed."""


class Event(NamedTuple):
    """What happened to a tensor, or to a trained parameter."""

    kind: str
    """`allocate`, `free`, or `use` of a parameter."""
    key: int
    size: int = 0


class Block(NamedTuple):
    """Bytes of the heap, from the first to the one behind the last."""

    begin: int
    end: int


class Heap:
    """The heap of a process; blocks have keys instead of addresses."""

    def __init__(self) -> None:
        self.allocated = 0
        """Bytes that are in use."""
        self._outside = 0
        self._top = 0
        self._most = 0
        self._blocks: dict[int, tuple[int, Block | None]] = {}
        # by length, then by place
        self._free: list[tuple[int, int]] = []
        self._ends: dict[int, int] = {}
        self._begins: dict[int, int] = {}
        self.holds_gaps = True
        """Whether small objects of the next tensors stay, as in the forward pass."""
        self._gap: int | None = None
        self._number = 0
        self._held: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._gaps: Counter[int] = Counter()

    @property
    def holes(self) -> int:
        """Bytes that the process holds and that are not in use."""
        return self._most + self._outside - self.allocated

    def allocate(self, key: int, size: int) -> None:
        """Take a block of so many bytes; the key must not be in use."""
        block = None
        if size > SMALL:
            block = self._place(-(-size // HEADER) * HEADER + HEADER)
            self._hold_gap(key, None if block is None else block.end)
        if block is None:
            self._outside += size
        self._blocks[key] = size, block
        self.allocated += size

    def free(self, key: int) -> None:
        """Give a block back; nothing happens for a key that is not in use."""
        if key not in self._blocks:
            return
        size, block = self._blocks.pop(key)
        self.allocated -= size
        if block is None:
            self._outside -= size
        else:
            self._release(*block)
        self._leave_gap(self._held.pop(key, None))

    def use(self, parameter: int) -> None:
        """Let a trained parameter hold the gap behind the last block, until it is used again."""
        former = self._used.pop(parameter, None)
        if self._gap is not None:
            self._used[parameter] = self._gap
            self._gaps[self._gap] += 1
        self._leave_gap(former)

    def _hold_gap(self, key: int, next_gap: int | None) -> None:
        """Let the small objects of this tensor take the gap behind the block before, or not."""
        if self.holds_gaps and self._gap is not None and self._gap not in self._gaps:
            self._number += 1
            if self._number % HELD == 0:
                self._held[key] = self._gap
                self._gaps[self._gap] += 1
        self._gap = next_gap

    def _leave_gap(self, gap: int | None) -> None:
        if gap is None:
            return
        self._gaps[gap] -= 1
        if self._gaps[gap] > 0:
            return
        del self._gaps[gap]
        if (begin := self._begins.get(gap)) is not None:
            self._unlist(begin, gap)
            self._release(begin, gap)

    def _place(self, length: int) -> Block | None:
        """A block in the smallest hole that fits, else at the end of the heap; None where it is mapped."""
        found = bisect.bisect_left(self._free, (length + LOST, 0))
        if found < len(self._free):
            whole, begin = self._free[found]
            self._unlist(begin, begin + whole)
            self._list(begin + length, begin + whole)
            return Block(begin, begin + length)
        if length > MAPPED_FROM and self._top + length > self._most:
            return None
        begin, self._top = self._top, self._top + length
        self._most = max(self._most, self._top)
        return Block(begin, self._top)

    def _release(self, begin: int, end: int) -> None:
        if (earlier := self._begins.get(begin)) is not None and begin not in self._gaps:
            self._unlist(earlier, begin)
            begin = earlier
        if (later := self._ends.get(end)) is not None and end not in self._gaps:
            self._unlist(end, later)
            end = later
        if end < self._top or end in self._gaps:
            self._list(begin, end)
            return
        self._top = begin
        if self._most - self._top > TRIMMED_FROM:
            self._most = self._top

    def _list(self, begin: int, end: int) -> None:
        bisect.insort(self._free, (end - begin, begin))
        self._ends[begin], self._begins[end] = end, begin

    def _unlist(self, begin: int, end: int) -> None:
        del self._free[bisect.bisect_left(self._free, (end - begin, begin))]
        del self._ends[begin], self._begins[end]


def replay_steps(events: Mapping[str, Sequence[Event]], *, accumulated: bool) -> dict[str, int]:
    """Bytes at most in each phase, with the holes, of the steps behind the first one.

    `events` are those of one step by phase: `first` makes the optimizer's state, and what comes before, named by an
    empty string, gradients. In a run the first step has no state yet, and its state lies in the holes of its batch. Of
    accumulated batches the second finds the gradients of the first.
    """
    heap, most = Heap(), defaultdict[str, int](int)
    keys = itertools.count()

    def replay(phase: str, live: dict[int, int]) -> None:
        heap.holds_gaps = phase in BATCH[:2]
        for kind, key, size in events.get(phase, ()):
            if kind == "use":
                heap.use(key)
            elif kind == "allocate":
                live[key] = next(keys)
                heap.allocate(live[key], size)
            elif key in live:
                heap.free(live.pop(key))
            most[phase] = max(most[phase], heap.allocated + heap.holes)

    for step in range(STEPS):
        live: dict[int, int] = {}
        for phase in (*BATCH, "", *BATCH) if accumulated else BATCH:
            replay(phase, live)
        if step == 0:
            replay("first", {})
            most.clear()
        else:
            replay("optimizer", live)
        for key in live.values():
            heap.free(key)
    return dict(most)
