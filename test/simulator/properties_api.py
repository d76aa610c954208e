"""Endpoints for property definitions and their groups."""

from __future__ import annotations

from typing import Any

from answer import Answer, dump, empty_answer, json_answer
from batches import batch_answer, batch_inputs, refusal_error
from call import Call
from clock import Clock
from config import Config
from definition_checks import changed_property, check_name, check_room, new_property
from definitions import Property
from errors import ApiError, not_found
from store import Table


class PropertiesApi:
    """Handlers below `/crm/properties/{version}/{type}`; each gets the call and the table of the type."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock

    # Definitions

    def properties(self, call: Call, table: Table) -> Answer:
        """All definitions, no paging; sensitive ones do not exist here."""
        archived = call.query.get("archived") == "true"
        sensitive = call.query.get("dataSensitivity", "non_sensitive") != "non_sensitive"
        chosen = [prop for prop in table.properties.values() if prop.archived == archived and not sensitive]
        return json_answer({"results": [prop.to_json() for prop in chosen]})

    def property(self, call: Call, table: Table, name: str) -> Answer:
        """One definition."""
        return json_answer(_known(table, name, call.query.get("archived") == "true").to_json())

    def create_property(self, call: Call, table: Table) -> Answer:
        """Create a definition; the name of an archived one restores it."""
        return json_answer(self._created(table, call.json()).to_json(), 201)

    def update_property(self, call: Call, table: Table, name: str) -> Answer:
        """Change a custom definition; that HubSpot's own ones are refused is unverified."""
        prop = _known(table, name)
        if prop.hubspot_defined:
            raise ApiError(400, f"{name} is defined by HubSpot and cannot be changed")
        changed = changed_property(table, prop, call.json(), self._clock.now_ms())
        table.define(changed)
        return json_answer(changed.to_json())

    def archive_property(self, call: Call, table: Table, name: str) -> Answer:
        """Archive a custom definition."""
        _archive(table, _known(table, name))
        return empty_answer()

    def _created(self, table: Table, body: dict[str, Any]) -> Property:
        existing = table.properties.get(str(body.get("name")))
        if existing is not None and not existing.archived:
            raise ApiError(
                409,
                f"A property named '{existing.name}' already exists.",
                "OBJECT_ALREADY_EXISTS",
                subCategory="Properties.PROPERTY_WITH_NAME_EXISTS",
            )
        if existing is None:
            made = new_property(table, body, self._clock.now_ms())
            check_room(table, self._config.max_custom_properties)
            table.define(made)
            return made
        check_room(table, self._config.max_custom_properties)
        table.set_property_archived(existing.name, False)
        return existing

    # Batches; that they take 100 inputs and name what failed in context.name is unverified

    def batch_create(self, call: Call, table: Table) -> Answer:
        """Create definitions one by one."""
        results, errors = [], []
        for body in batch_inputs(call):
            try:
                results.append(dump(self._created(table, body).to_json()))
            except ApiError as refusal:
                errors.append(refusal_error(refusal, name=[str(body.get("name"))]))
        return batch_answer(results, errors, self._clock.now_ms(), 201)

    def batch_read(self, call: Call, table: Table) -> Answer:
        """Definitions by name."""
        results, errors = [], []
        archived = call.json().get("archived") is True
        for fields in batch_inputs(call):
            name = str(fields.get("name"))
            try:
                results.append(dump(_known(table, name, archived).to_json()))
            except ApiError as refusal:
                errors.append(refusal_error(refusal, name=[name]))
        return batch_answer(results, errors, self._clock.now_ms())

    def batch_archive(self, call: Call, table: Table) -> Answer:
        """Archive custom definitions; unknown names are no error (unverified)."""
        for fields in batch_inputs(call):
            prop = table.properties.get(str(fields.get("name")))
            if prop is not None:
                _archive(table, prop)
        return empty_answer()

    # Groups

    def groups(self, call: Call, table: Table) -> Answer:
        """The property groups of a type."""
        return json_answer({"results": list(table.groups.values())})

    def create_group(self, call: Call, table: Table) -> Answer:
        """Create a group; 409 for an existing one is unverified."""
        body = call.json()
        name, label = body.get("name"), body.get("label")
        if not isinstance(name, str) or not isinstance(label, str) or not label:
            raise ApiError(400, "name and label are required")
        check_name(name)
        if name in table.groups:
            raise ApiError(409, f"A property group named '{name}' already exists.", "OBJECT_ALREADY_EXISTS")
        return json_answer(table.add_group(name, label, body.get("displayOrder", -1)), 201)


def _known(table: Table, name: str, archived: bool = False) -> Property:
    prop = table.properties.get(name)
    if prop is None or prop.archived != archived:
        raise not_found(f'Property "{name}" does not exist')
    return prop


def _archive(table: Table, prop: Property) -> None:
    if prop.hubspot_defined:
        raise ApiError(400, f"{prop.name} is defined by HubSpot and cannot be archived")
    table.set_property_archived(prop.name, True)
