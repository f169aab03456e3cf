"""Writes dead letters: inputs that were given up, messages that are no envelope, outputs the broker never takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.message_ids import dead_letter_id
from headrace.ports import Delivery
from headrace.wire.envelope import (
    Envelope,
    FailedAttempt,
    MalformedMessage,
    decode_envelope,
    encode_dead_letter,
    seal,
)
from services.sidecar.domain.delivery import Problem
from services.sidecar.held_input import HeldInput
from services.sidecar.outbox import Outbox, Outgoing

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan

log = get_logger(__name__)


class DeadLetters:
    """Of one step. `after` is called when the broker has the letter (or will never take it)."""

    def __init__(self, plan: DeploymentPlan, step: StepPlan, outbox: Outbox, counters: dict[str, int]) -> None:
        self._plan = plan
        self._step = step
        self._outbox = outbox
        self._counters = counters

    def put_input(self, held: HeldInput, problem: Problem, after: Callable[[], None]) -> None:
        """An input that was given up."""
        held.dead = True
        self._counters["dead_lettered"] += 1
        raw = self._encode(held.envelope, self._step.name, problem.code, held.attempts)
        self._put(held.message_id, self._step.name, raw, after)

    def put_unreadable(self, delivery: Delivery, held: HeldInput, problem: Problem, after: Callable[[], None]) -> None:
        """A message that is no envelope: its bytes go to the dead letters as they are."""
        held.dead = True
        self._counters["dead_lettered"] += 1
        original = Envelope(id=held.message_id, body=delivery.payload)
        raw = self._encode(original, self._step.name, problem.code, [failed_attempt(1, problem)])
        self._put(held.message_id, self._step.name, raw, after)

    def put_output(self, outgoing: Outgoing, problem: Problem, after: Callable[[], None]) -> None:
        """An output that the broker will never take: under its receiver's name."""
        self._counters["dead_lettered"] += 1
        receiver = subjects.parse_data_subject(outgoing.subject).step
        now_ns = time.time_ns()
        try:
            original = decode_envelope(seal(outgoing.payload, outgoing.message_id, now_ns))
        except MalformedMessage:
            original = Envelope(id=outgoing.message_id, body=outgoing.payload)
        raw = self._encode(original, receiver, problem.code, [failed_attempt(outgoing.tries, problem)])
        self._put(outgoing.message_id, receiver, raw, after)

    def _encode(self, original: Envelope, step: str, reason: str, attempts: list[FailedAttempt]) -> bytes:
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

    def _put(self, message_id: str, step: str, raw: bytes, after: Callable[[], None]) -> None:
        subject = subjects.dead_letter_subject(self._plan.workspace, self._plan.flow, step)
        letter_id = dead_letter_id(message_id, step)

        def refused(outgoing: Outgoing, problem: Problem) -> None:
            log.error("dead letter refused by the broker", message_id=message_id, error=problem.message)
            after()

        self._outbox.put(Outgoing(subject, letter_id, raw, "", lambda *_: after(), refused, sealed=True))


def failed_attempt(attempt: int, problem: Problem) -> FailedAttempt:
    """The record of one failed attempt in a dead letter."""
    return FailedAttempt(attempt=attempt, code=problem.code, message=problem.message[:2000], at_unix_ns=time.time_ns())
