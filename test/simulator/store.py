"""Records of one object type: their truth, their order, their lookups and their ready-made JSON."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from itertools import count
from typing import Any

from answer import dump
from clock import iso_instant
from definitions import ObjectType, Property, built_in_properties, plain_property, property_group
from errors import ControlError
from history import History, Source
from lag import IndexLag
from rules import Rule
from sorted_ints import SortedInts
from unique_index import UniqueIndex

_RENDERERS_KEPT = 8
_READY_BYTES = 2 << 30  # by renderer; with thousands of properties not all records can be kept ready
_ID_BITS = 64
_ID_MASK = (1 << _ID_BITS) - 1
_versions = count(1)  # never given out twice, so that a version also tells tables apart

Properties = dict[str, Any]


class Record:
    """One record; dates and id are kept outside its properties."""

    __slots__ = ("id", "properties", "created_ms", "modified_ms", "archived_ms")

    def __init__(
        self, record_id: int, properties: Properties, created_ms: int, modified_ms: int, archived_ms: int = 0
    ) -> None:
        self.id = record_id
        self.properties = properties
        self.created_ms = created_ms
        self.modified_ms = modified_ms
        self.archived_ms = archived_ms

    def copy(self) -> Record:
        """The record as it is now."""
        return Record(self.id, dict(self.properties), self.created_ms, self.modified_ms, self.archived_ms)


class Table:
    """All records of one object type."""

    def __init__(self, kind: ObjectType, lag: IndexLag, wide: int = 0) -> None:
        self.kind = kind
        self.groups: dict[str, dict[str, Any]] = {}
        self.properties = built_in_properties(kind)
        self.records: dict[int, Record] = {}
        self.live = SortedInts()
        self.archived = SortedInts()
        self.by_modified = SortedInts()  # live records as modified_ms << 64 | id
        self.hidden: set[int] = set()  # records the token may not see; none of the lists above has them
        self.merged: dict[int, int] = {}  # merged-away id -> survivor
        self.raw: dict[int, bytes] = {}
        self.history = History(self.value, kind.modified)
        self.version = next(_versions)
        self._highest_id = 1000
        self.lag = lag
        self._wide = _add_wide(self.properties, wide, property_group(kind.name))
        self._renderers: OrderedDict[tuple[tuple[str, ...], ...], Renderer] = OrderedDict()
        self._by_text: dict[tuple[str | None, str | None], Renderer] = {}
        self._names: list[str] = []  # of all definitions that are not archived; empty until needed
        self._unique: dict[str, UniqueIndex] = {}
        self.checks: dict[str, Any] = {}  # of values, compiled by values.py
        self.rules: list[Rule] = []
        self.unique_names = _unique_names(self.properties)
        self.add_group(property_group(kind.name), f"{kind.name.capitalize()} information")

    # Definitions

    def add_group(self, name: str, label: str, display_order: int = -1) -> dict[str, Any]:
        """Define a property group."""
        group = {"name": name, "label": label, "displayOrder": display_order, "archived": False}
        self.groups[name] = group
        return group

    def define(self, *definitions: Property) -> None:
        """Add or replace property definitions."""
        self.properties.update((prop.name, prop) for prop in definitions)
        self.definitions_changed()

    def define_missing(self, names: Iterable[str]) -> None:
        """Define unknown names as text properties."""
        missing = [name for name in names if name not in self.properties]
        if missing:
            self.define(*(plain_property(name, property_group(self.kind.name)) for name in missing))

    def set_property_archived(self, name: str, archived: bool) -> None:
        """Archive or restore a definition; the values stay and are shown again with it (unverified)."""
        self.properties[name].archived = archived
        self.definitions_changed()

    def remove_property(self, name: str) -> None:
        """Forget a definition as if it had never been; values stay with their records, out of sight."""
        del self.properties[name]
        self.definitions_changed()

    def definitions_changed(self) -> None:
        """Forget everything that was derived from the definitions."""
        self._renderers.clear()
        self._by_text.clear()
        self._names.clear()
        self.checks.clear()
        self.unique_names = _unique_names(self.properties)
        self.version = next(_versions)

    # Reading

    def is_derived(self, name: str) -> bool:
        """Whether a property may have a value that is not kept among the record's properties."""
        return name in self.kind.always or name in self._wide

    def value(self, record: Record, name: str) -> Any:
        """The value of a property as it is delivered."""
        kind = self.kind
        if name == "hs_object_id":
            return str(record.id)
        if name == kind.modified:
            return iso_instant(record.modified_ms)
        if name == kind.created:
            return iso_instant(record.created_ms)
        if name in record.properties:
            return record.properties[name]
        order = self._wide.get(name)
        return None if order is None else wide_value(record.id, order)

    def truth(self, record: Record) -> dict[str, Any]:
        """Everything that is known of a record."""
        if not self._names:
            self._names = self._defined(self.properties)
        return envelope(record, {name: self.value(record, name) for name in self._names})

    def by_id(self) -> list[Record]:
        """All records, hidden and archived ones included."""
        return [self.records[record_id] for record_id in sorted(self.records)]

    def counts(self) -> dict[str, int]:
        """How many records there are, hidden ones included."""
        archived = sum(bool(self.records[record_id].archived_ms) for record_id in self.hidden)
        return {"live": len(self.live) + len(self.hidden) - archived, "archived": len(self.archived) + archived}

    def resolve(self, record_id: int) -> int:
        """The id of the record an id stands for now: merged-away ids lead to the survivor."""
        return self.merged.get(record_id, record_id)

    def find(self, name: str, value: str, archived: bool) -> int | None:
        """The id of the record with this value of a unique property."""
        index = self._unique.get(name)
        if index is None:
            index = self._unique[name] = UniqueIndex()
            for record in self.records.values():
                self._index(record, [name])
        return index.find(value, archived)

    def renderer(self, names: Iterable[str] | None, past: Iterable[str] = ()) -> Renderer:
        """The serialiser for a property list; None stands for the default set. Its records are kept.

        The properties in past are shown with their history; that this alone does not show their present value among
        the record's properties is unverified.
        """
        kind = self.kind
        wanted = set(kind.default_properties if names is None else (*names, *kind.always))
        key = tuple(self._defined(wanted)), tuple(self._defined(set(past)))
        renderer = self._renderers.get(key)
        if renderer is None:
            renderer = self._renderers[key] = Renderer(self, *key)
            if len(self._renderers) > _RENDERERS_KEPT:
                self._renderers.popitem(last=False)
                self._by_text.clear()
        else:
            self._renderers.move_to_end(key)
        return renderer

    def renderer_for_text(self, text: str | None, past: str | None = None) -> Renderer:
        """The serialiser for `properties` and `propertiesWithHistory` of a query, split only when they are new."""
        renderer = self._by_text.get((text, past))
        if renderer is None:
            renderer = self.renderer(_split(text) or None, _split(past))
            if len(self._by_text) >= _RENDERERS_KEPT:
                self._by_text.clear()
            self._by_text[text, past] = renderer
        return renderer

    def _defined(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are defined and not archived."""
        properties = self.properties
        return sorted(name for name in names if name in properties and not properties[name].archived)

    def modified_between(self, low_ms: int, high_ms: int) -> list[int]:
        """Ids of live records modified between two instants, both included."""
        keys = self.by_modified.values
        start = bisect_left(keys, low_ms << _ID_BITS)
        end = bisect_left(keys, (high_ms + 1) << _ID_BITS)
        return [key & _ID_MASK for key in keys[start:end]]

    # Changing

    def load(self, records: list[Record]) -> None:
        """Take over generated records without noting them as changes."""
        self.records.update((record.id, record) for record in records)
        self._publish(records)

    def next_id(self) -> int:
        """An id above all that were ever given out, not quite the next one."""
        return self._highest_id + 1 + len(self.records) % 37

    def insert(self, record: Record) -> None:
        """Add a record."""
        if record.id in self.records or record.id in self.merged:
            raise ControlError(f"id {record.id} is taken")
        if self.lag.active:
            self.lag.note(record.id, None)
        self.records[record.id] = record
        self._publish([record])

    def change(self, changes: Iterable[tuple[Record, Properties]], at_ms: int, source: Source) -> None:
        """Set properties and the modified date of records."""
        lagging = self.lag.active
        for record, properties in changes:
            if lagging:
                self.lag.note(record.id, record.copy())
            indexed = self._indexed(properties)
            self._unindex(record, indexed)
            self.history.note(record, properties, at_ms, source)
            record.properties.update(properties)
            self._index(record, indexed)
            self._move(record, at_ms)
            self._forget_rendered(record.id)
        self.version = next(_versions)

    def archive(self, record: Record, at_ms: int) -> None:
        """Move a record to the recycle bin; the modified date does not move."""
        self._withdraw([record])
        record.archived_ms = at_ms
        self._publish([record])

    def restore(self, record: Record, modified_ms: int) -> None:
        """Take a record out of the recycle bin."""
        self._withdraw([record])
        record.archived_ms = 0
        record.modified_ms = modified_ms
        self._publish([record])

    def purge(self, record: Record) -> None:
        """Remove a record without a trace."""
        self._withdraw([record])
        del self.records[record.id]
        self.hidden.discard(record.id)
        self.raw.pop(record.id, None)
        self.history.forget(record.id)
        self.version = next(_versions)

    def merge_away(self, record: Record, survivor_id: int) -> None:
        """Remove a record whose id from now on leads to the survivor."""
        self.purge(record)
        for old_id, target in self.merged.items():
            if target == record.id:
                self.merged[old_id] = survivor_id
        self.merged[record.id] = survivor_id

    def hide(self, records: Iterable[Record]) -> None:
        """Keep records out of everybody's sight, though they exist; search does not lag behind here."""
        for record in records:
            self._unlist(record)
            self.hidden.add(record.id)
        self.version = next(_versions)

    def unhide(self) -> None:
        """Show all records again."""
        records = [self.records[record_id] for record_id in self.hidden]
        self.hidden.clear()
        self._list(records)
        self.version = next(_versions)

    def set_raw(self, record_id: int, text: bytes | None) -> None:
        """Deliver a record verbatim from now on, or with None normally again."""
        if text is None:
            self.raw.pop(record_id, None)
        else:
            self.raw[record_id] = text
        self._forget_rendered(record_id)
        self.version = next(_versions)

    def _withdraw(self, records: list[Record]) -> None:
        lagging = self.lag.active
        for record in records:
            if lagging:
                self.lag.note(record.id, record.copy())
            self._unlist(record)
            self._forget_rendered(record.id)
            self._unindex(record, self._unique)

    def _publish(self, records: list[Record]) -> None:
        self._highest_id = max([self._highest_id, *(record.id for record in records)])
        self._list(records)
        for record in records:
            self._index(record, self._unique)
        self.version = next(_versions)

    def _move(self, record: Record, modified_ms: int) -> None:
        """Set the modified date of a record that stays where it is."""
        if not record.archived_ms and record.id not in self.hidden:
            self.by_modified.discard(record.modified_ms << _ID_BITS | record.id)
            self.by_modified.add(modified_ms << _ID_BITS | record.id)
        record.modified_ms = modified_ms

    def _unlist(self, record: Record) -> None:
        if record.id in self.hidden:
            return
        if record.archived_ms:
            self.archived.discard(record.id)
        else:
            self.live.discard(record.id)
            self.by_modified.discard(record.modified_ms << _ID_BITS | record.id)

    def _list(self, records: list[Record]) -> None:
        shown = [record for record in records if record.id not in self.hidden] if self.hidden else records
        live = [record for record in shown if not record.archived_ms]
        self.live.extend(record.id for record in live)
        self.by_modified.extend(record.modified_ms << _ID_BITS | record.id for record in live)
        self.archived.extend(record.id for record in shown if record.archived_ms)

    def _forget_rendered(self, record_id: int) -> None:
        for renderer in self._renderers.values():
            renderer.forget(record_id)

    def _indexed(self, properties: Properties) -> list[str]:
        """The indexes whose values these properties are."""
        return [
            name
            for name in self._unique
            if name in properties or (name == "email" and "hs_additional_emails" in properties)
        ]

    def _index(self, record: Record, names: Iterable[str]) -> None:
        for name in names:
            self._unique[name].add(self._unique_values(record, name), bool(record.archived_ms), record.id)

    def _unindex(self, record: Record, names: Iterable[str]) -> None:
        for name in names:
            self._unique[name].remove(self._unique_values(record, name), bool(record.archived_ms), record.id)

    def _unique_values(self, record: Record, name: str) -> list[str]:
        """The values a record is found by: of e-mails the additional ones too."""
        values = [self.value(record, name)]
        if name == "email":
            values += str(record.properties.get("hs_additional_emails") or "").split(";")
        return [str(value) for value in values if value]


class Renderer:
    """Turns records into JSON for lists of defined properties and keeps the bytes until the record changes.

    A requested property without value is null; undefined ones were silently left out before.
    """

    def __init__(self, table: Table, names: tuple[str, ...], past: tuple[str, ...]) -> None:
        self.number = next(_versions)  # tells it from all others
        self._table = table
        self._names = names
        self._past = past
        self.ready: dict[int, bytes] = {}
        self._room = _READY_BYTES
        self._derived = [name for name in self._names if table.is_derived(name)]

    def page(self, ids: list[int]) -> list[bytes]:
        """The JSON of current records."""
        ready, fill = self.ready.get, self._fill
        return [ready(record_id) or fill(record_id) for record_id in ids]

    def one(self, record: Record) -> bytes:
        """The JSON of a record, which may be an earlier state of it."""
        if self._table.records.get(record.id) is record:
            return self.ready.get(record.id) or self._fill(record.id)
        return self._render(record)

    def forget(self, record_id: int) -> None:
        """Drop what was kept of a record."""
        self._room += len(self.ready.pop(record_id, b""))

    def _fill(self, record_id: int) -> bytes:
        raw = self._table.raw.get(record_id)
        text = self._render(self._table.records[record_id]) if raw is None else raw
        if self._room > len(text):
            self.ready[record_id] = text
            self._room -= len(text)
        return text

    def _render(self, record: Record) -> bytes:
        get, value = record.properties.get, self._table.value
        shown = {name: get(name) for name in self._names}
        shown.update((name, value(record, name)) for name in self._derived)
        return dump(envelope(record, shown, self._table.history.delivered(record, self._past)))


def envelope(record: Record, properties: Properties, past: dict[str, Any] | None = None) -> dict[str, Any]:
    """A record as the objects API shows it; its id is a string of digits."""
    shown = {
        "id": str(record.id),
        "properties": properties,
        "createdAt": iso_instant(record.created_ms),
        "updatedAt": iso_instant(record.modified_ms),
        "archived": bool(record.archived_ms),
    }
    if record.archived_ms:
        shown["archivedAt"] = iso_instant(record.archived_ms)
    if past:
        shown["propertiesWithHistory"] = past
    return shown


def wide_value(record_id: int, order: int) -> str | None:
    """The value of a benchmark property that was never written: computed, so that it costs no memory."""
    mixed = (record_id * 31 + order * 17) % 9973
    return None if mixed % 5 == 0 else f"value {order} of {mixed}"


def _split(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def _unique_names(properties: dict[str, Property]) -> list[str]:
    return [prop.name for prop in properties.values() if prop.unique and not prop.archived]


def _add_wide(properties: dict[str, Property], wide: int, group: str) -> dict[str, int]:
    digits = max(3, len(str(wide)))
    names = {f"extra_{order:0{digits}}": order for order in range(1, wide + 1)}
    properties.update((name, plain_property(name, group)) for name in names)
    return names
