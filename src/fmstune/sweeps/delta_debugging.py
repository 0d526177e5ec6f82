"""The smallest set of changes that turns the number of A into that of B, by delta debugging with few measurements.

Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002, whose aim it is; decision 0034 says
where the order of the tests differs from ddmin.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Changes = frozenset[int]
Measure = Callable[[Changes], float | None]
"""The number with these changes and no others; None where they cannot be measured. Raises OutOfRuns."""


class OutOfRuns(Exception):
    """No more may be measured."""


@dataclass(frozen=True)
class Causes:
    """What was found."""

    changes: tuple[int, ...]
    """The changes that together turn A into B, as far as was measured."""
    value: float | None
    """The number with these alone; None where that was not measured."""
    explained: bool
    """Whether that number is the one of B."""
    minimal: bool
    """Whether none of them can be left out, as measured."""
    unseparated: tuple[tuple[int, ...], ...] = ()
    """Groups among them of which not each may be needed: runs were used up, or a part alone cannot be measured."""
    alone: Mapping[int, float] = field(default_factory=dict)
    """The change of the number by one of them without the others, where it was measured."""
    only_together: bool = False
    """Whether several matter, and fewer of them do nothing, as measured."""


class Search:
    """One search. `known` holds the number of no change and of all of them, and what else is measured already."""

    def __init__(self, count: int, tolerance: float, known: Mapping[Changes, float | None], measure: Measure) -> None:
        self._all, self._tolerance, self._measure = frozenset(range(count)), tolerance, measure
        self.known = dict(known)
        self._a, self._b = (self._number(self.known[one]) for one in (frozenset[int](), self._all))
        self._is_out = False

    def find(self) -> Causes:
        """Find the changes; ends early, with what is known by then, where no more may be measured."""
        found: Changes = frozenset()
        groups: list[tuple[int, ...]] = []
        chain, end, minimal = sorted(self._all), self._b, False
        try:
            while chain and not self._is_near(value := self._value(found), self._b) and value is not None:
                jumps, more = self._find_jumps(found, chain, end)
                groups += more
                new = frozenset(jumps).union(*more)
                if not new:
                    break
                # the changes up to the last jump do all; those among them that are needed as well are looked for next
                last = max(map(chain.index, new))
                end = self._number(self.known[found.union(chain[: last + 1])])
                found, chain = found | new, [one for one in chain[:last] if one not in new]
                if self._is_out:
                    break
            if self._is_near(self._value(found), self._b) and not groups:
                found, minimal = self._leave_out(found)
        except OutOfRuns:
            pass
        value = self.known.get(found)
        explained = self._is_near(value, self._b)
        return Causes(
            tuple(sorted(found)), value, explained, minimal, tuple(groups), self._alone(found), self._need_all(found)
        )

    def _value(self, changes: Changes) -> float | None:
        if changes not in self.known:
            try:
                self.known[changes] = self._measure(changes)
            except OutOfRuns:
                self._is_out = True
                raise
        return self.known[changes]

    def _is_near(self, one: float | None, other: float) -> bool:
        return one is not None and abs(one - other) <= self._tolerance

    def _number(self, value: float | None) -> float:
        if value is None:
            raise ValueError("a number that the search begins from is missing")
        return value

    def _find_jumps(self, base: Changes, chain: Sequence[int], end: float) -> tuple[list[int], list[tuple[int, ...]]]:
        """Add the changes of the chain to the base one after the other, and find where the number jumps.

        Only some of these points are measured: an interval whose ends are near each other is taken for level, and the
        one with the largest step is halved next. Returns the changes that make a jump, and the groups within which a
        jump lies that could not be found.
        """
        values: dict[int, float] = {0: self._number(self._value(base)), len(chain): end}
        intervals, jumps, groups = [(0, len(chain))], list[int](), list[tuple[int, ...]]()

        def step(interval: tuple[int, int]) -> float:
            return abs(values[interval[1]] - values[interval[0]])

        intervals = [one for one in intervals if step(one) > self._tolerance]
        while intervals:
            low, high = widest = max(intervals, key=step)
            intervals.remove(widest)
            if high - low == 1:
                jumps.append(chain[low])
                continue
            try:
                middle = self._measure_between(base, chain, low, high, values)
            except OutOfRuns:
                groups += [tuple(chain[slice(*one)]) for one in (widest, *intervals)]
                break
            if middle is None:
                groups.append(tuple(chain[low:high]))
                continue
            halves = [(low, middle), (middle, high)]
            large = [half for half in halves if step(half) > self._tolerance]
            intervals += large or [max(halves, key=step)]
        single = [group[0] for group in groups if len(group) == 1]
        return [*jumps, *single], [group for group in groups if len(group) > 1]

    def _measure_between(
        self, base: Changes, chain: Sequence[int], low: int, high: int, values: dict[int, float]
    ) -> int | None:
        """Measure a point between two, the middle one if that can be; None where none can."""
        middle = (low + high) // 2
        for place in sorted(range(low + 1, high), key=lambda one: abs(one - middle)):
            if (value := self._value(base.union(chain[:place]))) is not None:
                values[place] = value
                return place
        return None

    def _leave_out(self, found: Changes) -> tuple[Changes, bool]:
        """Leave out each change without which the number is still that of B, as ddmin does in its last round."""
        for one in sorted(found):
            # others that make no jump may have been with them
            measured = [value for known, value in self.known.items() if known & found == found - {one}]
            if len(found) == 1 or any(value is not None and not self._is_near(value, self._b) for value in measured):
                continue
            try:
                value = self._value(found - {one})
            except OutOfRuns:
                return found, False
            if self._is_near(value, self._b):
                found = found - {one}
        return found, True

    def _need_all(self, found: Changes) -> bool:
        """Whether no part of these does anything; each one must have been missing in some measurement."""
        parts = [(known & found, value) for known, value in self.known.items() if value is not None]
        values = [(part, value) for part, value in parts if part and part != found]
        has_missed = {one for part, _ in values for one in found - part}
        return len(found) > 1 and has_missed == found and all(self._is_near(one, self._a) for _, one in values)

    def _alone(self, found: Changes) -> dict[int, float]:
        """What each of these does without the others, from the smallest set that was measured."""
        effects = {}
        for one in found:
            sets = [known for known, value in self.known.items() if known & found == {one} and value is not None]
            if sets:
                effects[one] = (
                    self._number(self.known[min(sets, key=lambda known: (len(known), sorted(known)))]) - self._a
                )
        return effects
