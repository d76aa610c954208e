"""What HubSpot demands of a property definition (facts section 9)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from definitions import FIELD_TYPES, Property
from errors import ApiError
from store import Table

MAX_UNIQUE = 10
_NAME = re.compile(r"[a-z][a-z0-9_]{0,98}")
_REQUIRED = ("name", "label", "type", "fieldType", "groupName")
_CHANGEABLE = {
    "label": "label", "type": "type", "fieldType": "field_type", "groupName": "group", "description": "description",
    "displayOrder": "display_order",
}  # fmt: skip


def new_property(table: Table, body: dict[str, Any], now_ms: int) -> Property:
    """The definition that a request asks for."""
    for name in _REQUIRED:
        if not isinstance(body.get(name), str) or not body[name]:
            raise ApiError(400, f"{name} is required")
    check_name(body["name"])
    prop = Property(
        body["name"],
        body["label"],
        body["type"],
        body["fieldType"],
        body["groupName"],
        options=_options(body.get("options") or []),
        description=body.get("description", ""),
        unique=bool(body.get("hasUniqueValue")),
        display_order=body.get("displayOrder", -1),
        created_ms=now_ms,
        updated_ms=now_ms,
    )
    _check(table, prop)
    if prop.unique and len(table.unique_names) >= MAX_UNIQUE:
        raise ApiError(400, f"{table.kind.name} cannot have more than {MAX_UNIQUE} properties with unique values")
    return prop


def changed_property(table: Table, prop: Property, body: dict[str, Any], now_ms: int) -> Property:
    """A definition with some fields replaced; options are replaced as a whole. What else is sent is ignored."""
    changes = {_CHANGEABLE[name]: value for name, value in body.items() if name in _CHANGEABLE}
    if "options" in body:
        changes["options"] = _options(body["options"])
    changed = replace(prop, updated_ms=now_ms, **changes)
    if not isinstance(changed.label, str) or not changed.label:
        raise ApiError(400, "label is required")
    _check(table, changed)
    return changed


def check_name(name: str) -> None:
    """400 for a name no property and, which is unverified, no group can have."""
    if not _NAME.fullmatch(name):
        raise ApiError(400, f"{name} is not a valid name: lower case letters, digits and _, below 100 characters")


def check_room(table: Table, maximum: int | None) -> None:
    """400 when a type has all the custom properties it may have (wording unverified)."""
    custom = sum(not prop.hubspot_defined and not prop.archived for prop in table.properties.values())
    if maximum is not None and custom >= maximum:
        raise ApiError(400, f"You have reached the limit of {maximum} custom properties for {table.kind.name}")


def _check(table: Table, prop: Property) -> None:
    if prop.field_type not in FIELD_TYPES.get(prop.type, ()):
        raise ApiError(400, f"fieldType {prop.field_type} does not go with type {prop.type}")
    if prop.group not in table.groups:
        raise ApiError(400, f"Property group {prop.group} does not exist")
    values = [option["value"] for option in prop.options]
    if prop.type == "enumeration" and not values and not prop.external_options:
        raise ApiError(400, "An enumeration needs options")
    if prop.type == "bool" and sorted(values) != ["false", "true"]:  # so a community project reports
        raise ApiError(400, "Boolean properties must have exactly two options, 'true' and 'false'")


def _options(options: Any) -> list[dict[str, Any]]:
    """Options with what they leave out; that labels have to differ too is unverified."""
    if not isinstance(options, list) or not all(isinstance(option, dict) for option in options):
        raise ApiError(400, "Invalid input JSON: options has the wrong type")
    for name in ("label", "value"):
        texts = [option.get(name) for option in options]
        if not all(isinstance(text, str) and text for text in texts) or len(set(texts)) < len(texts):
            raise ApiError(400, f"Every option needs a {name} of its own")
    return [{"displayOrder": order, "hidden": False, **option} for order, option in enumerate(options)]
