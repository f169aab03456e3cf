"""What a person's verbs change in the flow document; WrongState or InvalidInput where they do not fit."""

from __future__ import annotations

import msgspec

from headrace.model import subjects
from headrace.model.deployment import DeploymentPlan
from headrace.model.errors import Conflict, NotFound, WrongState
from headrace.model.flow_graph import find_trigger
from headrace.model.flow_spec import FlowSpec
from services.orchestrator.domain.documents import (
    DEFAULT_ROLLOUT,
    DRAIN,
    DRAIN_LIMIT_S,
    DROP,
    FlowDocument,
    OperationIntent,
    Rollout,
    Strategy,
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


def begin_publish(
    document: FlowDocument, intent: OperationIntent, rollout: Rollout = DEFAULT_ROLLOUT
) -> tuple[FlowDocument, OperationIntent]:
    """The draft becomes the next version; where the flow runs, a deployment of it is begun."""
    if document.draft is None:
        raise WrongState(
            f"flow {document.flow!r} has no draft to publish",
            reason="NO_DRAFT",
            next_step="Change it first: headrace flow apply FILE; for new revisions of its components: "
            f"headrace flow restart {document.flow}",
        )
    if document.state not in (FlowState.STOPPED, FlowState.RUNNING):
        raise wrong_state(document.flow, document.state, "publish")
    check_free(document, "publish")
    version = document.latest_version + 1
    changed = change(document, draft=None, latest_version=version, edit=document.edit + 1)
    if document.state == FlowState.STOPPED:
        intent = _numbered(intent, version, 0)
        return change(changed, operation=intent), intent
    return _with_target(changed, version, document.draft, intent, rollout)


def begin_restart(
    document: FlowDocument, spec: FlowSpec, intent: OperationIntent, rollout: Rollout
) -> tuple[FlowDocument, OperationIntent]:
    """A new deployment of the version that runs; `spec` is that version's."""
    check_running(document, "restart")
    check_free(document, "restart")
    rollout = msgspec.structs.replace(rollout, replicas_of=document.active)
    changed = change(document, edit=document.edit + 1)
    return _with_target(changed, document.active_version, spec, intent, rollout)


def begin_rollback(
    document: FlowDocument, version: int, spec: FlowSpec, intent: OperationIntent, rollout: Rollout
) -> tuple[FlowDocument, OperationIntent]:
    """A deployment of a version with the digests it last ran with; a stopped flow is started with them."""
    if document.state not in (FlowState.STOPPED, FlowState.RUNNING):
        raise wrong_state(document.flow, document.state, "rollback")
    check_free(document, "rollback")
    rollout = msgspec.structs.replace(rollout, pins_of=rollback_source(document, version))
    if document.state == FlowState.STOPPED:
        return begin_start(
            document, version, spec, intent, msgspec.structs.replace(rollout, strategy=Strategy.WARM_SWITCH)
        )
    return _with_target(change(document, edit=document.edit + 1), version, spec, intent, rollout)


def rollback_source(document: FlowDocument, version: int) -> int:
    """The deployment whose digests a rollback to a version uses: the last one that ran it; where that one runs
    now, the one before."""
    pick_version(document, version)
    last = document.last_deployments.get(str(version), 0)
    if not last:
        raise WrongState(
            f"version {version} of flow {document.flow!r} has never run: there is nothing to roll back to",
            reason="NEVER_RAN",
            next_step=f"Versions that ran: {', '.join(sorted(document.last_deployments, key=int)) or 'none'}",
        )
    if last != document.active:
        return last
    earlier = document.earlier_deployments.get(str(version), 0)
    if not earlier:
        raise WrongState(
            f"version {version} of flow {document.flow!r} runs already, and has not run with other revisions before",
            reason="RUNS_ALREADY",
            next_step=f"Versions that ran: {', '.join(sorted(document.last_deployments, key=int))}",
        )
    return earlier


def check_takeover(document: FlowDocument, running: DeploymentPlan, spec: FlowSpec, strategy: Strategy) -> None:
    """WrongState where a spec cannot take over from the plan that runs by this strategy."""
    if spec.type != running.flow_type:
        raise wrong_state(document.flow, document.state, f"change its type from {running.flow_type} to {spec.type}")
    if strategy == Strategy.RESTART:
        return
    changed = []
    if (trigger := find_trigger(spec)) != running.trigger:
        changed.append(f"its trigger is {trigger!r}, was {running.trigger!r}")
    if bool(spec.reply_timeout_s) != bool(running.reply_timeout_s):
        changed.append("it replies to its callers, did not" if spec.reply_timeout_s else "it does not reply, but did")
    if changed:
        raise WrongState(
            f"flow {document.flow!r} cannot be switched warm: {'; '.join(changed)}",
            reason="NEEDS_RESTART",
            next_step="Use the strategy RESTART (--strategy restart): the ingress is parked, the old deployment "
            "drains, then the new one starts",
            metadata={"flow": document.flow},
        )


def delete_version(document: FlowDocument, version: int, used: frozenset[int]) -> FlowDocument:
    """Without that version; `used` are versions of deployments of which something is left."""
    pick_version(document, version)
    holders = []
    if version in used | {document.active_version, document.target_version}:
        holders.append("a deployment of it is live")
    if version == document.latest_version:
        holders.append("it is the newest, which a start uses")
    if document.operation is not None and document.operation.version == version:
        holders.append(f"operations/{document.operation.id} works with it")
    if holders:
        raise WrongState(
            f"version {version} of flow {document.flow!r} is in use: {'; '.join(holders)}",
            reason="VERSION_IN_USE",
            next_step=f"See headrace flow status {document.flow}",
        )
    return change(
        document,
        deleted_versions=tuple(sorted({*document.deleted_versions, version})),
        last_deployments=_without(document.last_deployments, version),
        earlier_deployments=_without(document.earlier_deployments, version),
        edit=document.edit + 1,
    )


def _without(deployments: dict[str, int], version: int) -> dict[str, int]:
    return {key: number for key, number in deployments.items() if key != str(version)}


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
    return _with_target(started, version, spec, intent, rollout)


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
        document,
        state=state,
        stop_mode=mode,
        suspension=None,
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
        raise NotFound(
            f"flow {document.flow!r} has no version {version}; the newest is {document.latest_version}",
            next_step=f"Use a version from 1 to {document.latest_version}",
        )
    if version in document.deleted_versions:
        raise NotFound(f"version {version} of flow {document.flow!r} was deleted", reason="VERSION_NOT_FOUND")
    return version or document.latest_version


def _with_target(
    document: FlowDocument, version: int, spec: FlowSpec, intent: OperationIntent, rollout: Rollout
) -> tuple[FlowDocument, OperationIntent]:
    number = document.next_deployment
    intent = msgspec.structs.replace(_numbered(intent, version, number), against=document.active)
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


def _numbered(intent: OperationIntent, version: int, deployment: int) -> OperationIntent:
    return msgspec.structs.replace(intent, version=version, deployment=deployment)


def check_running(document: FlowDocument, verb: str) -> None:
    """WrongState unless the flow runs."""
    if document.state != FlowState.RUNNING:
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
