"""Decided and observed in, what to do now out. Pure: the same snapshot gives the same plan.

Several deployments of a flow may be live at once; each is planned by its phase. The flow document changes at
most once per plan, and a deployment's state at most once. An empty plan means: wait for the next report.
"""

from __future__ import annotations

from headrace.model.deployment import DeploymentPhase
from services.orchestrator.domain.actions import (
    Action,
    ConfirmIngress,
    Forget,
    Plan,
    RecordHistory,
    UpdateFlow,
    WriteRoute,
)
from services.orchestrator.domain.asset_plan import plan_consumers, plan_stream
from services.orchestrator.domain.closing import plan_closing, plan_stopping
from services.orchestrator.domain.deployment_planner import plan_deployment
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.ingress_repair import plan_ingress_repair
from services.orchestrator.domain.letter_planner import plan_letters
from services.orchestrator.domain.listener_handover import note_gap
from services.orchestrator.domain.operation_planner import plan_operations
from services.orchestrator.domain.sleeping import plan_sleep
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.domain.strays import plan_strays
from services.orchestrator.domain.stuck_messages import plan_stuck
from services.orchestrator.domain.stuck_messages import recheck_s as stuck_recheck_s
from services.orchestrator.domain.stuck_steps import plan_error_suspension
from services.orchestrator.domain.suspension import DEFAULT_TIME_S, plan_suspension, recheck_s
from services.orchestrator.domain.switching import plan_switch
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
    actions += plan_letters(snapshot)
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
            actions += plan_strays(snapshot) or plan_stuck(snapshot)
    return Plan(tuple(actions), _recheck(snapshot))


def _flow_change(snapshot: Snapshot) -> Action | None:
    if snapshot.flow.state == FlowState.STOPPING:
        return plan_stopping(snapshot)
    if snapshot.flow.target:
        return plan_switch(snapshot)
    suspension = plan_error_suspension(snapshot, DEFAULT_TIME_S) or plan_suspension(snapshot)
    return suspension or plan_closing(snapshot) or plan_sleep(snapshot)


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
    if (stuck := stuck_recheck_s(snapshot)) is not None:
        times.append(stuck)
    if flow.operation is not None and flow.operation.deadline > snapshot.now:
        times.append(flow.operation.deadline - snapshot.now + DEADLINE_SLACK_S)
    if flow.target_deadline > snapshot.now:
        times.append(flow.target_deadline - snapshot.now + DEADLINE_SLACK_S)
    return min(times, default=None)
