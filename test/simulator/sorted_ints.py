"""A sorted list of integers that takes single edits and bulk changes alike."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

_FEW = 32


class SortedInts:
    """Edits are collected and settled when somebody reads: a few by bisection, many by one merge."""

    def __init__(self) -> None:
        self._settled: list[int] = []
        self._new: set[int] = set()
        self._gone: set[int] = set()

    def add(self, value: int) -> None:
        """Add a value that is not in the list."""
        if value in self._gone:
            self._gone.discard(value)
        else:
            self._new.add(value)

    def discard(self, value: int) -> None:
        """Remove a value that is in the list."""
        if value in self._new:
            self._new.discard(value)
        else:
            self._gone.add(value)

    def extend(self, values: Iterable[int]) -> None:
        """Add many values that are not in the list."""
        if not self._gone:
            self._new.update(values)
            return
        for value in values:
            self.add(value)

    @property
    def values(self) -> list[int]:
        """The list itself, ascending; not to be changed or kept by the caller."""
        if self._new or self._gone:
            self._settle()
        return self._settled

    def slice_from(self, start: int, count: int) -> list[int]:
        """Up to count values, from the first one that is at least start."""
        values = self.values
        at = bisect_left(values, start)
        return values[at : at + count]

    def __len__(self) -> int:
        return len(self._settled) + len(self._new) - len(self._gone)

    def _settle(self) -> None:
        if len(self._new) + len(self._gone) <= _FEW:
            for value in self._gone:
                del self._settled[bisect_left(self._settled, value)]
            for value in self._new:
                insort(self._settled, value)
        else:
            kept = [value for value in self._settled if value not in self._gone] if self._gone else self._settled
            kept.extend(sorted(self._new))
            kept.sort()
            self._settled = kept
        self._new, self._gone = set(), set()
