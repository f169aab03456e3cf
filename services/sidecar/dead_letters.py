"""Writes dead letters: inputs that were given up, messages that are no envelope, outputs the broker never takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.model import subjects
from headrace.model.letter_reasons import reason_counter
from headrace.ports import Delivery
from headrace.wire import dead_letter as letters
from headrace.wire.envelope import Envelope, FailedAttempt, MalformedMessage, decode_envelope, seal
from services.sidecar.domain.delivery import Problem
from services.sidecar.held_input import HeldInput
from services.sidecar.outbox import Outbox, Outgoing

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan


class DeadLetters:
    """Of one step. `after` is called when the broker has the letter; until then it is tried, and its input held."""

    def __init__(self, plan: DeploymentPlan, step: StepPlan, outbox: Outbox, counters: dict[str, int]) -> None:
        self._desk = letters.LetterDesk.of_plan(plan)
        self._step = step
        self._outbox = outbox
        self._counters = counters

    def put_input(self, held: HeldInput, problem: Problem, after: Callable[[], None]) -> None:
        """An input that was given up."""
        held.dead = True
        traceparent = held.delivery.traceparent
        letter = self._desk.letter(
            held.envelope, self._step.name, problem.code, held.attempts, time.time_ns(), traceparent=traceparent
        )
        self._put(letter, problem, after)

    def put_unreadable(self, delivery: Delivery, held: HeldInput, problem: Problem, after: Callable[[], None]) -> None:
        """A message that is no envelope: its bytes go to the dead letters as they are."""
        held.dead = True
        letter = self._desk.letter(
            Envelope(id=held.message_id, body=delivery.payload),
            self._step.name,
            problem.code,
            [failed_attempt(1, problem)],
            time.time_ns(),
            traceparent=delivery.traceparent,
            unreadable=True,
        )
        self._put(letter, problem, after)

    def put_output(self, outgoing: Outgoing, problem: Problem, after: Callable[[], None]) -> None:
        """An output that the broker will never take: under its receiver's name."""
        receiver = subjects.parse_data_subject(outgoing.subject).step
        now_ns = time.time_ns()
        unreadable = False
        try:
            original = decode_envelope(seal(outgoing.payload, outgoing.message_id, now_ns))
        except MalformedMessage:
            original, unreadable = Envelope(id=outgoing.message_id, body=outgoing.payload), True
        letter = self._desk.letter(
            original,
            receiver,
            problem.code,
            [failed_attempt(outgoing.tries, problem)],
            now_ns,
            revision=self._step.pin.digest,
            traceparent=outgoing.traceparent,
            unreadable=unreadable,
        )
        self._put(letter, problem, after)

    def note_doubt(self, held: HeldInput) -> None:
        """It is recorded that its outputs may have been stored before; the input itself goes on."""
        self._counters["in_doubt"] += 1
        traceparent = held.delivery.traceparent
        record = self._desk.doubt(held.envelope, self._step.name, time.time_ns(), traceparent=traceparent)
        message = (record.subject, record.message_id, record.payload, "")
        self._outbox.put(Outgoing(*message, _nothing, _nothing, sealed=True, until_stored=True))

    def _put(self, letter: letters.SealedLetter, problem: Problem, after: Callable[[], None]) -> None:
        self._counters["dead_lettered"] += 1
        self._counters[reason_counter(problem.code)] += 1

        def stored(*_: object) -> None:
            after()

        message = (letter.subject, letter.message_id, letter.payload, "")
        self._outbox.put(Outgoing(*message, stored, stored, sealed=True, until_stored=True))


def _nothing(*_: object) -> None:
    pass


def failed_attempt(attempt: int, problem: Problem) -> FailedAttempt:
    """The record of an attempt that failed just now."""
    return letters.failed_attempt(attempt, problem.code, problem.message, time.time_ns())
