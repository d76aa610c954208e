"""What the tests share: a simulator as a subprocess, asked over HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import time
import unittest
from pathlib import Path
from typing import Any, Callable

PROGRAM = Path(__file__).resolve().parent / "hubspot_simulator.py"
PYTHON = "/usr/bin/python3"
OBJECTS = "/crm/objects/2026-09"
CONTACTS = f"{OBJECTS}/contacts"
DEFAULT_CONFIG = {
    "latency_ms": 0, "limits": False, "burst_max": 190, "burst_interval_ms": 10_000, "search_max": 5,
    "search_interval_ms": 1000, "daily_max": 625_000, "search_lag_ms": 0, "clock_offset_ms": 0, "token": "test-token",
    "scopes": None, "gzip": True, "retry_after": False, "batch_read_resolves_merged": False,
    "send_limit_headers": None, "date_header": True, "restore_moves_modified": False, "property_history": True,
    "max_custom_properties": None, "journal_bodies": True,
}  # fmt: skip


class Running:
    """A simulator process."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [PYTHON, str(PROGRAM), *options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.port = int(self.line.split(":")[2].split()[0])

    def stop(self) -> int:
        """SIGTERM and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(timeout=5)


class Reply:
    """An HTTP answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


running: Running


def start() -> None:
    """Start the simulator that all tests of a module share."""
    global running
    running = Running("--contacts", "250")


def stop() -> None:
    """Stop it again."""
    running.stop()


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Poll a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def where(name: str, operator: str, value: Any = None, **more: Any) -> dict[str, Any]:
    """A search filter."""
    return {"propertyName": name, "operator": operator, **({} if value is None else {"value": value}), **more}


class SimulatorCase(unittest.TestCase):
    """Fresh data and settings for each test, on one shared server."""

    def setUp(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        self.addCleanup(self.connection.close)
        self.config(**DEFAULT_CONFIG)
        self.control("POST", "reset", contacts=30, deals=12, owners=12, companies=5)

    def call(self, method: str, path: str, body: Any = None, token: str = "test-token", **headers: str) -> Reply:
        """A request with the account's token."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        self.connection.request(method, path, data, sent)
        return Reply(self.connection.getresponse())

    def get(self, path: str, **headers: str) -> Any:
        """The JSON of a successful GET."""
        reply = self.call("GET", path, **headers)
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()

    def control(self, method: str, path: str, /, **body: Any) -> Any:
        """A control request that has to succeed."""
        reply = self.call(method, f"/_control/{path}", body if method != "GET" else None)
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()

    def config(self, **changes: Any) -> Any:
        """Change settings."""
        return self.control("POST", "config", **changes)

    def fault(self, kind: str, **more: Any) -> None:
        """Install a fault whose action has only the given kind, unless more is said."""
        action = {"kind": kind, **more.pop("action", {})}
        self.control("POST", "faults", action=action, **more)

    def ids(self, path: str = f"{CONTACTS}?limit=100") -> list[str]:
        """Ids of a page."""
        return [record["id"] for record in self.get(path)["results"]]

    def search(self, *filters: dict[str, Any], type: str = "contacts", **more: Any) -> Reply:
        """A search with one group of filters."""
        body = {"filterGroups": [{"filters": list(filters)}], "limit": 100, **more}
        return self.call("POST", f"{OBJECTS}/{type}/search", body)

    def found(self, *filters: dict[str, Any], **more: Any) -> list[str]:
        """Ids found by a search."""
        reply = self.search(*filters, **more)
        self.assertEqual(reply.status, 200, reply.body)
        return [record["id"] for record in reply.json()["results"]]

    def batch_read(self, ids: list[str], query: str = "", **more: Any) -> Reply:
        """A batch read of contacts."""
        return self.call("POST", f"{CONTACTS}/batch/read{query}", {"inputs": [{"id": i} for i in ids], **more})

    def now_ms(self) -> int:
        """The simulator's time."""
        return int(self.control("GET", "state")["now_ms"])

    def create(self, type: str = "contacts", **properties: Any) -> str:
        """Create a record by the control API."""
        return str(self.control("POST", f"objects/{type}", records=[{"properties": properties}])["ids"][0])

    def patch(self, record_id: str, **properties: Any) -> None:
        """Change a contact by the control API."""
        self.control("PATCH", f"objects/contacts/{record_id}", properties=properties)

    def history(self, name: str, type: str = "contacts") -> dict[str, list[dict[str, Any]]]:
        """The true history of a property by record, oldest first."""
        lines = self.call("GET", f"/_control/history/{type}/{name}").body.splitlines()
        return {entry["id"]: entry["history"] for entry in map(json.loads, lines)}

    def assert_error(self, reply: Reply, status: int, category: str | None = "VALIDATION_ERROR") -> Any:
        """HubSpot's error shape."""
        self.assertEqual(reply.status, status, reply.body)
        body = reply.json()
        self.assertEqual(body["status"], "error")
        self.assertIn("correlationId", body)
        self.assertEqual(body.get("category"), category)
        return body
