"""A request as the simulated API sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from errors import ApiError


_LISTS = {"properties", "propertiesWithHistory"}  # client libraries repeat them


class Call:
    """Method, path, query, headers and body of one request; parsed only as far as needed."""

    __slots__ = (
        "method", "target", "path", "query_string", "headers", "body", "scheme", "version", "previous", "_query", "_json",
    )  # fmt: skip

    def __init__(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, scheme: str = "http"
    ) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query_string = target.partition("?")
        self.headers = headers
        self.body = body
        self.scheme = scheme
        self.version = ""  # of the API, as the path names it
        self.previous: bytes | None = None  # the body of the answer before, where a fault asks for it
        self._query: dict[str, str] | None = None
        self._json: Any = None

    @property
    def query(self) -> dict[str, str]:
        """Decoded query parameters; of a repeated one the last, but lists of properties are put together."""
        if self._query is None:
            pairs = parse_qsl(self.query_string, keep_blank_values=True)
            self._query = dict(pairs)
            for name in _LISTS & self._query.keys():
                self._query[name] = ",".join(value for given, value in pairs if given == name)
        return self._query

    def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        415 for another content type and the wording of the 400 are unverified.
        """
        if self._json is None:
            if not self.headers.get("Content-Type", "").startswith("application/json"):
                raise ApiError(415, "Unsupported Media Type", None)
            self._json = self._parse()
        body: dict[str, Any] = self._json
        return body

    def members(self, name: str, kind: type | tuple[type, ...]) -> list[Any]:
        """A list in the body, empty when it is absent; 400 for anything else."""
        return list_member(self.json(), name, kind)

    def properties(self) -> dict[str, Any]:
        """The `properties` object of a write."""
        value = self.json().get("properties", {})
        if not isinstance(value, dict):
            raise ApiError(400, "Invalid input JSON: properties must be an object")
        return value

    def _parse(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise ApiError(400, f"Invalid input JSON: {error}") from None
        if not isinstance(value, dict):
            raise ApiError(400, "Invalid input JSON: an object was expected")
        return value

    def input_count(self) -> int:
        """How many inputs a batch request has, whatever else is wrong with it."""
        if self.method != "POST" or "/batch/" not in self.path:
            return 0
        try:
            inputs = self.json().get("inputs")
        except ApiError:
            return 0
        return len(inputs) if isinstance(inputs, list) else 0

    def drop_inputs(self, places: list[int]) -> None:
        """Forget some of a batch's inputs; negative places count from the end."""
        inputs = self.members("inputs", dict)
        dropped = {place % len(inputs) for place in places} if inputs else set()
        self.json()["inputs"] = [item for place, item in enumerate(inputs) if place not in dropped]

    def cursor(self) -> str | None:
        """The paging cursor of the request, from its query or its search body."""
        if "after" in self.query:
            return self.query["after"]
        if self.method == "POST" and self.path.endswith("/search"):
            after = self.json().get("after")
            return None if after is None else str(after)
        return None


def list_member(body: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> list[Any]:
    """A list of the given kind in a JSON object, empty when it is absent; 400 for anything else."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise ApiError(400, f"Invalid input JSON: {name} has the wrong type")
    return value
