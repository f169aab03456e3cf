"""A flow's status as people see it: from one snapshot, with what gateways and the registry add."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.api.flow.v1 import flow_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase
from services.orchestrator.domain.documents import SuspensionRecord
from services.orchestrator.domain.drain_choice import drain_problem
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.parked_choice import is_given_up
from services.orchestrator.domain.scaling import surplus
from services.orchestrator.domain.snapshot import DeploymentView, Snapshot
from services.orchestrator.domain.stuck_steps import stuck_drain_problems, stuck_problem
from services.orchestrator.domain.suspension import kept, suspension_problem
from services.orchestrator.flow_messages import deployment_message, pin_message, running_operation, timestamp
from services.orchestrator.letter_messages import counts_message
from services.orchestrator.policy_view import flow_policy, step_policy
from services.orchestrator.slot_view import durables_of, slot_statuses

_S = sidecar_pb2
# The worst state of a step's instances is the step's.
_ORDER = (
    _S.STEP_STATE_FAILED,
    _S.STEP_STATE_SHUTTING_DOWN,
    _S.STEP_STATE_STARTING,
    _S.STEP_STATE_SLEEPING,
    _S.STEP_STATE_RUNNING,
)


def flow_status(
    snapshot: Snapshot,
    reports: Mapping[str, sidecar_pb2.InstanceStatus],
    *,
    profile: str,
    webhook_url: str,
    newer: Mapping[str, int],
) -> flow_pb2.FlowStatus:
    """`newer`: newest revision number per component."""
    flow = snapshot.flow
    message = flow_pb2.FlowStatus(
        flow=f"flows/{flow.flow}",
        state=flow_pb2.FlowState.Value(f"FLOW_STATE_{flow.state}"),
        profile=profile,
        ingress_repairs=flow.ingress_repairs,
        strays_moved=flow.strays_moved,
        stuck_redelivered=flow.stuck_redelivered,
        ingress_owner=flow.ingress,
        webhook_url=webhook_url,
        problems=problems_of(snapshot),
        running_operation=running_operation(flow),
        dropped=flow.dropped,
        dead_letters=counts_message(snapshot.letters, flow.letters, snapshot.letter_limits),
    )
    if flow.suspension is not None:
        message.suspension.CopyFrom(_suspension(snapshot, flow.suspension))
    for number in flow.live:
        view = snapshot.deployments.get(number)
        if view is not None:
            message.deployments.append(_deployment_status(snapshot, view))
    shown = flow.active or flow.target
    view = snapshot.deployments.get(shown)
    if view is not None and view.plan is not None:
        message.policy.CopyFrom(flow_policy(view.plan))
        if view.plan.mesh_trigger is not None:
            message.mesh_trigger.CopyFrom(flow_pb2.MeshTrigger(step=view.plan.trigger, to=view.plan.entry))
        for step in view.plan.steps:
            message.steps.append(_step_status(snapshot, view, step.name, reports, newer))
    return message


def _deployment_status(snapshot: Snapshot, view: DeploymentView) -> flow_pb2.DeploymentStatus:
    prefix = subjects.step_consumer(view.number, "")
    in_flight = sum(consumer.in_flight for name, consumer in snapshot.consumers.items() if name.startswith(prefix))
    waiting = max(0, snapshot.waiting_of(view.number) - in_flight)
    message = flow_pb2.DeploymentStatus(
        deployment=deployment_message(snapshot.flow.flow, view.number, view.plan, view.state, view.plan_digest),
        waiting=waiting,
        in_flight=in_flight,
    )
    drain = view.state.drain if view.state is not None else None
    if drain is not None:
        message.drain_choice = flow_pb2.DrainChoice.Value(f"DRAIN_CHOICE_{drain.choice}")
        message.dead_lettered, message.moved = drain.dead_lettered, drain.moved
    return message


def _suspension(snapshot: Snapshot, record: SuspensionRecord) -> flow_pb2.Suspension:
    return flow_pb2.Suspension(
        since=timestamp(record.since),
        until=timestamp(record.until),
        max_messages=record.max_messages,
        kept=kept(snapshot),
        limit_reached=record.reached,
        step=record.step,
        error_code=record.error_code,
        error_message=record.error_message,
        message_id=record.message_id,
        execution_id=record.execution_id,
    )


def _step_status(
    snapshot: Snapshot,
    view: DeploymentView,
    step: str,
    reports: Mapping[str, sidecar_pb2.InstanceStatus],
    newer: Mapping[str, int],
) -> flow_pb2.StepStatus:
    assert view.plan is not None
    pin = view.plan.step(step).pin
    instances = []
    replicas = view.state.replicas.get(step, 1) if view.state is not None else 0
    for wanted in [*snapshot.wanted_instances(view.number), *surplus(snapshot, view.number)]:
        if wanted.step != step:
            continue
        running = snapshot.instances.get(wanted.name)
        report = reports.get(wanted.name) if running is not None and running.up else None
        if report is None:
            state = _S.STEP_STATE_STARTING if running is not None else _S.STEP_STATE_SLEEPING
            cause = running.last_exit if running is not None else ""
            report = _S.InstanceStatus(instance=wanted.name, state=state, cause=cause)
        instances.append(report)
    states = {instance.state for instance in instances}
    owners = snapshot.owners_of(view.number)
    stored = sum(snapshot.stream.stored(owner, step) for owner in owners) if snapshot.stream else 0
    consumers = [snapshot.consumers.get(name) for name in durables_of(view, step)]
    in_flight = sum(consumer.in_flight for consumer in consumers if consumer is not None)
    newest = newer.get(pin.component, 0)
    return flow_pb2.StepStatus(
        step=step,
        state=next((state for state in _ORDER if state in states), _S.STEP_STATE_SLEEPING),
        pin=pin_message(step, pin),
        instances=instances,
        waiting=max(0, stored - in_flight),
        in_flight=in_flight,
        deployment=view.number,
        replicas=replicas,
        newer_revision=newest if newest > pin.revision_number else 0,
        policy=step_policy(view.plan, step, replicas),
        slots=slot_statuses(snapshot, view, step),
    )


def _drain_problem(snapshot: Snapshot, number: int) -> str:
    view = snapshot.deployments.get(number)
    if view is None:
        return ""
    status = _deployment_status(snapshot, view)
    return drain_problem(snapshot, view, status.waiting, status.in_flight)


def problems_of(snapshot: Snapshot) -> list[str]:
    """Why the flow is not what it should be, with the next thing to do."""
    flow = snapshot.flow
    problems: list[str] = []
    if not snapshot.agent_known and (flow.live or flow.state != FlowState.STOPPED):
        problems.append("the agent does not answer: instances are neither started nor stopped. See headrace status")
    lost = snapshot.waiting(subjects.INGRESS)
    if lost:
        problems.append(
            f"{lost} messages are stored under the ingress, where no step reads: the stream was changed from outside"
        )
    for number in flow.live:
        view = snapshot.deployments.get(number)
        if view is None or view.state is None or view.state.phase in (DeploymentPhase.RETIRED, DeploymentPhase.FAILED):
            continue
        for instance in snapshot.wanted_instances(number):
            status = snapshot.statuses.get(instance.name)
            if status is not None and status.progress == "FAILED":
                problems.append(
                    f"step {instance.step!r} (d{number}) failed: {status.cause}. See headrace logs {flow.flow}"
                )
            elif instance.name in snapshot.instances and not snapshot.instances[instance.name].up:
                running = snapshot.instances[instance.name]
                if running.starts > 1:
                    problems.append(f"step {instance.step!r} (d{number}): its sidecar restarts: {running.last_exit}")
    problems += [problem for number in flow.live if (problem := _drain_problem(snapshot, number))]
    if stuck := stuck_problem(snapshot):
        problems.append(stuck)
    problems += stuck_drain_problems(snapshot)
    if suspended := suspension_problem(snapshot):
        problems.append(suspended)
    counts = snapshot.stream.counts if snapshot.stream else {}
    parked = sum(n for (owner, _, _), n in counts.items() if owner[0] == "p")
    if flow.state == FlowState.STOPPED and parked:
        given_up = sum(n for (owner, _, _), n in counts.items() if is_given_up(flow, owner))
        if given_up:
            problems.append(f"{given_up} parked messages go to the dead letters, as was chosen")
        if parked > given_up:
            letters = f"headrace flow drain-choice {flow.flow} --deployment {flow.next_deployment - 1} dead-letter"
            problems.append(
                f"{parked - given_up} parked messages wait for the next start. Start it: headrace flow start "
                f"{flow.flow}; or dead-letter them: {letters}; "
                f"or drop them: headrace flow stop {flow.flow} --drop --yes"
            )
    return problems
