"""Makes the messages that one emit becomes: one for each receiver, on the slot that the receiver's key says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.model import subjects
from headrace.model.message_ids import OutputIds
from headrace.model.slots import Keying, keying
from headrace.ports import Stored
from headrace.wire.envelope import ReplyTo, encode_shared
from headrace.wire.spliced_envelope import EnvelopeSplicer, inherited_fields
from services.sidecar.domain.delivery import Problem
from services.sidecar.edge_rules import RoutedEmit
from services.sidecar.held_input import HeldInput
from services.sidecar.outbox import Outgoing
from services.sidecar.passthrough import with_own

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan

OnStored = Callable[[Outgoing, Stored], None]
OnRefused = Callable[[Outgoing, Problem], None]


class LateContext(msgspec.Struct, eq=False):
    """What outputs take over from their input; kept for a while for late emits."""

    message_id: str
    execution_id: str
    incarnation: int
    reply_to: ReplyTo | None
    traceparent: str
    baggage: str
    next_index: int
    input_stored_at_unix_ns: int
    in_doubt: bool
    passed: Any
    inherited: bytes
    """The fields of its outputs that are its own, as they are written."""
    slot: Any = None
    """The slot of a keyed step that its input came from."""


def late_context(held: HeldInput) -> LateContext:
    """Of an input whose call is over."""
    envelope = held.envelope
    incarnation, baggage = envelope.incarnation, envelope.baggage
    reply_to = envelope.reply_to if held.wants_reply else None
    inherited = b""
    if reply_to is not None or incarnation or baggage or held.in_doubt:
        raw = reply_to.SerializeToString() if reply_to is not None else b""
        inherited = inherited_fields(raw, incarnation, held.in_doubt, baggage)
    return LateContext(
        held.message_id,
        envelope.execution_id,
        incarnation,
        reply_to,
        held.traceparent,
        baggage,
        len(held.outputs),
        held.delivery.stored_at_unix_ns if held.first_try else 0,
        held.in_doubt,
        envelope.passthrough,
        inherited,
    )


class Edge:
    """The way to one receiver."""

    __slots__ = ("_keying", "_ordered", "_subjects", "ids", "receiver")

    def __init__(self, plan: DeploymentPlan, sender: str, receiver: str) -> None:
        step = plan.step(receiver)
        owner = subjects.deployment_owner(plan.deployment)
        self.receiver = receiver
        self.ids = OutputIds(sender, receiver)
        self._keying: Keying = keying(step.key, step.slots)
        self._subjects = [
            subjects.data_subject(plan.workspace, plan.flow, owner, receiver, slot) for slot in range(step.slots)
        ]
        # Where every message is its own key there is no order to keep.
        self._ordered = bool(step.key)

    @property
    def only_subject(self) -> str:
        """Where all its messages go, in whatever order; empty where they have several ways, or an order."""
        return self._subjects[0] if len(self._subjects) == 1 and not self._ordered else ""

    def outgoing(
        self,
        message_id: str,
        emit: Any,
        shared: bytes,
        traceparent: str,
        on_stored: OnStored,
        on_refused: OnRefused,
        about: Any = None,
    ) -> Outgoing:
        """One message to the receiver. `emit` has the body and headers that the receiver's key is read from."""
        subject = self._subjects[0]
        if len(self._subjects) > 1:
            subject = self._subjects[self._keying.place(emit.headers, emit.body, message_id).slot]
        return Outgoing(subject, message_id, shared, traceparent, on_stored, on_refused, about, False, self._ordered)


def edges_of(plan: DeploymentPlan, step: StepPlan) -> list[Edge]:
    """The edges that leave a step."""
    return [Edge(plan, step.name, receiver) for receiver in step.receivers]


class OutputMaker:
    """Of one step."""

    def __init__(self, plan: DeploymentPlan, step: StepPlan) -> None:
        self._step = step.name
        self._edges = edges_of(plan, step)
        self._passes = plan.passthrough
        self._splicer = EnvelopeSplicer(step.name)

    @property
    def goes_nowhere(self) -> bool:
        """The step has no receivers: there is nothing to make."""
        return not self._edges

    def make(
        self,
        context: LateContext,
        index: int,
        emit: Any,
        on_stored: OnStored,
        on_refused: OnRefused,
        about: Any = None,
    ) -> list[Outgoing]:
        """The messages of output number `index`; MalformedMessage for one that is no envelope."""
        if not self._edges:
            return []
        if type(emit) is RoutedEmit:
            return self._make_routed(context, index, emit, on_stored, on_refused, about)
        shared = self._shared(context, emit)
        parent, incarnation, traceparent = context.message_id, context.incarnation, context.traceparent
        output = f"k:{emit.key}" if emit.key else str(index)
        return [
            edge.outgoing(
                edge.ids.of(parent, output, incarnation), emit, shared, traceparent, on_stored, on_refused, about
            )
            for edge in self._edges
        ]

    def _make_routed(
        self, context: LateContext, index: int, emit: RoutedEmit, on_stored: OnStored, on_refused: OnRefused, about: Any
    ) -> list[Outgoing]:
        """As `make`, where edges have conditions and mappings: the ids are those that each edge would have without."""
        output = f"k:{emit.key}" if emit.key else str(index)
        unmapped = b""
        found = []
        for edge in self._edges:
            given = emit.for_receiver(edge.receiver)
            if given is None:
                continue
            if given is emit:
                shared = unmapped = unmapped or self._shared(context, emit)
            else:
                shared = self._shared(context, given)
            message_id = edge.ids.of(context.message_id, output, context.incarnation)
            found.append(edge.outgoing(message_id, given, shared, context.traceparent, on_stored, on_refused, about))
        return found

    def _shared(self, context: LateContext, emit: Any) -> bytes:
        if not self._passes and not emit.attachments:
            return self._splicer.shared(
                context.execution_id,
                context.message_id,
                emit.body,
                emit.content_type,
                emit.headers,
                context.input_stored_at_unix_ns,
                context.inherited,
            )
        return encode_shared(
            execution_id=context.execution_id,
            parent_id=context.message_id,
            body=emit.body,
            content_type=emit.content_type,
            headers=emit.headers,
            sender=self._step,
            reply_to=context.reply_to,
            incarnation=context.incarnation,
            input_stored_at_unix_ns=context.input_stored_at_unix_ns,
            in_doubt=context.in_doubt,
            passthrough=with_own(context.passed, self._step, emit) if self._passes else (),
            baggage=context.baggage,
            attachments=emit.attachments,
        )
