"""Scripts: operations that run right before or right after a certain request is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from call import Call
from errors import ControlError
from faults import Matcher
from operations import Step, check_steps


@dataclass
class Script:
    """Operations bound to a request."""

    spec: dict[str, Any]
    matcher: Matcher

    @property
    def when(self) -> str:
        """`before` or `after` the answer."""
        return str(self.spec.get("when", "before"))


class ScriptBook:
    """All installed scripts."""

    def __init__(self) -> None:
        self._scripts: list[Script] = []

    def install(self, spec: dict[str, Any]) -> None:
        """Add a script."""
        check_steps(spec.get("do"))
        if spec.get("when", "before") not in ("before", "after"):
            raise ControlError("when must be before or after")
        self._scripts.append(Script(spec, Matcher(spec)))

    def clear(self) -> None:
        """Remove all scripts."""
        self._scripts.clear()

    def describe(self) -> list[dict[str, Any]]:
        """The installed scripts and how many requests each has counted."""
        return [{**script.spec, "seen": script.matcher.seen} for script in self._scripts]

    def pick(self, call: Call) -> tuple[list[Step], list[Step]]:
        """The operations to run before and after answering a request."""
        hits = [script for script in self._scripts if script.matcher.hit(call)]
        before = [step for script in hits if script.when == "before" for step in script.spec["do"]]
        after = [step for script in hits if script.when == "after" for step in script.spec["do"]]
        return before, after
