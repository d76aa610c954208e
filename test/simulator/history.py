"""What properties were before: who gave them which value, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from clock import iso_instant

if TYPE_CHECKING:
    from store import Record

_EARLIER_STEP_MS = 15 * 60_000


class Source(NamedTuple):
    """Who changes values. The kinds are remembered names, which ones HubSpot uses today is unverified."""

    kind: str
    id: str | None = None
    user: int | None = None


API_SOURCE = Source("INTEGRATION", "9134711")
USER_SOURCE = Source("CRM_UI", "userId:7102633", 7_102_633)
MERGE_SOURCE = Source("MERGE_OBJECTS")
_SEED_SOURCES = (Source("IMPORT", "61330514"), USER_SOURCE, Source("FORM", "b1f7-kontakt"), Source("MIGRATION"))


class Change(NamedTuple):
    """What one write replaced, with names and values side by side."""

    at_ms: int
    source: Source
    names: tuple[str, ...]
    before: tuple[Any, ...]


class Entry(NamedTuple):
    """One value a property was given."""

    at_ms: int
    value: Any
    source: Source

    def to_json(self, timestamp: str | int) -> dict[str, Any]:
        """The entry as an object; absent parts of its source are left out."""
        shown = {"value": self.value, "timestamp": timestamp, "sourceType": self.source.kind}
        if self.source.id is not None:
            shown["sourceId"] = self.source.id
        if self.source.user is not None:
            shown["updatedByUserId"] = self.source.user
        return shown


Earlier = Callable[[int], list[Any]]  # the values a seeded record had before its present one, by the record's id


class History:
    """The history of one table's records, each property's oldest entry first.

    Only what changed since a record was made is kept, one item a write. Until then a property has the entry of the
    record's creation, which is made up when somebody asks, and none without a value. The modified date has its present
    value as the only entry. Clearing a value gives an entry with "" (unverified). Entries of one property are at least
    a millisecond apart and in the order of the changes, whatever dates the changes pretend to have.
    """

    def __init__(self, value: Callable[[Record, str], Any], modified: str) -> None:
        self._value = value
        self._modified = modified
        self._changes: dict[int, tuple[Change, ...]] = {}  # by record
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}  # equal names are kept once
        self._makers: dict[int, Source] = {}  # of records that were not seeded
        self._origins: dict[int, int] = {}  # the record whose past a survivor with an id of its own goes on with
        self.earlier: dict[str, Earlier] = {}

    def entries(self, record: Record, name: str) -> tuple[Entry, ...]:
        """The history of a property, oldest first."""
        changes = [change for change in self._changes.get(record.id, ()) if name in change.names]
        values = [change.before[change.names.index(name)] for change in changes] + [self._value(record, name)]
        entries = list(self._initial(record, name, values[0]))
        for change, value in zip(changes, values[1:]):
            earliest = entries[-1].at_ms + 1 if entries else record.created_ms
            entries.append(Entry(max(change.at_ms, earliest), "" if value is None else value, change.source))
        return tuple(entries)

    def delivered(self, record: Record, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """The histories as the API shows them, newest first; a property that never had a value has an empty one."""
        return {
            name: [entry.to_json(iso_instant(entry.at_ms)) for entry in reversed(self.entries(record, name))]
            for name in names
        }

    def truth(self, record: Record, name: str) -> dict[str, Any]:
        """The history of a property as the control API shows it, oldest first."""
        return {"id": str(record.id), "history": [e.to_json(e.at_ms) for e in self.entries(record, name)]}

    def begin(self, record_id: int, source: Source) -> None:
        """Note who made a record."""
        self._makers[record_id] = source

    def note(self, record: Record, properties: dict[str, Any], at_ms: int, source: Source) -> None:
        """Note what is about to change; the record is still as it was. An equal value is no change."""
        before = {}
        for name, value in properties.items():
            held = self._value(record, name)
            if held != value:
                before[name] = held
        if before:
            names = tuple(before)
            names = self._names.setdefault(names, names)
            change = Change(at_ms, source, names, tuple(before.values()))
            self._changes[record.id] = (*self._changes.get(record.id, ()), change)

    def take_over(self, new_id: int, old_id: int) -> None:
        """Let a new record go on with the past of another one."""
        for kept in (self._changes, self._makers):
            if old_id in kept:
                kept[new_id] = kept[old_id]
        self._origins[new_id] = self._origins.get(old_id, old_id)

    def forget(self, record_id: int) -> None:
        """Drop everything about a record."""
        for kept in (self._changes, self._makers, self._origins):
            kept.pop(record_id, None)

    def _initial(self, record: Record, name: str, value: Any) -> tuple[Entry, ...]:
        """The entry of a record's creation, if the property had a value then."""
        if value is None:
            return ()
        maker = self._makers.get(record.id)
        if name == self._modified:
            return (Entry(record.modified_ms, value, maker or USER_SOURCE),)
        if maker is not None:
            return (Entry(record.created_ms, value, maker),)
        return self._seeded(record, name, value)

    def _seeded(self, record: Record, name: str, value: Any) -> tuple[Entry, ...]:
        origin = self._origins.get(record.id, record.id)
        maker = _SEED_SOURCES[origin % len(_SEED_SOURCES)]
        earlier = self.earlier.get(name)
        values = [value] if earlier is None else _without_repeats([*earlier(origin), value])
        return tuple(
            Entry(record.created_ms + order * _EARLIER_STEP_MS, each, USER_SOURCE if order else maker)
            for order, each in enumerate(values)
        )


def _without_repeats(values: list[Any]) -> list[Any]:
    """The values without those that equal the one before."""
    return [value for order, value in enumerate(values) if order == 0 or value != values[order - 1]]
