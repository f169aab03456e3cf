"""The common way of a plain step's inputs, many at a time: from the end of their calls to their acknowledgements.

An input goes this way if it is `plain` (see HeldInput): its first call ended well, with one output at most and without
a reply; and the step has one receiver at most, whose edge takes messages right now. Of each output nothing is made but
its id and its bytes. The same ids, bytes and order of effects come of the long way (`Settlement.deliver`), which
everything else takes, and which an output that the broker did not simply store goes on by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.edge.clock_pair import read_clocks
from headrace.ports import Row
from headrace.wire.envelope import MalformedMessage, seal
from headrace.wire.spliced_envelope import EnvelopeSplicer
from services.sidecar.call_events import PlainEmit
from services.sidecar.held_input import HeldInput, Phase
from services.sidecar.outbox import Outbox, Outgoing
from services.sidecar.outputs import LateContext, edges_of, late_context
from services.sidecar.row_edge import RowEdge

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.closing import Closing
    from services.sidecar.domain.sender_memory import SenderMemory
    from services.sidecar.settlement import Settlement

ROWS_A_READING = 16
"""So many are written under one reading of the clock: it is 0.1 ms old at most."""


class PlainRows:
    """Of one plain step."""

    def __init__(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        outbox: Outbox,
        settlement: Settlement,
        closing: Closing,
        memory: SenderMemory,
        counters: dict[str, int],
    ) -> None:
        self._settlement, self._closing, self._memory = settlement, closing, memory
        self._counters = counters
        self._splicer = EnvelopeSplicer(step.name)
        edges = edges_of(plan, step)
        self._ends_here = not edges
        self._to: RowEdge | None = None
        subject = edges[0].only_subject if len(edges) == 1 else ""
        # What is passed through is a part of every output.
        if subject and not plan.passthrough:
            self._ids = edges[0].ids
            self._to = RowEdge(outbox, subject, closing.acknowledge_all, self._as_outgoing)

    def deliver(self, rows: list[HeldInput]) -> list[HeldInput]:
        """Takes inputs whose calls are over; answers those that have to go the long way."""
        if self._ends_here:
            self._closing.acknowledge_all(rows)
            return []
        to = self._to
        if to is None or not to.is_open or self._memory.knows_outputs:
            return rows
        left: list[HeldInput] = []
        for first in range(0, len(rows), ROWS_A_READING):
            left += self._publish(to, rows[first : first + ROWS_A_READING])
        return left

    def _publish(self, to: RowEdge, rows: list[HeldInput]) -> list[HeldInput]:
        """Answers those whose outputs have to be looked at once more."""
        sending = [held for held in rows if held.outputs]
        if len(sending) < len(rows):
            self._closing.acknowledge_all([held for held in rows if not held.outputs])
        lot: list[Row] = []
        left: list[HeldInput] = []
        sealed, settling = self._splicer.sealed, Phase.SETTLING
        ids = self._ids.of_first([held.message_id for held in sending])
        unix_ns, mono_ns = read_clocks()
        for held, message_id in zip(sending, ids, strict=True):
            emit = held.outputs[0]
            held.phase = settling
            held.written_at_mono_ns = mono_ns
            if held.common and type(emit) is PlainEmit:
                stored_at = held.context.input_stored_at_unix_ns
                content = (held.execution_id, held.message_id, emit.body, emit.content_type)
                lot.append((sealed(*content, stored_at, message_id, unix_ns), message_id, held.traceparent, held))
                continue
            try:
                lot.append(self._uncommon(held, emit, message_id, unix_ns))
            except MalformedMessage:
                left.append(held)
        self._counters["emitted"] += len(lot)
        to.put(lot)
        return left

    def _uncommon(self, held: HeldInput, emit: Any, message_id: str, unix_ns: int) -> Row:
        """Of an input from which there is something to inherit, or an output with headers."""
        context: LateContext = held.context
        parent, stored_at = context.message_id, context.input_stored_at_unix_ns
        if context.incarnation:
            message_id = self._ids.of(parent, "0", context.incarnation)
        content = (context.execution_id, parent, emit.body, emit.content_type, emit.headers)
        shared = self._splicer.shared(*content, stored_at, context.inherited)
        return seal(shared, message_id, unix_ns), message_id, held.traceparent, held

    def _as_outgoing(self, held: HeldInput) -> Outgoing:
        """The same output for the long way, with the same id; nothing of its input is settled yet."""
        held.pending = 1
        outgoing = self._settlement.only_outgoing(held)
        outgoing.written_at_mono_ns, held.written_at_mono_ns = held.written_at_mono_ns, 0
        return outgoing


def row_context(held: HeldInput) -> LateContext:
    """`late_context` of what goes this way: most have nothing to inherit."""
    if not held.common:
        return late_context(held)
    delivery, sent = held.delivery, len(held.outputs)
    stored_at = delivery.stored_at_unix_ns if held.first_try else 0
    return LateContext(
        held.message_id, held.execution_id, 0, None, held.traceparent, "", sent, stored_at, False, (), b""
    )
