"""How dead letters are made: the one home, for whoever gives a message up (sidecars, the orchestrator).

What all letters of a deployment share (flow, version, pin set) is encoded once; a letter appends its own fields
(fields of a protobuf message may come in any order).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import EncodeError

from headrace.api.message.v1.message_pb2 import DeadLetter, Envelope, FailedAttempt
from headrace.model import subjects
from headrace.model.message_ids import dead_letter_id, doubt_id
from headrace.wire.envelope import MalformedMessage

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan

FIRST_ATTEMPTS = 5
LAST_ATTEMPTS = 15
MAX_ATTEMPT_TEXT = 2000
IN_DOUBT = "IN_DOUBT"


@dataclass(frozen=True, slots=True)
class SealedLetter:
    """A letter ready to be stored: the same message at the same step has the same id, whoever writes it."""

    subject: str
    message_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class LetterDesk:
    """Makes the letters of one deployment."""

    workspace: str
    flow: str
    deployment: int
    revisions: Mapping[str, str]
    """Pin set: step to revision digest; empty where the plan is not known."""
    shared: bytes

    @classmethod
    def of_plan(cls, plan: DeploymentPlan) -> LetterDesk:
        pins = {step.name: step.pin.digest for step in plan.steps}
        shared = DeadLetter(flow=plan.flow, deployment=plan.deployment, version=plan.version, pins=pins)
        return cls(plan.workspace, plan.flow, plan.deployment, pins, shared.SerializeToString(deterministic=True))

    @classmethod
    def without_plan(cls, workspace: str, flow: str, deployment: int) -> LetterDesk:
        """Of a deployment whose documents are gone; 0 where none is known."""
        return cls(workspace, flow, deployment, {}, DeadLetter(flow=flow, deployment=deployment).SerializeToString())

    def letter(
        self,
        original: Envelope,
        step: str,
        reason: str,
        attempts: Sequence[FailedAttempt],
        at_unix_ns: int,
        *,
        revision: str | None = None,
        traceparent: str = "",
        unreadable: bool = False,
    ) -> SealedLetter:
        """The letter of a message that `step` failed, or did not get; `reason` in UPPER_CASE. The revision is the
        step's pin unless one is given. MalformedMessage for values that cannot be written."""
        try:
            own = DeadLetter(
                original=original,
                step=step,
                revision=self.revisions.get(step, "") if revision is None else revision,
                reason=reason,
                attempts=kept_attempts(attempts),
                attempt_count=len(attempts),
                at_unix_ns=at_unix_ns,
                traceparent=traceparent,
                unreadable=unreadable,
            ).SerializeToString()
        except (TypeError, ValueError, EncodeError) as error:
            raise MalformedMessage(f"the dead letter cannot be written: {error}") from error
        subject = subjects.dead_letter_subject(self.workspace, self.flow, step)
        return SealedLetter(subject, dead_letter_id(original.id, step), self.shared + own)

    def doubt(self, original: Envelope, step: str, at_unix_ns: int, *, traceparent: str = "") -> SealedLetter:
        """The record that a message was in doubt at a step: a letter without the message's body, and not a dead one,
        since the message itself went on."""
        known = Envelope(id=original.id, execution_id=original.execution_id, sender=original.sender)
        letter = self.letter(known, step, IN_DOUBT, (), at_unix_ns, traceparent=traceparent)
        subject = subjects.doubt_subject(self.workspace, self.flow, step)
        return SealedLetter(subject, doubt_id(original.id, step), letter.payload)


def kept_attempts(attempts: Sequence[FailedAttempt]) -> Sequence[FailedAttempt]:
    """Of many the first and the last, so that what is kept has a bound."""
    if len(attempts) <= FIRST_ATTEMPTS + LAST_ATTEMPTS:
        return attempts
    return [*attempts[:FIRST_ATTEMPTS], *attempts[-LAST_ATTEMPTS:]]


def failed_attempt(attempt: int, code: str, message: str, at_unix_ns: int) -> FailedAttempt:
    """The record of one failed attempt."""
    return FailedAttempt(attempt=attempt, code=code, message=message[:MAX_ATTEMPT_TEXT], at_unix_ns=at_unix_ns)
