"""An input that this sidecar holds: delivered to it and not yet acknowledged to the broker."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from headrace.model.step_snapshot import Save
from headrace.ports import Delivery, JetStreamLane
from headrace.wire.envelope import Envelope, FailedAttempt
from services.sidecar.domain.delivery import Problem, Trail

SUSPECT_CRASHES = 2


class Phase(Enum):
    WAITING = "waiting"
    """For the component, or for its turn."""
    RUNNING = "running"
    RETRYING = "retrying"
    """A delay runs."""
    ROUTING = "routing"
    """The expressions of its step's edges are evaluated for its outputs."""
    STUCK = "stuck"
    """It failed for good and waits for the flow to be resumed (`on_error: suspend-flow`)."""
    STORING = "storing"
    """What its outputs name is on its way to the object store."""
    SETTLING = "settling"
    """Outputs, reply or dead letter are on their way to the broker."""
    ACKNOWLEDGING = "acknowledging"


class HeldInput(msgspec.Struct, eq=False):
    """Times are seconds of CLOCK_MONOTONIC. `wants_reply`: a caller waits for what becomes of it."""

    delivery: Delivery
    envelope: Envelope
    message_id: str
    extended_at: float
    wants_reply: bool = False
    plain: bool = False
    """So far nothing happened to it but what happens to most; what does settles it the long way."""
    common: bool = False
    """Its envelope has nothing out of the common: see `is_common`."""
    execution_id: str = ""
    """Of a plain one."""
    phase: Phase = Phase.WAITING
    call: int = 0
    failures: int = 0
    rebounds: int = 0
    crashes: int = 0
    alone: bool = False
    watched: bool = False
    """It was held when a sidecar died, which may be its doing: it runs alone, though no component died of it."""
    began_at: float = 0.0
    """When its running call began."""
    due_at: float = 0.0
    """Where a delay runs: when it is over."""
    # What the running attempt has produced so far.
    outputs: list[Any] = msgspec.field(default_factory=list)
    output_bytes: int = 0
    reply: Any = None
    saves: list[Save] = msgspec.field(default_factory=list)
    failure: Any = None
    rebound: Any = None
    refused: Problem | None = None
    replied: bool = False
    attached: bool = False
    """An output or the reply of the running attempt names attachments."""
    passed_by_reference: bool = False
    """Its outputs are too large to be passed through by value."""
    in_doubt: bool = False
    """Its outputs may have been stored before, by a process that is gone (see domain.doubt); or its sender's."""
    slot: Any = None
    epoch: int = 0
    """Of a keyed step: the slot it came from, and which pulling of it delivered it last."""
    calls: int = 0
    """Attempts begun here, of this delivery."""
    key: str = ""
    """Of a keyed step."""
    # Settling.
    context: Any = None
    """What its outputs take over from it, once its call is over."""
    snapshots: list[tuple[str, bytes]] = msgspec.field(default_factory=list)
    snapshot_before: Any = None
    """Of a keyed step: what is stored with its outputs, by subject; and the state that its call began with."""
    dead: bool = False
    """It ends among the dead letters."""
    handed: bool = False
    """It failed for good and goes to the error step."""
    pending: int = 0
    problem: Problem | None = None
    """Why it was given up."""
    # Times and trace of the running attempt, for the phases of the hop.
    number: int = 0
    began_at_mono_ns: int = 0
    entered_at_mono_ns: int = 0
    left_at_mono_ns: int = 0
    written_at_mono_ns: int = 0
    acknowledged_at_mono_ns: int = 0
    """When its acknowledgement was written."""
    span_id: str = ""
    traceparent: str = ""
    told: bool = False
    """A record of this delivery was made."""
    arrival_counted: bool = False
    """The histograms have its arrival, or are not to have it."""
    attempts: list[FailedAttempt] = msgspec.field(default_factory=list)
    also: list[Delivery] = msgspec.field(default_factory=list)
    """Further copies of the same message under other sequences; acknowledged with it."""
    first_try: bool = False
    """Delivered once, called once; also when that call failed."""

    def delivered_again(self, delivery: Delivery) -> None:
        """It is held already: what counts for its acknowledgement is the newest delivery."""
        self.delivery = delivery
        self.first_try = False

    @property
    def attempt(self) -> int:
        """Number of the present or next attempt, from 1: redeliveries and own repetitions."""
        return self.delivery.attempt + self.failures + self.rebounds + self.crashes

    @property
    def is_suspect(self) -> bool:
        """It may be what ends component or sidecar: nothing else runs beside it."""
        return self.watched or self.crashes >= SUSPECT_CRASHES

    def extend(self, lane: JetStreamLane, now: float, every_s: float) -> None:
        """Restarts the broker's ack deadline if that was not done for `every_s`."""
        if now - self.extended_at >= every_s:
            self.extended_at = now
            lane.extend(self.delivery)
            for copy in self.also:
                lane.extend(copy)

    def trail(self) -> Trail:
        return Trail(self.failures, self.rebounds, self.crashes, self.wants_reply)

    def start_attempt(self) -> None:
        """Forgets what an earlier attempt produced."""
        self.plain = self.plain and not self.calls
        self.calls += 1
        self.number = self.attempt
        self.first_try = self.calls == 1 and self.delivery.attempt == 1
        self.problem = None
        self.entered_at_mono_ns = self.left_at_mono_ns = self.written_at_mono_ns = 0
        self.outputs = []
        self.context = None
        self.output_bytes = 0
        self.saves = []
        self.reply = self.failure = self.rebound = self.refused = None
        self.attached = self.passed_by_reference = False


def wants_reply(envelope: Envelope) -> bool:
    """Whether a caller waits for what becomes of it."""
    return envelope.HasField("reply_to") and bool(envelope.reply_to.subject)
