"""Measures the phases of this step's hops, as ARCHITECTURE.md defines them, and hands them to the recorder.

What only the receiver of a message can know (when it was stored) is recorded by the receiver under the
sender's name. Repeated deliveries and attempts are left out: they would measure the trouble, not the path.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.edge.hop_recorder import HopRecorder
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from headrace.ports import Delivery
    from headrace.wire.envelope import Envelope
    from services.sidecar.held_input import HeldInput
    from services.sidecar.outbox import Outgoing

INGRESS_SENDER = "gateway"


class HopPhases:
    """Samples below zero are clock skew; the histograms count them as such."""

    def __init__(self, plan: DeploymentPlan, step: StepPlan, recorder: HopRecorder) -> None:
        self._step = step.name
        self._has_receivers = bool(step.receivers)
        self._revision_of = {known.name: known.pin.digest for known in plan.steps}
        self._recorder = recorder

    def _record(self, step: str, phase: str, receiver: str, ns: int) -> None:
        self._recorder.record(step, phase, receiver, self._revision_of.get(step, ""), ns)

    def _record_hop(self, step: str, receiver: str, ns: int, envelope: Envelope, now_unix_ns: int) -> None:
        self._recorder.record_hop(
            step,
            receiver,
            self._revision_of.get(step, ""),
            ns,
            execution_id=envelope.execution_id,
            trace_id=b"",
            now_unix_ns=now_unix_ns,
        )

    def received(self, delivery: Delivery, envelope: Envelope) -> None:
        """An input was read: its waiting time, and the publish of whoever sent it."""
        if delivery.attempt > 1:
            return
        self._record(self._step, "queue", "", delivery.received_at_unix_ns - delivery.stored_at_unix_ns)
        if envelope.sent_at_unix_ns:
            sender = envelope.sender or INGRESS_SENDER
            self._record(sender, "publish", self._step, delivery.stored_at_unix_ns - envelope.sent_at_unix_ns)
        if envelope.input_stored_at_unix_ns:
            whole_ns = delivery.stored_at_unix_ns - envelope.input_stored_at_unix_ns
            self._record_hop(envelope.sender, self._step, whole_ns, envelope, delivery.received_at_unix_ns)

    def called(self, held: HeldInput) -> None:
        """A call ended for good."""
        if not held.first_try or not held.entered_at_mono_ns:
            return
        self._record(self._step, "sidecar-in", "", held.entered_at_mono_ns - held.delivery.received_at_mono_ns)
        self._record(self._step, "component", "", held.left_at_mono_ns - held.entered_at_mono_ns)

    def output_written(self, held: HeldInput, outgoing: Outgoing) -> None:
        """The broker has an output; refused and unanswered tries are part of the way out."""
        if held.first_try and held.left_at_mono_ns:
            self._record(self._step, "sidecar-out", "", outgoing.written_at_mono_ns - held.left_at_mono_ns)

    def reply_written(self, held: HeldInput) -> None:
        """A reply leaves; the gateway records how long it took to arrive."""
        held.replied = True
        if held.first_try and held.left_at_mono_ns:
            self._record(self._step, "sidecar-out", "", time.monotonic_ns() - held.left_at_mono_ns)

    def acknowledged(self, held: HeldInput, written_at_mono_ns: int) -> None:
        """An input without output or reply ends with its acknowledgement."""
        sent = held.replied or (held.outputs and self._has_receivers)
        if held.first_try and held.left_at_mono_ns and not sent:
            self._record(self._step, "sidecar-out", "", written_at_mono_ns - held.left_at_mono_ns)
            self._record(self._step, "publish", "", time.monotonic_ns() - written_at_mono_ns)
            now_ns = time.time_ns()
            self._record_hop(self._step, "", now_ns - held.delivery.stored_at_unix_ns, held.envelope, now_ns)
