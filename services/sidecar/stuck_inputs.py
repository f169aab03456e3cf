"""Inputs that failed for good where the step says `on_error: suspend-flow`: kept, not acknowledged, until they are
tried again. The orchestrator learns of them from the status and suspends the flow; a resume tries them again.

Nothing of this is stored: a killed sidecar gets its inputs delivered again, fails them again and reports again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from services.sidecar.domain.delivery import Problem
from services.sidecar.held_input import HeldInput, Phase


@dataclass(frozen=True, slots=True)
class StuckInput:
    """One of them, and why it cannot go on."""

    held: HeldInput
    problem: Problem
    since_unix_ns: int


class StuckInputs:
    """Of one instance; bounded by its credit. `on_change` is called when there are more, or fewer."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._stuck: list[StuckInput] = []
        self.resumed = 0
        """The newest resume of the flow that this instance knows of."""

    def put(self, held: HeldInput, problem: Problem) -> None:
        held.phase = Phase.STUCK
        held.outputs, held.reply = [], None
        self._stuck.append(StuckInput(held, problem, time.time_ns()))
        self._on_change()

    @property
    def present(self) -> list[StuckInput]:
        """Oldest first; of a keyed step only those whose slot is still this instance's."""
        return [item for item in self._stuck if item.held.slot is None or item.held.slot.owns(item.held)]

    def take_for(self, resumed: int) -> list[HeldInput]:
        """All to be tried again, if the flow was resumed since; each with all its attempts."""
        if resumed <= self.resumed:
            return []
        self.resumed = resumed
        again = [item.held for item in self.present]
        self._stuck.clear()
        for held in again:
            held.failures = held.rebounds = held.crashes = 0
            held.alone = False
        self._on_change()
        return again
