"""The ledger checker: what callers attempted and were told, against what happened outside the mesh, as sets.

Nothing here looks into the mesh. An attempt's outcome is what its caller knows: OK (answered as it should be),
FAILED (refused, or never sent), UNKNOWN (the connection died, or a 503 or 504, after it was sent: it may have
happened or not). An effect is a line in a file, written by a step.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tests.support.soak import TOTALS


class Outcome(StrEnum):
    OK = "OK"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Touch:
    """What one step wrote into a message that it handled: its deployment, and the constant of its own code."""

    step: str
    deployment: int
    revision: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request. `wrong` says what was wrong with an answer that came, else it is empty.

    `version` and `deployment` are those of the answer's headers; times are time.monotonic() of this process.
    """

    id: str
    outcome: Outcome
    status: int = 0
    wrong: str = ""
    latency_s: float = 0.0
    detail: str = ""
    version: int = 0
    deployment: int = 0
    touched: tuple[Touch, ...] = ()
    sent_at: float = 0.0
    answered_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect, with the revision that made it, the message that caused it and its delivery attempt."""

    id: str
    revision: str = ""
    message_id: str = ""
    attempt: int = 1
    touched: tuple[Touch, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`ok` is the law: nothing acknowledged is lost, nothing doubled, nothing made up, no wrong answer."""

    attempted: int
    acknowledged: int
    failed: int
    unknown: int
    effected: int
    lost: frozenset[str]
    """Acknowledged, but never effected."""
    unexpected: frozenset[str]
    """Effected, but never attempted."""
    refused: frozenset[str]
    """Effected although their caller was told that they failed."""
    duplicated: frozenset[str]
    """Effected more than once."""
    wrong: tuple[Attempt, ...]
    by_revision: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    """Of those that failed: how many by HTTP status and detail; `0` was never sent."""

    @property
    def ok(self) -> bool:
        return not (self.lost or self.unexpected or self.refused or self.duplicated or self.wrong)

    def line(self) -> str:
        """The whole verdict in one printed line."""
        revisions = ", ".join(f"{name}: {count}" for name, count in sorted(self.by_revision.items()))
        return (
            f"ledger {'ok' if self.ok else 'BROKEN'}: attempted {self.attempted} (ok {self.acknowledged}, "
            f"failed {self.failed}{self.failures or ''}, unknown {self.unknown}), effected {self.effected}; "
            f"lost {len(self.lost)}, duplicated {len(self.duplicated)}, unexpected {len(self.unexpected)}, "
            f"refused yet effected {len(self.refused)}, wrong answers {len(self.wrong)}; by revision {{{revisions}}}"
        )


def check(attempts: Iterable[Attempt], effects: Iterable[Effect]) -> Verdict:
    """Compares the two. ValueError if one id was attempted twice: the traffic itself is broken then."""
    outcomes: dict[str, Outcome] = {}
    wrong: list[Attempt] = []
    failures = Counter[str]()
    for attempt in attempts:
        if attempt.id in outcomes:
            raise ValueError(f"id {attempt.id} was attempted twice")
        outcomes[attempt.id] = attempt.outcome
        if attempt.wrong:
            wrong.append(attempt)
        if attempt.outcome is Outcome.FAILED:
            failures[f"{attempt.status} {attempt.detail[:60]}".strip()] += 1
    counts = Counter[str]()
    revisions = Counter[str]()
    for effect in effects:
        counts[effect.id] += 1
        revisions[effect.revision] += 1
    told = Counter(outcomes.values())
    acknowledged = {id for id, outcome in outcomes.items() if outcome is Outcome.OK}
    failed = {id for id, outcome in outcomes.items() if outcome is Outcome.FAILED}
    effected = set(counts)
    return Verdict(
        attempted=len(outcomes),
        acknowledged=told[Outcome.OK],
        failed=told[Outcome.FAILED],
        unknown=told[Outcome.UNKNOWN],
        effected=len(effected),
        lost=frozenset(acknowledged - effected),
        unexpected=frozenset(effected - outcomes.keys()),
        refused=frozenset(effected & failed),
        duplicated=frozenset(id for id, count in counts.items() if count > 1),
        wrong=tuple(wrong),
        by_revision=dict(revisions),
        failures=dict(failures.most_common(5)),
    )


def counted(verdict: Verdict) -> Verdict:
    """The same, added to the totals of a soak."""
    wrong = len(verdict.unexpected) + len(verdict.refused) + len(verdict.wrong)
    TOTALS.judge(verdict.attempted, lost=len(verdict.lost), duplicated=len(verdict.duplicated), wrong=wrong)
    return verdict


def read_effects(file: Path) -> list[Effect]:
    """Lines of an effects file, in order; [] if there is none yet. ValueError for a line that is none."""
    if not file.exists():
        return []
    effects = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            data = json.loads(line)
            message_id, attempt = str(data.get("message_id", "")), int(data.get("attempt", 1))
            effects.append(Effect(data["id"], data["revision"], message_id, attempt, touches(data.get("touched"))))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number} is no effect: {line[:200]!r}") from error
    return effects


def touches(raw: object) -> tuple[Touch, ...]:
    """From the list that a message carries; () where there is none."""
    return tuple(Touch(*item) for item in raw) if isinstance(raw, list) else ()
