"""Changes to the account by name, as the control API and scripts ask for them."""

from __future__ import annotations

from typing import Any

from errors import ControlError
from rules import described_rule
from store import Record, Table
from world import World

Step = dict[str, Any]


def table_of(world: World, name: str) -> Table:
    """The table of an object type; an error for an unknown one."""
    table = world.table(name)
    if table is None:
        raise ControlError(f"no object type {name}")
    return table


def run_step(world: World, step: Step) -> Any:
    """Run one operation: {op, type, ...} with the operation's own arguments; returns its result."""
    operation = _OPERATIONS.get(str(step.get("op")))
    if operation is None:
        raise ControlError(f"op must be one of {', '.join(_OPERATIONS)}")
    try:
        return operation(world, table_of(world, str(step.get("type"))), step)
    except KeyError as error:
        raise ControlError(f"{step['op']} needs {error}") from None


def check_steps(steps: Any) -> list[Step]:
    """Refuse a script that names unknown operations before it is installed."""
    known = isinstance(steps, list) and all(isinstance(s, dict) and s.get("op") in _OPERATIONS for s in steps)
    if not known:
        raise ControlError(f"do must be a list of operations with op one of {', '.join(_OPERATIONS)}")
    return list(steps)


def _create(world: World, table: Table, step: Step) -> list[str]:
    records = step.get("records") or [step]
    for fields in records:
        table.define_missing(fields.get("properties") or {})
    return [str(_created(world, table, fields).id) for fields in records]


def _created(world: World, table: Table, fields: Step) -> Record:
    """Dates may stand beside the properties or among them."""
    properties = dict(fields.get("properties") or {})
    created = properties.pop(table.kind.created, fields.get("createdate"))
    modified = properties.pop(table.kind.modified, fields.get("lastmodifieddate"))
    _refuse_computed(table, properties)
    return world.create(table, properties, fields.get("id"), created, modified)


def _refuse_computed(table: Table, properties: dict[str, Any]) -> None:
    computed = set(table.kind.always) & set(properties)
    if computed:
        raise ControlError(f"cannot be set: {', '.join(sorted(computed))}")


def _patch(world: World, table: Table, step: Step) -> dict[str, Any]:
    record = world.known(table, step["id"])
    _refuse_computed(table, step["properties"])
    table.define_missing(step["properties"])
    world.patch(table, record, step["properties"])
    return table.truth(record)


def _touch(world: World, table: Table, step: Step) -> int:
    properties = step.get("properties") or {}
    _refuse_computed(table, properties)
    table.define_missing(properties)
    return world.touch(table, step.get("ids"), step.get("count"), properties, step.get("at_ms"))


def _archive(world: World, table: Table, step: Step) -> dict[str, Any]:
    record = world.known(table, step["id"])
    world.archive(table, record)
    return table.truth(record)


def _restore(world: World, table: Table, step: Step) -> dict[str, Any]:
    record = world.known(table, step["id"])
    world.restore(table, record)
    return table.truth(record)


def _purge(world: World, table: Table, step: Step) -> None:
    table.purge(world.known(table, step["id"]))


def _merge(world: World, table: Table, step: Step) -> dict[str, Any]:
    primary, other = world.known(table, step["primary"]), world.known(table, step["other"])
    return table.truth(world.merge(table, primary, other, bool(step.get("new_id"))))


def _hide(world: World, table: Table, step: Step) -> int:
    return world.hide(table, step.get("ids"), step.get("every"))


def _unhide(world: World, table: Table, step: Step) -> None:
    table.unhide()


def _archive_property(world: World, table: Table, step: Step) -> None:
    table.set_property_archived(_property_name(table, step), True)


def _restore_property(world: World, table: Table, step: Step) -> None:
    table.set_property_archived(_property_name(table, step), False)


def _remove_property(world: World, table: Table, step: Step) -> None:
    table.remove_property(_property_name(table, step))


def _property_name(table: Table, step: Step) -> str:
    name: str = step["name"]
    if name not in table.properties:
        raise ControlError(f"no property {name} of {table.kind.name}")
    return name


def _define_properties(world: World, table: Table, step: Step) -> list[str]:
    return world.define_properties(table, step["properties"])


def _define_groups(world: World, table: Table, step: Step) -> list[str]:
    for fields in step["groups"]:
        table.add_group(str(fields["name"]), str(fields.get("label", fields["name"])))
    return [fields["name"] for fields in step["groups"]]


def _remove_group(world: World, table: Table, step: Step) -> None:
    if table.groups.pop(step["name"], None) is None:
        raise ControlError(f"no property group {step['name']} of {table.kind.name}")


def _require(world: World, table: Table, step: Step) -> None:
    table.rules.append(described_rule(step))


def _unrequire(world: World, table: Table, step: Step) -> None:
    table.rules.clear()


_OPERATIONS = {
    "create": _create,
    "patch": _patch,
    "touch": _touch,
    "archive": _archive,
    "restore": _restore,
    "purge": _purge,
    "merge": _merge,
    "hide": _hide,
    "unhide": _unhide,
    "define_properties": _define_properties,
    "archive_property": _archive_property,
    "restore_property": _restore_property,
    "remove_property": _remove_property,
    "define_groups": _define_groups,
    "remove_group": _remove_group,
    "require": _require,
    "unrequire": _unrequire,
}
