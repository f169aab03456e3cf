"""What a person's verbs change in the flow document; WrongState or InvalidInput where they do not fit."""

from __future__ import annotations

from headrace.model import subjects
from headrace.model.errors import Conflict, NotFound, WrongState
from headrace.model.flow_spec import FlowSpec
from services.orchestrator.domain.documents import (
    DRAIN,
    DROP,
    FlowDocument,
    OperationIntent,
    change,
    give_ingress,
)
from services.orchestrator.domain.flow_states import FlowEvent, FlowState, next_state, wrong_state


def etag_of(document: FlowDocument) -> str:
    return f"{document.edit}"


def check_etag(document: FlowDocument, etag: str) -> None:
    """Conflict when a person's etag is given and is not the flow's."""
    if etag and etag != etag_of(document):
        raise Conflict(
            f"etag {etag!r} is not the one of flow {document.flow!r} ({etag_of(document)!r}): it was changed meanwhile",
            reason="ETAG_MISMATCH",
            next_step=f"Read it again: headrace flow status {document.flow}",
        )


def set_draft(document: FlowDocument, spec: FlowSpec) -> FlowDocument:
    """Replaces the draft; the type may change only while the flow is stopped."""
    if document.state != FlowState.STOPPED and spec.type != document.flow_type:
        raise wrong_state(document.flow, document.state, "change its type")
    flow_type = spec.type if document.state == FlowState.STOPPED else document.flow_type
    return change(document, draft=spec, flow_type=flow_type, edit=document.edit + 1)


def check_idle(document: FlowDocument, verb: str) -> None:
    """WrongState unless the flow is stopped and nothing is being done for it."""
    if document.state != FlowState.STOPPED:
        raise wrong_state(document.flow, document.state, verb)
    if document.operation is not None or document.live:
        raise _busy(document, verb)


def begin_publish(document: FlowDocument, intent: OperationIntent) -> tuple[FlowDocument, OperationIntent]:
    """The draft becomes the next version; where the flow runs, a deployment of it is begun."""
    if document.draft is None:
        raise WrongState(
            f"flow {document.flow!r} has no draft to publish",
            reason="NO_DRAFT",
            next_step="Change it first: headrace flow apply FILE",
        )
    if document.state not in (FlowState.STOPPED, FlowState.RUNNING):
        raise wrong_state(document.flow, document.state, "publish")
    if document.target or document.operation is not None:
        raise _busy(document, "publish")
    version = document.latest_version + 1
    changed = change(document, draft=None, latest_version=version, edit=document.edit + 1)
    if document.state == FlowState.STOPPED:
        intent = _numbered(intent, version, 0)
        return change(changed, operation=intent), intent
    return _with_target(changed, version, document.draft.max_waiting, intent)


def begin_start(
    document: FlowDocument, version: int, spec: FlowSpec, intent: OperationIntent
) -> tuple[FlowDocument, OperationIntent]:
    """STOPPED to STARTING: a deployment number, and the ingress to a parking epoch of its own."""
    state = next_state(document.flow, document.state, FlowEvent.START)
    if document.operation is not None:
        raise _busy(document, "start")
    epoch = document.parking_epoch + 1 if document.parking_used else document.parking_epoch
    started = give_ingress(
        document,
        subjects.parking_owner(epoch),
        state=state,
        flow_type=spec.type,
        parking_epoch=epoch,
        parking_used=False,
        has_stream=True,
        edit=document.edit + 1,
    )
    return _with_target(started, version, spec.max_waiting, intent)


def begin_stop(document: FlowDocument, mode: str, intent: OperationIntent) -> tuple[FlowDocument, OperationIntent]:
    """To STOPPING; overtakes a start, a publish or an earlier stop that is not at its end."""
    if document.state == FlowState.STOPPED and mode == DRAIN:
        raise wrong_state(document.flow, document.state, "stop")
    if document.state == FlowState.STOPPING and (mode == DRAIN or document.stop_mode == DROP):
        if document.operation is not None:
            raise wrong_state(document.flow, document.state, "stop")
        mode = document.stop_mode or mode
    state = next_state(document.flow, document.state, FlowEvent.STOP)
    overtaken = (*document.overtaken, document.operation) if document.operation else document.overtaken
    intent = _numbered(intent, document.active_version or document.target_version, document.active or document.target)
    changed = change(
        document, state=state, stop_mode=mode, operation=intent, overtaken=overtaken, edit=document.edit + 1
    )
    return changed, intent


def pick_version(document: FlowDocument, version: int) -> int:
    """The version asked for, or the newest; NotFound when there is none."""
    if document.latest_version == 0:
        raise WrongState(
            f"flow {document.flow!r} has no version yet",
            reason="NOT_PUBLISHED",
            next_step=f"Publish its draft: headrace flow publish {document.flow}",
        )
    if version > document.latest_version:
        raise NotFound(
            f"flow {document.flow!r} has no version {version}; the newest is {document.latest_version}",
            next_step=f"Use a version from 1 to {document.latest_version}",
        )
    return version or document.latest_version


def _with_target(
    document: FlowDocument, version: int, max_waiting: int, intent: OperationIntent
) -> tuple[FlowDocument, OperationIntent]:
    number = document.next_deployment
    intent = _numbered(intent, version, number)
    changed = change(
        document,
        target=number,
        target_version=version,
        next_deployment=number + 1,
        live=(*document.live, number),
        max_waiting=max_waiting,
        operation=intent,
    )
    return changed, intent


def _numbered(intent: OperationIntent, version: int, deployment: int) -> OperationIntent:
    return OperationIntent(intent.id, intent.verb, version, deployment, intent.created_at, intent.deadline)


def _busy(document: FlowDocument, verb: str) -> WrongState:
    if document.operation is not None:
        running = f"operations/{document.operation.id}"
    else:
        running = f"deployment {document.target or (document.live[0] if document.live else 0)}"
    return WrongState(
        f"flow {document.flow!r} is busy with {running}: cannot {verb} now",
        reason="BUSY",
        next_step=f"Wait for it: headrace flow status {document.flow}",
        metadata={"busy_with": running},
    )
