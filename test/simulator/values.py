"""Checks and normal forms of property values on writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from clock import DAY_MS, iso_date, iso_instant, parse_instant
from definitions import LIFECYCLE_STAGES, Property
from store import Table

_NUMBER = re.compile(r"-?\d+(\.\d*)?|-?\.\d+")
_EMAIL = re.compile(r"[^\s@,;<>()]+@[^\s@,;<>()]+\.[A-Za-z]{2,}")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
MAX_TEXT = 65_536

Problem = dict[str, str]
OptionCheck = Callable[[str, str], bool]


class InvalidValue(Exception):
    """A value HubSpot refuses, with HubSpot's code for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def checked_properties(
    table: Table, properties: dict[str, Any], external_option: OptionCheck
) -> tuple[dict[str, Any], list[Problem]]:
    """The values as HubSpot stores them, and what it refuses. external_option knows owners and stages."""
    accepted: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in properties.items():
        try:
            accepted[name] = _checked(table.properties.get(name), name, value, external_option)
        except InvalidValue as invalid:
            problems.append({"name": name, "code": invalid.code, "message": str(invalid)})
    return accepted, problems


def _checked(prop: Property | None, name: str, value: Any, external_option: OptionCheck) -> str:
    if prop is None or prop.archived:
        raise InvalidValue("PROPERTY_DOESNT_EXIST", f"Property {name} does not exist")
    if prop.read_only:
        raise InvalidValue("READ_ONLY_VALUE", f"{name} is a read only property; its value cannot be set")
    text = _as_text(name, value)
    if text == "":  # the documented way to clear a value; that it then reads as "" is unverified
        return text
    if prop.external_options and not external_option(name, text):
        raise InvalidValue("INVALID_OPTION", f"{text} was not one of the allowed options for {name}")
    return _NORMAL_FORMS.get(prop.type, _string)(prop, text)


def _as_text(name: str, value: Any) -> str:
    """Values are sent as strings; numbers and booleans are taken as their text, null is refused (unverified)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if not isinstance(value, str):
        raise InvalidValue("INVALID_VALUE", f"{name} must be a string")
    return value


def _string(prop: Property, text: str) -> str:
    if len(text) > MAX_TEXT:
        raise InvalidValue("VALUE_TOO_LONG", f"{prop.name} is longer than {MAX_TEXT} characters")
    if prop.name != "email":
        return text
    if not _EMAIL.fullmatch(text):
        raise InvalidValue("INVALID_EMAIL", f"Email address {text} is invalid")
    return text.lower()


def _number(prop: Property, text: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise InvalidValue("INVALID_FLOAT", f"{text} was not a valid number")
    return text


def _bool(prop: Property, text: str) -> str:
    if text not in ("true", "false"):
        raise InvalidValue("INVALID_OPTION", f"{text} was not one of the allowed options: [true, false]")
    return text


def _enumeration(prop: Property, text: str) -> str:
    allowed = {option["value"] for option in prop.options}
    chosen = text.strip(";").split(";") if prop.field_type == "checkbox" else [text]
    if not prop.external_options and not allowed.issuperset(chosen):
        raise InvalidValue("INVALID_OPTION", f"{text} was not one of the allowed options: {sorted(allowed)}")
    return text


def _date(prop: Property, text: str) -> str:
    """YYYY-MM-DD, or epoch milliseconds at midnight UTC."""
    instant = _instant(text)
    if instant % DAY_MS or not (_ISO_DATE.fullmatch(text) or text.lstrip("-").isdigit()):
        raise InvalidValue("INVALID_DATE", f"{text} is not at midnight UTC")
    return iso_date(instant)


def _datetime(prop: Property, text: str) -> str:
    return iso_instant(_instant(text))


def _instant(text: str) -> int:
    try:
        return parse_instant(text)
    except ValueError:
        raise InvalidValue("INVALID_DATE", f"{text} was not a valid date") from None


_NORMAL_FORMS: dict[str, Callable[[Property, str], str]] = {
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
