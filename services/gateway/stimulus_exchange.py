"""What an admitted request goes through: its key, its stimulus, its answer.

1. with an Idempotency-Key: the record (`answer_book`), which may already hold the answer;
2. the stimulus is published to the ingress until the broker has answered (`ingress`);
3. 202, or the wait for the reply (`reply_desk`), whose end by the deadline leaves the execution running.

A gateway that dies between 1 and 2 leaves a reservation that another request takes over (headrace.model.answer);
one that dies after 2 leaves an execution that runs, and whose answer the key finds.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from headrace.model import message_ids, subjects
from headrace.wire.envelope import Reply, ReplyTo, encode_shared
from headrace.wire.spliced_envelope import EnvelopeSplicer, inherited_fields
from services.gateway.admitted_request import AdmittedRequest
from services.gateway.answer_book import AnswerBook, FirstAnswer
from services.gateway.answer_counts import ACCEPTED, REPEATED, REPLIED, AnswerCounts
from services.gateway.domain import refusals
from services.gateway.domain.refusals import Refusal
from services.gateway.hop_log import HopLog
from services.gateway.http_connection import CONNECTION, CYCLE
from services.gateway.ingress import Ingress, Stimulus
from services.gateway.large_replies import LargeReplies
from services.gateway.reply_desk import NoReply, ReceivedReply, ReplyDesk, Waiter
from services.gateway.request_body import CallerGone
from services.gateway.responses import send_accepted, send_reply
from services.gateway.root_spans import RootSpans
from services.gateway.upload_slots import UploadSlots

ANSWER_LOOK_S = 0.1

Outcome = ReceivedReply | FirstAnswer | NoReply


class StimulusExchange:
    """Of all flows; `run` for each admitted request."""

    def __init__(
        self,
        *,
        workspace: str,
        gateway: str,
        ingress: Ingress,
        desk: ReplyDesk,
        answers: AnswerBook,
        hops: HopLog,
        counts: AnswerCounts,
        roots: RootSpans,
        uploads: UploadSlots,
        large: LargeReplies,
    ) -> None:
        self._ingress = ingress
        self._desk = desk
        self._answers = answers
        self._hops = hops
        self._counts = counts
        self._roots = roots
        self._uploads = uploads
        self._large = large
        self._reply_subject = subjects.reply_subject(workspace, gateway)
        self._replying = inherited_fields(ReplyTo(subject=self._reply_subject).SerializeToString())
        self._splicer = EnvelopeSplicer("")

    async def run(self, work: AdmittedRequest, scope: Scope, send: Send) -> None:
        """Answers it, once; Refusal and CallerGone are the caller's to handle, and are told to the trace here."""
        try:
            await self._handle(work, scope, send)
        except Refusal as refusal:
            refusal.traceparent = work.root.traceparent
            self._roots.refused(work.root, refusal, work.written_at_mono_ns)
            raise
        except CallerGone:
            self._roots.gone(work.root, work.written_at_mono_ns)
            raise

    async def _handle(self, work: AdmittedRequest, scope: Scope, send: Send) -> None:
        if work.headers.idempotency_key:
            first = await self._reserve(work)
            if first is not None:
                await self._send_first(work, first, send)
                return
        if work.route.reply_timeout_s <= 0:
            duplicate = await self._publish(work, None)
            await send_accepted(send, work.execution, work.context_headers, cycle=scope.get(CYCLE))
            self._counts.answered(work.route.flow, 202, ACCEPTED)
            self._hops.accepted(work.route.flow, work.arrival, work.written_at_mono_ns)
            self._roots.accepted(work.root, work.written_at_mono_ns, duplicate=duplicate)
            return
        waiter = self._desk.expect(work.execution, work.deadline)
        connection = scope.get(CONNECTION)
        if connection is not None:
            connection.on_gone = waiter.caller_gone
        try:
            outcome = await self._publish_and_wait(work, waiter)
        finally:
            if connection is not None:
                connection.on_gone = None
            self._desk.forget(waiter)
        await self._answer(work, outcome, scope, send)

    async def _answer(self, work: AdmittedRequest, outcome: Outcome, scope: Scope, send: Send) -> None:
        match outcome:
            case ReceivedReply():
                await self._send_reply(work, outcome.reply, send, cycle=scope.get(CYCLE))
                self._counts.answered(work.route.flow, outcome.reply.status, REPLIED)
                self._hops.replied(
                    work.route.flow,
                    outcome.reply,
                    arrival=work.arrival,
                    written_at_mono_ns=work.written_at_mono_ns,
                    read_at_mono_ns=outcome.read_at_mono_ns,
                    read_at_unix_ns=outcome.read_at_unix_ns,
                    trace_id=self._roots.recorded_trace(work.root),
                )
                self._roots.replied(work.root, outcome, work.written_at_mono_ns)
            case FirstAnswer():
                await self._send_first(work, outcome, send)
            case NoReply.DEADLINE:
                raise refusals.no_reply(work.execution, work.prepared.limit_s)
            case NoReply.STOPPING:
                raise refusals.gateway_stopping(work.execution)
            case NoReply.CALLER_GONE:
                raise CallerGone

    async def _send_reply(
        self,
        work: AdmittedRequest,
        reply: Reply,
        send: Send,
        *,
        cycle: RequestResponseCycle | None = None,
        replayed: bool = False,
    ) -> None:
        context = work.context_headers
        if not reply.HasField("large_body"):
            await send_reply(send, reply, context, cycle=cycle, replayed=replayed)
            return
        async with contextlib.aclosing(self._large.chunks(work.route.flow, reply)) as chunks:
            await send_reply(send, reply, context, replayed=replayed, large=chunks)

    async def _send_first(self, work: AdmittedRequest, first: FirstAnswer, send: Send) -> None:
        if first.reply is None:
            await send_accepted(send, first.execution, work.context_headers, replayed=True)
        else:
            await self._send_reply(work, first.reply, send, replayed=True)
        self._roots.replayed(work.root, first.reply)
        self._counts.answered(work.route.flow, 202 if first.reply is None else first.reply.status, REPEATED)

    async def _publish_and_wait(self, work: AdmittedRequest, waiter: Waiter) -> Outcome:
        if not (work.answer_key or work.received.attachments or work.route.fenced):
            return await self._begin_and_wait(work, waiter)
        elsewhere = await self._publish(work, waiter)
        if not work.answer_key:
            return await _end_of(waiter)
        # The reply may go to another gateway, or get lost on its way; the record has it then.
        while elsewhere and not waiter.outcome.done():
            found = await self._answers.look(work.answer_key, work.execution)
            if found is not None:
                return found
            await asyncio.wait([waiter.outcome], timeout=ANSWER_LOOK_S)
        outcome = await _end_of(waiter)
        if outcome is NoReply.DEADLINE:
            return await self._answers.look(work.answer_key, work.execution) or outcome
        return outcome

    async def _begin_and_wait(self, work: AdmittedRequest, waiter: Waiter) -> ReceivedReply | NoReply:
        """One wait for both, the broker's answer and the reply: most requests need no more than the latter."""
        stimulus = self._stimulus(work, replies=True)
        failed = self._ingress.begin(stimulus, waiter)
        work.written_at_mono_ns = stimulus.written_at_mono_ns
        outcome = failed or await waiter.outcome
        if isinstance(outcome, ReceivedReply):
            return outcome
        if isinstance(outcome, NoReply):
            if outcome is NoReply.DEADLINE and not waiter.stored:
                raise refusals.outcome_unknown(work.execution)
            return outcome
        try:
            await self._ingress.publish(stimulus, waiter.is_over, outcome)
        except Refusal:
            if not waiter.has_reply:
                raise
        work.written_at_mono_ns = stimulus.written_at_mono_ns
        return await _end_of(waiter)

    async def _reserve(self, work: AdmittedRequest) -> FirstAnswer | None:
        key = message_ids.answer_key(work.route.flow, work.headers.idempotency_key)
        found = await self._answers.reserve(
            key, body_digest=work.received.digest, execution=work.execution, deadline=work.deadline
        )
        if isinstance(found, FirstAnswer):
            return found
        work.answer_key = key
        work.reservation = found
        return None

    async def _publish(self, work: AdmittedRequest, waiter: Waiter | None) -> bool:
        """Publishes; frees or confirms the key. True if the broker had the stimulus already."""
        stimulus = self._stimulus(work, replies=waiter is not None)
        try:
            stored = await self._ingress.publish(stimulus, waiter.is_over if waiter else _never)
        except Refusal as refusal:
            if refusal.status != 504:
                await self._let_go(work)
            raise
        work.written_at_mono_ns = stimulus.written_at_mono_ns
        if work.reservation is not None:
            await self._answers.accept(work.reservation, replies=waiter is not None)
        return stored.duplicate

    async def _let_go(self, work: AdmittedRequest) -> None:
        """Nothing of it is stored, for certain. What was uploaded under a key may be a repeat's, too, and stays."""
        if work.reservation is not None:
            await self._answers.release(work.reservation)
        elif work.received.attachments:
            identities = [attachment.id for attachment in work.received.attachments]
            await self._uploads.take_back(work.route.flow, identities)

    def _stimulus(self, work: AdmittedRequest, *, replies: bool) -> Stimulus:
        shared = self._shared_envelope(work, replies=replies)
        return Stimulus(work.route, work.execution, shared, work.deadline, work.placed)

    def _shared_envelope(self, work: AdmittedRequest, *, replies: bool) -> bytes:
        received, headers = work.received, work.headers.passed
        if received.attachments:
            reply_to = ReplyTo(subject=self._reply_subject, answer_key=work.answer_key) if replies else None
            return encode_shared(
                execution_id=work.execution,
                parent_id="",
                body=received.body,
                content_type=received.content_type,
                headers=headers,
                reply_to=reply_to,
                baggage=work.baggage,
                attachments=received.attachments,
            )
        if work.answer_key or work.baggage:
            raw = ReplyTo(subject=self._reply_subject, answer_key=work.answer_key).SerializeToString()
            inherited = inherited_fields(raw if replies else b"", baggage=work.baggage)
        else:
            inherited = self._replying if replies else b""
        return self._splicer.shared(work.execution, "", received.body, received.content_type, headers, 0, inherited)


async def _end_of(waiter: Waiter) -> ReceivedReply | NoReply:
    outcome = await waiter.outcome
    assert isinstance(outcome, ReceivedReply | NoReply)  # a publish is told to it by `begin` alone
    return outcome


def _never() -> bool:
    return False
