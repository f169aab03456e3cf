"""Steps of ordinary flows that sleep: which are put to sleep, which are woken, and when the flow as a whole sleeps.

That a step sleeps is written nowhere: it sleeps while it has no instance, and wakes because messages are stored for it.
So there is nothing that a killed orchestrator could leave half done. A step falls asleep by the same way as an instance
too many goes: it gives way (pulls no more, finishes what it holds), and is stopped when it holds nothing. What arrives
meanwhile stays stored, and has the step started again with the pins of its deployment.
"""

from __future__ import annotations

from headrace.model.deployment import DeploymentPhase, DeploymentState
from services.orchestrator.domain.actions import GIVE_WAY, CallInstance, StopInstance, UpdateFlow
from services.orchestrator.domain.documents import change
from services.orchestrator.domain.flow_states import RUNS, FlowEvent, FlowState, next_state
from services.orchestrator.domain.snapshot import DeploymentView, InstanceView, Progress, Snapshot


def sleepers(snapshot: Snapshot) -> frozenset[str]:
    """Steps of the deployment that runs that sleep: none of their instances is there, and none has to be."""
    flow = snapshot.flow
    view = snapshot.deployments.get(flow.active)
    if flow.state not in RUNS or not snapshot.agent_known or view is None or view.plan is None or view.state is None:
        return frozenset()
    if view.state.phase != DeploymentPhase.ACTIVE:
        return frozenset()
    present = {item.step for item in snapshot.instances.values() if item.deployment == view.number}
    return frozenset(
        step.name for step in view.plan.steps if view.plan.may_sleep(step.name) and step.name not in present
    )


def is_asleep(snapshot: Snapshot, view: DeploymentView, step: str) -> bool:
    """Whether a step that may sleep has no instance, be it that one is about to be started."""
    present = any((item.deployment, item.step) == (view.number, step) for item in snapshot.instances.values())
    return view.plan is not None and view.plan.may_sleep(step) and not present


def stays_asleep(snapshot: Snapshot, view: DeploymentView, state: DeploymentState, step: str) -> bool:
    """Whether a step without instances is left without them: nothing waits for it, or it could not be worked on."""
    assert view.plan is not None
    number = view.number
    if not view.plan.may_sleep(step):
        return state.phase == DeploymentPhase.DRAINING and not snapshot.waiting_of(number)
    if not is_asleep(snapshot, view, step):
        return False  # some of its replicas work: the others belong to them
    if state.phase == DeploymentPhase.DRAINING:
        return not snapshot.waiting_at(number, step)
    if state.phase != DeploymentPhase.ACTIVE or number != snapshot.flow.active:
        return False
    if snapshot.flow.state not in RUNS:
        return True  # suspended: it wakes after the resume
    return step not in snapshot.nudged and not snapshot.waiting_at(number, step)


def dozes(snapshot: Snapshot, view: DeploymentView, state: DeploymentState, step: str) -> bool:
    """Whether a step is to fall asleep: each of its instances is idle, and nothing waits for it."""
    assert view.plan is not None
    if state.phase != DeploymentPhase.ACTIVE or view.number != snapshot.flow.active or snapshot.flow.state not in RUNS:
        return False
    if not view.plan.may_sleep(step) or snapshot.waiting_at(view.number, step):
        return False
    of_step = [item for item in snapshot.instances.values() if (item.deployment, item.step) == (view.number, step)]
    return bool(of_step) and all(_idle(snapshot, item) for item in of_step)


def fall_asleep(
    snapshot: Snapshot, state: DeploymentState, instance: InstanceView
) -> CallInstance | StopInstance | None:
    """The next thing for an instance of a step that dozes; None: wait for it."""
    status = snapshot.statuses.get(instance.name)
    if instance.stopping or status is None:
        return None
    if not status.gave_way or status.generation < state.generation:
        return CallInstance(instance.name, GIVE_WAY, state.generation)
    if status.progress == Progress.DRAINED:
        return StopInstance(instance.name, max(state.generation, instance.generation))
    return None


def plan_sleep(snapshot: Snapshot) -> UpdateFlow | None:
    """The flow's own state: SLEEPING while every step of what runs sleeps."""
    flow = snapshot.flow
    view = snapshot.deployments.get(flow.active)
    if flow.state not in RUNS or flow.target or not snapshot.agent_known or view is None or view.plan is None:
        return None
    asleep = len(sleepers(snapshot)) == len(view.plan.steps)
    if asleep and flow.state == FlowState.RUNNING:
        state = next_state(flow.flow, flow.state, FlowEvent.FELL_ASLEEP)
        return UpdateFlow(change(flow, state=state), "every step sleeps")
    if not asleep and flow.state == FlowState.SLEEPING:
        state = next_state(flow.flow, flow.state, FlowEvent.WOKE)
        return UpdateFlow(change(flow, state=state), "a step woke")
    return None


def _idle(snapshot: Snapshot, instance: InstanceView) -> bool:
    """It has been idle for as long as its step says, or is on its way to sleep; one that is being stopped, too."""
    if instance.stopping:
        return True
    status = snapshot.statuses.get(instance.name)
    if not instance.up or status is None or not status.idle:
        return False
    if status.gave_way:
        return status.progress in (Progress.DRAINING, Progress.DRAINED)
    return status.progress == Progress.ACTIVE and status.may_sleep
