"""Rules of the account's admins: properties that are required once others have certain values."""

from __future__ import annotations

from typing import Any, NamedTuple

from errors import ControlError


class Rule(NamedTuple):
    """`require` has to have a value as soon as everything in `when` holds; an empty `when` always does.

    A write that touches none of a conditional rule's properties is not held to it (unverified).
    """

    when: dict[str, str]
    require: tuple[str, ...]

    def missing(self, before: dict[str, Any], written: dict[str, Any]) -> list[str]:
        """What a write leaves empty although it is required."""
        if self.when and not any(name in written for name in (*self.when, *self.require)):
            return []
        after = {**before, **written}
        if any(after.get(name) != value for name, value in self.when.items()):
            return []
        return [name for name in self.require if not after.get(name)]


def described_rule(fields: dict[str, Any]) -> Rule:
    """A rule from its JSON."""
    when, require = fields.get("when") or {}, fields.get("require")
    if not isinstance(when, dict) or not isinstance(require, list) or not require:
        raise ControlError("a rule needs require, a list of names, and may have when, an object")
    return Rule({str(name): str(value) for name, value in when.items()}, tuple(map(str, require)))
