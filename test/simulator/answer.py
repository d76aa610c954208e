"""An answer before it is sent: status, headers, body or page, and how it travels."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

JSON_TYPE = "application/json;charset=utf-8"

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump(value: Any) -> bytes:
    """Compact JSON in UTF-8; text UTF-8 cannot hold (lone surrogates) is escaped."""
    text = _compact(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


@dataclass(slots=True)
class Page:
    """A page of records, kept in parts so that faults can change one of them."""

    made: list[bytes] | Callable[[], list[bytes]]  # the records' JSON, or what makes it once it is needed
    after: str | None = None
    link: str | None = None  # of the next page, without its cursor
    head: dict[str, Any] = field(default_factory=dict)  # members before the results
    tail: dict[str, Any] = field(default_factory=dict)  # members after them
    results_text: bytes | None = None  # replaces the results when set

    @property
    def items(self) -> list[bytes]:
        """The JSON of the records."""
        if callable(self.made):
            self.made = self.made()
        return self.made

    @items.setter
    def items(self, items: list[bytes]) -> None:
        self.made = items

    def encode(self) -> bytes:
        """The body of the answer."""
        return self.front() + self.rest()

    def front(self) -> bytes:
        """The body up to the end of the results, which is nearly all of it."""
        results = b"[" + b",".join(self.items) + b"]" if self.results_text is None else self.results_text
        head = dump(self.head)[1:-1] + b"," if self.head else b""
        return b"{" + head + b'"results":' + results

    def rest(self) -> bytes:
        """What follows the results."""
        tail = self.tail
        if self.after is not None:
            tail = {**tail, "paging": {"next": self._next()}}
        return (b"," + dump(tail)[1:-1] if tail else b"") + b"}"

    def _next(self) -> dict[str, str]:
        assert self.after is not None
        if self.link is None:
            return {"after": self.after}
        return {"after": self.after, "link": f"{self.link}after={self.after}"}


@dataclass(slots=True)
class Delivery:
    """How the bytes travel; the defaults are a healthy connection."""

    silent: bool = False  # no answer until the client leaves
    reset_after: int | None = None  # body bytes sent before the connection is reset; -1: not even headers
    bytes_per_second: float | None = None
    stream: Iterator[bytes] | None = None  # sent after the body, already in its content encoding
    stream_length: int = 0
    refuse_ms: int = 0  # how long nobody listens once the connection was reset
    other_certificates: int = 0  # how many of the next connections see the other certificate


@dataclass(slots=True)
class Answer:
    """What the simulator wants to say."""

    status: int = 200
    body: bytes = b""
    page: Page | None = None
    content_type: str | None = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)
    compress: bool = True
    cache_key: Hashable = None  # of a page: equal keys promise equal results
    delivery: Delivery = field(default_factory=Delivery)

    def payload(self) -> bytes:
        """The body's bytes before any content encoding."""
        return self.body if self.page is None else self.page.encode()

    def as_of_now(self) -> Answer:
        """The same answer, which later changes of the records do not alter."""
        if self.page is not None:
            self.page.items = self.page.items
        return self


def json_answer(value: Any, status: int = 200) -> Answer:
    """An answer whose body is the value as JSON."""
    return Answer(status, dump(value))


def empty_answer(status: int = 204) -> Answer:
    """An answer without body."""
    return Answer(status, content_type=None)
