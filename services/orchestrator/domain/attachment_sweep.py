"""What is known of objects that may have to go: the pure part of the sweep of attachments.

An object goes when nobody can name it any more. It is a candidate once the time is over that its metadata keeps it for;
then it is kept by any stored message that names it, and by the stored input in whose call it was uploaded. One that was
found unnamed twice, some time apart and unchanged, goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

CONFIRM_S = 20.0
"""At least so long between the two looks."""
MOST_REMEMBERED = 100_000
CLOCK_MARGIN_S = 60.0
"""How far the clock of whoever uploaded may be ahead of the broker's."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An object whose time is over. `sequence` is that of its metadata, `holder` of its input in the flow's stream (0:
    none), `created` Unix seconds: nothing stored before names it."""

    name: str
    flow: str
    identity: str
    sequence: int
    created: float
    holder: int = 0


@dataclass(slots=True)
class SweepMemory:
    """Of one process; losing it costs one more look."""

    unnamed: dict[str, tuple[int, float]] = field(default_factory=dict)
    """When an object, with metadata of that sequence, was first found unnamed."""
    witnesses: dict[str, tuple[str, int]] = field(default_factory=dict)
    """A stored message that names it: stream and sequence."""

    def saw_named(self, candidate: Candidate, stream: str, sequence: int) -> None:
        """That message names it."""
        self.unnamed.pop(candidate.name, None)
        if len(self.witnesses) < MOST_REMEMBERED:
            self.witnesses[candidate.name] = (stream, sequence)

    def may_go(self, candidate: Candidate, now: float) -> bool:
        """Nobody names it now: whether that was so before, too."""
        self.witnesses.pop(candidate.name, None)
        sequence, since = self.unnamed.get(candidate.name, (0, now))
        if sequence != candidate.sequence:
            since = now
        self.unnamed[candidate.name] = (candidate.sequence, since)
        return now - since >= CONFIRM_S

    def forget_all_but(self, names: Iterable[str]) -> None:
        """These are all objects that there are."""
        kept = set(names)
        self.unnamed = {name: seen for name, seen in self.unnamed.items() if name in kept}
        self.witnesses = {name: place for name, place in self.witnesses.items() if name in kept}


def candidate_of(name: str, sequence: int, stored_at: float, metadata: dict[str, str], now: float) -> Candidate | None:
    """None while it is kept by its time, or where its name is not one of ours."""
    flow, slash, identity = name.partition("/")
    if not slash:
        return None
    try:
        keep_s = float(metadata.get("keep_s", "nan"))
        created = min(float(metadata.get("created", stored_at)), stored_at) - CLOCK_MARGIN_S
        holder = int(metadata.get("holder", 0))
    except ValueError:
        return None
    if not now > stored_at + keep_s:  # also where it is no number
        return None
    return Candidate(name, flow, identity, sequence, created, holder)
