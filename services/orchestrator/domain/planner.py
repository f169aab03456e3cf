"""Decided and observed in, what to do now out. Pure: the same snapshot gives the same plan.

Several deployments of a flow may be live at once; each is planned by its phase. The flow document changes at
most once per plan, and a deployment's state at most once. An empty plan means: wait for the next report.
"""

from __future__ import annotations

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase
from services.orchestrator.domain.actions import (
    Action,
    ConfirmIngress,
    DeleteConsumer,
    DropMessages,
    EnsureConsumer,
    EnsureStream,
    Forget,
    PauseConsumer,
    Plan,
    PurgeBarriers,
    RecordHistory,
    UpdateFlow,
    WriteRoute,
)
from services.orchestrator.domain.assets import dropping, waits_for_older, wanted_consumers, wanted_stream
from services.orchestrator.domain.deployment_planner import plan_deployment
from services.orchestrator.domain.documents import (
    FlowDocument,
    Rollout,
    Strategy,
    change,
    current_epoch,
    give_ingress,
    is_held,
    parked_under,
)
from services.orchestrator.domain.drain_choice import nobody_works, settling
from services.orchestrator.domain.flow_states import FlowEvent, FlowState, next_state
from services.orchestrator.domain.ingress_repair import plan_ingress_repair, plan_strays
from services.orchestrator.domain.listener_handover import hands_over, note_gap, waited_long_enough
from services.orchestrator.domain.operation_planner import plan_operations
from services.orchestrator.domain.snapshot import Progress, Snapshot
from services.orchestrator.domain.suspension import plan_suspension, recheck_s
from services.orchestrator.domain.taking_over import plan_taking_over, raise_fences, stop_orphans
from services.orchestrator.domain.tick_plan import begun_to_tick

# What drains is looked at often at first, a twentieth later each time at most.
DRAIN_RECHECK_S = 0.05
LONGEST_DRAIN_RECHECK_S = 1.0
DEADLINE_SLACK_S = 0.05


def make_plan(snapshot: Snapshot) -> Plan:
    """All actions for now."""
    first = plan_taking_over(snapshot)
    if first is None and (repair := plan_ingress_repair(snapshot)):
        first = repair
    if first is not None:
        return Plan(tuple(first))
    actions: list[Action] = [*raise_fences(snapshot), *stop_orphans(snapshot)]
    if snapshot.route != snapshot.wanted_route:
        actions.append(WriteRoute(snapshot.wanted_route))
    actions += plan_stream(snapshot)
    actions += plan_consumers(snapshot)
    for number in snapshot.flow.live:
        actions += plan_deployment(snapshot, number)
    flow_change = _flow_change(snapshot)
    operation_actions = plan_operations(snapshot)
    if isinstance(flow_change, UpdateFlow):
        document = begun_to_tick(snapshot.flow, flow_change.document, snapshot.now)
        flow_change = UpdateFlow(note_gap(snapshot, document), flow_change.why)
    if flow_change is not None:
        operation_actions = [action for action in operation_actions if not isinstance(action, UpdateFlow)]
        actions.append(flow_change)
    actions += operation_actions
    if not any(isinstance(action, UpdateFlow | ConfirmIngress | Forget) for action in actions):
        if snapshot.flow.history:
            actions.append(RecordHistory())
        else:
            actions += plan_strays(snapshot)
    return Plan(tuple(actions), _recheck(snapshot))


def plan_stream(snapshot: Snapshot) -> list[Action]:
    """Create it, repair it, prove the ingress, clear old barriers, drop what a person dropped."""
    wanted = wanted_stream(snapshot)
    if wanted is None:
        return []
    stream = snapshot.stream
    if stream is None:
        return [EnsureStream(wanted, create=True, why="missing")]
    if dict(stream.config) != wanted:
        different = sorted(key for key in {*wanted, *stream.config} if stream.config.get(key) != wanted.get(key))
        return [EnsureStream(wanted, create=False, why=f"differs in {', '.join(different)}")]
    if not snapshot.flow.ingress_confirmed:
        return [ConfirmIngress(snapshot.flow.ingress)]
    barriers = {owner for owner, step in stream.counts if step == subjects.BARRIER_STEP}
    return [PurgeBarriers(owner) for owner in sorted(barriers)]


def plan_consumers(snapshot: Snapshot) -> list[Action]:
    """Missing ones are created, different ones repaired, those of nobody deleted."""
    stream = snapshot.stream
    if stream is None or not snapshot.flow.has_stream:
        return []
    actions: list[Action] = []
    wanted = wanted_consumers(snapshot)
    for name, (config, paused) in wanted.items():
        view = snapshot.consumers.get(name)
        if view is None:
            if all(stream.takes(_owner_filter(item)) for item in _filters(config)):
                actions.append(EnsureConsumer(config, paused))
        elif dict(view.config) != config:
            moved = _filters(dict(view.config)) != _filters(config)
            actions.append(EnsureConsumer(config, paused, recreate=moved))
        elif view.paused != paused:
            actions.append(PauseConsumer(name, paused))
    actions += [DeleteConsumer(name) for name in sorted(snapshot.consumers) if name not in wanted]
    return actions


def _filters(config: dict[str, object]) -> tuple[str, ...]:
    several = config.get("filter_subjects")
    return tuple(several) if isinstance(several, tuple) else (str(config.get("filter_subject", "")),)


def _owner_filter(subject: str) -> str:
    parsed = subjects.parse_data_subject(subject)
    return subjects.owner_filter(parsed.workspace, parsed.flow, parsed.owner)


def _flow_change(snapshot: Snapshot) -> Action | None:
    if snapshot.flow.state == FlowState.STOPPING:
        return _stopping(snapshot)
    if snapshot.flow.target:
        return _switch(snapshot)
    return plan_suspension(snapshot) or _closing(snapshot)


def _switch(snapshot: Snapshot) -> Action | None:
    """The way of the target deployment to the ingress, and what follows when it fails."""
    flow = snapshot.flow
    phase = snapshot.phase_of(flow.target)
    if phase == DeploymentPhase.FAILED:
        if flow.state == FlowState.STARTING:
            stopped = next_state(flow.flow, flow.state, FlowEvent.START_FAILED)
            return UpdateFlow(_without_target(give_ingress(flow, "", state=stopped)), "start failed")
        return UpdateFlow(_without_target(flow), "the new deployment failed, the old one stays")
    if flow.rollout.strategy == Strategy.RESTART and flow.ingress != subjects.deployment_owner(flow.target):
        restarting = _restarting(snapshot)
        if restarting is not None:
            return restarting
    owner = subjects.deployment_owner(flow.target)
    if phase == DeploymentPhase.WARM and hands_over(snapshot) and flow.ingress != owner:
        return UpdateFlow(give_ingress(flow, owner, parking_used=True), "the old listener drains first")
    active = phase == DeploymentPhase.ACTIVE and (all_active(snapshot, flow.target) or waited_long_enough(snapshot))
    if not active:
        return _closing(snapshot)
    if flow.ingress != owner:
        return UpdateFlow(give_ingress(flow, owner, parking_used=True), "ingress decided")
    if flow.ingress_confirmed and (_trigger_open(snapshot, flow.target) or waits_for_older(snapshot, flow.target)):
        return UpdateFlow(_taken_over(snapshot), "deployment took over")
    return _closing(snapshot)


def _restarting(snapshot: Snapshot) -> Action | None:
    """Parks the ingress once the target's pins are known, and gives the target its time once the old are gone."""
    flow = snapshot.flow
    view = snapshot.deployments[flow.target]
    if flow.active:
        if view.plan is None or view.state is None:
            return None
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
    return _without_target(taken)


def _same_pins(snapshot: Snapshot, one: int, other: int) -> bool:
    plans = [view.plan for number in (one, other) if (view := snapshot.deployments.get(number)) is not None]
    digests = [{step.name: step.pin.digest for step in plan.steps} for plan in plans if plan is not None]
    return len(digests) == 2 and digests[0] == digests[1]


def _without_target(flow: FlowDocument) -> FlowDocument:
    return change(flow, target=0, target_version=0, rollout=Rollout(), target_deadline=0.0)


def _stopping(snapshot: Snapshot) -> Action | None:
    flow = snapshot.flow
    if snapshot.route != snapshot.wanted_route:
        return None  # gateways refuse first
    if flow.ingress:
        return UpdateFlow(give_ingress(flow, ""), "ingress closed")
    if flow.live:
        return _closing(snapshot)
    left = sum(snapshot.stream.counts.values()) if snapshot.stream else 0
    if dropping(flow) and left:
        return DropMessages(flow.operation.id if flow.operation else "", left)
    if flow.has_stream and not flow.ingress_confirmed:
        return None
    stopped = next_state(flow.flow, flow.state, FlowEvent.STOPPED)
    document = change(flow, state=stopped, stop_mode="", active=0, active_version=0)
    return UpdateFlow(_without_target(document), "stopped")


def _closing(snapshot: Snapshot) -> Action | None:
    """Takes the owner of a drained deployment out of the stream, and puts it back if something came late."""
    flow = snapshot.flow
    for number in flow.live:
        if snapshot.phase_of(number) != DeploymentPhase.DRAINING:
            continue
        if number in flow.closed:
            if not dropping(flow) and waiting_of(snapshot, number) and not _settling(snapshot, number):
                closed = tuple(other for other in flow.closed if other != number)
                return UpdateFlow(change(flow, closed=closed), f"d{number} got late messages, drains on")
        elif dropping(flow) or drained(snapshot, number) or _may_settle(snapshot, number):
            return UpdateFlow(change(flow, closed=(*flow.closed, number)), f"d{number} is drained")
    return None


def _settling(snapshot: Snapshot, number: int) -> bool:
    return settling(snapshot.deployments[number].state)


def _may_settle(snapshot: Snapshot, number: int) -> bool:
    """What waits is to be stored elsewhere, and nobody works on it any more."""
    flow = snapshot.flow
    gained = flow.ingress == subjects.deployment_owner(number)
    return _settling(snapshot, number) and flow.ingress_confirmed and not gained and nobody_works(snapshot, number)


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
    plan = snapshot.deployments[deployment].plan
    assert plan is not None
    consumer = snapshot.consumers.get(subjects.step_consumer(deployment, plan.trigger))
    return consumer is not None and not consumer.paused


def waiting_of(snapshot: Snapshot, deployment: int) -> int:
    """Messages stored for a deployment, those parked for it included."""
    count = snapshot.waiting(subjects.deployment_owner(deployment))
    plan = snapshot.deployments[deployment].plan
    if plan is not None and plan.parking_epoch:
        count += snapshot.waiting(subjects.parking_owner(plan.parking_epoch))
    return count


def drained(snapshot: Snapshot, deployment: int) -> bool:
    """Barrier seen, nothing stored, and every instance holds nothing (or is confirmed dead by its agent)."""
    flow = snapshot.flow
    state = snapshot.deployments[deployment].state
    assert state is not None
    if not flow.ingress_confirmed or flow.ingress == subjects.deployment_owner(deployment):
        return False
    if snapshot.stream is None or not snapshot.agent_known or waiting_of(snapshot, deployment):
        return False
    for instance in snapshot.wanted_instances(deployment):
        if instance.name not in snapshot.instances:
            continue
        status = snapshot.statuses.get(instance.name)
        if status is None or status.progress != Progress.DRAINED or status.generation < state.generation:
            return False
    return True


def _recheck(snapshot: Snapshot) -> float | None:
    flow = snapshot.flow
    times: list[float] = []
    for number in flow.live:
        view = snapshot.deployments.get(number)
        if view is not None and view.state is not None and view.state.phase == DeploymentPhase.DRAINING:
            drained_for = snapshot.now - view.state.changed_at
            times.append(min(LONGEST_DRAIN_RECHECK_S, max(DRAIN_RECHECK_S, drained_for / 20)))
    if (suspended := recheck_s(flow)) is not None:
        times.append(suspended)
    if flow.operation is not None and flow.operation.deadline > snapshot.now:
        times.append(flow.operation.deadline - snapshot.now + DEADLINE_SLACK_S)
    if flow.target_deadline > snapshot.now:
        times.append(flow.target_deadline - snapshot.now + DEADLINE_SLACK_S)
    return min(times, default=None)
