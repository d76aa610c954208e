"""What was asked of the simulator and how it answered; the token itself is never kept."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from call import Call

MAX_ENTRIES = 200_000
MAX_BODY_BYTES = 256 << 20

_VERSION = re.compile(r"/\d{4}-\d{2}(?=/|$)")
_OBJECT_KEY = re.compile(r"(/crm/objects/\{version\}/[^/]+/)(?!search$|merge$|gdpr-delete$|batch/)[^/]+")
_DIGITS = re.compile(r"/\d+(?=/|$)")


@dataclass(slots=True)
class Entry:
    """One request; status is None while it has no answer or was never given one.

    connections is how many were open when it came, its own included.
    """

    n: int
    at_ms: int
    method: str
    path: str
    query_string: str
    body: bytes
    authorization_ok: bool
    user_agent: str | None
    content_type: str | None
    accept_encoding: str | None
    inputs: int
    connections: int
    fault: str | None = None
    status: int | None = None

    def to_json(self, with_body: bool) -> dict[str, Any]:
        """The entry with its query and, if wanted, its body parsed."""
        shown = {
            "n": self.n,
            "at_ms": self.at_ms,
            "method": self.method,
            "path": self.path,
            "query": dict(parse_qsl(self.query_string, keep_blank_values=True)),
            "query_string": self.query_string,
            "inputs": self.inputs,
            "connections": self.connections,
            "status": self.status,
            "authorization_ok": self.authorization_ok,
            "user_agent": self.user_agent,
            "content_type": self.content_type,
            "accept_encoding": self.accept_encoding,
            "fault": self.fault,
        }
        if with_body:
            shown["body"] = _parsed(self.body)
        return shown


class Journal:
    """The last requests in full, and exact counts of all."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._counts: Counter[tuple[str, str, int | None]] = Counter()
        self._inputs: Counter[tuple[str, str, int | None]] = Counter()
        self.total = 0

    def clear(self) -> None:
        """Forget everything and count from 1 again."""
        self._entries.clear()
        self._counts.clear()
        self._inputs.clear()
        self._bytes = self.total = 0

    def open(
        self, call: Call, at_ms: int, authorization_ok: bool, token: str, with_body: bool, connections: int
    ) -> Entry:
        """Note a request on arrival."""
        self.total += 1
        header = call.headers.get
        entry = Entry(
            self.total, at_ms, call.method, _without(token, call.path), _without(token, call.query_string),
            _body_without(token, call.body) if with_body else b"", authorization_ok,
            header("User-Agent"), header("Content-Type"), header("Accept-Encoding"), call.input_count(), connections,
        )  # fmt: skip
        self._entries.append(entry)
        self._bytes += len(entry.body)
        while len(self._entries) > MAX_ENTRIES or self._bytes > MAX_BODY_BYTES:
            self._bytes -= len(self._entries.popleft().body)
        return entry

    def close(self, entry: Entry, status: int | None) -> None:
        """Note how a request ended."""
        entry.status = status
        key = entry.method, path_template(entry.path), status
        self._counts[key] += 1
        self._inputs[key] += entry.inputs

    def since(self, number: int, with_bodies: bool) -> list[dict[str, Any]]:
        """Entries after a number."""
        return [entry.to_json(with_bodies) for entry in self._entries if entry.n > number]

    def summary(self) -> list[dict[str, Any]]:
        """Counts of requests and of their inputs by method, path template and status."""
        return [
            {"method": key[0], "path": key[1], "status": key[2], "count": count, "inputs": self._inputs[key]}
            for key, count in sorted(self._counts.items(), key=str)
        ]


def path_template(path: str) -> str:
    """A path with version and ids replaced by placeholders."""
    path = _VERSION.sub("/{version}", path, count=1)
    path = _OBJECT_KEY.sub(r"\1{id}", path)
    return _DIGITS.sub("/{id}", path)


def _without(token: str, text: str) -> str:
    return text.replace(token, "***") if token else text


def _body_without(token: str, body: bytes) -> bytes:
    return body.replace(token.encode(), b"***") if token else body


def _parsed(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
