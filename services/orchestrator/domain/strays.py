"""Strays: messages that lie where nobody who is wanted will ever read them.

Their owner is over (a leader of the past switched the ingress to it), or the owner is live but has no such step or
slot (a gateway's route was out of date: the trigger has another name now, or other slots). They keep a deployment
from draining, and a stop from ending, so they are moved.
"""

from __future__ import annotations

from headrace.model import subjects
from headrace.model.deployment import DeploymentPlan
from headrace.model.slots import MAX_SLOTS
from services.orchestrator.domain.actions import Action, MoveStrays
from services.orchestrator.domain.assets import CURSORS, dropping, wanted_stream
from services.orchestrator.domain.deployment_phases import OVER
from services.orchestrator.domain.documents import current_epoch
from services.orchestrator.domain.drain_choice import settling
from services.orchestrator.domain.flow_states import SUSPENDED_STATES
from services.orchestrator.domain.snapshot import Snapshot


def plan_strays(snapshot: Snapshot) -> list[Action]:
    """Moves what nobody reads; only where stream and decision agree, and there is somewhere to move it to."""
    wanted, stream, flow = wanted_stream(snapshot), snapshot.stream, snapshot.flow
    if wanted is None or stream is None or not flow.ingress_confirmed or dict(stream.config) != wanted:
        return []
    if dropping(flow):
        return []  # what a person drops is counted as dropped, not saved
    if flow.state in SUSPENDED_STATES and not flow.ingress:
        return []  # it stays until the flow goes on: parked for a start it would not be found by the resume
    strays = sorted(place for place, count in stream.counts.items() if count and not is_read(snapshot, *place))
    return [MoveStrays(tuple(strays))] if strays else []


def is_read(snapshot: Snapshot, owner: str, step: str, slot: int) -> bool:
    """Whether somebody reads this place, now or later; True where that is not known yet."""
    if step.startswith("_") or owner.startswith(CURSORS):
        return True
    for number in snapshot.flow.live:
        view = snapshot.deployments.get(number)
        own = owner == subjects.deployment_owner(number)
        if view is None or view.state is None or view.plan is None:
            if own:
                return True
            continue
        if view.state.phase in OVER:
            continue
        if own:
            return settling(view.state) or _has(view.plan, step, slot)
        if view.plan.parking_epoch and owner == subjects.parking_owner(view.plan.parking_epoch):
            return settling(view.state) or (step == view.plan.entry and 0 <= slot < MAX_SLOTS)
    # What is parked for a start whose plan is not known yet is read by that start.
    return owner == subjects.parking_owner(current_epoch(snapshot.flow))


def _has(plan: DeploymentPlan, step: str, slot: int) -> bool:
    return any(item.name == step and 0 <= slot < item.slots for item in plan.steps)
