"""Handing over an exclusive listener (a port, a single subscription): the old one is drained first.

Once every step of the target is WARM, the ingress is given to it; from then on the switch is not undone. The old
deployment drains, and the target is activated as soon as the old listener has closed its source; with strict order,
when the whole old deployment has drained. What passes between the two is the gap.
"""

from __future__ import annotations

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, StepPlan
from services.orchestrator.domain.actions import StopInstance
from services.orchestrator.domain.deployment_phases import OVER
from services.orchestrator.domain.documents import FlowDocument, change
from services.orchestrator.domain.snapshot import InstanceView, Progress, Snapshot

GAP = "listener_gap"


def hands_over(snapshot: Snapshot) -> bool:
    """Whether the target may listen only after the deployment that runs has stopped listening."""
    flow = snapshot.flow
    if not flow.active or not flow.target:
        return False
    old, new = _trigger(snapshot, flow.active), _trigger(snapshot, flow.target)
    if old is None or new is None or old.kind != "listener" or new.kind != "listener":
        return False
    return old.exclusive or new.exclusive or flow.target in flow.strict


def handed_over(snapshot: Snapshot) -> bool:
    """Whether the switch has been decided, so that the old deployment must drain and nothing goes back."""
    owner = subjects.deployment_owner(snapshot.flow.target)
    return hands_over(snapshot) and snapshot.flow.ingress == owner and snapshot.flow.ingress_confirmed


def yields(snapshot: Snapshot, deployment: int) -> bool:
    """Whether a deployment that still counts as active drains already."""
    return deployment == snapshot.flow.active and handed_over(snapshot)


def may_listen(snapshot: Snapshot, deployment: int) -> bool:
    """Whether a WARM target may be activated."""
    if deployment != snapshot.flow.target or not hands_over(snapshot):
        return True
    return handed_over(snapshot) and _closed(snapshot, snapshot.flow.active)


def decided(snapshot: Snapshot, deployment: int) -> bool:
    """Whether a target that is not ACTIVE yet can no longer be given up: from the decision on, proved or not, and
    also when the old one is gone already. Given up then it would keep the ingress."""
    flow = snapshot.flow
    return deployment == flow.target and flow.ingress == subjects.deployment_owner(deployment)


def stop_broken_listener(snapshot: Snapshot, deployment: int) -> list[StopInstance]:
    """An old listener whose component crashes again and again cannot be told to drain: its process ends."""
    state = snapshot.deployments[deployment].state
    if state is None or state.phase != DeploymentPhase.DRAINING or not yields(snapshot, deployment):
        return []
    return [
        StopInstance(running.name, max(state.generation, running.generation))
        for instance in _listeners(snapshot, deployment)
        if (running := snapshot.instances.get(instance.name)) is not None
        and not running.stopping
        and (status := snapshot.statuses.get(instance.name)) is not None
        and status.progress == Progress.FAILED
    ]


def note_gap(snapshot: Snapshot, after: FlowDocument) -> FlowDocument:
    """Notes in a change of the flow document since when nobody listens, or that this is over."""
    before = snapshot.flow
    if not after.target:
        return change(after, listening_ended_at=0.0) if after.listening_ended_at else after
    old = _trigger(snapshot, before.active) if before.active else None
    if before.listening_ended_at or old is None or old.kind != "listener":
        return after
    parked = not after.active
    decided_now = hands_over(snapshot) and after.ingress == subjects.deployment_owner(before.target)
    return change(after, listening_ended_at=snapshot.now) if parked or decided_now else after


def waited_long_enough(snapshot: Snapshot) -> bool:
    """Whether a target that cannot be given up any more takes over as it is: broken, or late."""
    flow = snapshot.flow
    if not handed_over(snapshot):
        return False
    return bool(broken(snapshot, flow.target)) or bool(flow.target_deadline and snapshot.now > flow.target_deadline)


def broken(snapshot: Snapshot, deployment: int) -> str:
    """Which step of a deployment has failed and why; empty when none has."""
    for instance in snapshot.wanted_instances(deployment):
        status = snapshot.statuses.get(instance.name)
        if status is not None and status.progress == Progress.FAILED:
            return f"step {instance.step!r}: {status.cause or status.cause_reason or 'failed without a cause'}"
    return ""


def _closed(snapshot: Snapshot, deployment: int) -> bool:
    """No process of it listens, nor will one again."""
    state = snapshot.deployments[deployment].state
    if state is None or state.phase in OVER:
        return True
    if (
        state.phase != DeploymentPhase.DRAINING
        or not snapshot.agent_known
        or snapshot.flow.target in snapshot.flow.strict
    ):
        return False
    return snapshot.all_drained(_listeners(snapshot, deployment), state.generation)


def _listeners(snapshot: Snapshot, deployment: int) -> list[InstanceView]:
    plan = snapshot.deployments[deployment].plan
    if plan is None:
        return []
    return [instance for instance in snapshot.wanted_instances(deployment) if instance.step == plan.entry]


def _trigger(snapshot: Snapshot, deployment: int) -> StepPlan | None:
    view = snapshot.deployments.get(deployment)
    plan: DeploymentPlan | None = view.plan if view is not None else None
    return plan.step(plan.entry) if plan is not None else None
