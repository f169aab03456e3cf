"""The end of an input whose effects are with the broker: its reply, if a caller waits, then its acknowledgement."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from headrace.ports import AckUnknown, Delivery, JetStreamLane
from headrace.wire.envelope import encode_reply
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.sender_memory import SenderMemory
from services.sidecar.held_input import HeldInput, Phase
from services.sidecar.reply_sender import OutgoingReply, ReplySender

if TYPE_CHECKING:
    from headrace.api.attachment.v1.attachment_pb2 import Attachment
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.hop_phases import HopPhases


REPLY_LOST = Problem(
    "REPLY_LOST", "the message was processed; its reply was lost with the process that was to send it", 504
)


class Closing:
    """`on_settled` is called when the input is acknowledged, or its acknowledgement was given up."""

    def __init__(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        lane: JetStreamLane,
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
        self._handles_errors = any(other.error_step == step.name for other in plan.steps)
        self._lane = lane
        self._replies = replies
        self._memory = memory
        self._hops = hops
        self._counters = counters
        self._clock = clock
        self._on_settled = on_settled

    def close(self, held: HeldInput) -> None:
        """Its outputs are stored: sends the component's reply, then acknowledges. An error step that neither replies
        nor emits leaves the caller the error that it got."""
        if held.reply is not None and held.wants_reply:
            reply = held.reply
            large = reply.large_body if held.attached and reply.HasField("large_body") else None
            payload = self._encode_reply(
                held, reply.status or 200, reply.body, reply.content_type, dict(reply.headers), large
            )
            self._put_reply(held, payload)
        elif (
            self._handles_errors and held.wants_reply and held.envelope.HasField("failure") and not self._goes_on(held)
        ):
            failure = held.envelope.failure
            self.close_with_error(held, Problem(failure.code, failure.message, failure.status))
        else:
            self.acknowledge(held)

    def _goes_on(self, held: HeldInput) -> bool:
        """Somebody after it may reply."""
        return bool(held.outputs and self._step.receivers)

    def close_with_error(self, held: HeldInput, problem: Problem) -> None:
        """It was given up: the waiting caller gets the problem."""
        if not held.wants_reply:
            self.acknowledge(held)
            return
        error = {"code": problem.code, "message": problem.message, "execution": held.envelope.execution_id}
        body = json.dumps({"error": error}, ensure_ascii=False).encode()
        self._put_reply(held, self._encode_reply(held, problem.status, body, "application/json", {}))

    def acknowledge(self, held: HeldInput) -> None:
        held.phase = Phase.ACKNOWLEDGING
        self._memory.finish(held.message_id, self._clock())
        written_ns = time.monotonic_ns()
        for copy in held.also:
            self._lane.acknowledge_told(copy, self._note, None)
        held.acknowledged_at_mono_ns = written_ns
        self._lane.acknowledge_told(held.delivery, self._acknowledged, held)

    def acknowledge_all(self, lot: list[HeldInput]) -> None:
        """As `acknowledge` of each, of inputs that end together."""
        now, written_ns = self._clock(), time.monotonic_ns()
        finish, acknowledge, told = self._memory.finish, self._lane.acknowledge_told, self._acknowledged
        for held in lot:
            if held.also:
                self.acknowledge(held)
                continue
            held.phase = Phase.ACKNOWLEDGING
            finish(held.message_id, now)
            held.acknowledged_at_mono_ns = written_ns
            acknowledge(held.delivery, told, held)

    def acknowledge_again(self, delivery: Delivery, done: Callable[[], None]) -> None:
        """An input that was finished before: nothing but its acknowledgement."""

        def acknowledged(_: None, error: AckUnknown | None) -> None:
            self._note(None, error)
            done()

        self._lane.acknowledge_told(delivery, acknowledged, None)

    def _encode_reply(
        self,
        held: HeldInput,
        status: int,
        body: bytes,
        content_type: str,
        headers: dict[str, str],
        large_body: Attachment | None = None,
    ) -> bytes:
        written_at_unix_ns = self._hops.reply_written(held)
        return encode_reply(
            execution_id=held.envelope.execution_id,
            status=status,
            body=body,
            sent_at_unix_ns=written_at_unix_ns,
            content_type=content_type,
            headers=headers,
            step=self._step.name,
            deployment=self._plan.deployment,
            version=self._plan.version,
            revision=self._step.pin.digest,
            input_stored_at_unix_ns=held.delivery.stored_at_unix_ns if held.first_try else 0,
            traceparent=held.traceparent,
            component=self._step.pin.component,
            large_body=large_body,
        )

    def _put_reply(self, held: HeldInput, payload: bytes) -> None:
        self._counters["replied"] += 1
        to = held.envelope.reply_to
        sent = partial(self.acknowledge, held)
        self._replies.put(OutgoingReply(to.subject, payload, held.envelope.execution_id, to.answer_key, sent))

    def _acknowledged(self, held: HeldInput, error: AckUnknown | None) -> None:
        if error is not None:
            self._note(None, error)
        self._hops.closed(held, error is None)
        self._on_settled(held)

    def _note(self, _: None, error: AckUnknown | None) -> None:
        """Not confirmed: a redelivery will come, and find the input finished."""
        self._counters["acks_unconfirmed"] += error is not None
