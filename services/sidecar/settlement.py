"""Carries out what was decided for an input of a plain step: publish its outputs, reply, dead-letter, acknowledge.

The input's acknowledgement is always last: whatever dies before it leads to a redelivery, which repeats the
same ids.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from headrace.ports import Delivery, Stored
from services.sidecar.closing import Closing
from services.sidecar.dead_letters import DeadLetters
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.sender_memory import SenderMemory
from services.sidecar.error_step import ErrorStep
from services.sidecar.held_input import HeldInput, Phase
from services.sidecar.hop_phases import HopPhases
from services.sidecar.outbox import Outbox, Outgoing
from services.sidecar.outputs import LateContext, OutputMaker, late_context

# Late emits hold no credit: what waits for the broker is bounded by these.
MAX_LATE = 2_000
MAX_LATE_BYTES = 32 * 1024 * 1024


class Settlement:
    """Every input given to it ends in `closing`."""

    def __init__(
        self,
        outputs: OutputMaker,
        outbox: Outbox,
        letters: DeadLetters,
        closing: Closing,
        memory: SenderMemory,
        hops: HopPhases,
        counters: dict[str, int],
        *,
        clock: Callable[[], float],
        error_step: ErrorStep | None = None,
        saving: Callable[[HeldInput, Callable[[], None]], None],
    ) -> None:
        self._error_step = error_step
        self._saving = saving
        self._outputs = outputs
        self._outbox = outbox
        self._letters = letters
        self._closing = closing
        self._memory = memory
        self._hops = hops
        self._counters = counters
        self._clock = clock
        self._late = 0
        self._late_bytes = 0

    def deliver(self, held: HeldInput) -> None:
        """Publishes the outputs that the broker is not known to have, then replies, then acknowledges."""
        held.phase = Phase.SETTLING
        # One more than there are outputs, so that the count cannot reach zero before all are under way.
        held.pending = 1
        if held.outputs and not self._outputs.goes_nowhere:
            context = held.context or late_context(held)
            for index, emit in enumerate(held.outputs):
                self._publish_output(held, context, index, emit)
        self._one_stored(held)

    def only_outgoing(self, held: HeldInput) -> Outgoing:
        """The message that the one output of an input is to its one receiver; it settles its input."""
        context = held.context or late_context(held)
        [outgoing] = self._outputs.make(context, 0, held.outputs[0], self._output_stored, self._output_refused, held)
        return outgoing

    def publish_late(self, context: LateContext, emit: Any) -> None:
        """An emit that came after its call's end; its input is acknowledged already or soon. While too many wait
        for the broker it is dropped, and counted."""
        if self._late >= MAX_LATE or self._late_bytes >= MAX_LATE_BYTES:
            self._counters["late_refused"] += 1
            return
        index = context.next_index
        context.next_index += 1
        context.input_stored_at_unix_ns = 0
        for outgoing in self._outputs.make(context, index, emit, self._late_stored, self._late_refused):
            self._counters["emitted_late"] += 1
            self._late += 1
            self._late_bytes += len(outgoing.payload)
            self._outbox.put(outgoing)

    def give_up(self, held: HeldInput, problem: Problem, *, dead_letter: bool) -> None:
        """Dead-letters the input unless the caller's answer is all; then answers the caller with the problem. With an
        error step that one gets it instead."""
        held.phase = Phase.SETTLING
        held.outputs, held.reply = [], None
        if dead_letter and self._error_step is not None:
            self._hand_over(self._error_step, held, problem)
            return
        after = partial(self._closing.close_with_error, held, problem)
        if dead_letter:
            self._letters.put_input(held, problem, after)
        else:
            after()

    def _hand_over(self, error_step: ErrorStep, held: HeldInput, problem: Problem) -> None:
        def stored(outgoing: Outgoing, answer: Stored) -> None:
            del answer
            self._hops.output_written(held, outgoing)
            self._memory.confirm(held.message_id, outgoing.message_id, self._clock())
            close()

        def close() -> None:
            acknowledge = partial(self._closing.acknowledge, held)
            if given.letter:
                self._letters.put_input(held, problem, acknowledge)
            else:
                acknowledge()

        def refused(outgoing: Outgoing, refusal: Problem) -> None:
            del outgoing, refusal
            held.handed = False
            self._letters.put_input(held, problem, partial(self._closing.close_with_error, held, problem))

        given = error_step.hand_over(held, problem, stored, refused)
        if self._memory.is_confirmed(held.message_id, given.outgoing.message_id):
            self._counters["duplicates"] += 1
            close()
        else:
            self._outbox.put(given.outgoing)

    def dead_letter_unreadable(self, delivery: Delivery, held: HeldInput, problem: Problem) -> None:
        """A message that is no envelope."""
        held.problem = problem
        held.phase = Phase.SETTLING
        self._letters.put_unreadable(delivery, held, problem, partial(self._closing.acknowledge, held))

    def acknowledge_again(self, delivery: Delivery, done: Callable[[], None]) -> None:
        """An input that was finished before: nothing but its acknowledgement."""
        self._closing.acknowledge_again(delivery, done)

    def _publish_output(self, held: HeldInput, context: LateContext, index: int, emit: Any) -> None:
        some_confirmed = self._memory.knows_outputs
        for outgoing in self._outputs.make(context, index, emit, self._output_stored, self._output_refused, held):
            if some_confirmed and self._memory.is_confirmed(held.message_id, outgoing.message_id):
                self._counters["duplicates"] += 1
                continue
            held.pending += 1
            self._counters["emitted"] += 1
            self._outbox.put(outgoing)

    def _output_stored(self, outgoing: Outgoing, stored: Stored) -> None:
        del stored
        held: HeldInput = outgoing.about
        self._hops.output_written(held, outgoing)
        if held.pending > 1:
            self._memory.confirm(held.message_id, outgoing.message_id, self._clock())
        self._one_stored(held)

    def _output_refused(self, outgoing: Outgoing, problem: Problem) -> None:
        """The broker will never take it: it goes to the dead letters, and the input counts it as settled."""
        self._letters.put_output(outgoing, problem, partial(self._one_stored, outgoing.about))

    def _late_stored(self, outgoing: Outgoing, stored: Stored) -> None:
        del stored
        self._late_over(outgoing)

    def _late_over(self, outgoing: Outgoing) -> None:
        self._late -= 1
        self._late_bytes -= len(outgoing.payload)

    def _late_refused(self, outgoing: Outgoing, problem: Problem) -> None:
        self._late_over(outgoing)
        self._letters.put_output(outgoing, problem, lambda: None)

    def _one_stored(self, held: HeldInput) -> None:
        held.pending -= 1
        if held.pending:
            return
        if held.saves:
            self._saving(held, partial(self._closing.close, held))
        else:
            self._closing.close(held)
