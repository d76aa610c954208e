"""Finding the record that a request means."""

from __future__ import annotations

from errors import ApiError
from store import Record, Table


def is_id(id_property: str | None) -> bool:
    """Whether keys are record ids."""
    return id_property is None or id_property == "hs_object_id"


def check_unique(table: Table, id_property: str | None, purpose: str) -> None:
    """400 unless records can be told apart by the property."""
    if is_id(id_property):
        return
    prop = table.properties.get(str(id_property))
    if prop is None or prop.archived or not prop.unique:
        raise ApiError(400, f"Unable to perform {purpose} by non-unique {id_property} property")


def by_key(table: Table, key: str, id_property: str | None, archived: bool = False) -> Record | None:
    """The record with an id, merged-away ones included, or with a value of a unique property."""
    if is_id(id_property):
        found = table.resolve(int(key)) if key.isascii() and key.isdigit() else None
    else:
        found = table.find(str(id_property), key, archived)
    record = None if found is None or found in table.hidden else table.records.get(found)
    return record if record is not None and bool(record.archived_ms) == archived else None


def is_merged_away(table: Table, key: str, id_property: str | None) -> bool:
    """Whether a key is the id of a record that went up in another one."""
    return is_id(id_property) and key.isascii() and key.isdigit() and int(key) in table.merged
