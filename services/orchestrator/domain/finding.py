"""One cause that was found, and how to say it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from headrace.model.causes import CAUSES, Cause, rank


class Severity(IntEnum):
    """As in the API; worse is lower."""

    STALLED = 1
    SLOW = 2
    NOTICE = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """`weight` orders findings of one cause: more first."""

    cause: Cause
    severity: Severity
    summary: str
    evidence: tuple[str, ...] = ()
    step: str = ""
    instance: str = ""
    deployment: int = 0
    affects: tuple[str, ...] = ()
    pid: int = 0
    receiver: str = ""
    replicas: int = 0
    weight: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        """Most likely first."""
        return (int(self.severity), rank(self.cause), -self.weight)

    def commands(self, flow: str) -> list[str]:
        """What to type next; commands whose blanks cannot be filled in are left out."""
        blanks = {
            "flow": flow,
            "step": self.step,
            "deployment": self.deployment or "",
            "pid": self.pid or "",
            "receiver": self.receiver,
            "more": self.replicas + 1,
        }
        found = []
        for command in CAUSES[self.cause].commands:
            if all(value or f"{{{name}}}" not in command for name, value in blanks.items()):
                found.append(command.format(**blanks))
        return found

    def affecting(self, steps: tuple[str, ...]) -> Finding:
        """The same, with the steps that wait because of it."""
        return replace(self, affects=tuple(dict.fromkeys((*self.affects, *steps))))


def shown_s(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `2 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def counted(number: int, what: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{number} {what}{'s' * (number != 1)}"
