"""The objects endpoints that change records: single ones and batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from answer import Answer, dump, empty_answer
from batches import Item, batch_answer, batch_inputs, missing_error, refusal_error, shuffled
from call import Call
from clock import Clock
from errors import ApiError, not_found
from history import API_SOURCE
from lookup import by_key, check_unique, is_id, is_merged_away
from store import Properties, Record, Table, envelope
from world import World
from writer import Writer, taken

MAX_IDENTITIES = 250


@dataclass(slots=True)
class Input:
    """One input of a batch write, and what is to become of it."""

    id: str
    id_property: str | None
    properties: Properties
    trace: str | None
    record: Record | None = None
    accepted: Properties | None = None  # None: nothing will be written
    refusal: ApiError | None = None
    missing: bool = False
    new: bool = False


class WritesApi:
    """Handlers for writes below `/crm/objects/{version}/{type}`; each gets the call and the table of the type."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._world = world
        self._clock = clock
        self._writer = Writer(world)

    # Single records

    def create(self, call: Call, table: Table) -> Answer:
        """Create one record."""
        properties = self._writer.creation(table, call.properties(), call.version)
        return _written(table, self._world.create(table, properties, source=API_SOURCE), properties, 201)

    def update(self, call: Call, table: Table, id: str) -> Answer:
        """Change one record; a merged-away id is accepted here."""
        id_property = call.query.get("idProperty")
        check_unique(table, id_property, "update")
        record = by_key(table, id, id_property)
        if record is None:
            raise not_found()
        properties = self._writer.update(table, record, call.properties(), call.version)
        self._world.patch(table, record, properties, API_SOURCE)
        return _written(table, record, properties, 200)

    def archive(self, call: Call, table: Table, id: str) -> Answer:
        """Move one record to the recycle bin; 404 for an unknown id is unverified."""
        record = table.records.get(int(id)) if id.isdigit() else None
        if record is None or record.id in table.hidden:
            raise not_found()
        self._world.archive(table, record)
        return empty_answer()

    def merge(self, call: Call, table: Table) -> Answer:
        """Merge two records and answer with the survivor."""
        body = call.json()
        primary = by_key(table, str(body.get("primaryObjectId")), None)
        other = by_key(table, str(body.get("objectIdToMerge")), None)
        if primary is None or other is None or primary is other:
            raise ApiError(400, "Records to merge must be two existing ones")
        if _identities(primary) + _identities(other) > MAX_IDENTITIES:  # how exactly HubSpot counts is unverified
            raise ApiError(414, f"Cannot have more than {MAX_IDENTITIES} identities on a profile")
        return _written(table, self._world.merge(table, primary, other), (), 200)

    def gdpr_delete(self, call: Call, table: Table) -> Answer:
        """Remove a contact for good; an unknown one is no error. The blocklist of e-mails is not simulated.

        That it reaches into the recycle bin is unverified.
        """
        body = call.json()
        key, id_property = str(body.get("objectId")), body.get("idProperty")
        check_unique(table, id_property, "delete")
        record = by_key(table, key, id_property) or by_key(table, key, id_property, archived=True)
        if record is not None:
            table.purge(record)
        return empty_answer()

    # Batches

    def batch_update(self, call: Call, table: Table) -> Answer:
        """Change up to 100 records; facts section 5 says what one bad input does."""
        inputs = _inputs(call, table, "update")
        for item in inputs:
            self._plan(item, table, self._plan_update, call.version)
        return self._carry_out(table, inputs)

    def batch_upsert(self, call: Call, table: Table) -> Answer:
        """Change up to 100 records, or create those that nobody has by their unique property."""
        inputs = _inputs(call, table, "upsert")
        if any(is_id(item.id_property) for item in inputs):  # whether HubSpot takes record ids here is unverified
            raise ApiError(400, "Unable to perform upsert without a unique idProperty")
        for item in inputs:
            self._plan(item, table, self._plan_upsert, call.version)
        return self._carry_out(table, inputs, new=True)

    def _plan(self, item: Input, table: Table, plan: Callable[[Input, Table, str], None], version: str) -> None:
        item.record = by_key(table, item.id, item.id_property)
        try:
            plan(item, table, version)
        except ApiError as refusal:
            item.refusal = refusal

    def _plan_update(self, item: Input, table: Table, version: str) -> None:
        """A merged-away id is silently left out of the results."""
        if is_merged_away(table, item.id, item.id_property):
            return
        if item.record is None:
            item.missing = True
        else:
            item.accepted = self._writer.update(table, item.record, item.properties, version)

    def _plan_upsert(self, item: Input, table: Table, version: str) -> None:
        if item.record is None:
            item.new = True
            properties = {str(item.id_property): item.id, **item.properties}
            item.accepted = self._writer.creation(table, properties, version)
        else:
            item.accepted = self._writer.update(table, item.record, item.properties, version)

    def _carry_out(self, table: Table, inputs: list[Input], new: bool = False) -> Answer:
        """Write what is valid; without a trace id of its own on every input one refusal rejects them all."""
        _refuse_claimed_twice(table, inputs)
        refused = [item.refusal for item in inputs if item.refusal is not None]
        if refused and not _all_traced(inputs):
            raise refused[0]
        written = [item for item in inputs if item.accepted is not None and item.refusal is None]
        self._write(table, written)
        results = [_result(table, item, new) for item in written]
        return batch_answer(shuffled(results), _errors(table, inputs), self._clock.now_ms())

    def _write(self, table: Table, written: list[Input]) -> None:
        changes = [(item.record, item.accepted) for item in written if item.record and item.accepted is not None]
        self._world.patch_each(table, changes, API_SOURCE)
        for item in written:
            if item.record is None:
                item.record = self._world.create(table, item.accepted or {}, source=API_SOURCE)


def _inputs(call: Call, table: Table, purpose: str) -> list[Input]:
    inputs = [_input(fields) for fields in batch_inputs(call)]
    for id_property in {item.id_property for item in inputs}:
        check_unique(table, id_property, purpose)
    _refuse_duplicates(inputs)
    return inputs


def _input(fields: dict[str, Any]) -> Input:
    """One input; a number is taken as id too (unverified)."""
    key, properties = fields.get("id"), fields.get("properties")
    if not isinstance(key, (str, int)) or not isinstance(properties, dict):
        raise ApiError(400, "Invalid input JSON: inputs need an id and properties")
    id_property, trace = fields.get("idProperty"), fields.get("objectWriteTraceId")
    if not isinstance(id_property, (str, type(None))) or not isinstance(trace, (str, type(None))):
        raise ApiError(400, "Invalid input JSON: idProperty and objectWriteTraceId must be strings")
    return Input(str(key), id_property, properties, trace)


def _refuse_duplicates(inputs: list[Input]) -> None:
    """Equal ids reject the whole request; e-mails are equal in whatever case, and so are other values (unverified)."""
    counts = Counter(item.id.lower() for item in inputs)
    if len(counts) < len(inputs):
        ids = [key for key, count in counts.items() if count > 1]
        message = f"Duplicate IDs found in batch input: [{', '.join(ids)}]. IDs must be unique"
        raise ApiError(400, message, context={"ids": ids})


def _refuse_claimed_twice(table: Table, inputs: list[Input]) -> None:
    """A unique value goes to the first input that claims it (unverified)."""
    claims: dict[tuple[str, str], Input] = {}
    for item in inputs:
        for name in table.unique_names:
            value = (item.accepted or {}).get(name)
            if value and claims.setdefault((name, value.lower()), item) is not item:
                other = claims[name, value.lower()].record
                item.refusal = taken(table, 0 if other is None else other.id)


def _all_traced(inputs: list[Input]) -> bool:
    """Whether every input has a trace id of its own; that equal ones count as none is unverified."""
    return len({item.trace for item in inputs if item.trace}) == len(inputs)


def _errors(table: Table, inputs: list[Input]) -> list[dict[str, Any]]:
    """One error for each refused input; of missing ids one for each that has a trace id, and one for all others."""
    label = table.kind.label
    errors = []
    for item in inputs:
        if item.refusal is not None:
            errors.append(refusal_error(item.refusal, objectWriteTraceId=[str(item.trace)]))
        elif item.missing and item.trace:
            errors.append(missing_error(label, [item.id], item.trace))
    untraced = [item.id for item in inputs if item.missing and not item.trace]
    return [*errors, missing_error(label, untraced)] if untraced else errors


def _result(table: Table, item: Input, new: bool) -> Item:
    """An item of the results: what was written and the dates, but not e.g. the e-mail (which ones is unverified)."""
    record = item.record
    assert record is not None and item.accepted is not None
    shown = envelope(record, {**item.accepted, **{name: table.value(record, name) for name in table.kind.always}})
    if new:
        shown["new"] = item.new
    if item.trace is not None:
        shown["objectWriteTraceId"] = item.trace
    return record.id, dump(shown)


def _written(table: Table, record: Record, names: Any, status: int) -> Answer:
    """A record with the default properties and those that were written."""
    shown = {name: table.value(record, name) for name in sorted({*table.kind.default_properties, *names})}
    return Answer(status, dump(envelope(record, shown)))


def _identities(record: Record) -> int:
    """The ids a record is known by: its own and those merged into it."""
    return 1 + sum(map(bool, str(record.properties.get("hs_merged_object_ids") or "").split(";")))
