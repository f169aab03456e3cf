"""How an operation is over: with a message, or a failure. Part planners derive it, `operation_planner` writes it."""

from __future__ import annotations

from dataclasses import dataclass

from services.orchestrator.domain.documents import OperationFailure


@dataclass(frozen=True, slots=True)
class Ending:
    """Result of an operation."""

    message: str = ""
    failure: OperationFailure | None = None
    dead_lettered: int = 0
    moved: int = 0
