"""Messages that failed for good where their step says `on_error: suspend-flow`: the flow is suspended, they wait.

Sidecars keep such messages unacknowledged and report them until the flow is resumed. So whoever is killed: what the
sidecar forgets it finds again by the redelivery, what the orchestrator forgets it reads again from the status. A
resume is a number that rises in the flow's document, then in the states of its deployments, then in the sidecars;
only what is stuck since the newest resume suspends the flow.
"""

from __future__ import annotations

import msgspec

from headrace.model.deployment import DeploymentPhase, DeploymentState
from services.orchestrator.domain.actions import SetState, UpdateFlow
from services.orchestrator.domain.documents import FlowDocument, SuspensionRecord, change
from services.orchestrator.domain.flow_states import FlowEvent, FlowState, next_state
from services.orchestrator.domain.snapshot import DeploymentView, Snapshot, StatusView

WORKING = (DeploymentPhase.ACTIVE, DeploymentPhase.DRAINING)


def stuck_in(snapshot: Snapshot, number: int) -> list[tuple[str, StatusView]]:
    """Steps of a deployment, with the status of an instance that holds a message which failed since the last resume."""
    view = snapshot.deployments.get(number)
    if view is None or view.state is None:
        return []
    found = []
    for instance in snapshot.wanted_instances(number):
        status = snapshot.statuses.get(instance.name)
        if status is not None and status.stuck and status.resumed >= max(view.state.resumed, snapshot.flow.resumed):
            found.append((instance.step, status))
    return found


def plan_error_suspension(snapshot: Snapshot, time_s: float) -> UpdateFlow | None:
    """Suspends a flow that runs, whose deployment has a message that failed for good."""
    flow = snapshot.flow
    if flow.state != FlowState.RUNNING or flow.target:
        return None
    stuck = stuck_in(snapshot, flow.active)
    if not stuck or stuck[0][1].stuck_message is None:
        return None
    step, message = stuck[0][0], stuck[0][1].stuck_message
    record = SuspensionRecord(
        snapshot.now,
        snapshot.now + time_s,
        flow.max_waiting,
        step=step,
        error_code=message.code,
        error_message=message.error,
        message_id=message.message_id,
        execution_id=message.execution_id,
    )
    state = next_state(flow.flow, flow.state, FlowEvent.SUSPEND)
    document = change(flow, state=state, suspension=record, edit=flow.edit + 1)
    return UpdateFlow(document, f"a message failed for good at step {step}")


def tried_again(flow: FlowDocument) -> int:
    """The number of resumes after a suspended flow goes on or is stopped."""
    return flow.resumed + 1 if flow.suspension is not None and flow.suspension.step else flow.resumed


def resumed_state(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> SetState | None:
    """The state of a deployment that does not know of the newest resume."""
    if state.phase not in WORKING or state.resumed >= snapshot.flow.resumed:
        return None
    changed = msgspec.structs.replace(state, resumed=snapshot.flow.resumed, generation=state.generation + 1)
    return SetState(view.number, changed, "what is stuck is tried again")


def held_back(snapshot: Snapshot) -> int:
    """Messages that sidecars keep and do not work on."""
    return sum(status.stuck for status in snapshot.statuses.values())


def stuck_problem(snapshot: Snapshot) -> str:
    """What `flow status` says of a flow that a message suspended; empty for others."""
    flow, record = snapshot.flow, snapshot.flow.suspension
    if record is None or not record.step:
        return ""
    return (
        f"step {record.step!r} failed a message for good ({record.error_code}: {record.error_message}), so the flow "
        "is suspended (on_error: suspend-flow). The message waits. Mend the cause, then try it again: headrace flow "
        f"resume {flow.flow}"
    )


def stuck_drain_problems(snapshot: Snapshot) -> list[str]:
    """Messages that failed for good and hold up the drain of a deployment."""
    problems = []
    for number in snapshot.flow.live:
        if snapshot.phase_of(number) != DeploymentPhase.DRAINING:
            continue
        for step, status in stuck_in(snapshot, number):
            message = status.stuck_message
            cause = f" ({message.code}: {message.error})" if message is not None else ""
            problems.append(
                f"step {step!r} (d{number}) failed {status.stuck} messages for good{cause}; they hold up the drain, "
                "whose limit brings the choice to dead-letter or move them"
            )
    return problems
