"""The simulator as a whole: what a request meets on its way to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from answer import Answer
from api import Api
from call import Call
from clock import Clock
from config import Config, DataOptions
from control import Control
from data import fill_world
from errors import ControlError
from faults import FaultBook, apply_fault
from journal import Entry, Journal
from operations import Step, run_step
from scripts import ScriptBook


@dataclass
class Outcome:
    """An answer with what has to happen once it has been sent."""

    answer: Answer
    entry: Entry | None = None
    afterwards: list[Step] = field(default_factory=list)


class Simulator:
    """Clock, settings, data, faults, scripts and journal of one simulated account."""

    def __init__(self, config: Config, options: DataOptions) -> None:
        self.config = config
        self.clock = Clock()
        self.faults = FaultBook()
        self.scripts = ScriptBook()
        self.journal = Journal()
        self.script_errors: list[str] = []
        self.count_connections: Callable[[], int] = lambda: 0
        self.count_requests_to_other: Callable[[], int] = lambda: 0
        self.show_own_certificate: Callable[[], None] = lambda: None
        self._first_options = options
        self.reset({})
        self._control = Control(self)

    def reset(self, changes: dict[str, Any]) -> None:
        """Fresh data, made of the options of the start and the given changes; settings stay."""
        self.options = self._first_options.changed(changes)
        self.world = fill_world(self.config, self.clock, self.options)
        self._api = Api(self.world, self.config, self.clock)
        self.clear_faults()
        self.scripts.clear()
        self.script_errors.clear()
        self.journal.clear()

    def clear_faults(self) -> None:
        """Remove all faults, and what one has left for the next connections."""
        self.faults.clear()
        self.show_own_certificate()

    def configure(self, changes: dict[str, Any]) -> None:
        """Change settings."""
        self.config.update(changes)
        self.clock.offset_ms = self.config.clock_offset_ms

    async def handle(self, call: Call) -> Outcome:
        """The answer to any request."""
        if call.path.startswith("/_control/"):
            return Outcome(self._control.answer(call))
        config = self.config
        entry = self.journal.open(
            call, self.clock.now_ms(), self._api.authorized(call), config.token, config.journal_bodies,
            self.count_connections(),
        )  # fmt: skip
        try:
            return await self._answered(call, entry)
        except asyncio.CancelledError:  # the client left meanwhile
            self.journal.close(entry, None)
            raise

    async def _answered(self, call: Call, entry: Entry) -> Outcome:
        fault = self.faults.pick(call)
        before, after = self.scripts.pick(call)
        if self.config.latency_ms:
            await asyncio.sleep(self.config.latency_ms / 1000)
        self.run_steps(before)
        call.previous = self.faults.previous(call)
        if fault is None:
            answer = self._api.answer(call)
        else:
            entry.fault = fault.kind
            answer = await apply_fault(fault, call, lambda: self._api.answer(call).as_of_now())
        self.faults.remember(call, answer)
        return Outcome(answer, entry, after)

    def finish(self, outcome: Outcome) -> None:
        """Close the journal's entry and run what was scripted for after the answer."""
        if outcome.entry is not None:
            delivery = outcome.answer.delivery
            unanswered = delivery.silent or delivery.reset_after == -1
            self.journal.close(outcome.entry, None if unanswered else outcome.answer.status)
        self.run_steps(outcome.afterwards)

    def run_steps(self, steps: list[Step]) -> None:
        """Run scripted operations; one that fails is reported by the control API."""
        for step in steps:
            try:
                run_step(self.world, step)
            except ControlError as error:
                self.script_errors.append(f"{step}: {error}")
