"""Records of one object type: their truth, their order, their lookups and their ready-made JSON."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from answer import dump
from clock import iso_instant
from definitions import ObjectType, Property, built_in_properties, plain_property, property_group
from errors import ControlError
from lag import IndexLag
from sorted_ints import SortedInts

_RENDERERS_KEPT = 8
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

    def __init__(self, kind: ObjectType, lag_ms: Callable[[], int], wide: int = 0) -> None:
        self.kind = kind
        self.groups: dict[str, dict[str, Any]] = {}
        self.properties = built_in_properties(kind)
        self.records: dict[int, Record] = {}
        self.live = SortedInts()
        self.archived = SortedInts()
        self.by_modified = SortedInts()  # live records as modified_ms << 64 | id
        self.merged: dict[int, int] = {}  # merged-away id -> survivor
        self.raw: dict[int, bytes] = {}
        self.version = next(_versions)
        self._highest_id = 1000
        self.lag = IndexLag(lag_ms)
        self._wide = _add_wide(self.properties, wide, property_group(kind.name))
        self._renderers: OrderedDict[tuple[str, ...], Renderer] = OrderedDict()
        self._by_text: dict[str | None, Renderer] = {}
        self._unique: dict[str, dict[tuple[bool, str], int]] = {}
        self.add_group(property_group(kind.name), f"{kind.name.capitalize()} information")

    # Definitions

    def add_group(self, name: str, label: str, display_order: int = -1) -> dict[str, Any]:
        """Define a property group."""
        group = {"name": name, "label": label, "displayOrder": display_order, "archived": False}
        self.groups[name] = group
        return group

    def define(self, prop: Property) -> None:
        """Add or replace a property definition."""
        self.properties[prop.name] = prop
        self.definitions_changed()

    def define_missing(self, names: Iterable[str]) -> None:
        """Define unknown names as text properties."""
        for name in names:
            if name not in self.properties:
                self.define(plain_property(name, property_group(self.kind.name)))

    def definitions_changed(self) -> None:
        """Forget everything that was derived from the definitions."""
        self._renderers.clear()
        self._by_text.clear()
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
        names = sorted(name for name, prop in self.properties.items() if not prop.archived)
        return envelope(record, {name: self.value(record, name) for name in names})

    def resolve(self, record_id: int) -> int:
        """The id of the record an id stands for now: merged-away ids lead to the survivor."""
        return self.merged.get(record_id, record_id)

    def find(self, name: str, value: str, archived: bool) -> int | None:
        """The id of the record with this value of a unique property."""
        index = self._unique.get(name)
        if index is None:
            index = self._unique[name] = {}
            for record in self.records.values():
                self._index_unique(index, name, record)
        return index.get((archived, value.lower()))

    def renderer(self, names: Iterable[str] | None) -> Renderer:
        """The serialiser for a property list; None stands for the default set. Its records are kept."""
        kind, defined = self.kind, self.properties
        wanted = set(kind.default_properties if names is None else (*names, *kind.always))
        shown = tuple(sorted(name for name in wanted if name in defined and not defined[name].archived))
        renderer = self._renderers.get(shown)
        if renderer is None:
            renderer = self._renderers[shown] = Renderer(self, shown)
            if len(self._renderers) > _RENDERERS_KEPT:
                self._renderers.popitem(last=False)
                self._by_text.clear()
        else:
            self._renderers.move_to_end(shown)
        return renderer

    def renderer_for_text(self, text: str | None) -> Renderer:
        """The serialiser for the `properties` parameter, split only when it is new."""
        renderer = self._by_text.get(text)
        if renderer is None:
            names = [name.strip() for name in text.split(",")] if text else None
            renderer = self.renderer(names)
            if len(self._by_text) >= _RENDERERS_KEPT:
                self._by_text.clear()
            self._by_text[text] = renderer
        return renderer

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

    def change(self, records: list[Record], properties: Properties, at_ms: int) -> None:
        """Set properties and the modified date of records."""
        self._withdraw(records)
        for record in records:
            record.properties.update(properties)
            record.modified_ms = at_ms
        self._publish(records)

    def archive(self, record: Record, at_ms: int) -> None:
        """Move a record to the recycle bin, or with 0 back; the modified date does not move."""
        self._withdraw([record])
        record.archived_ms = at_ms
        self._publish([record])

    def purge(self, record: Record) -> None:
        """Remove a record without a trace."""
        self._withdraw([record])
        del self.records[record.id]
        self.raw.pop(record.id, None)
        self.version = next(_versions)

    def merge_away(self, record: Record, survivor_id: int) -> None:
        """Remove a record whose id from now on leads to the survivor."""
        self.purge(record)
        for old_id, target in self.merged.items():
            if target == record.id:
                self.merged[old_id] = survivor_id
        self.merged[record.id] = survivor_id

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
            if record.archived_ms:
                self.archived.discard(record.id)
            else:
                self.live.discard(record.id)
                self.by_modified.discard(record.modified_ms << _ID_BITS | record.id)
            self._forget_rendered(record.id)
            for name, index in self._unique.items():
                self._unindex_unique(index, name, record)

    def _publish(self, records: list[Record]) -> None:
        self._highest_id = max([self._highest_id, *(record.id for record in records)])
        live = [record for record in records if not record.archived_ms]
        self.live.extend(record.id for record in live)
        self.by_modified.extend(record.modified_ms << _ID_BITS | record.id for record in live)
        self.archived.extend(record.id for record in records if record.archived_ms)
        for name, index in self._unique.items():
            for record in records:
                self._index_unique(index, name, record)
        self.version = next(_versions)

    def _forget_rendered(self, record_id: int) -> None:
        for renderer in self._renderers.values():
            renderer.ready.pop(record_id, None)

    def _unique_keys(self, name: str, record: Record) -> list[tuple[bool, str]]:
        values = [self.value(record, name)]
        if name == "email":
            values += str(record.properties.get("hs_additional_emails") or "").split(";")
        return [(bool(record.archived_ms), str(value).lower()) for value in values if value]

    def _index_unique(self, index: dict[tuple[bool, str], int], name: str, record: Record) -> None:
        for key in self._unique_keys(name, record):
            index.setdefault(key, record.id)

    def _unindex_unique(self, index: dict[tuple[bool, str], int], name: str, record: Record) -> None:
        for key in self._unique_keys(name, record):
            if index.get(key) == record.id:
                del index[key]


class Renderer:
    """Turns records into JSON for one list of defined properties and keeps the bytes until the record changes.

    A requested property without value is null; undefined ones were silently left out before.
    """

    def __init__(self, table: Table, names: tuple[str, ...]) -> None:
        self._table = table
        self._names = names
        self.ready: dict[int, bytes] = {}
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

    def _fill(self, record_id: int) -> bytes:
        raw = self._table.raw.get(record_id)
        text = self._render(self._table.records[record_id]) if raw is None else raw
        self.ready[record_id] = text
        return text

    def _render(self, record: Record) -> bytes:
        get, value = record.properties.get, self._table.value
        shown = {name: get(name) for name in self._names}
        shown.update((name, value(record, name)) for name in self._derived)
        return dump(envelope(record, shown))


def envelope(record: Record, properties: Properties) -> dict[str, Any]:
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
    return shown


def wide_value(record_id: int, order: int) -> str | None:
    """The value of a benchmark property that was never written: computed, so that it costs no memory."""
    mixed = (record_id * 31 + order * 17) % 9973
    return None if mixed % 5 == 0 else f"value {order} of {mixed}"


def _add_wide(properties: dict[str, Property], wide: int, group: str) -> dict[str, int]:
    digits = max(3, len(str(wide)))
    names = {f"extra_{order:0{digits}}": order for order in range(1, wide + 1)}
    properties.update((name, plain_property(name, group)) for name in names)
    return names
