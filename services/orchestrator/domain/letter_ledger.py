"""How far replaying and discarding of a flow's dead letters is: part of the flow's document.

A batch of letters is claimed (written here) before anything is done with it, noted with its counts once the broker
has what became of them, and only then deleted from the letters' stream. So a kill at any point neither loses a
letter nor counts one twice, and whoever leads next goes on from here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

REPLAY = "replay"
DISCARD = "discard"
# Letters in one batch, and in one call.
BATCH = 100
# Of letters whose replay may or may not have been stored, so many are remembered; the oldest are forgotten first.
MAX_IN_DOUBT = 1000
# Less than the duplicate window (120 s) of the flow's stream, by the longest time a batch takes.
REMEMBERED_S = 90.0


class ReplayWay(msgspec.Struct, frozen=True):
    """How letters are sent again: from the step that failed them, or the whole execution `from_start`; or those of
    `step` through `revision` of its component, by the side deployment that was made for it (0: not yet)."""

    from_start: bool = False
    step: str = ""
    revision: str = ""
    deployment: int = 0

    def words(self) -> str:
        """For the history, behind the letters."""
        if self.from_start:
            return " from the start"
        return f" of {self.step} through revision {self.revision}" if self.revision else ""


FROM_THE_STEP = ReplayWay()


class LetterWork(msgspec.Struct, frozen=True):
    """One person's replay or discard, under way. `what` says which letters, for the history."""

    action: str
    who: str
    what: str
    begun_at: float
    # What was done so far.
    count: int = 0
    # The batch in hand, as sequences of the letters' stream; empty between batches. `noted`: counted, to be deleted.
    batch: tuple[int, ...] = ()
    incarnation: int = 0
    claimed_at: float = 0.0
    noted: bool = False
    way: ReplayWay = FROM_THE_STEP


class LetterLedger(msgspec.Struct, frozen=True):
    """Counts since the flow was created."""

    replayed: int = 0
    discarded: int = 0
    work: LetterWork | None = None
    in_doubt: tuple[int, ...] = ()


def begun(
    ledger: LetterLedger, action: str, who: str, what: str, now: float, way: ReplayWay = FROM_THE_STEP
) -> LetterLedger:
    """A person's work begins; there must be none."""
    assert ledger.work is None
    return msgspec.structs.replace(ledger, work=LetterWork(action, who, what, now, way=way))


def claimed(ledger: LetterLedger, batch: Sequence[int], incarnation: int, now: float) -> LetterLedger:
    """The next batch, whose predecessor is deleted."""
    assert ledger.work is not None
    work = msgspec.structs.replace(
        ledger.work, batch=tuple(batch), incarnation=incarnation, claimed_at=now, noted=False
    )
    return msgspec.structs.replace(ledger, work=work)


def noted(ledger: LetterLedger, done: Sequence[int]) -> LetterLedger:
    """What of the batch is done: counted, so that it may be deleted. The rest is not claimed any more."""
    work = ledger.work
    assert work is not None
    assert not work.noted
    count = len(done)
    changed = msgspec.structs.replace(
        ledger,
        work=msgspec.structs.replace(work, batch=tuple(done), count=work.count + count, noted=True),
        in_doubt=tuple(sequence for sequence in ledger.in_doubt if sequence not in set(done)),
    )
    if work.action == REPLAY:
        return msgspec.structs.replace(changed, replayed=ledger.replayed + count)
    return msgspec.structs.replace(changed, discarded=ledger.discarded + count)


def ended(ledger: LetterLedger) -> LetterLedger:
    """The work is over, and what it noted is deleted."""
    return msgspec.structs.replace(ledger, work=None)


def is_doubtful(work: LetterWork, now: float) -> bool:
    """Whether it is not known any more if the replays of a claimed batch were stored."""
    claims = bool(work.batch) and not work.noted
    return work.action == REPLAY and claims and not 0 <= now - work.claimed_at <= REMEMBERED_S


def doubted(ledger: LetterLedger) -> LetterLedger:
    """Gives the batch up: its letters stay, marked."""
    assert ledger.work is not None
    marked = (*ledger.in_doubt, *(item for item in ledger.work.batch if item not in ledger.in_doubt))
    work = msgspec.structs.replace(ledger.work, batch=(), noted=True)
    return msgspec.structs.replace(ledger, work=work, in_doubt=marked[-MAX_IN_DOUBT:])
