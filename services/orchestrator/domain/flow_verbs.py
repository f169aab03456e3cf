"""What a person's verbs change in the flow document; WrongState or InvalidInput where they do not fit."""

from __future__ import annotations

import msgspec

from headrace.model import subjects
from headrace.model.errors import Conflict, NotFound, WrongState
from headrace.model.flow_spec import FlowSpec
from services.orchestrator.domain.documents import (
    DEFAULT_ROLLOUT,
    DRAIN,
    DRAIN_LIMIT_S,
    DROP,
    FlowDocument,
    OperationIntent,
    Rollout,
    change,
    give_ingress,
)
from services.orchestrator.domain.flow_states import RUNS, FlowEvent, FlowState, next_state, wrong_state
from services.orchestrator.domain.stuck_steps import tried_again


def etag_of(document: FlowDocument) -> str:
    return f"{document.edit}"


def check_etag(document: FlowDocument, etag: str) -> None:
    """Conflict when a person's etag is given and is not the flow's."""
    if etag and etag != etag_of(document):
        raise Conflict(
            f"etag {etag!r} is not the one of flow {document.flow!r} ({etag_of(document)!r}): it was changed meanwhile",
            reason="ETAG_MISMATCH",
            next_step=f"Read it again: headrace flow status {document.flow}",
            metadata={"flow": document.flow, "etag": etag_of(document)},
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


def begin_start(
    document: FlowDocument, version: int, spec: FlowSpec, intent: OperationIntent, rollout: Rollout = DEFAULT_ROLLOUT
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
    return with_target(started, version, spec, intent, rollout)


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
    intent = numbered(intent, document.active_version or document.target_version, document.active or document.target)
    changed = change(
        document,
        state=state,
        stop_mode=mode,
        suspension=None,
        resumed=tried_again(document),
        drain_limit_s=intent.deadline - intent.created_at if intent.deadline else document.drain_limit_s,
        operation=intent,
        overtaken=overtaken,
        edit=document.edit + 1,
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
        raise no_version(document, version)
    if version in document.deleted_versions:
        raise NotFound(f"version {version} of flow {document.flow!r} was deleted", reason="VERSION_NOT_FOUND")
    return version or document.latest_version


def with_target(
    document: FlowDocument, version: int, spec: FlowSpec, intent: OperationIntent, rollout: Rollout
) -> tuple[FlowDocument, OperationIntent]:
    number = document.next_deployment
    intent = msgspec.structs.replace(numbered(intent, version, number), against=document.active)
    changed = change(
        document,
        target=number,
        target_version=version,
        next_deployment=number + 1,
        live=(*document.live, number),
        rollout=rollout,
        target_deadline=intent.deadline,
        strict=(*document.strict, number) if rollout.strict_order else document.strict,
        max_waiting=spec.max_waiting,
        drain_limit_s=DRAIN_LIMIT_S,
        operation=intent,
    )
    return changed, intent


def numbered(intent: OperationIntent, version: int, deployment: int) -> OperationIntent:
    return msgspec.structs.replace(intent, version=version, deployment=deployment)


def check_running(document: FlowDocument, verb: str) -> None:
    """WrongState unless the flow runs."""
    if document.state not in RUNS:
        raise wrong_state(document.flow, document.state, verb)


def check_free(document: FlowDocument, verb: str) -> None:
    """WrongState while an operation or a new deployment is on its way."""
    if document.target or document.operation is not None:
        raise _busy(document, verb)


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


def no_version(document: FlowDocument, version: int) -> NotFound:
    """Of a version that a flow does not have."""
    return NotFound(
        f"flow {document.flow!r} has no version {version}; the newest is {document.latest_version}",
        reason="VERSION_NOT_FOUND",
        next_step=f"See those there are: headrace flow show {document.flow}",
    )
