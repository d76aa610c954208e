"""The simulator's own clock: HubSpot's time need not be the client's time."""

from __future__ import annotations

import time
from email.utils import formatdate
from datetime import datetime, timezone
from functools import lru_cache

DAY_MS = 86_400_000


class Clock:
    """Wall clock shifted by a configurable offset; every date in an answer comes from it."""

    def __init__(self) -> None:
        self.offset_ms = 0
        self._second = 0
        self._http_date = ""

    def now_ms(self) -> int:
        """Milliseconds since the epoch, as HubSpot sees it."""
        return time.time_ns() // 1_000_000 + self.offset_ms

    def http_date(self) -> str:
        """The Date header's text, kept for one second."""
        second = self.now_ms() // 1000
        if second != self._second:
            self._second = second
            self._http_date = formatdate(second, usegmt=True)
        return self._http_date


@lru_cache(maxsize=4096)
def _day_text(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, timezone.utc).strftime("%Y-%m-%d")


def iso_date(ms: int) -> str:
    """A property of type date: YYYY-MM-DD."""
    return _day_text(ms // DAY_MS)


@lru_cache(maxsize=1024)
def iso_instant(ms: int) -> str:
    """A datetime as HubSpot writes it: 2020-02-29T03:30:17.000Z. Kept, as each record shows its dates twice."""
    day, rest = divmod(ms, DAY_MS)
    seconds, millis = divmod(rest, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{_day_text(day)}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"


def parse_instant(value: object) -> int:
    """Epoch milliseconds (number or digits) or ISO 8601 text to milliseconds; ValueError otherwise."""
    if isinstance(value, bool):
        raise ValueError("not an instant")
    if isinstance(value, int):
        return value
    text = str(value)
    if text.lstrip("-").isdigit():
        return int(text)
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return round(moment.timestamp() * 1000)
