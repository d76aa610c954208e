"""Checks and normal forms of property values on writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from clock import DAY_MS, iso_date, iso_instant, parse_instant
from definitions import LIFECYCLE_STAGES, Property
from store import Properties, Table

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")
_EMAIL = re.compile(r"[^\s@,;<>()]+@[^\s@,;<>()]+\.[A-Za-z]{2,}")
_ISO_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MILLISECONDS = re.compile(r"-?[0-9]{1,15}")
MAX_TEXT = 65_536
_KNOWN_VALUES = 4096  # kept by property
_KNOWN_LENGTH = 64

Problem = dict[str, str]
OptionCheck = Callable[[str, str], bool]


class InvalidValue(Exception):
    """A value HubSpot refuses, with HubSpot's code for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Check:
    """What a property takes, worked out once from its definition; values seen lately need no second look."""

    __slots__ = ("name", "known", "several", "options", "_form", "_is_option")

    def __init__(self, prop: Property, external_option: OptionCheck) -> None:
        self.name = prop.name
        self.known: dict[str, str] = {}
        self.several = prop.type == "enumeration" and prop.field_type == "checkbox"
        self.options = frozenset(option["value"] for option in prop.options)
        self._form = _READ_ONLY if prop.read_only or prop.calculated else _NORMAL_FORMS.get(prop.type, _string)
        self._is_option = external_option if prop.external_options else None

    def stored(self, value: Any, before: Properties) -> str:
        """A value as HubSpot stores it in a record that has others so far."""
        text = _as_text(self.name, value)
        if self.several and text.startswith(";"):
            return self._form(self, _appended(str(before.get(self.name) or ""), text))
        if self._is_option is not None:
            return self._external(text)
        if text == "" and self._form is not _READ_ONLY:
            return text  # the documented way to clear a value; that it then reads as "" is unverified
        stored = self._form(self, text)
        if len(text) <= _KNOWN_LENGTH and len(self.known) < _KNOWN_VALUES:
            self.known[text] = stored
        return stored

    def _external(self, text: str) -> str:
        """Options that are kept elsewhere come and go, so that they are looked up each time."""
        assert self._is_option is not None
        if text and not self._is_option(self.name, text):
            raise InvalidValue("INVALID_OPTION", f"{text} was not one of the allowed options for {self.name}")
        return text


def checked_properties(
    table: Table, properties: dict[str, Any], before: Properties, external_option: OptionCheck
) -> tuple[Properties, list[Problem]]:
    """The values as HubSpot stores them, and what it refuses. external_option knows owners and stages."""
    accepted: Properties = {}
    problems: list[Problem] = []
    checks = table.checks
    for name, value in properties.items():
        try:
            check = checks.get(name) or _compiled(table, name, external_option)
            accepted[name] = (type(value) is str and check.known.get(value)) or check.stored(value, before)
        except InvalidValue as invalid:
            problems.append({"name": name, "code": invalid.code, "message": str(invalid)})
    return accepted, problems


def _compiled(table: Table, name: str, external_option: OptionCheck) -> Check:
    prop = table.properties.get(name)
    if prop is None or prop.archived:
        raise InvalidValue("PROPERTY_DOESNT_EXIST", f'Property "{name}" does not exist')
    check = table.checks[name] = Check(prop, external_option)
    return check


def _as_text(name: str, value: Any) -> str:
    """Values are sent as strings; numbers and booleans are taken as their text, null is refused (unverified)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if not isinstance(value, str):
        raise InvalidValue("INVALID_VALUE", f"{name} must be a string")
    return value


def _appended(before: str, text: str) -> str:
    """The options of a record and those that a leading semicolon adds to them."""
    return ";".join(dict.fromkeys(filter(None, f"{before};{text}".split(";"))))


def _read_only(check: Check, text: str) -> str:
    raise InvalidValue("READ_ONLY_VALUE", f"{check.name} is a read only property; its value cannot be set")


def _string(check: Check, text: str) -> str:
    if len(text) > MAX_TEXT:
        raise InvalidValue("VALUE_TOO_LONG", f"{check.name} is longer than {MAX_TEXT} characters")
    if check.name != "email":
        return text
    if not _EMAIL.fullmatch(text):
        raise InvalidValue("INVALID_EMAIL", f"Email address {text} is invalid")
    return text.lower()


def _number(check: Check, text: str) -> str:
    """Which of the two codes HubSpot uses when is unverified."""
    if not _NUMBER.fullmatch(text):
        raise InvalidValue("INVALID_FLOAT" if "." in text else "INVALID_INTEGER", f"{text} was not a valid number")
    return text


def _bool(check: Check, text: str) -> str:
    if text not in ("true", "false"):
        raise InvalidValue("INVALID_OPTION", f"{text} was not one of the allowed options: [true, false]")
    return text


def _enumeration(check: Check, text: str) -> str:
    chosen = text.strip(";").split(";") if check.several else [text]
    if not check.options.issuperset(chosen):
        raise InvalidValue("INVALID_OPTION", f"{text} was not one of the allowed options: {sorted(check.options)}")
    return text


def _date(check: Check, text: str) -> str:
    """YYYY-MM-DD, or epoch milliseconds at midnight UTC."""
    if not (_ISO_DATE.fullmatch(text) or _MILLISECONDS.fullmatch(text)) or _instant(text) % DAY_MS:
        raise InvalidValue("INVALID_DATE", f"{text} is not a date, nor midnight UTC")
    return iso_date(_instant(text))


def _datetime(check: Check, text: str) -> str:
    return iso_instant(_instant(text))


def _instant(text: str) -> int:
    """Milliseconds since the epoch, of a year that calendars know."""
    try:
        instant = parse_instant(text)
        iso_date(instant)
    except (ValueError, OverflowError, OSError):
        raise InvalidValue("INVALID_DATE", f"{text} was not a valid date") from None
    return instant


Form = Callable[[Check, str], str]
_READ_ONLY: Form = _read_only
_NORMAL_FORMS: dict[str, Form] = {
    "string": _string,
    "phone_number": _string,
    "number": _number,
    "bool": _bool,
    "enumeration": _enumeration,
    "date": _date,
    "datetime": _datetime,
}


def moves_backward(before: Any, after: str) -> bool:
    """Whether a lifecycle stage would go back, which HubSpot ignores unless the value is cleared first."""
    order = LIFECYCLE_STAGES.index
    return before in LIFECYCLE_STAGES and after in LIFECYCLE_STAGES and order(after) < order(before)
