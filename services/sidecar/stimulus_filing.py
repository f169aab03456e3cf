"""Files what starts a flow's executions, where the flow keeps its `history`: the first step does it, once it is done.

An input is filed after its outputs, its reply and its dead letter, so nobody waits for it, and before it is
acknowledged, so no kill of this process loses it: what is delivered again is filed again, under the same id.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.ports import Delivery, JetStreamLane, Stored
from headrace.wire.envelope import Envelope, MalformedMessage, decode_envelope
from services.sidecar.closing import Closing
from services.sidecar.domain.delivery import Problem
from services.sidecar.held_input import HeldInput
from services.sidecar.outbox import Outbox, Outgoing

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.domain.sender_memory import SenderMemory
    from services.sidecar.hop_phases import HopPhases
    from services.sidecar.reply_sender import ReplySender

log = get_logger(__name__)


def files_stimuli(plan: DeploymentPlan, step: StepPlan) -> bool:
    """Whether this step is the one that files them."""
    return plan.history is not None and step.name == plan.entry


class FilingClosing(Closing):
    """As `Closing`; what cannot be filed (the deployment is retired, it is too large) is counted (`not_filed`), named
    in the log, and holds nothing up."""

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
        outbox: Outbox,
        clock: Callable[[], float],
        on_settled: Callable[[HeldInput], None],
    ) -> None:
        super().__init__(plan, step, lane, replies, memory, hops, counters, clock=clock, on_settled=on_settled)
        self._outbox = outbox
        self._counted = counters
        self._place = partial(subjects.stimulus_subject, plan.workspace, plan.flow, step.name)

    def acknowledge(self, held: HeldInput) -> None:
        if _is_stimulus(held.envelope):
            self._file(held.envelope, held.delivery, partial(super().acknowledge, held))
        else:
            super().acknowledge(held)

    def acknowledge_all(self, lot: list[HeldInput]) -> None:
        for held in lot:
            self.acknowledge(held)

    def acknowledge_again(self, delivery: Delivery, done: Callable[[], None]) -> None:
        """Also what another process finished may not be filed yet."""
        again = partial(super().acknowledge_again, delivery, done)
        try:
            envelope = decode_envelope(delivery.payload)
        except MalformedMessage:
            again()
            return
        if _is_stimulus(envelope):
            self._file(envelope, delivery, again)
        else:
            again()

    def _file(self, envelope: Envelope, delivery: Delivery, then: Callable[[], None]) -> None:
        def stored(outgoing: Outgoing, answer: Stored) -> None:
            del outgoing
            self._counted["filed"] += not answer.duplicate
            then()

        def refused(outgoing: Outgoing, problem: Problem) -> None:
            del outgoing
            self._counted["not_filed"] += 1
            log.warning("a stimulus is not filed", execution=envelope.execution_id, error=problem.message)
            then()

        subject = self._place(envelope.execution_id)
        message = (subject, envelope.id, delivery.payload, delivery.traceparent)
        self._outbox.put(Outgoing(*message, stored, refused, sealed=True))


def _is_stimulus(envelope: Envelope) -> bool:
    """Not what is sent again to the first step alone, nor what is no message."""
    return bool(envelope.execution_id) and not (envelope.replayed.dead_letter and not envelope.replayed.stimulus)


def closing_of(
    plan: DeploymentPlan,
    step: StepPlan,
    lane: JetStreamLane,
    replies: ReplySender,
    memory: SenderMemory,
    hops: HopPhases,
    counters: dict[str, int],
    *,
    outbox: Outbox,
    clock: Callable[[], float],
    on_settled: Callable[[HeldInput], None],
) -> Closing:
    """What ends the inputs of a step."""
    ends = (plan, step, lane, replies, memory, hops, counters)
    if files_stimuli(plan, step):
        return FilingClosing(*ends, outbox=outbox, clock=clock, on_settled=on_settled)
    return Closing(*ends, clock=clock, on_settled=on_settled)
