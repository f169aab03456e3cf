"""The target deployment's way to the ingress: decided, proved, taken over, or given up; with or without parking."""

from __future__ import annotations

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase
from services.orchestrator.domain.actions import Action, UpdateFlow
from services.orchestrator.domain.assets import waits_for_older
from services.orchestrator.domain.closing import plan_closing
from services.orchestrator.domain.documents import (
    FlowDocument,
    Strategy,
    change,
    current_epoch,
    give_ingress,
    is_held,
    parked_under,
    without_target,
)
from services.orchestrator.domain.flow_states import FlowEvent, FlowState, next_state
from services.orchestrator.domain.listener_handover import hands_over, waited_long_enough
from services.orchestrator.domain.slot_handover import durables, waits_for_slot
from services.orchestrator.domain.snapshot import Progress, Snapshot


def plan_switch(snapshot: Snapshot) -> Action | None:
    """The way of the target deployment to the ingress, and what follows when it fails."""
    flow = snapshot.flow
    phase = snapshot.phase_of(flow.target)
    if phase == DeploymentPhase.FAILED:
        if flow.state == FlowState.STARTING:
            stopped = next_state(flow.flow, flow.state, FlowEvent.START_FAILED)
            return UpdateFlow(without_target(give_ingress(flow, "", state=stopped)), "start failed")
        kept = without_target(flow)
        if flow.active and flow.ingress == subjects.deployment_owner(flow.target):
            # It failed in the moment in which an exclusive listener was to hand over to it.
            kept = give_ingress(kept, subjects.deployment_owner(flow.active))
        return UpdateFlow(kept, "the new deployment failed, the old one stays")
    if flow.rollout.strategy == Strategy.RESTART and flow.ingress != subjects.deployment_owner(flow.target):
        restarting = _restarting(snapshot)
        if restarting is not None:
            return restarting
    owner = subjects.deployment_owner(flow.target)
    if phase == DeploymentPhase.WARM and hands_over(snapshot) and flow.ingress != owner:
        return UpdateFlow(give_ingress(flow, owner, parking_used=True), "the old listener drains first")
    active = phase == DeploymentPhase.ACTIVE and (all_active(snapshot, flow.target) or waited_long_enough(snapshot))
    if not active:
        return plan_closing(snapshot)
    if flow.ingress != owner:
        return UpdateFlow(give_ingress(flow, owner, parking_used=True), "ingress decided")
    if flow.ingress_confirmed and _trigger_open(snapshot, flow.target):
        return UpdateFlow(_taken_over(snapshot), "deployment took over")
    return plan_closing(snapshot)


def _restarting(snapshot: Snapshot) -> Action | None:
    """Parks the ingress once the target's pins are known, and gives the target its time once the old are gone."""
    flow = snapshot.flow
    view = snapshot.deployments[flow.target]
    if flow.active:
        given_up = flow.operation is not None and flow.operation.cancelled
        if view.plan is None or view.state is None or given_up:
            return None  # what a person gave up before the old deployment began to drain must not make it drain
        epoch = current_epoch(flow)
        parked = give_ingress(
            flow,
            parked_under(epoch),
            state=next_state(flow.flow, flow.state, FlowEvent.PARKED),
            active=0,
            active_version=0,
            parking_epoch=epoch,
            parking_used=False,
            target_deadline=0.0,
        )
        return UpdateFlow(parked, "ingress parked, the old deployment drains")
    if flow.target_deadline or not flow.rollout.limit_s or is_held(flow, flow.target):
        return None
    return UpdateFlow(change(flow, target_deadline=snapshot.now + flow.rollout.limit_s), "the old deployment is gone")


def _taken_over(snapshot: Snapshot) -> FlowDocument:
    flow = snapshot.flow
    version = str(flow.target_version)
    state = next_state(flow.flow, flow.state, FlowEvent.STARTED) if flow.state == FlowState.STARTING else flow.state
    earlier, last = dict(flow.earlier_deployments), flow.last_deployments.get(version)
    if last and not _same_pins(snapshot, last, flow.target):
        earlier[version] = last
    taken = change(
        flow,
        state=state,
        active=flow.target,
        active_version=flow.target_version,
        last_deployments={**flow.last_deployments, version: flow.target},
        earlier_deployments=earlier,
    )
    return without_target(taken)


def _same_pins(snapshot: Snapshot, one: int, other: int) -> bool:
    plans = [view.plan for number in (one, other) if (view := snapshot.deployments.get(number)) is not None]
    digests = [{step.name: step.pin.digest for step in plan.steps} for plan in plans if plan is not None]
    return len(digests) == 2 and digests[0] == digests[1]


def all_active(snapshot: Snapshot, deployment: int) -> bool:
    """Every instance works with this decision's generation."""
    state = snapshot.deployments[deployment].state
    assert state is not None
    wanted = snapshot.wanted_instances(deployment)
    return bool(wanted) and all(
        (status := snapshot.statuses.get(instance.name)) is not None
        and status.progress == Progress.ACTIVE
        and status.generation >= state.generation
        for instance in wanted
    )


def _trigger_open(snapshot: Snapshot, deployment: int) -> bool:
    """Whether its trigger's consumers are open; those that wait for older deployments open when these have drained."""
    view = snapshot.deployments[deployment]
    assert view.plan is not None
    assert view.state is not None
    if waits_for_older(snapshot, deployment):
        return True
    for name, slot in durables(view.plan, view.state, view.plan.entry).items():
        consumer = snapshot.consumers.get(name)
        if consumer is None:
            return False
        keyed = view.plan.step(view.plan.entry).keyed
        if consumer.paused and not (keyed and waits_for_slot(snapshot, deployment, view.plan.entry, slot)):
            return False
    return True
