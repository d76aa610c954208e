"""Which record has a value of a unique property."""

from __future__ import annotations

from collections.abc import Iterable


class UniqueIndex:
    """Record ids by value in lower case, live and archived records apart.

    The control API and the recycle bin can give several records one value; the one that had it first is found.
    """

    def __init__(self) -> None:
        self._first: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._others: dict[tuple[bool, str], list[int]] = {}

    def find(self, value: str, archived: bool) -> int | None:
        """The id of the record with a value, in whatever case it is asked for."""
        return self._first[archived].get(value.lower())

    def add(self, values: Iterable[str], archived: bool, record_id: int) -> None:
        """Note the values of a record."""
        first = self._first[archived]
        for value in {value.lower() for value in values}:
            if first.setdefault(value, record_id) != record_id:
                self._others.setdefault((archived, value), []).append(record_id)

    def remove(self, values: Iterable[str], archived: bool, record_id: int) -> None:
        """Forget the values of a record; the next one that has them takes its place."""
        first = self._first[archived]
        for value in {value.lower() for value in values}:
            others = self._others.get((archived, value), [])
            if first.get(value) != record_id:
                others.remove(record_id)
            elif others:
                first[value] = others.pop(0)
            else:
                del first[value]
            if not others:
                self._others.pop((archived, value), None)
