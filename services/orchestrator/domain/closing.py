"""The end of deployments and of a run: when one has drained, how its owner leaves the stream, how a flow stops."""

from __future__ import annotations

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase
from services.orchestrator.domain.actions import Action, DropMessages, UpdateFlow
from services.orchestrator.domain.assets import dropping
from services.orchestrator.domain.documents import change, give_ingress, without_target
from services.orchestrator.domain.drain_choice import nobody_works, settling
from services.orchestrator.domain.flow_states import FlowEvent, next_state
from services.orchestrator.domain.snapshot import Snapshot

# How long a deployment that was made for letters waits for the first of them.
SENDING_S = 15.0


def plan_stopping(snapshot: Snapshot) -> Action | None:
    """A stop step by step: gateways refuse, the ingress closes, deployments end, what is dropped goes."""
    flow = snapshot.flow
    if snapshot.route != snapshot.wanted_route:
        return None  # gateways refuse first
    if flow.ingress:
        return UpdateFlow(give_ingress(flow, ""), "ingress closed")
    if flow.live:
        return plan_closing(snapshot)
    left = sum(snapshot.stream.counts.values()) if snapshot.stream else 0
    if dropping(flow) and snapshot.stream is not None and left:
        return DropMessages(flow.operation.id if flow.operation else "", left, snapshot.stream.last_sequence)
    if flow.has_stream and not flow.ingress_confirmed:
        return None
    stopped = next_state(flow.flow, flow.state, FlowEvent.STOPPED)
    document = change(flow, state=stopped, stop_mode="", active=0, active_version=0)
    return UpdateFlow(without_target(document), "stopped")


def plan_closing(snapshot: Snapshot) -> Action | None:
    """Takes the owner of a drained deployment out of the stream, and puts it back if something came late."""
    flow = snapshot.flow
    for number in flow.live:
        if snapshot.phase_of(number) != DeploymentPhase.DRAINING or _is_sent_to(snapshot, number):
            continue
        if number in flow.closed:
            if not dropping(flow) and snapshot.waiting_of(number) and not _settling(snapshot, number):
                closed = tuple(other for other in flow.closed if other != number)
                return UpdateFlow(change(flow, closed=closed), f"d{number} got late messages, drains on")
        elif dropping(flow) or drained(snapshot, number) or _may_settle(snapshot, number):
            return UpdateFlow(change(flow, closed=(*flow.closed, number)), f"d{number} is drained")
    return None


def _is_sent_to(snapshot: Snapshot, number: int) -> bool:
    """Dead letters are being sent to it. Who made it may have died before the first: then it does not wait for long."""
    state = snapshot.deployments[number].state
    assert state is not None
    begun = snapshot.flow.letters.work is not None or snapshot.now < state.changed_at + SENDING_S
    return number in snapshot.flow.replaying and begun


def _settling(snapshot: Snapshot, number: int) -> bool:
    return settling(snapshot.deployments[number].state)


def _may_settle(snapshot: Snapshot, number: int) -> bool:
    """What waits is to be stored elsewhere, and nobody works on it any more."""
    flow = snapshot.flow
    gained = flow.ingress == subjects.deployment_owner(number)
    return _settling(snapshot, number) and flow.ingress_confirmed and not gained and nobody_works(snapshot, number)


def drained(snapshot: Snapshot, deployment: int) -> bool:
    """Barrier seen, nothing stored, and every instance holds nothing (or is confirmed dead by its agent)."""
    flow = snapshot.flow
    state = snapshot.deployments[deployment].state
    assert state is not None
    if not flow.ingress_confirmed or flow.ingress == subjects.deployment_owner(deployment):
        return False
    if not snapshot.sees_switch or not snapshot.agent_known or snapshot.waiting_of(deployment):
        return False
    return snapshot.all_drained(snapshot.wanted_instances(deployment), state.generation)
