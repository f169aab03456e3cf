"""Carries out what was decided for an input: publish its outputs, reply, dead-letter, acknowledge, in order.

The input's acknowledgement is always last: whatever dies before it leads to a redelivery, which repeats the
same ids.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.message_ids import dead_letter_id, output_message_id
from headrace.ports import Delivery, JetStreamLane, Stored
from headrace.wire.envelope import (
    Envelope,
    FailedAttempt,
    MalformedMessage,
    ReplyTo,
    decode_envelope,
    encode_dead_letter,
    encode_reply,
    encode_shared,
    seal,
)
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.sender_memory import SenderMemory
from services.sidecar.held_input import HeldInput, Phase
from services.sidecar.outbox import Outbox, Outgoing
from services.sidecar.reply_sender import OutgoingReply, ReplySender

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.hop_phases import HopPhases

log = get_logger(__name__)


class Settlement:
    """`on_settled` is called when the input is acknowledged, or its acknowledgement was given up."""

    def __init__(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        lane: JetStreamLane,
        outbox: Outbox,
        replies: ReplySender,
        memory: SenderMemory,
        hops: HopPhases,
        counters: dict[str, int],
        *,
        clock: Callable[[], float],
        on_settled: Callable[[HeldInput], None],
    ) -> None:
        self._plan = plan
        self._step = step
        self._lane = lane
        self._outbox = outbox
        self._replies = replies
        self._memory = memory
        self._hops = hops
        self._counters = counters
        self._clock = clock
        self._on_settled = on_settled
        owner = subjects.deployment_owner(plan.deployment)
        self._edges = [(r, subjects.data_subject(plan.workspace, plan.flow, owner, r)) for r in step.receivers]

    def deliver(self, held: HeldInput) -> None:
        """Publishes the outputs that the broker is not known to have, then replies, then acknowledges."""
        held.phase = Phase.SETTLING
        # One more than there are outputs, so that the count cannot reach zero before all are under way.
        held.pending = 1
        context = LateContext(held)
        for index, emit in enumerate(held.outputs):
            self._publish_output(held, context, index, emit)
        self._one_stored(held)

    def publish_late(self, context: LateContext, emit: Any) -> None:
        """An emit that came after its call's end; its input is acknowledged already or soon."""
        index = context.next_index
        context.next_index += 1
        context.input_stored_at_unix_ns = 0
        for receiver, outgoing in self._outgoing(context, index, emit, self._late_stored, self._late_refused):
            del receiver
            self._counters["emitted_late"] += 1
            self._outbox.put(outgoing)

    def give_up(self, held: HeldInput, problem: Problem, *, dead_letter: bool) -> None:
        """Answers the waiting caller with the problem; then dead-letters the input unless the answer is all."""
        held.phase = Phase.SETTLING
        held.outputs, held.reply = [], None
        if dead_letter:
            held.dead = True
            self._counters["dead_lettered"] += 1
            raw = self._dead_letter(held.envelope, self._step.name, problem.code, held.attempts)
            after = partial(self._reply_error, held, problem)
            self._put_dead_letter(held.message_id, self._step.name, raw, lambda *_: after())
        else:
            self._reply_error(held, problem)

    def dead_letter_unreadable(self, delivery: Delivery, held: HeldInput, problem: Problem) -> None:
        """A message that is no envelope: its bytes go to the dead letters as they are."""
        held.phase = Phase.SETTLING
        held.dead = True
        self._counters["dead_lettered"] += 1
        attempt = failed_attempt(1, problem)
        raw = self._dead_letter(Envelope(id=held.message_id, body=delivery.payload), self._step.name,
                                problem.code, [attempt])  # fmt: skip
        self._put_dead_letter(held.message_id, self._step.name, raw, lambda *_: self._acknowledge(held))

    def acknowledge_again(self, delivery: Delivery, done: Callable[[], None]) -> None:
        """An input that was finished before: nothing but its acknowledgement."""

        def acknowledged(future: asyncio.Future[None]) -> None:
            self._note(future)
            done()

        self._lane.acknowledge(delivery).add_done_callback(acknowledged)

    def _publish_output(self, held: HeldInput, context: LateContext, index: int, emit: Any) -> None:
        settle = partial(self._output_stored, held)
        refuse = partial(self._output_refused, held)
        for receiver, outgoing in self._outgoing(context, index, emit, settle, refuse):
            if self._memory.is_confirmed(held.message_id, outgoing.message_id):
                self._counters["duplicates"] += 1
                continue
            del receiver
            held.pending += 1
            self._counters["emitted"] += 1
            self._outbox.put(outgoing)

    def _outgoing(
        self,
        context: LateContext,
        index: int,
        emit: Any,
        on_stored: Callable[[Outgoing, Stored], None],
        on_refused: Callable[[Outgoing, Problem], None],
    ) -> list[tuple[str, Outgoing]]:
        if not self._edges:
            return []
        shared = encode_shared(
            execution_id=context.execution_id,
            parent_id=context.message_id,
            body=emit.body,
            content_type=emit.content_type,
            headers=emit.headers,
            sender=self._step.name,
            reply_to=context.reply_to,
            incarnation=context.incarnation,
            input_stored_at_unix_ns=context.input_stored_at_unix_ns,
        )
        output = f"k:{emit.key}" if emit.key else str(index)
        found = []
        for receiver, subject in self._edges:
            message_id = output_message_id(context.message_id, self._step.name, output, receiver, context.incarnation)
            outgoing = Outgoing(subject, message_id, shared, context.traceparent, on_stored, on_refused)
            found.append((receiver, outgoing))
        return found

    def _output_stored(self, held: HeldInput, outgoing: Outgoing, stored: Stored) -> None:
        del stored
        self._hops.output_written(held, outgoing)
        if held.pending > 1:
            self._memory.confirm(held.message_id, outgoing.message_id, self._clock())
        self._one_stored(held)

    def _output_refused(self, held: HeldInput, outgoing: Outgoing, problem: Problem) -> None:
        """The broker will never take it: it goes to the dead letters, and the input counts it as settled."""
        self._dead_letter_output(outgoing, problem, lambda *_: self._one_stored(held))

    def _late_stored(self, outgoing: Outgoing, stored: Stored) -> None:
        del outgoing, stored

    def _late_refused(self, outgoing: Outgoing, problem: Problem) -> None:
        self._dead_letter_output(outgoing, problem, lambda *_: None)

    def _one_stored(self, held: HeldInput) -> None:
        held.pending -= 1
        if held.pending:
            return
        if held.reply is not None and held.wants_reply:
            self._reply(held)
        else:
            self._acknowledge(held)

    def _reply(self, held: HeldInput) -> None:
        reply = held.reply
        payload = self._encode_reply(held, reply.status or 200, reply.body, reply.content_type, dict(reply.headers))
        self._counters["replied"] += 1
        self._put_reply(held, payload)

    def _reply_error(self, held: HeldInput, problem: Problem) -> None:
        if not held.wants_reply:
            self._acknowledge(held)
            return
        error = {"code": problem.code, "message": problem.message, "execution": held.envelope.execution_id}
        body = json.dumps({"error": error}, ensure_ascii=False).encode()
        self._counters["replied"] += 1
        self._put_reply(held, self._encode_reply(held, problem.status, body, "application/json", {}))

    def _encode_reply(
        self, held: HeldInput, status: int, body: bytes, content_type: str, headers: dict[str, str]
    ) -> bytes:
        self._hops.reply_written(held)
        return encode_reply(
            execution_id=held.envelope.execution_id,
            status=status,
            body=body,
            sent_at_unix_ns=time.time_ns(),
            content_type=content_type,
            headers=headers,
            step=self._step.name,
            deployment=self._plan.deployment,
            version=self._plan.version,
            revision=self._step.pin.digest,
            input_stored_at_unix_ns=held.delivery.stored_at_unix_ns if held.first_try else 0,
        )

    def _put_reply(self, held: HeldInput, payload: bytes) -> None:
        to = held.envelope.reply_to
        sent = partial(self._acknowledge, held)
        self._replies.put(OutgoingReply(to.subject, payload, held.envelope.execution_id, to.answer_key, sent))

    def _acknowledge(self, held: HeldInput) -> None:
        held.phase = Phase.ACKNOWLEDGING
        self._memory.finish(held.message_id, self._clock())
        written_ns = time.monotonic_ns()
        for copy in held.also:
            self._lane.acknowledge(copy).add_done_callback(self._note)
        future = self._lane.acknowledge(held.delivery)
        future.add_done_callback(partial(self._acknowledged, held, written_ns))

    def _acknowledged(self, held: HeldInput, written_ns: int, future: asyncio.Future[None]) -> None:
        if self._note(future):
            self._hops.acknowledged(held, written_ns)
        self._on_settled(held)

    def _note(self, future: asyncio.Future[None]) -> bool:
        """True when the broker confirmed; otherwise a redelivery will come, and find the input finished."""
        if not future.cancelled() and future.exception() is None:
            return True
        self._counters["acks_unconfirmed"] += 1
        return False

    def _dead_letter_output(self, outgoing: Outgoing, problem: Problem, after: Callable[..., None]) -> None:
        self._counters["dead_lettered"] += 1
        receiver = subjects.parse_data_subject(outgoing.subject).step
        now_ns = time.time_ns()
        try:
            original = decode_envelope(seal(outgoing.payload, outgoing.message_id, now_ns))
        except MalformedMessage:
            original = Envelope(id=outgoing.message_id, body=outgoing.payload)
        raw = self._dead_letter(original, receiver, problem.code, [failed_attempt(outgoing.tries, problem)])
        self._put_dead_letter(outgoing.message_id, receiver, raw, after)

    def _dead_letter(self, original: Envelope, step: str, reason: str, attempts: list[FailedAttempt]) -> bytes:
        return encode_dead_letter(
            original=original,
            flow=self._plan.flow,
            step=step,
            deployment=self._plan.deployment,
            revision=self._step.pin.digest,
            reason=reason,
            attempts=attempts,
            at_unix_ns=time.time_ns(),
        )

    def _put_dead_letter(self, message_id: str, step: str, raw: bytes, after: Callable[..., None]) -> None:
        subject = subjects.dead_letter_subject(self._plan.workspace, self._plan.flow, step)
        letter_id = dead_letter_id(message_id, step)

        def refused(outgoing: Outgoing, problem: Problem) -> None:
            log.error("dead letter refused by the broker", message_id=message_id, error=problem.message)
            after()

        self._outbox.put(Outgoing(subject, letter_id, raw, "", after, refused, sealed=True))


class LateContext:
    """What outputs take over from their input; kept for a while for late emits."""

    __slots__ = (
        "execution_id",
        "incarnation",
        "input_stored_at_unix_ns",
        "message_id",
        "next_index",
        "reply_to",
        "traceparent",
    )

    def __init__(self, held: HeldInput) -> None:
        envelope = held.envelope
        self.message_id = held.message_id
        self.execution_id = envelope.execution_id
        self.incarnation = envelope.incarnation
        self.reply_to: ReplyTo | None = envelope.reply_to if envelope.HasField("reply_to") else None
        self.traceparent = held.delivery.traceparent
        self.next_index = len(held.outputs)
        self.input_stored_at_unix_ns = held.delivery.stored_at_unix_ns if held.first_try else 0


def failed_attempt(attempt: int, problem: Problem) -> FailedAttempt:
    """The record of one failed attempt in a dead letter."""
    return FailedAttempt(attempt=attempt, code=problem.code, message=problem.message[:2000], at_unix_ns=time.time_ns())
