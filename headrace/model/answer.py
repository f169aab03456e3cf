"""The record behind an Idempotency-Key: one KV value per (flow, key), shared by gateways and sidecars.

States and who moves them (each move is a compare-and-set on the record's revision):

    (absent) --gateway--> RESERVED --gateway--> ACCEPTED --replying sidecar--> FINISHED
                              |                                                   ^
                              +---------------- replying sidecar ----------------+

A gateway creates RESERVED before it publishes the stimulus, and writes ACCEPTED when the broker has stored
it. The replying sidecar writes FINISHED (`finished`) before it sends the reply. A flow that does not reply is
FINISHED with an empty `reply` as soon as it is accepted. A definite refusal by the broker deletes RESERVED.

The stimulus id follows from (flow, key), so a second publish for one record repeats the first one's id. That
is why a record whose gateway died between create and publish blocks nobody: after `HOLD_S` another request
takes it over and publishes the same id; the broker refuses it if it was stored after all. The broker knows
ids for its duplicate window only, counted from the first store, so a record that is still RESERVED later
than `REPUBLISH_WINDOW_S` after its first reservation is *in doubt*: it is never silently treated as new.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

ANSWER_TTL_S = 24 * 3600.0
HOLD_S = 5.0
"""How long a reservation belongs to the request that made it, before another may take it over."""
REPUBLISH_WINDOW_S = 90.0
"""Less than the smallest duplicate window (120 s) by a margin for clocks that differ."""
MAX_KEY_LENGTH = 255


class AnswerState(StrEnum):
    RESERVED = "RESERVED"
    ACCEPTED = "ACCEPTED"
    FINISHED = "FINISHED"


class Answer(msgspec.Struct, frozen=True):
    """One record. Times are Unix seconds; `reply` is the serialised `message.v1.Reply`, empty for a 202."""

    body_digest: str
    """`message_ids.body_digest` of the request's body."""
    execution: str
    state: AnswerState
    holder: str
    """Random; which request made or took over the reservation."""
    reserved_at: float
    """First reservation: take-overs keep it."""
    held_since: float
    reply: bytes = b""


class Verdict(StrEnum):
    """What a request that finds a record does."""

    REPLAY = "REPLAY"
    BUSY = "BUSY"
    MISMATCH = "MISMATCH"
    TAKE_OVER = "TAKE_OVER"
    IN_DOUBT = "IN_DOUBT"


@dataclass(frozen=True, slots=True)
class Judgement:
    """`retry_after_s` is set where the verdict is BUSY."""

    verdict: Verdict
    retry_after_s: int = 0


def encode_answer(answer: Answer) -> bytes:
    """MessagePack, so that a reply of any bytes is stored without growing."""
    return msgspec.msgpack.encode(answer)


def decode_answer(raw: bytes) -> Answer:
    return msgspec.msgpack.decode(raw, type=Answer)


def reserved(*, body_digest: str, execution: str, holder: str, now_unix_s: float) -> Answer:
    """A new reservation."""
    return Answer(body_digest, execution, AnswerState.RESERVED, holder, now_unix_s, now_unix_s)


def judge(answer: Answer, *, body_digest: str, now_unix_s: float) -> Judgement:
    """What a repeat of the key does with the record it finds."""
    if answer.body_digest != body_digest:
        return Judgement(Verdict.MISMATCH)
    if answer.state is AnswerState.FINISHED:
        return Judgement(Verdict.REPLAY)
    if answer.state is AnswerState.ACCEPTED:
        return Judgement(Verdict.BUSY, 1)
    held_for = now_unix_s - answer.held_since
    if held_for < HOLD_S:
        return Judgement(Verdict.BUSY, max(1, min(int(HOLD_S), int(HOLD_S - held_for) + 1)))
    if now_unix_s - answer.reserved_at > REPUBLISH_WINDOW_S:
        return Judgement(Verdict.IN_DOUBT)
    return Judgement(Verdict.TAKE_OVER)


def taken_over(answer: Answer, *, holder: str, now_unix_s: float) -> Answer:
    """The reservation in another request's hands."""
    return msgspec.structs.replace(answer, holder=holder, held_since=now_unix_s)


def accepted(answer: Answer, *, replies: bool) -> Answer:
    """The broker has the stimulus; where the flow does not reply this is the answer."""
    state = AnswerState.ACCEPTED if replies else AnswerState.FINISHED
    return msgspec.structs.replace(answer, state=state)


def finished(stored: bytes | None, *, execution: str, reply: bytes) -> bytes | None:
    """The value that the replying sidecar writes over `stored` (compare-and-set; on Conflict read again).

    None when there is nothing to write: the record is gone, belongs to another execution, or holds the
    first answer already.
    """
    if stored is None:
        return None
    answer = decode_answer(stored)
    if answer.execution != execution or answer.state is AnswerState.FINISHED:
        return None
    return encode_answer(msgspec.structs.replace(answer, state=AnswerState.FINISHED, reply=reply))
