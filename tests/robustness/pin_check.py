"""The pin checker: which code handled what, against what was pinned, from outside. Pure.

Every message carries what each step wrote into it (its deployment and the constant of its own code), and every
answer's headers name version and deployment. A Reign is what one deployment may run, and when.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.robustness.ledger import Attempt, Effect, Outcome, Touch


@dataclass(frozen=True, slots=True)
class Reign:
    """One deployment: `pins` are step to revision constant; `began` is when a person asked for it,
    `took_over` when that person was told that it had taken over (None: it never did)."""

    deployment: int
    version: int
    pins: Mapping[str, str]
    began: float
    took_over: float | None = None


@dataclass(frozen=True)
class PinVerdict:
    """`ok` is law 1 and law 2."""

    answered_by_deployment: dict[int, int]
    unpinned: tuple[str, ...]
    """Handled by code that its deployment did not pin, or by a deployment nobody knows."""
    mixed: tuple[str, ...]
    """Executions that two deployments touched."""
    untimely: tuple[str, ...]
    """Answered by a deployment before it was asked for, or sent after its successor had taken over."""
    answered_by_revision: dict[str, int] = field(default_factory=dict)
    """By the constants of all steps that touched the message, in their order."""

    @property
    def ok(self) -> bool:
        return not (self.unpinned or self.mixed or self.untimely)

    def line(self) -> str:
        """The whole verdict in one printed line."""
        answered = ", ".join(f"d{number}: {count}" for number, count in sorted(self.answered_by_deployment.items()))
        return (
            f"pins {'ok' if self.ok else 'BROKEN'}: unpinned {len(self.unpinned)}, mixed {len(self.mixed)}, "
            f"untimely {len(self.untimely)}; answered by {{{answered}}}"
        )

    def complaints(self) -> str:
        """A few of what broke it."""
        found = {"unpinned": self.unpinned, "mixed": self.mixed, "untimely": self.untimely}
        return "\n".join(f"{name}: {list(items)[:5]}" for name, items in found.items() if items)


def check_pins(attempts: Iterable[Attempt], effects: Iterable[Effect], reigns: Iterable[Reign]) -> PinVerdict:
    """Every effect and every answer against the reigns."""
    known = {reign.deployment: reign for reign in reigns}
    unpinned: list[str] = []
    mixed: list[str] = []
    owners: dict[str, set[int]] = {}
    for effect in effects:
        owners.setdefault(effect.id, set()).update(touch.deployment for touch in effect.touched)
        unpinned += _unpinned(effect.id, effect.touched, known)
        if not effect.touched:
            unpinned.append(f"{effect.id}: says nothing")
    answered = Counter[int]()
    revisions = Counter[str]()
    untimely: list[str] = []
    powers = _powers(known.values())
    for attempt in attempts:
        if attempt.outcome is not Outcome.OK:
            continue
        answered[attempt.deployment] += 1
        revisions[" ".join(touch.revision for touch in attempt.touched)] += 1
        unpinned += _unpinned(attempt.id, attempt.touched, known)
        owners.setdefault(attempt.id, set()).add(attempt.deployment)
        owners[attempt.id].update(touch.deployment for touch in attempt.touched)
        reign = known.get(attempt.deployment)
        if reign is None or reign.version != attempt.version:
            unpinned.append(f"{attempt.id}: answered by d{attempt.deployment} of version {attempt.version}")
        elif attempt.answered_at < reign.began:
            untimely.append(f"{attempt.id}: answered by d{attempt.deployment} before it was asked for")
        elif attempt.deployment < (in_power := _in_power(powers, attempt.sent_at)):
            untimely.append(f"{attempt.id}: sent when d{in_power} was in power, answered by d{attempt.deployment}")
    mixed += [f"{id}: {sorted(numbers)}" for id, numbers in owners.items() if len(numbers) > 1]
    return PinVerdict(dict(answered), tuple(unpinned), tuple(mixed), tuple(untimely), dict(revisions))


def _unpinned(id: str, touched: Iterable[Touch], known: Mapping[int, Reign]) -> list[str]:
    found = []
    for touch in touched:
        reign = known.get(touch.deployment)
        pinned = reign.pins.get(touch.step) if reign else None
        if pinned != touch.revision:
            found.append(f"{id}: {touch.step} of d{touch.deployment} ran {touch.revision}, pinned is {pinned}")
    return found


def _powers(reigns: Iterable[Reign]) -> list[tuple[float, int]]:
    return sorted((reign.took_over, reign.deployment) for reign in reigns if reign.took_over is not None)


def _in_power(powers: list[tuple[float, int]], moment: float) -> int:
    """The deployment that had taken over last at a moment; 0 before the first."""
    at = bisect_right(powers, (moment, 0))
    return powers[at - 1][1] if at else 0
