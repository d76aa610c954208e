"""The control API under /_control/: data, faults, scripts, settings and the journal. See README.md."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from answer import Answer, dump, json_answer
from call import Call
from errors import ControlError
from operations import run_step, table_of
from router import Router
from store import Record, Table

if TYPE_CHECKING:
    from simulator import Simulator


class Control:
    """Handlers of the control API; a request that makes no sense becomes a 400 with the reason."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._router = Router()
        for method, path, handler in self._routes():
            self._router.add(method, f"_control/{path}", handler)

    def answer(self, call: Call) -> Answer:
        """Answer a control request."""
        handler, values, _ = self._router.find(call.method, call.path)
        if handler is None:
            return json_answer({"error": f"no such control request: {call.method} {call.path}"}, 404)
        try:
            result = handler(call, **values)
        except (ControlError, KeyError, TypeError, ValueError) as error:
            return json_answer({"error": str(error), "kind": type(error).__name__}, 400)
        if isinstance(result, Answer):
            return result
        return json_answer({} if result is None else result)

    def _routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        simulator = self._simulator
        return [
            ("GET", "state", self._state),
            ("POST", "reset", self._reset),
            ("GET", "config", lambda call: simulator.config.public()),
            ("POST", "config", self._configure),
            ("GET", "faults", lambda call: simulator.faults.describe()),
            ("POST", "faults", lambda call: simulator.faults.install(_body(call))),
            ("DELETE", "faults", lambda call: simulator.clear_faults()),
            ("GET", "script", lambda call: simulator.scripts.describe()),
            ("POST", "script", lambda call: simulator.scripts.install(_body(call))),
            ("DELETE", "script", lambda call: simulator.scripts.clear()),
            ("GET", "journal", self._journal),
            ("DELETE", "journal", lambda call: simulator.journal.clear()),
            ("GET", "journal/summary", lambda call: simulator.journal.summary()),
            ("GET", "objects/{type}", self._records),
            ("POST", "objects/{type}", self._create),
            ("GET", "objects/{type}/{id}", self._record),
            ("PATCH", "objects/{type}/{id}", self._step("patch")),
            ("POST", "objects/{type}/{id}/archive", self._step("archive")),
            ("POST", "objects/{type}/{id}/restore", self._step("restore")),
            ("POST", "objects/{type}/{id}/purge", self._step("purge")),
            ("POST", "objects/{type}/{primary}/merge/{other}", self._step("merge")),
            ("POST", "touch/{type}", self._touch),
            ("GET", "hide/{type}", self._hidden),
            ("POST", "hide/{type}", self._hide),
            ("DELETE", "hide/{type}", self._step("unhide")),
            ("GET", "history/{type}/{property}", self._history),
            ("GET", "properties/{type}", self._properties),
            ("POST", "properties/{type}", self._define_properties),
            ("DELETE", "properties/{type}/{name}", self._step("remove_property")),
            ("POST", "properties/{type}/{name}/archive", self._step("archive_property")),
            ("POST", "properties/{type}/{name}/restore", self._step("restore_property")),
            ("GET", "groups/{type}", lambda call, type: list(self._table(type).groups.values())),
            ("POST", "groups/{type}", self._define_groups),
            ("DELETE", "groups/{type}/{name}", self._step("remove_group")),
            ("GET", "rules/{type}", lambda call, type: [rule._asdict() for rule in self._table(type).rules]),
            ("POST", "rules/{type}", self._step("require")),
            ("DELETE", "rules/{type}", self._step("unrequire")),
            ("POST", "raw/{type}/{id}", self._set_raw),
            ("DELETE", "raw/{type}/{id}", self._clear_raw),
            ("POST", "owners", self._create_owners),
            ("PATCH", "owners/{id}", self._patch_owner),
            ("POST", "owners/{id}/archive", lambda call, id: self._archive_owner(id, True)),
            ("POST", "owners/{id}/restore", lambda call, id: self._archive_owner(id, False)),
            ("POST", "pipelines/{type}", self._set_pipelines),
            ("POST", "stage/{type}", self._add_stage),
            ("POST", "types", self._define_type),
        ]

    # The simulator as a whole

    def _state(self, call: Call) -> dict[str, Any]:
        simulator = self._simulator
        counts = {name: table.counts() for name, table in simulator.world.tables.items()}
        return {
            "objects": {**counts, "owners": simulator.world.owners.counts()},
            "requests": simulator.journal.total,
            "connections": simulator.count_connections(),
            "requests_to_other": simulator.count_requests_to_other(),
            "script_errors": simulator.script_errors,
            "now_ms": simulator.clock.now_ms(),
            "data": asdict(simulator.options),
            "config": simulator.config.public(),
        }

    def _reset(self, call: Call) -> dict[str, Any]:
        self._simulator.reset(_body(call))
        return self._state(call)

    def _configure(self, call: Call) -> dict[str, Any]:
        self._simulator.configure(_body(call))
        return self._simulator.config.public()

    def _journal(self, call: Call) -> list[dict[str, Any]]:
        since = call.query.get("since", "0")
        if not since.isdigit():
            raise ControlError("since must be a number")
        return self._simulator.journal.since(int(since), call.query.get("bodies") != "false")

    # Records

    def _records(self, call: Call, type: str) -> Answer:
        """All records as JSON lines, by id."""
        wanted = call.query.get("archived")
        if type == "owners":
            return _json_lines(self._simulator.world.owners.all(None if wanted is None else wanted == "true"))
        table = self._table(type)
        chosen = [r for r in table.by_id() if wanted is None or bool(r.archived_ms) == (wanted == "true")]
        return _json_lines(table.truth(record) for record in chosen)

    def _record(self, call: Call, type: str, id: str) -> dict[str, Any]:
        """One record, live or archived, by its id or with idProperty by a value of a unique property."""
        table, name = self._table(type), call.query.get("idProperty")
        if name is None:
            return table.truth(self._known(table, id))
        if name not in table.unique_names:
            raise ControlError(f"{name} is not unique")
        found = table.find(name, id, False) or table.find(name, id, True)
        if found is None:
            raise ControlError(f"no {type} record with {name} {id}")
        return table.truth(self._known(table, found))

    def _history(self, call: Call, type: str, property: str) -> Answer:
        """The history of one property as JSON lines, for every record by id."""
        table = self._table(type)
        if property not in table.properties:
            raise ControlError(f"no property {property} of {type}")
        return _json_lines(table.history.truth(record, property) for record in table.by_id())

    def _create(self, call: Call, type: str) -> dict[str, Any]:
        return {"ids": self._run({**_body(call), "op": "create", "type": type})}

    def _touch(self, call: Call, type: str) -> dict[str, Any]:
        return {"touched": self._run({**_body(call), "op": "touch", "type": type})}

    def _hide(self, call: Call, type: str) -> dict[str, Any]:
        return {"hidden": self._run({**_body(call), "op": "hide", "type": type})}

    def _hidden(self, call: Call, type: str) -> dict[str, Any]:
        return {"ids": [str(record_id) for record_id in sorted(self._table(type).hidden)]}

    def _step(self, operation: str) -> Callable[..., Any]:
        def handler(call: Call, **values: str) -> Any:
            return self._run({**_body(call), **values, "op": operation})

        return handler

    def _run(self, step: dict[str, Any]) -> Any:
        return run_step(self._simulator.world, step)

    def _set_raw(self, call: Call, type: str, id: str) -> None:
        body = _body(call)
        table = self._table(type)
        verbatim = str(body.get("json", "")).encode(errors="surrogatepass")
        table.set_raw(self._known(table, id).id, base64.b64decode(body["base64"]) if "base64" in body else verbatim)

    def _clear_raw(self, call: Call, type: str, id: str) -> None:
        table = self._table(type)
        table.set_raw(self._known(table, id).id, None)

    def _table(self, name: str) -> Table:
        return table_of(self._simulator.world, name)

    def _known(self, table: Table, record_id: str) -> Record:
        return self._simulator.world.known(table, record_id)

    # Owners, pipelines, definitions, types

    def _create_owners(self, call: Call) -> dict[str, Any]:
        now_ms = self._simulator.clock.now_ms()
        owners = self._simulator.world.owners
        return {"ids": [owners.add(fields, now_ms) for fields in _body(call).get("owners", [])]}

    def _patch_owner(self, call: Call, id: str) -> Any:
        self._simulator.world.owners.change(id, _body(call), self._simulator.clock.now_ms())
        return self._simulator.world.owners.get(id)

    def _archive_owner(self, owner_id: str, archived: bool) -> Any:
        self._simulator.world.owners.set_archived(owner_id, archived, self._simulator.clock.now_ms())
        return self._simulator.world.owners.get(owner_id)

    def _set_pipelines(self, call: Call, type: str) -> None:
        self._simulator.world.set_pipelines(self._table(type).kind.name, _body(call).get("pipelines", []))

    def _add_stage(self, call: Call, type: str) -> None:
        self._simulator.world.add_stage(self._table(type).kind.name, _body(call))

    def _define_properties(self, call: Call, type: str) -> dict[str, Any]:
        return {"names": self._run({"properties": [], **_body(call), "op": "define_properties", "type": type})}

    def _define_groups(self, call: Call, type: str) -> dict[str, Any]:
        return {"names": self._run({**_body(call), "op": "define_groups", "type": type})}

    def _properties(self, call: Call, type: str) -> list[dict[str, Any]]:
        """Every definition, archived ones too."""
        return [prop.to_json() for prop in self._table(type).properties.values()]

    def _define_type(self, call: Call) -> dict[str, Any]:
        body = _body(call)
        kind = self._simulator.world.define_type(
            str(body.get("name", "")), body.get("objectTypeId"), body.get("properties", [])
        )
        return {"name": kind.name, "objectTypeId": kind.type_id}


def _json_lines(values: Iterable[dict[str, Any]]) -> Answer:
    lines = b"".join(dump(value) + b"\n" for value in values)
    return Answer(body=lines, content_type="application/jsonl")


def _body(call: Call) -> dict[str, Any]:
    """The JSON object of a control request, whatever its content type; nothing stands for {}."""
    try:
        value = json.loads(call.body or b"{}")
    except ValueError as error:
        raise ControlError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ControlError("a JSON object is needed")
    return value
