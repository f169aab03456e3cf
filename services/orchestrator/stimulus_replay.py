"""What started an execution, sent in once more: same execution, an id and incarnation of its own, to the deployment
that has the ingress when the broker stores it."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.model.errors import WrongState
from headrace.model.flow_graph import find_entry
from headrace.model.flow_spec import StepSpec
from headrace.model.message_ids import replayed_message_id
from headrace.wire.envelope import Envelope
from services.orchestrator.domain.documents import FlowDocument
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.suspension import check_accepts
from services.orchestrator.injection import Injector
from services.orchestrator.sent_again import sent_again, slot_at
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stimulus_store import Stimulus
from services.orchestrator.wall_clock import WallClock


def stimulus_name(flow: str, number: int) -> str:
    return f"flows/{flow}/stimuli/{number}"


@dataclass(frozen=True, slots=True)
class Start:
    """Where stimuli of a flow go now."""

    flow: FlowDocument
    entry: StepSpec


@dataclass
class StimulusReplay:
    """Of one workspace."""

    reader: SnapshotReader
    injector: Injector
    clock: WallClock

    async def start(self, flow: str) -> Start:
        """WrongState where the flow takes no stimuli now."""
        document, _ = await self.reader.stores.existing_flow(flow)
        version = document.active_version or document.target_version
        if document.state in (FlowState.STOPPED, FlowState.STOPPING) or not version:
            raise WrongState(
                f"flow {flow!r} is {document.state}: nothing of it can be replayed from the start",
                reason="FLOW_NOT_RUNNING",
                next_step=f"Start it: headrace flow start {flow}",
                metadata={"flow": flow, "state": str(document.state)},
            )
        check_accepts(document)
        if await self.reader.started_by_listener(document):
            raise WrongState(
                f"flow {flow!r} is started by its listener: nothing can be sent in",
                reason="STARTED_BY_LISTENER",
                next_step="Send it through the listener's source",
            )
        return Start(document, find_entry((await self.reader.version(flow, version)).spec))

    def again(self, start: Start, stimulus: Stimulus, incarnation: int, letter: str = "") -> Envelope:
        """The message; `letter` names the dead letter for which it is sent."""
        now_ns, original = int(self.clock.now() * 1e9), stimulus.envelope
        own_id = replayed_message_id(original.id, start.entry.name, incarnation)
        envelope = sent_again(original, own_id, incarnation, now_ns)
        envelope.ClearField("reply_to")
        envelope.ClearField("moved")
        envelope.replayed.dead_letter, envelope.replayed.id = letter, original.id
        envelope.replayed.stimulus = stimulus_name(start.flow.flow, stimulus.number)
        envelope.replayed.at_unix_ns = now_ns
        return envelope

    async def send(self, start: Start, stimulus: Stimulus, envelope: Envelope) -> None:
        """Errors as those of an injected message: Exhausted, Unavailable, WrongState, NotFound for what it names."""
        await self.injector.attachments.keep_named(start.flow.flow, envelope)
        slot = slot_at(envelope, start.entry.key, start.entry.slot_count)
        await self.injector.publish(start.flow, start.entry.name, slot, envelope, stimulus.traceparent)
