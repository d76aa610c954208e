"""The simulated account: tables, owners, pipelines, and everything that may happen to a record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clock import Clock, parse_instant
from config import Config
from definitions import (
    OBJECT_TYPES,
    ObjectType,
    custom_type,
    deal_stage,
    default_pipelines,
    described_property,
    property_group,
)
from errors import ControlError
from history import MERGE_SOURCE, USER_SOURCE, Source
from lag import IndexLag
from owners import OwnerBook
from store import Properties, Record, Table


class World:
    """The data of the account and the operations on it."""

    def __init__(self, config: Config, clock: Clock, wide: int = 0) -> None:
        self._config = config
        self._clock = clock
        self.tables = {kind.name: self._table(kind, wide) for kind in OBJECT_TYPES}
        self.owners = OwnerBook()
        self.pipelines = default_pipelines()
        self._stages: dict[str, dict[str, str]] = {}
        self.pipelines_changed()

    # Types and pipelines

    def table(self, name_or_id: str) -> Table | None:
        """The table of an object type, by name or id."""
        table = self.tables.get(name_or_id)
        if table is None:
            table = next((t for t in self.tables.values() if t.kind.type_id == name_or_id), None)
        return table

    def define_type(self, name: str, type_id: str | None, properties: Iterable[str]) -> ObjectType:
        """Add a custom object type with text properties."""
        if self.table(name) or (type_id and self.table(type_id)):
            raise ControlError(f"object type {name} exists")
        number = 100 + sum(table.kind.type_id.startswith("2-") for table in self.tables.values())
        kind = custom_type(name, type_id or f"2-{number}")
        self.tables[name] = self._table(kind, 0)
        self.tables[name].define_missing(properties)
        return kind

    def define_properties(self, table: Table, definitions: list[dict[str, Any]]) -> list[str]:
        """Add property definitions or change known ones, all or none; returns their names."""
        if not isinstance(definitions, list) or not all(isinstance(fields, dict) for fields in definitions):
            raise ControlError("properties must be a list of definitions")
        group, now = property_group(table.kind.name), self._clock.now_ms()
        described = [described_property(fields, table.properties, group, now) for fields in definitions]
        table.define(*described)
        return [prop.name for prop in described]

    def set_pipelines(self, type_name: str, pipelines: list[dict[str, Any]]) -> None:
        """Replace the pipelines of a type."""
        self.pipelines[type_name] = pipelines
        self.pipelines_changed()

    def add_stage(self, type_name: str, fields: dict[str, Any]) -> None:
        """Add a stage to a pipeline, or replace the one with the same id."""
        chosen = fields.get("pipeline")
        for pipeline in self.pipelines.get(type_name, []):
            if chosen in (None, pipeline["id"]):
                stages = [stage for stage in pipeline["stages"] if stage["id"] != fields["id"]]
                order = fields.get("displayOrder", len(stages))
                probability = str(fields.get("probability", "0.5"))
                stage = deal_stage(
                    fields["id"], fields.get("label", fields["id"]), order, probability, bool(fields.get("isClosed"))
                )
                pipeline["stages"] = [*stages, {**stage, **fields.get("stage", {})}]
                self.pipelines_changed()
                return
        raise ControlError(f"no pipeline {chosen} for {type_name}")

    def pipelines_changed(self) -> None:
        """Read the meaning of the deal stages again."""
        self._stages = {
            stage["id"]: stage.get("metadata", {})
            for pipeline in self.pipelines.get("deals", [])
            for stage in pipeline["stages"]
        }

    def is_option(self, name: str, value: str) -> bool:
        """Whether a value of a property with options kept elsewhere exists: owners, pipelines, stages."""
        if name == "hubspot_owner_id":
            return self.owners.get(value) is not None
        pipelines = [pipeline for group in self.pipelines.values() for pipeline in group]
        if name in ("pipeline", "hs_pipeline"):
            return any(pipeline["id"] == value for pipeline in pipelines)
        return any(stage["id"] == value for pipeline in pipelines for stage in pipeline["stages"])

    def with_derived(self, table: Table, properties: dict[str, Any]) -> dict[str, Any]:
        """Properties and what HubSpot computes from them: the meaning of a deal stage, the domain of an e-mail."""
        if table.kind.name == "deals" and "dealstage" in properties:
            metadata = self._stages.get(str(properties["dealstage"]), {})
            closed, chance = metadata.get("isClosed", "false"), metadata.get("probability")
            won = str(closed == "true" and chance == "1.0").lower()
            derived = {"hs_is_closed": closed, "hs_is_closed_won": won, "hs_deal_stage_probability": chance}
            return {**derived, **properties}
        if table.kind.name == "contacts" and isinstance(properties.get("email"), str):
            return {"hs_email_domain": properties["email"].rpartition("@")[2], **properties}
        return properties

    # Operations on records

    def create(
        self,
        table: Table,
        properties: dict[str, Any],
        record_id: Any = None,
        created: Any = None,
        modified: Any = None,
        source: Source = USER_SOURCE,
    ) -> Record:
        """Create a record; dates are ISO text or epoch milliseconds and default to now."""
        created_ms = self._clock.now_ms() if created is None else _instant(created)
        modified_ms = created_ms if modified is None else _instant(modified)
        new_id = table.next_id() if record_id is None else _id(record_id)
        record = Record(new_id, self.with_derived(table, dict(properties)), created_ms, modified_ms)
        table.insert(record)
        table.history.begin(new_id, source)
        return record

    def patch(self, table: Table, record: Record, properties: dict[str, Any], source: Source = USER_SOURCE) -> None:
        """Change properties; the modified date moves."""
        self.patch_each(table, [(record, properties)], source)

    def patch_each(self, table: Table, changes: Iterable[tuple[Record, Properties]], source: Source) -> None:
        """Change properties of many records, each its own; their modified dates move to one instant."""
        derived = [(record, self.with_derived(table, properties)) for record, properties in changes]
        table.change(derived, self._clock.now_ms(), source)

    def touch(
        self, table: Table, ids: Iterable[Any] | None, count: int | None, properties: dict[str, Any], at_ms: int | None
    ) -> int:
        """Set the modified date of many records to one stamp, as bulk edits do; returns how many."""
        chosen = table.live.values[:count] if ids is None else [_id(record_id) for record_id in ids]
        records = [self.known(table, record_id) for record_id in chosen]
        stamp = self._clock.now_ms() if at_ms is None else at_ms
        derived = self.with_derived(table, properties)
        table.change([(record, derived) for record in records], stamp, USER_SOURCE)
        return len(records)

    def archive(self, table: Table, record: Record) -> None:
        """Put a record into the recycle bin; its modified date does not move."""
        if not record.archived_ms:
            table.archive(record, self._clock.now_ms())

    def restore(self, table: Table, record: Record) -> None:
        """Take a record out of the recycle bin; whether its modified date moves is unverified, so a setting says."""
        if record.archived_ms:
            table.restore(record, self._clock.now_ms() if self._config.restore_moves_modified else record.modified_ms)

    def hide(self, table: Table, ids: list[Any] | None, every: int | None) -> int:
        """Keep records, or every Nth by id, from the token, as narrower permissions do; returns how many are hidden."""
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ControlError("every must be a positive number")
        if not isinstance(ids, list) and (every is None or ids is not None):
            raise ControlError("hide needs a list of ids, or every")
        chosen = [] if every is None else sorted(table.records)[every - 1 :: every]
        chosen += ids or []
        table.hide([self.known(table, record_id) for record_id in chosen])
        return len(table.hidden)

    def merge(self, table: Table, primary: Record, other: Record, new_id: bool = False) -> Record:
        """Merge two records; with new_id the survivor gets an id of its own and both old ids lead to it.

        The old ids leave lists and search without being archived and stand in `hs_merged_object_ids`. The survivor
        goes on with the history of the primary record only (unverified).
        """
        if primary is other:
            raise ControlError("a record cannot be merged with itself")
        merged = _merged_properties(table, primary, other, new_id)
        now = self._clock.now_ms()
        if not new_id:
            table.merge_away(other, primary.id)
            table.change([(primary, merged)], now, MERGE_SOURCE)
            return primary
        survivor = Record(table.next_id(), dict(primary.properties), primary.created_ms, now)
        table.history.take_over(survivor.id, primary.id)
        table.history.note(survivor, merged, now, MERGE_SOURCE)
        survivor.properties.update(merged)
        if primary.id in table.hidden:
            table.hidden.add(survivor.id)
        table.merge_away(other, survivor.id)
        table.merge_away(primary, survivor.id)
        table.insert(survivor)
        return survivor

    def known(self, table: Table, record_id: Any) -> Record:
        """The record of a control request."""
        record = table.records.get(_id(record_id))
        if record is None:
            raise ControlError(f"no {table.kind.name} record {record_id}")
        return record

    def _table(self, kind: ObjectType, wide: int) -> Table:
        return Table(kind, IndexLag(lambda: self._config.search_lag_ms, self._clock.now_ms), wide)


def _merged_properties(table: Table, primary: Record, other: Record, new_id: bool) -> dict[str, Any]:
    """What the survivor takes over: missing values, old ids, and for contacts the other e-mail addresses."""
    old_ids = [str(other.id)] + ([str(primary.id)] if new_id else [])
    for record in (other, primary):
        old_ids += str(record.properties.get("hs_merged_object_ids") or "").split(";")
    taken = {name: value for name, value in other.properties.items() if not primary.properties.get(name)}
    taken["hs_merged_object_ids"] = ";".join(filter(None, old_ids))
    if table.kind.name == "contacts":
        emails = [other.properties.get("email")]
        for record in (primary, other):
            emails += str(record.properties.get("hs_additional_emails") or "").split(";")
        primary_email = primary.properties.get("email") or taken.get("email")
        extra = dict.fromkeys(email for email in emails if email and email != primary_email)
        taken["hs_additional_emails"] = ";".join(extra) or None
    return taken


def _id(value: Any) -> int:
    text = str(value)
    if not text.isdigit():
        raise ControlError(f"not a record id: {value}")
    return int(text)


def _instant(value: Any) -> int:
    try:
        return parse_instant(value)
    except ValueError:
        raise ControlError(f"not an instant: {value}") from None
