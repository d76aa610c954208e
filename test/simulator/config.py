"""Settings that may change while the simulator runs, and what its data is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from errors import ControlError

PORTAL_ID = 48110001
TIME_ZONE = "Europe/Berlin"
MAX_URL = 16_200  # longer URLs were answered with 414 on a real account


@dataclass
class Config:
    """Behaviour of the simulated account; see README.md for the meaning of each field."""

    latency_ms: float = 0
    limits: bool = False
    burst_max: int = 190
    burst_interval_ms: int = 10_000
    search_max: int = 5
    search_interval_ms: int = 1_000
    daily_max: int = 625_000
    search_lag_ms: int = 0
    clock_offset_ms: int = 0
    token: str = "test-token"
    scopes: list[str] | None = None
    gzip: bool = True
    retry_after: bool | float = False
    batch_read_resolves_merged: bool = False
    restore_moves_modified: bool = False
    property_history: bool = True
    send_limit_headers: bool | None = None
    date_header: bool = True
    max_custom_properties: int | None = None
    journal_bodies: bool = True

    def update(self, changes: dict[str, Any]) -> None:
        """Take over the given settings; all or none."""
        for name, value in changes.items():
            check_setting(name, value)
        for name, value in changes.items():
            setattr(self, name, value)

    def public(self) -> dict[str, Any]:
        """Every setting but the token."""
        shown = asdict(self)
        del shown["token"]
        return shown

    @property
    def limit_headers_wanted(self) -> bool:
        """Rate-limit headers follow the limits unless they are configured on their own."""
        return self.limits if self.send_limit_headers is None else self.send_limit_headers


_ALLOWED: dict[str, tuple[type, ...]] = {
    "latency_ms": (int, float),
    "limits": (bool,),
    "token": (str,),
    "scopes": (list, type(None)),
    "gzip": (bool,),
    "retry_after": (bool, int, float),
    "batch_read_resolves_merged": (bool,),
    "restore_moves_modified": (bool,),
    "property_history": (bool,),
    "send_limit_headers": (bool, type(None)),
    "date_header": (bool,),
    "max_custom_properties": (int, type(None)),
    "journal_bodies": (bool,),
}


def check_setting(name: str, value: object) -> None:
    """Refuse unknown settings and values of the wrong kind."""
    if name not in {field.name for field in fields(Config)}:
        raise ControlError(f"unknown setting: {name}")
    allowed = _ALLOWED.get(name, (int,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise ControlError(f"bad value for {name}")


@dataclass(frozen=True)
class DataOptions:
    """Seed and size of the generated data."""

    seed: int = 1
    contacts: int = 250
    deals: int = 120
    owners: int = 12
    companies: int = 40
    tickets: int = 0
    calls: int = 0
    emails: int = 0
    meetings: int = 0
    notes: int = 0
    tasks: int = 0
    wide: int = 0

    def changed(self, changes: dict[str, Any]) -> DataOptions:
        """A copy with the given values replaced."""
        known = asdict(self)
        for name, value in changes.items():
            if name not in known:
                raise ControlError(f"unknown data option: {name}")
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ControlError(f"bad value for {name}")
        return DataOptions(**{**known, **changes})
