"""Suspended flows: every consumer paused, messages kept and accepted up to two limits, resumed as they were.

Nothing of a suspended flow is taken apart: deployment, pins and instances stay. When a limit is reached gateways
refuse first, then the ingress is closed; what is kept stays kept until a person resumes or stops the flow.
"""

from __future__ import annotations

import msgspec

from headrace.model import subjects
from headrace.model.errors import WrongState
from services.orchestrator.domain.actions import UpdateFlow
from services.orchestrator.domain.assets import wanted_consumers
from services.orchestrator.domain.documents import (
    FlowDocument,
    OperationDocument,
    OperationFailure,
    OperationIntent,
    SuspensionRecord,
    change,
    give_ingress,
)
from services.orchestrator.domain.flow_states import RUNS, SUSPENDED_STATES, FlowEvent, FlowState, next_state
from services.orchestrator.domain.operation_ends import Ending
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.domain.stuck_steps import held_back, stuck_problem, tried_again

DEFAULT_TIME_S = 24 * 3600.0
LONGEST_TIME_S = 30 * 24 * 3600.0
MOST_MESSAGES = 1_000_000
LIMIT_REASON = "SUSPEND_LIMIT"
# Statuses are at most 5 s old: after this what they say about work in hand is from after the pause.
STATUS_AGE_S = 6.0
SUSPENDING_RECHECK_S = 0.1
LIMIT_RECHECK_S = 1.0


def begin_suspend(
    document: FlowDocument, intent: OperationIntent, now: float, max_time_s: float, max_messages: int
) -> FlowDocument:
    """RUNNING to SUSPENDING; 0 messages means the flow's edge limit."""
    state = next_state(document.flow, document.state, FlowEvent.SUSPEND)
    intent = msgspec.structs.replace(intent, version=document.active_version, deployment=document.active)
    record = SuspensionRecord(now, now + max_time_s, max_messages or document.max_waiting)
    return change(document, state=state, suspension=record, operation=intent, edit=document.edit + 1)


def begin_resume(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
    """Back to RUNNING: the same deployment gets the ingress again, where a limit had closed it."""
    intent = msgspec.structs.replace(intent, version=document.active_version, deployment=document.active)
    return change(resumed(document), operation=intent, running_since=intent.created_at, edit=document.edit + 1)


def resumed(document: FlowDocument) -> FlowDocument:
    state = next_state(document.flow, document.state, FlowEvent.RESUME)
    owner = subjects.deployment_owner(document.active)
    document = msgspec.structs.replace(document, resumed=tried_again(document))
    if document.ingress != owner:
        return give_ingress(document, owner, state=state, suspension=None)
    return change(document, state=state, suspension=None)


def check_accepts(document: FlowDocument) -> None:
    """WrongState when a limit of the suspension has been reached."""
    record = document.suspension
    if record is not None and record.reached:
        raise WrongState(
            f"flow {document.flow!r} is suspended and {_reached_words(record)}",
            reason=LIMIT_REASON,
            next_step=f"Go on: headrace flow resume {document.flow}",
            metadata={"flow": document.flow, "limit": record.reached},
        )


def kept(snapshot: Snapshot) -> int:
    """Messages of the flow that wait, barriers not counted."""
    counts = snapshot.stream.counts if snapshot.stream else {}
    return sum(n for (_, step, _), n in counts.items() if not step.startswith("_"))


def plan_suspension(snapshot: Snapshot) -> UpdateFlow | None:
    """The next change of a suspended flow's document."""
    flow, record = snapshot.flow, snapshot.flow.suspension
    if flow.state not in SUSPENDED_STATES or record is None:
        return None
    if record.reached:
        if flow.ingress and snapshot.route == snapshot.wanted_route:  # gateways refuse first
            return UpdateFlow(give_ingress(flow, ""), "a limit of the suspension is reached, ingress closed")
    else:
        reached = "TIME" if snapshot.now >= record.until else "COUNT" if kept(snapshot) >= record.max_messages else ""
        if reached:
            full = msgspec.structs.replace(record, reached=reached)
            return UpdateFlow(change(flow, suspension=full), f"limit of the suspension reached: {reached}")
    if flow.state == FlowState.SUSPENDING and nothing_in_work(snapshot):
        state = next_state(flow.flow, flow.state, FlowEvent.SUSPENDED)
        return UpdateFlow(change(flow, state=state), "nothing is in work")
    return None


def nothing_in_work(snapshot: Snapshot) -> bool:
    """Every consumer is paused and nothing that was delivered is unacknowledged.

    What a dead sidecar held stays unacknowledged while its consumer is paused: then the living ones are asked.
    """
    for name in wanted_consumers(snapshot):
        consumer = snapshot.consumers.get(name)
        if consumer is None or not consumer.paused:
            return False
    if sum(consumer.in_flight for consumer in snapshot.consumers.values()) <= held_back(snapshot):
        return True
    record = snapshot.flow.suspension
    if record is None or not snapshot.agent_known or snapshot.now < record.since + STATUS_AGE_S:
        return False
    up = [name for name, instance in snapshot.instances.items() if instance.up]
    return all(name in snapshot.statuses and snapshot.statuses[name].idle for name in up)


def recheck_s(flow: FlowDocument) -> float | None:
    """How soon to look again, although nothing is reported."""
    if flow.state == FlowState.SUSPENDING:
        return SUSPENDING_RECHECK_S
    if flow.state == FlowState.SUSPENDED and flow.suspension is not None and not flow.suspension.reached:
        return LIMIT_RECHECK_S
    return None


def suspend_outcome(snapshot: Snapshot, intent: OperationIntent, document: OperationDocument) -> Ending | None:
    flow, record = snapshot.flow, snapshot.flow.suspension
    if intent.cancelled:
        message = f"suspend of {flow.flow!r} was cancelled: it was undone, deployment {intent.deployment} works on"
        return Ending(failure=OperationFailure("CANCELLED", "CANCELLED", message))
    if flow.state == FlowState.SUSPENDED and record is not None:
        return Ending(
            message=(
                f"suspended; {kept(snapshot)} messages are kept for deployment {flow.active}. New ones are accepted "
                f"for {_duration(record.until - record.since)} and until {record.max_messages} wait; past that they "
                "are refused, and what is kept stays kept"
            )
        )
    if intent.deadline and snapshot.now > intent.deadline:
        in_work = sum(consumer.in_flight for consumer in snapshot.consumers.values())
        failure = OperationFailure(
            "DEADLINE_EXCEEDED",
            "STILL_IN_WORK",
            f"{flow.flow!r} is still suspending: {in_work} messages are in work after "
            f"{intent.deadline - intent.created_at:g} s",
            next_step=f"It becomes SUSPENDED when they are finished; see headrace flow status {flow.flow}",
        )
        return Ending(failure=failure)
    return None


def resume_outcome(snapshot: Snapshot, intent: OperationIntent, document: OperationDocument) -> Ending | None:
    flow = snapshot.flow
    open_again = flow.ingress == subjects.deployment_owner(flow.active) and flow.ingress_confirmed
    wanted = wanted_consumers(snapshot)
    paused = any(
        not wants and (name not in snapshot.consumers or snapshot.consumers[name].paused)
        for name, (_, wants) in wanted.items()
    )
    if flow.state in RUNS and open_again and not paused:
        return Ending(message=f"resumed; deployment {flow.active} goes on with {kept(snapshot)} messages that wait")
    if flow.suspension is not None and flow.suspension.step and flow.suspension.since > intent.created_at:
        return Ending(message=f"resumed, and suspended again: {stuck_problem(snapshot)}")
    if intent.deadline and snapshot.now > intent.deadline:
        failure = OperationFailure(
            "DEADLINE_EXCEEDED",
            "NOT_RESUMED",
            f"{flow.flow!r} does not work again yet",
            next_step=f"See headrace flow status {flow.flow}",
        )
        return Ending(failure=failure)
    return None


def suspension_problem(snapshot: Snapshot) -> str:
    """What a person must know; empty while the suspension takes messages."""
    flow, record = snapshot.flow, snapshot.flow.suspension
    if record is None or not record.reached:
        return ""
    return (
        f"suspended and {_reached_words(record)}: new messages are refused, {kept(snapshot)} are kept. "
        f"Go on: headrace flow resume {flow.flow}; or stop it: headrace flow stop {flow.flow}"
    )


def _reached_words(record: SuspensionRecord) -> str:
    if record.reached == "TIME":
        return f"its time limit of {_duration(record.until - record.since)} is over"
    return f"as many messages wait as it may keep ({record.max_messages})"


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
