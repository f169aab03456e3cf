"""The way of what a step fails for good to its error step: one message, whose id is the same whoever sends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.model.message_ids import output_message_id
from headrace.ports import Stored
from headrace.wire.dead_letter import kept_attempts
from headrace.wire.envelope import Attachment, Envelope, encode_shared
from headrace.wire.error_message import CONTENT_TYPE, MAX_TEXT, OUTPUT, FailedInput, error_body
from services.sidecar.domain.delivery import Problem
from services.sidecar.held_input import HeldInput
from services.sidecar.outbox import Outgoing
from services.sidecar.outputs import Edge

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan


@dataclass(frozen=True, slots=True)
class _Handed:
    """What the receiver's key is read from."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HandOver:
    """The message to the error step, and whether a dead letter is kept besides."""

    outgoing: Outgoing
    letter: bool


class ErrorStep:
    """Of one step that names an error step."""

    def __init__(self, plan: DeploymentPlan, step: StepPlan, counters: dict[str, int]) -> None:
        self._step = step
        self._passes = plan.passthrough
        self._edge = Edge(plan, step.name, step.error_step)
        self._counters = counters

    def hand_over(
        self,
        held: HeldInput,
        problem: Problem,
        on_stored: Callable[[Outgoing, Stored], None],
        on_refused: Callable[[Outgoing, Problem], None],
    ) -> HandOver:
        """Headers, what is passed through and whoever waits for a reply go along. A letter is kept where the step says
        so, and where the input does not fit, so that nothing of it is lost. MalformedMessage for what cannot be
        written."""
        held.handed = True
        envelope, step = held.envelope, self._step
        failed = FailedInput(
            envelope.body,
            envelope.content_type,
            held.message_id,
            envelope.execution_id,
            step.name,
            step.pin.component,
            step.pin.digest,
            kept_attempts(held.attempts),
            elsewhere=sum(item.size for item in envelope.attachments if item.is_body),
        )
        body, whole = error_body(failed, problem.code, problem.message, problem.status)
        shared = encode_shared(
            execution_id=envelope.execution_id,
            parent_id=held.message_id,
            body=body,
            content_type=CONTENT_TYPE,
            headers=envelope.headers,
            sender=step.name,
            reply_to=envelope.reply_to if envelope.HasField("reply_to") else None,
            incarnation=envelope.incarnation,
            input_stored_at_unix_ns=held.delivery.stored_at_unix_ns if held.first_try else 0,
            in_doubt=held.in_doubt,
            passthrough=envelope.passthrough if self._passes else (),
            baggage=envelope.baggage,
            attachments=[_as_file(item) for item in envelope.attachments] if envelope.attachments else (),
        )
        failure = Envelope()
        failure.failure.code, failure.failure.message = problem.code, problem.message[:MAX_TEXT]
        failure.failure.status, failure.failure.step = problem.status, step.name
        message_id = output_message_id(held.message_id, step.name, OUTPUT, self._edge.receiver, envelope.incarnation)
        handed = _Handed(body, envelope.headers)
        # Fields of a protobuf message may come in any order.
        shared += failure.SerializeToString()
        outgoing = self._edge.outgoing(message_id, handed, shared, held.traceparent, on_stored, on_refused)
        letter = step.error_letter or not whole or bool(envelope.attachments)
        self._counters["handed_over"] += not letter
        return HandOver(outgoing, letter)


def _as_file(attachment: Attachment) -> Attachment:
    """A body by reference goes along as a file of the name `body`: the message has a body of its own."""
    if not attachment.is_body:
        return attachment
    file = Attachment()
    file.CopyFrom(attachment)
    file.is_body, file.name = False, "body"
    return file


def error_step_of(plan: DeploymentPlan, step: StepPlan, counters: dict[str, int]) -> ErrorStep | None:
    """None for a step that names none."""
    return ErrorStep(plan, step, counters) if step.error_step else None
