"""When an operation is over, and how: derived from documents, so that no event has to be caught for it."""

from __future__ import annotations

import msgspec

from headrace.model.subjects import deployment_owner
from services.orchestrator.domain import drain_choice, parked_choice
from services.orchestrator.domain.actions import Action, UpdateFlow, WriteOperation
from services.orchestrator.domain.assets import waits_for_older
from services.orchestrator.domain.cancellation import cancelled_failure
from services.orchestrator.domain.documents import (
    OperationDocument,
    OperationFailure,
    OperationIntent,
    change,
    current_epoch,
    is_held,
    operation_of,
    parked_under,
)
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.listener_handover import GAP, broken, handed_over
from services.orchestrator.domain.scaling import scale_outcome
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.domain.suspension import resume_outcome, suspend_outcome

_CODES = {"START_TIMEOUT": "DEADLINE_EXCEEDED", "STOPPED": "ABORTED"}
# Verbs that make no deployment; each says itself when it is over.
_ENDINGS = {
    "suspend": suspend_outcome,
    "resume": resume_outcome,
    "scale": scale_outcome,
    drain_choice.VERB: parked_choice.choice_outcome,
}


def plan_operations(snapshot: Snapshot) -> list[Action]:
    """Writes documents of operations that have begun or ended; clears ended ones from the flow document."""
    flow = snapshot.flow
    actions: list[Action] = []
    open_overtaken: list[OperationIntent] = []
    for intent in flow.overtaken:
        document = snapshot.operations.get(intent.id) or operation_of(flow.flow, intent)
        if not document.done:
            open_overtaken.append(intent)
            by = flow.operation.id if flow.operation else "a later operation"
            failure = OperationFailure("ABORTED", "OVERTAKEN", f"{intent.verb} of {flow.flow!r} was overtaken by {by}")
            actions.append(WriteOperation(_done(document, snapshot.now, failure=failure)))
    if flow.overtaken and not open_overtaken:
        return [UpdateFlow(change(flow, overtaken=()), "overtaken operations ended")]
    intent_now = flow.operation
    if intent_now is None:
        return actions
    document_now = snapshot.operations.get(intent_now.id)
    if document_now is None:
        return [*actions, WriteOperation(operation_of(flow.flow, intent_now))]
    if document_now.done:
        return [*actions, UpdateFlow(change(flow, operation=None), "operation ended")]
    ended = _outcome(snapshot, intent_now, document_now)
    return [*actions, WriteOperation(ended)] if ended is not None else actions


def _done(
    document: OperationDocument, now: float, *, failure: OperationFailure | None = None, message: str = ""
) -> OperationDocument:
    return msgspec.structs.replace(document, done=True, done_at=now, failure=failure, message=message)


def _outcome(snapshot: Snapshot, intent: OperationIntent, document: OperationDocument) -> OperationDocument | None:
    flow, now = snapshot.flow, snapshot.now
    if intent.verb == "stop":
        return _stop_outcome(snapshot, intent, document)
    if intent.verb in _ENDINGS:
        ending = _ENDINGS[intent.verb](snapshot, intent, document)
        if ending is None:
            return None
        over = _done(document, now, failure=ending.failure, message=ending.message)
        return msgspec.structs.replace(over, dead_lettered=ending.dead_lettered, moved=ending.moved)
    if intent.deployment == 0:
        return _done(document, now, message=f"version {intent.version} waits for start")
    late = _late_drain(snapshot, intent)
    if late is not None:
        return _done(document, now, failure=late)
    if flow.active == intent.deployment and not flow.target:
        if waits_for_older(snapshot, intent.deployment):
            return None
        return _took_over(snapshot, intent, document)
    view = snapshot.deployments.get(intent.deployment)
    if view is None or view.state is None or intent.deployment in flow.live:
        return None
    reason = view.state.cause_reason or "START_FAILED"
    parked = snapshot.waiting(parked_under(current_epoch(flow)))
    kept = f" {parked} parked messages are kept for the next start." if parked and not flow.active else ""
    if reason == "CANCELLED":
        return _done(document, now, failure=cancelled_failure(flow, intent, parked))
    failure = OperationFailure(
        _CODES.get(reason, "FAILED_PRECONDITION"),
        reason,
        f"{intent.verb} of {flow.flow!r} failed: {view.state.cause}{kept}",
        next_step=_after_failure(snapshot, intent),
        metadata={"flow": flow.flow, "deployment": str(intent.deployment)},
    )
    return _done(document, now, failure=failure)


def _took_over(snapshot: Snapshot, intent: OperationIntent, document: OperationDocument) -> OperationDocument:
    message = f"version {intent.version} runs as deployment {intent.deployment}"
    view = snapshot.deployments.get(intent.deployment)
    gap_ms = view.state.start_ms.get(GAP) if view is not None and view.state is not None else None
    if gap_ms is None:
        return _done(document, snapshot.now, message=message)
    message += f"; nobody listened for at most {gap_ms:g} ms, while one listener was drained for the next"
    trouble = broken(snapshot, intent.deployment)
    if not trouble:
        return _done(document, snapshot.now, message=message)
    failure = OperationFailure(
        "FAILED_PRECONDITION",
        "LISTENER_FAILED",
        f"{message}; the new one does not work: {trouble}",
        next_step=f"headrace flow rollback {snapshot.flow.flow} VERSION; or correct it, push and restart",
        metadata={"flow": snapshot.flow.flow, "deployment": str(intent.deployment)},
    )
    return _done(document, snapshot.now, failure=failure)


def _after_failure(snapshot: Snapshot, intent: OperationIntent) -> str:
    flow = snapshot.flow
    again = {
        "publish": f"headrace flow apply FILE, then headrace flow publish {flow.flow}",
        "rollback": f"headrace flow rollback {flow.flow} {intent.version}",
    }.get(intent.verb, f"headrace flow {intent.verb} {flow.flow}")
    if flow.active:
        return f"Deployment {flow.active} runs on, untouched. Correct the cause, then: {again}"
    return f"Correct it, push, and run: {again if intent.verb == 'rollback' else f'headrace flow start {flow.flow}'}"


def _late_drain(snapshot: Snapshot, intent: OperationIntent) -> OperationFailure | None:
    """Past its limit the operation ends though older deployments still drain; what was decided goes on."""
    flow = snapshot.flow
    held = flow.target == intent.deployment and not flow.active and is_held(flow, intent.deployment)
    waits = flow.active == intent.deployment and waits_for_older(snapshot, intent.deployment)
    listener = flow.target == intent.deployment and handed_over(snapshot)
    if not (held or waits or listener) or not intent.deadline or snapshot.now <= intent.deadline:
        return None
    older = [number for number in flow.live if number != intent.deployment]
    left = sum(snapshot.waiting(deployment_owner(number)) for number in older)
    names = ", ".join(f"deployment {number}" for number in older)
    return OperationFailure(
        "DEADLINE_EXCEEDED",
        "STILL_DRAINING",
        f"{names} of {flow.flow!r} still drains: {left} messages wait after {intent.deadline - intent.created_at:g} s;"
        f" deployment {intent.deployment} begins when it has",
        next_step=f"It goes on by itself; see headrace flow status {flow.flow}",
        metadata={"flow": flow.flow, "deployment": str(older[0]) if older else ""},
    )


def _stop_outcome(snapshot: Snapshot, intent: OperationIntent, document: OperationDocument) -> OperationDocument | None:
    flow = snapshot.flow
    if flow.state == FlowState.STOPPED:
        left = sum(snapshot.stream.counts.values()) if snapshot.stream else 0
        message = f"stopped; {left} messages are kept for the next start" if left else "stopped"
        if document.dropped:
            message = f"stopped; {document.dropped} messages dropped"
        return _done(document, snapshot.now, message=message)
    if intent.deadline and snapshot.now > intent.deadline:
        left = sum(snapshot.stream.counts.values()) if snapshot.stream else 0
        failure = OperationFailure(
            "DEADLINE_EXCEEDED",
            "STILL_DRAINING",
            f"{flow.flow!r} still drains: {left} messages wait after {intent.deadline - intent.created_at:g} s",
            next_step=f"It goes on draining; to throw them away: headrace flow stop {flow.flow} --drop --yes",
        )
        return _done(document, snapshot.now, failure=failure)
    return None
