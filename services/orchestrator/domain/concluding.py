"""The shutdown hook of a deployment that is over: after its last message, before its instances and pins go.

It runs in the step that messages came to first, with that deployment's own code; where that step sleeps (or was
stopped) an instance is started for it. A hook that does not end is given up.
"""

from __future__ import annotations

from headrace.model.deployment import DeploymentPhase, DeploymentState
from headrace.model.flow_hooks import HOOK_LIMIT_S
from services.orchestrator.domain.actions import CONCLUDE, CallInstance, StartInstance
from services.orchestrator.domain.snapshot import DeploymentView, InstanceView, Progress, Snapshot

# What the start of an instance for it may take besides.
START_ALLOWANCE_S = 30.0
_ABLE = (Progress.WARM, Progress.ACTIVE, Progress.DRAINING, Progress.DRAINED)


def has_to_conclude(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> bool:
    """Whether its shutdown hook is still to be run, or waited for."""
    if view.hooks is None or not view.hooks.to_conclude:
        return False
    since = state.concluding_since or (state.changed_at if state.phase == DeploymentPhase.FAILED else snapshot.now)
    if snapshot.now > since + HOOK_LIMIT_S + START_ALLOWANCE_S:
        return False
    place = runs_hooks(snapshot, view)
    status = snapshot.statuses.get(place.name) if place is not None else None
    return place is not None and not (status is not None and status.concluded)


def conclude(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> CallInstance | StartInstance | None:
    """The next thing on the way to it; None: wait."""
    place = runs_hooks(snapshot, view)
    if place is None:
        return None
    running, status = snapshot.instances.get(place.name), snapshot.statuses.get(place.name)
    if running is None:
        return StartInstance(place, state.generation)
    if status is None or status.concluded or status.progress not in _ABLE:
        return None
    return CallInstance(place.name, CONCLUDE, state.generation)


def runs_hooks(snapshot: Snapshot, view: DeploymentView) -> InstanceView | None:
    """The instance that runs the hooks of a deployment: replica 0 of its entry."""
    if view.plan is None:
        return None
    for instance in snapshot.wanted_instances(view.number):
        if instance.step == view.plan.entry and instance.replica == 0:
            return instance
    return None
