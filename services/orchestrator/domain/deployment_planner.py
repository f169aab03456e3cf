"""What one deployment needs now, by its phase: resolution, instances, lifecycle calls, its next phase."""

from __future__ import annotations

import msgspec

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentState
from services.orchestrator.domain.actions import (
    Action,
    CallInstance,
    Forget,
    Resolve,
    SetState,
    StartInstance,
    StopInstance,
)
from services.orchestrator.domain.assets import dropping
from services.orchestrator.domain.cancellation import CANCELLED, CANCELLED_CAUSE
from services.orchestrator.domain.concluding import conclude, has_to_conclude, runs_hooks
from services.orchestrator.domain.deployment_phases import OVER, move
from services.orchestrator.domain.documents import is_held, kept_for
from services.orchestrator.domain.drain_choice import chosen_state, settle, settling, stop_workers
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.listener_handover import decided, may_listen, stop_broken_listener, yields
from services.orchestrator.domain.scaling import let_go, scaled_state, surplus
from services.orchestrator.domain.sleeping import dozes, fall_asleep, stays_asleep
from services.orchestrator.domain.slot_handover import leases, moving, rebalanced_state
from services.orchestrator.domain.snapshot import DeploymentView, InstanceView, Progress, Snapshot, StatusView
from services.orchestrator.domain.stuck_steps import resumed_state

# A sidecar that exits this often before it serves will not come up.
MAX_SIDECAR_STARTS = 3
# Of a new deployment, while another one works: so many instances start at a time.
STARTS_BESIDE = 1
LOG_LINES_IN_CAUSE = 10


def plan_deployment(snapshot: Snapshot, number: int) -> list[Action]:
    """Actions for one live deployment."""
    view = snapshot.deployments[number]
    if view.state is None:
        return _unresolved(snapshot, number)
    if view.state.phase in OVER:
        return _over(snapshot, view, view.state)
    actions = _instances(snapshot, view, view.state)
    changed = (
        chosen_state(snapshot, view, view.state)
        or scaled_state(snapshot, view, view.state)
        or rebalanced_state(snapshot, view, view.state)
        or resumed_state(snapshot, view, view.state)
        or _next_state(snapshot, view, view.state)
    )
    if changed is not None:
        actions.append(changed)
    return actions


def _unresolved(snapshot: Snapshot, number: int) -> list[Action]:
    flow = snapshot.flow
    if number != flow.target or flow.state == FlowState.STOPPING:
        state = _never_resolved(snapshot, "the flow was stopped before the deployment was resolved", "STOPPED")
        return [SetState(number, state, "stopped before it was resolved")]
    if flow.operation is not None and flow.operation.cancelled:
        return [SetState(number, _never_resolved(snapshot, CANCELLED_CAUSE, CANCELLED), CANCELLED)]
    if flow.target_deadline and snapshot.now > flow.target_deadline:
        cause = f"not ready within {_limit(snapshot):g} s: its references could not be resolved, see headrace status"
        return [SetState(number, _never_resolved(snapshot, cause, "START_TIMEOUT"), "START_TIMEOUT")]
    return [Resolve(number, flow.target_version)]


def _never_resolved(snapshot: Snapshot, cause: str, reason: str) -> DeploymentState:
    now = snapshot.now
    return DeploymentState(
        DeploymentPhase.FAILED, 1, {}, cause=cause, cause_reason=reason, created_at=now, changed_at=now
    )


def _limit(snapshot: Snapshot) -> float:
    """How long the target was given, seconds."""
    flow = snapshot.flow
    if flow.rollout.limit_s:
        return flow.rollout.limit_s
    began = flow.operation.created_at if flow.operation else flow.target_deadline
    return flow.target_deadline - began


def _over(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> list[Action]:
    """Nothing of it may be left: instances, then consumers (see planner), then pins."""
    number = view.number
    if number in (snapshot.flow.active, snapshot.flow.target) and snapshot.flow.state != FlowState.STOPPING:
        return []  # the flow document changes first
    left: list[Action] = [
        StopInstance(instance.name, max(state.generation, instance.generation))
        for instance in snapshot.instances.values()
        if instance.deployment == number and not instance.stopping and not _runs_hook(snapshot, view, state, instance)
    ]
    if left or not snapshot.agent_known:
        return left
    if has_to_conclude(snapshot, view, state) and (concluding := conclude(snapshot, view, state)) is not None:
        return [concluding] if isinstance(concluding, CallInstance) else []
    if any(instance.deployment == number for instance in snapshot.instances.values()):
        return []
    if any(name.startswith(subjects.step_consumer(number, "")) for name in snapshot.consumers):
        return []
    version = view.plan.version if view.plan else 0
    return [Forget(number, version, number in kept_for(snapshot.flow, version))]


def _instances(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> list[Action]:
    if not snapshot.agent_known or view.plan is None:
        return []
    if _may_conclude(snapshot, view, state):
        concluding = conclude(snapshot, view, state)
        return [concluding] if concluding is not None else []
    wanted = snapshot.wanted_instances(view.number)
    if dropping(snapshot.flow) or is_held(snapshot.flow, view.number):
        return []
    if settling(state):
        return _settling(snapshot, view, state)
    actions: list[Action] = [*stop_broken_listener(snapshot, view.number)]
    dozing = {step.name for step in view.plan.steps if dozes(snapshot, view, state, step.name)}
    room = _room_to_start(snapshot, view, state, len(wanted))
    for instance in wanted:
        running = snapshot.instances.get(instance.name)
        if running is None:
            if instance.step not in dozing and not stays_asleep(snapshot, view, state, instance.step) and room > 0:
                room -= 1
                actions.append(StartInstance(instance, state.generation))
        elif instance.step in dozing:
            going = fall_asleep(snapshot, state, running)
            if going is not None:
                actions.append(going)
        elif running.up and (status := snapshot.statuses.get(instance.name)) is not None and status.gave_way:
            going = let_go(snapshot, state, running)  # wanted again: it begins anew
            if going is not None:
                actions.append(going)
        elif running.up:
            call = _call(snapshot, view, state, instance)
            if call is not None:
                actions.append(call)
    for instance in surplus(snapshot, view.number):
        going = None if instance.stopping else let_go(snapshot, state, instance)
        if going is not None:
            actions.append(going)
    return actions


def _room_to_start(snapshot: Snapshot, view: DeploymentView, state: DeploymentState, wanted: int) -> int:
    """How many may start now. A start is some 60 ms of processor time: whoever sends to a deployment that works would
    feel all of them at once. Once an instance is being prepared (its processes are up; its init hook may take long) it
    is the next one's turn."""
    flow = snapshot.flow
    others_work = flow.active != view.number and flow.ingress == subjects.deployment_owner(flow.active)
    if state.phase != DeploymentPhase.PREPARING or not others_work:
        return wanted
    own = (instance for instance in snapshot.instances.values() if instance.deployment == view.number)
    return max(0, STARTS_BESIDE - sum(_comes_up(snapshot, instance) for instance in own))


def _comes_up(snapshot: Snapshot, instance: InstanceView) -> bool:
    status = snapshot.statuses.get(instance.name)
    return not instance.up or status is None or status.progress in (Progress.NONE, Progress.SLEEPING)


def _settling(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> list[Action]:
    actions: list[Action] = list(stop_workers(snapshot, view, state))
    batch = settle(snapshot, view)
    return [*actions, batch] if batch is not None and snapshot.waiting_of(view.number) else actions


def _call(
    snapshot: Snapshot, view: DeploymentView, state: DeploymentState, instance: InstanceView
) -> CallInstance | None:
    """The lifecycle call that brings an instance to where its deployment's phase wants it."""
    status = snapshot.statuses.get(instance.name)
    if status is None:
        # It serves but has not reported yet: in PREPARING there is only one thing it can be told.
        first = state.phase == DeploymentPhase.PREPARING and _consumers_ready(snapshot, view)
        return CallInstance(instance.name, "Prepare", state.generation) if first else None
    behind = status.generation < state.generation or status.resumed < state.resumed
    progress = status.progress
    if progress == Progress.FAILED:
        return None
    if progress in (Progress.NONE, Progress.SLEEPING):
        return CallInstance(instance.name, "Prepare", state.generation) if _consumers_ready(snapshot, view) else None
    if progress == Progress.STARTING:
        return None
    if state.phase == DeploymentPhase.ACTIVE and (behind or progress == Progress.WARM):
        owned = leases(state, instance.step, instance.replica)
        return CallInstance(instance.name, "Activate", state.generation, owned, state.resumed)
    if state.phase == DeploymentPhase.DRAINING and (behind or progress in (Progress.WARM, Progress.ACTIVE)):
        owned = leases(state, instance.step, instance.replica)
        return CallInstance(instance.name, "Drain", state.generation, owned, state.resumed)
    return None


def _consumers_ready(snapshot: Snapshot, view: DeploymentView) -> bool:
    """Every step has its durables; a slot that is on its way to another owner may have none for a moment."""
    plan, state = view.plan, view.state
    assert plan is not None
    assert state is not None
    for step in plan.steps:
        if not step.keyed:
            if subjects.step_consumer(view.number, step.name) not in snapshot.consumers:
                return False
        elif state.phase == DeploymentPhase.PREPARING and moving(snapshot, view.number, step.name):
            return False
    return True


def _next_state(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> SetState | None:
    flow, number = snapshot.flow, view.number
    gained = flow.ingress == subjects.deployment_owner(number)
    if state.phase in (DeploymentPhase.PREPARING, DeploymentPhase.WARM) or (
        state.phase == DeploymentPhase.ACTIVE and number == flow.target and not gained
    ):
        return _warming(snapshot, view, state)
    if state.phase == DeploymentPhase.ACTIVE:
        stopped = flow.state == FlowState.STOPPING and not flow.ingress
        overtaken = number not in (flow.active, flow.target) or yields(snapshot, number)
        if (stopped or overtaken) and not gained and flow.ingress_confirmed:
            moved = move(state, DeploymentPhase.DRAINING, snapshot.now)
            return SetState(number, moved, "stopping" if stopped else "a newer deployment took over")
        return None
    if state.phase == DeploymentPhase.DRAINING and _seen_empty_twice(snapshot, view, state):
        if has_to_conclude(snapshot, view, state):
            if state.concluding_since:
                return None
            since = msgspec.structs.replace(state, concluding_since=snapshot.now, generation=state.generation + 1)
            return SetState(number, since, "the shutdown hook is run")
        return SetState(number, move(state, DeploymentPhase.RETIRED, snapshot.now), "drained")
    return None


def _warming(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> SetState | None:
    """The target's way to ACTIVE, or its failure: by an instance, the deadline, or a person's stop."""
    number = view.number
    failure = _failure(snapshot, view)
    if failure is not None:
        reason, cause = failure
        if state.phase == DeploymentPhase.ACTIVE and reason == "STOPPED":
            # It may hold nothing yet, but it pulls already: let it drain.
            return SetState(number, move(state, DeploymentPhase.DRAINING, snapshot.now), "stopping")
        failed = move(state, DeploymentPhase.FAILED, snapshot.now, cause=cause, cause_reason=reason)
        return SetState(number, failed, reason)
    if state.phase == DeploymentPhase.PREPARING and _all_warm(snapshot, view):
        return SetState(number, move(state, DeploymentPhase.WARM, snapshot.now), "every instance is warm")
    if state.phase == DeploymentPhase.WARM and may_listen(snapshot, number):
        return SetState(number, move(state, DeploymentPhase.ACTIVE, snapshot.now), "activated")
    return None


def _all_warm(snapshot: Snapshot, view: DeploymentView) -> bool:
    wanted = snapshot.wanted_instances(view.number)
    ready = (Progress.WARM, Progress.ACTIVE)
    return bool(wanted) and all(
        (status := snapshot.statuses.get(instance.name)) is not None and status.progress in ready for instance in wanted
    )


def _failure(snapshot: Snapshot, view: DeploymentView) -> tuple[str, str] | None:
    """Reason and cause why a deployment that is being made ready is given up; None while there is none."""
    flow = snapshot.flow
    if flow.state == FlowState.STOPPING or view.number != flow.target:
        return "STOPPED", "the flow was stopped before the deployment took over"
    if decided(snapshot, view.number):
        return None
    if flow.operation is not None and flow.operation.cancelled:
        return CANCELLED, CANCELLED_CAUSE
    for instance in snapshot.wanted_instances(view.number):
        status = snapshot.statuses.get(instance.name)
        if status is not None and status.progress == Progress.FAILED:
            return status.cause_reason or "STEP_FAILED", _step_cause(instance, status)
        running = snapshot.instances.get(instance.name)
        if running is not None and not running.up and running.starts > MAX_SIDECAR_STARTS:
            cause = f"step {instance.step!r}: its sidecar does not come up: {running.last_exit or 'no exit reported'}"
            return "SIDECAR_NOT_STARTED", cause
    if flow.target_deadline and snapshot.now > flow.target_deadline and not is_held(flow, view.number):
        return "START_TIMEOUT", _late_cause(snapshot, view, _limit(snapshot))
    return None


def _step_cause(instance: InstanceView, status: StatusView) -> str:
    cause = f"step {instance.step!r}: {status.cause or status.cause_reason or 'failed without a cause'}"
    lines = status.log_lines[-LOG_LINES_IN_CAUSE:]
    return cause + "".join(f"\n  | {line}" for line in lines)


def _late_cause(snapshot: Snapshot, view: DeploymentView, limit_s: float) -> str:
    if not snapshot.agent_known:
        return f"not ready within {limit_s:g} s: the agent does not answer"
    waits = []
    for instance in snapshot.wanted_instances(view.number):
        status = snapshot.statuses.get(instance.name)
        progress = status.progress if status else "not up"
        if progress not in (Progress.WARM, Progress.ACTIVE):
            waits.append(f"step {instance.step!r} is {progress}")
    return f"not ready within {limit_s:g} s: {'; '.join(waits) or 'every step is warm, the switch is not done'}"


def _may_conclude(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> bool:
    """Nothing of it waits, for good, and its shutdown hook is being waited for."""
    return (
        bool(state.concluding_since)
        and _seen_empty_twice(snapshot, view, state)
        and has_to_conclude(snapshot, view, state)
    )


def _runs_hook(snapshot: Snapshot, view: DeploymentView, state: DeploymentState, instance: InstanceView) -> bool:
    """Whether an instance of a deployment that failed has its shutdown hook to run first."""
    place = runs_hooks(snapshot, view)
    able = instance.name in snapshot.statuses and snapshot.statuses[instance.name].progress != Progress.FAILED
    return place is not None and place.name == instance.name and able and has_to_conclude(snapshot, view, state)


def _seen_empty_twice(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> bool:
    """Its owner is out of the stream (the first look decided that), and the second look finds nothing."""
    stream, number = snapshot.stream, view.number
    if number not in snapshot.flow.closed or stream is None or not snapshot.sees_switch:
        return False
    owner = subjects.deployment_owner(number)
    if stream.takes(subjects.owner_filter(snapshot.workspace, snapshot.flow.flow, owner)):
        return False
    return dropping(snapshot.flow) or not snapshot.waiting_of(view.number)
