"""Maps method and path to a handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

Handler = Callable[..., Any]


class Router:
    """Routes such as `GET crm/objects/{version}/{type}`; literal segments win over placeholders."""

    def __init__(self) -> None:
        self._routes: dict[int, list[tuple[str, list[str], Handler]]] = {}

    def add(self, method: str, template: str, handler: Handler) -> None:
        """Register a handler; it gets the placeholders as keyword arguments."""
        segments = template.split("/")
        routes = self._routes.setdefault(len(segments), [])
        routes.append((method, segments, handler))
        routes.sort(key=lambda route: [segment.startswith("{") for segment in route[1]])

    def find(self, method: str, path: str) -> tuple[Handler | None, dict[str, str], bool]:
        """The handler, the placeholders' values, and whether the path is known at all."""
        given = path.strip("/").split("/")
        known = False
        for route_method, segments, handler in self._routes.get(len(given), ()):
            found = _match(segments, given)
            if found is not None:
                if route_method == method:
                    return handler, found, True
                known = True
        return None, {}, known


def _match(segments: list[str], given: list[str]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for segment, text in zip(segments, given):
        if segment[0] == "{":
            found[segment[1:-1]] = unquote(text) if "%" in text else text
        elif segment != text:
            return None
    return found
