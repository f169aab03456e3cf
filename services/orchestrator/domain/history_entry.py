"""One line of the history, as it is kept in documents until it is stored, and as it is stored."""

from __future__ import annotations

import msgspec

from headrace.model.deployment import PinPlan


class HistoryEntry(msgspec.Struct, frozen=True):
    """`number` counts within its flow and never means two things; `at` is Unix seconds. `flow` is empty for a
    change of the leader. `series` goes before the number of what does not stand in the flow's own document."""

    number: int
    at: float
    who: str
    flow: str
    what: str
    version: int = 0
    deployment: int = 0
    pins: dict[str, PinPlan] = {}
    detail: str = ""
    operation: str = ""
    series: str = ""

    @property
    def id(self) -> str:
        return f"{self.flow or '_leader'}.{self.place}"

    @property
    def place(self) -> str:
        """Within its flow."""
        return f"{self.series}{self.number}"
