"""Works out what a write would change; what HubSpot refuses is an ApiError, and nothing is written here."""

from __future__ import annotations

from typing import Any

from config import PORTAL_ID
from errors import ApiError, invalid_properties, missing_required
from store import Properties, Record, Table
from values import checked_properties, moves_backward
from world import World

RULES_SINCE = "2026-09"  # older versions do not hold writes to the rules of the account's admins


class Writer:
    """Values as HubSpot will store them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def update(self, table: Table, record: Record, properties: dict[str, Any], version: str) -> Properties:
        """What an update changes in a record."""
        accepted = self._checked(table, properties, record.properties)
        stage = accepted.get("lifecyclestage")
        if stage and moves_backward(record.properties.get("lifecyclestage"), stage):
            del accepted["lifecyclestage"]
        _refuse_taken(table, accepted, record.id)
        _hold_to_rules(table, record.properties, accepted, version)
        return accepted

    def creation(self, table: Table, properties: dict[str, Any], version: str) -> Properties:
        """What a new record starts with."""
        accepted = self._checked(table, properties, {})
        missing = [group for group in table.kind.required if not any(accepted.get(name) for name in group)]
        if missing:
            message = f"Error creating {table.kind.label}. Some required properties were not set."
            raise missing_required(message, "MISSING_REQUIRED_PROPERTY", [group[0] for group in missing])
        _refuse_taken(table, accepted, None)
        _hold_to_rules(table, {}, accepted, version)
        return accepted

    def _checked(self, table: Table, properties: dict[str, Any], before: Properties) -> Properties:
        accepted, problems = checked_properties(table, properties, before, self._world.is_option)
        if problems:
            raise invalid_properties(problems, PORTAL_ID)
        return accepted


def _refuse_taken(table: Table, accepted: Properties, own_id: int | None) -> None:
    """409 for a value that another record has; for properties other than e-mail this is unverified."""
    for name in table.unique_names:
        value = accepted.get(name)
        holder = table.find(name, value, False) if value else None
        if holder is not None and holder != own_id:
            raise taken(table, holder)


def taken(table: Table, holder: int) -> ApiError:
    """The refusal of a value that another record has."""
    return ApiError(409, f"{table.kind.label.capitalize()} already exists. Existing ID: {holder}", "CONFLICT")


def _hold_to_rules(table: Table, before: Properties, accepted: Properties, version: str) -> None:
    if version < RULES_SINCE:
        return
    missing = [name for rule in table.rules for name in rule.missing(before, accepted)]
    if missing:
        message = "Some conditionally required properties were not set."
        raise missing_required(message, "MISSING_CONDITIONAL_REQUIRED_PROPERTY", missing)
