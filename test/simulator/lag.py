"""What a lagging search index still shows: changes become visible to search after a configurable time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class IndexLag:
    """Earlier states of recently changed records; a state of None means the record did not exist."""

    def __init__(self, lag_ms: Callable[[], int], now_ms: Callable[[], int]) -> None:
        self._lag_ms = lag_ms
        self._now_ms = now_ms
        self._changes: deque[tuple[int, int]] = deque()
        self._states: dict[int, deque[object]] = {}
        self.generation = 0

    @property
    def active(self) -> bool:
        """Whether changes have to be noted at all."""
        return self._lag_ms() > 0

    def note(self, record_id: int, before: object) -> None:
        """Remember what search knew of a record before a change."""
        self._changes.append((self._now_ms(), record_id))
        self._states.setdefault(record_id, deque()).append(before)
        self.generation += 1

    def stale(self) -> dict[int, object]:
        """The state search still shows, for every record it is behind with."""
        visible = self._now_ms() - self._lag_ms()
        while self._changes and self._changes[0][0] <= visible:
            self._forget(self._changes.popleft()[1])
        return {record_id: states[0] for record_id, states in self._states.items()}

    def _forget(self, record_id: int) -> None:
        states = self._states[record_id]
        states.popleft()
        if not states:
            del self._states[record_id]
        self.generation += 1
