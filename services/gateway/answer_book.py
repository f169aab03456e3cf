"""The records behind Idempotency-Keys, in KV; what a repeat gets is decided in headrace.model.answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass

import msgspec

from headrace.edge.kv_bucket import KvBucket
from headrace.edge.structured_log import get_logger
from headrace.model import answer as answers
from headrace.model.answer import Answer, AnswerState, Verdict
from headrace.model.errors import Conflict, Unavailable
from headrace.wire.envelope import MalformedMessage, Reply, decode_reply
from services.gateway.domain import refusals

log = get_logger(__name__)

RETRY_S = 0.05
# nats-py does not notice that the answer to a request was lost with its connection: try again early.
TRY_LIMIT_S = 1.0
CLOSING_LIMIT_S = 2.0
NOTE_LIMIT_S = 0.5


@dataclass(slots=True)
class Reservation:
    """The request's own record: nobody else publishes for it while it is held."""

    key: str
    answer: Answer
    revision: int


@dataclass(slots=True)
class FirstAnswer:
    """What the first request got; `reply` None where the flow does not reply (202)."""

    execution: str
    reply: Reply | None


class AnswerBook:
    """Every call is bounded; a broker that does not answer ends in Refusal 503 (nothing was published)."""

    def __init__(self, bucket: KvBucket) -> None:
        self._bucket = bucket

    async def reserve(
        self, key: str, *, body_digest: str, execution: str, deadline: float
    ) -> Reservation | FirstAnswer:
        """Reserves the key or gives the first answer; Refusal 409, 422, or 503 at the deadline (loop's clock)."""
        loop = asyncio.get_running_loop()
        holder = secrets.token_hex(8)
        while True:
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + TRY_LIMIT_S)):
                    found = await self._try_reserve(key, body_digest, execution, holder)
            except (Unavailable, TimeoutError) as error:
                log.warning("the answers bucket does not answer", error=str(error))
                found = None
            if found is not None:
                return found
            if loop.time() + RETRY_S >= deadline:
                raise refusals.broker_unavailable()
            await asyncio.sleep(RETRY_S)

    async def _try_reserve(
        self, key: str, body_digest: str, execution: str, holder: str
    ) -> Reservation | FirstAnswer | None:
        """None means somebody was faster: look again."""
        now = time.time()
        fresh = answers.reserved(body_digest=body_digest, execution=execution, holder=holder, now_unix_s=now)
        try:
            return Reservation(key, fresh, await self._bucket.create(key, answers.encode_answer(fresh)))
        except Conflict:
            entry = await self._bucket.get(key)
        if entry is None or entry.value is None:
            return None
        present = answers.decode_answer(entry.value)
        if present.holder == holder and present.state is AnswerState.RESERVED:
            return Reservation(key, present, entry.revision)  # an earlier attempt of ours had succeeded
        judgement = answers.judge(present, body_digest=body_digest, now_unix_s=now)
        match judgement.verdict:
            case Verdict.MISMATCH:
                raise refusals.key_with_other_body(present.execution)
            case Verdict.BUSY:
                raise refusals.key_in_work(present.execution, judgement.retry_after_s)
            case Verdict.IN_DOUBT:
                raise refusals.key_in_doubt(present.execution)
            case Verdict.REPLAY:
                return first_answer(present)
            case Verdict.TAKE_OVER:
                taken = answers.taken_over(present, holder=holder, now_unix_s=now)
                try:
                    revision = await self._bucket.update(key, answers.encode_answer(taken), entry.revision)
                except Conflict:
                    return None
                log.info("reservation taken over", execution=present.execution)
                return Reservation(key, taken, revision)

    async def accept(self, reservation: Reservation, *, replies: bool) -> None:
        """Notes that the broker has the stimulus. If this fails the record stays RESERVED, which is safe: a
        repeat publishes the same id again and the broker knows it."""
        value = answers.encode_answer(answers.accepted(reservation.answer, replies=replies))
        try:
            async with asyncio.timeout(NOTE_LIMIT_S):
                await self._bucket.update(reservation.key, value, reservation.revision)
        except Conflict:
            return  # finished by the replying sidecar already, or taken over
        except (Unavailable, TimeoutError) as error:
            log.warning("acceptance not noted", execution=reservation.answer.execution, error=str(error))

    async def release(self, reservation: Reservation) -> None:
        """Frees the key after a definite refusal. If this fails, a repeat takes over after HOLD_S."""
        try:
            async with asyncio.timeout(CLOSING_LIMIT_S):
                await self._bucket.delete(reservation.key, reservation.revision)
        except Conflict:
            return
        except (Unavailable, TimeoutError) as error:
            log.warning("key not freed", execution=reservation.answer.execution, error=str(error))

    async def look(self, key: str, execution: str) -> FirstAnswer | None:
        """The answer, if there is one by now; None also when the broker does not say."""
        try:
            async with asyncio.timeout(CLOSING_LIMIT_S):
                entry = await self._bucket.get(key)
            if entry is None or entry.value is None:
                return None
            present = answers.decode_answer(entry.value)
        except (Unavailable, TimeoutError, msgspec.DecodeError) as error:
            log.warning("answer not read", execution=execution, error=str(error))
            return None
        if present.execution != execution or present.state is not AnswerState.FINISHED:
            return None
        return first_answer(present)


def first_answer(answer: Answer) -> FirstAnswer:
    """Takes the stored reply apart; Refusal 502 if it is none."""
    if not answer.reply:
        return FirstAnswer(answer.execution, None)
    try:
        return FirstAnswer(answer.execution, decode_reply(answer.reply))
    except MalformedMessage as error:
        raise refusals.bad_reply("", f"what cannot be read: {error.message}", answer.execution) from error
