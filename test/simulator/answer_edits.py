"""Changes to an answer's JSON by dotted paths: `results.0`, `errors.*.context`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Place = tuple[Any, Any]  # a list or an object, and the index or name in it


def remove(value: Any, path: str) -> None:
    """Remove what a path leads to; `*` stands for every item, a negative index counts from the end."""
    places = list(_places(value, path.split(".")))
    for holder, key in reversed(places):
        del holder[key]


def replace(value: Any, path: str, new: Any) -> None:
    """Put a value where a path leads; the last name of a path may be a new one."""
    *above, last = path.split(".")
    holders = [holder[key] for holder, key in _places(value, above)] if above else [value]
    for holder in holders:
        for key in [last] if isinstance(holder, dict) and last != "*" else _keys(holder, last):
            holder[key] = new


def _places(value: Any, parts: list[str]) -> Iterator[Place]:
    """Where a path leads, in order; nowhere if it does not exist."""
    for key in _keys(value, parts[0]):
        if len(parts) == 1:
            yield value, key
        else:
            yield from _places(value[key], parts[1:])


def _keys(value: Any, part: str) -> list[Any]:
    if isinstance(value, dict):
        return list(value) if part == "*" else [part] if part in value else []
    if not isinstance(value, list):
        return []
    numbers = range(len(value))
    if part == "*":
        return list(numbers)
    return [numbers[int(part)]] if part.lstrip("-").isdigit() and -len(value) <= int(part) < len(value) else []
