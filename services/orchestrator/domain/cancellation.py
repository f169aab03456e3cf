"""What giving up an operation means: which can be undone, until when, and what is said of it."""

from __future__ import annotations

import msgspec

from headrace.model import subjects
from headrace.model.errors import WrongState
from services.orchestrator.domain.documents import FlowDocument, OperationFailure, OperationIntent, change
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.suspension import resumed

CANCELLED = "CANCELLED"
CANCELLED_CAUSE = "a person cancelled it before the deployment took over"

_FINAL = {
    "stop": "the ingress is closed and what waits is being drained or dropped: a drain cannot be undone",
    "resume": "the flow works already",
    "scale": "the number of instances is decided already",
    "drain-choice": "messages are being stored elsewhere already",
}
_INSTEAD = {
    "stop": "Wait until it is stopped, then: headrace flow start {flow}",
    "resume": "Suspend it again: headrace flow suspend {flow}",
    "scale": "When it is done, scale back: headrace flow scale {flow} STEP=N",
    "drain-choice": "Wait for it: headrace flow status {flow}",
}


def cancel(document: FlowDocument, operation: str) -> FlowDocument:
    """The flow document after an operation was given up; WrongState where it cannot be undone.

    A start, publish, restart or rollback that still prepares is undone: its deployment goes, what ran runs on, a
    published version stays. A suspend that waits for work in hand is undone too.
    """
    intent = document.operation
    if intent is None or intent.id != operation:
        raise WrongState(
            f"operations/{operation} is not at work on flow {document.flow!r} any more",
            reason="NOT_CANCELLABLE",
            next_step=f"See headrace flow status {document.flow}",
        )
    given_up = msgspec.structs.replace(intent, cancelled=True)
    if intent.cancelled:
        return document
    if intent.verb == "suspend" and document.state == FlowState.SUSPENDING:
        return change(resumed(document), operation=given_up, edit=document.edit + 1)
    if intent.verb in _FINAL:
        raise _cannot(document, intent, _FINAL[intent.verb], _INSTEAD[intent.verb])
    if document.target == 0 or document.target != intent.deployment:
        raise _cannot(
            document, intent, "it is done, only the rest is being cleared up", "See headrace flow status {flow}"
        )
    if document.ingress == subjects.deployment_owner(document.target):
        cause = f"the ingress belongs to deployment {document.target} already"
        raise _cannot(document, intent, cause, "To go back: headrace flow rollback {flow} VERSION")
    starts = intent.against == 0
    if not starts and document.active == 0:
        cause = f"deployment {intent.against} drains already: a drain cannot be undone"
        raise _cannot(document, intent, cause, "Wait for it: headrace flow status {flow}")
    return change(document, operation=given_up, edit=document.edit + 1)


def cancelled_failure(flow: FlowDocument, intent: OperationIntent, parked: int) -> OperationFailure:
    """What was undone."""
    if flow.active:
        undone = f"deployment {intent.deployment} is gone, deployment {flow.active} ran on untouched"
    else:
        undone = f"deployment {intent.deployment} is gone, the flow is {flow.state}"
        undone += f", {parked} parked messages are kept for the next start" if parked else ""
    if intent.verb == "publish":
        undone += f"; version {intent.version} stays published"
    return OperationFailure(
        CANCELLED,
        CANCELLED,
        f"{intent.verb} of {flow.flow!r} was cancelled and undone: {undone}",
        next_step=f"See headrace flow status {flow.flow}",
        metadata={"flow": flow.flow, "deployment": str(intent.deployment)},
    )


def _cannot(document: FlowDocument, intent: OperationIntent, cause: str, instead: str) -> WrongState:
    return WrongState(
        f"{intent.verb} of {document.flow!r} cannot be cancelled: {cause}",
        reason="NOT_CANCELLABLE",
        next_step=instead.format(flow=document.flow),
        metadata={"operation": intent.id},
    )
