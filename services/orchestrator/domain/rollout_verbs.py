"""What publish, restart and rollback change in the flow document, and what they refuse; deleting a version."""

from __future__ import annotations

import msgspec

from headrace.model.deployment import DeploymentPlan
from headrace.model.errors import WrongState
from headrace.model.flow_graph import find_entry, find_trigger
from headrace.model.flow_spec import FlowSpec
from services.orchestrator.domain.documents import (
    DEFAULT_ROLLOUT,
    FlowDocument,
    OperationIntent,
    Rollout,
    Strategy,
    change,
)
from services.orchestrator.domain.flow_states import RUNS, FlowState, wrong_state
from services.orchestrator.domain.flow_verbs import (
    begin_start,
    check_free,
    check_idle,
    check_running,
    numbered,
    pick_version,
    with_target,
)


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
    if document.state not in (FlowState.STOPPED, *RUNS):
        raise wrong_state(document.flow, document.state, "publish")
    check_free(document, "publish")
    version = document.latest_version + 1
    changed = change(document, draft=None, latest_version=version, edit=document.edit + 1)
    if document.state == FlowState.STOPPED:
        intent = numbered(intent, version, 0)
        return change(changed, operation=intent), intent
    return with_target(changed, version, document.draft, intent, rollout)


def set_type(document: FlowDocument, newest: FlowSpec | None, flow_type: str) -> tuple[FlowDocument, FlowSpec | None]:
    """A stopped flow with another type, and the version that has to be written for it: the newest (None where there
    is none) but for its type."""
    check_idle(document, "change its type")
    version = None
    changes: dict[str, object] = {}
    if newest is not None and newest.type != flow_type:
        version = msgspec.structs.replace(newest, type=flow_type)
        changes["latest_version"] = document.latest_version + 1
    if document.draft is not None and document.draft.type != flow_type:
        changes["draft"] = msgspec.structs.replace(document.draft, type=flow_type)
    if not changes:
        return document, None
    return change(document, flow_type=flow_type, edit=document.edit + 1, **changes), version


def begin_restart(
    document: FlowDocument, spec: FlowSpec, intent: OperationIntent, rollout: Rollout
) -> tuple[FlowDocument, OperationIntent]:
    """A new deployment of the version that runs; `spec` is that version's."""
    check_running(document, "restart")
    check_free(document, "restart")
    rollout = msgspec.structs.replace(rollout, replicas_of=document.active)
    changed = change(document, edit=document.edit + 1)
    return with_target(changed, document.active_version, spec, intent, rollout)


def begin_rollback(
    document: FlowDocument, version: int, spec: FlowSpec, intent: OperationIntent, rollout: Rollout
) -> tuple[FlowDocument, OperationIntent]:
    """A deployment of a version with the digests it last ran with; a stopped flow is started with them."""
    if document.state not in (FlowState.STOPPED, *RUNS):
        raise wrong_state(document.flow, document.state, "rollback")
    check_free(document, "rollback")
    rollout = msgspec.structs.replace(rollout, pins_of=rollback_source(document, version))
    if document.state == FlowState.STOPPED:
        return begin_start(
            document, version, spec, intent, msgspec.structs.replace(rollout, strategy=Strategy.WARM_SWITCH)
        )
    return with_target(change(document, edit=document.edit + 1), version, spec, intent, rollout)


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
    elif (entry := find_entry(spec).name) != running.entry:
        changed.append(f"what comes in goes to step {entry!r}, went to {running.entry!r}")
    if bool(spec.reply_timeout_s) != bool(running.reply_timeout_s):
        changed.append("it replies to its callers, did not" if spec.reply_timeout_s else "it does not reply, but did")
    changed += _other_slots(running, spec)
    if changed:
        raise WrongState(
            f"flow {document.flow!r} cannot be switched warm: {'; '.join(changed)}",
            reason="NEEDS_RESTART",
            next_step="Use the strategy RESTART (--strategy restart): the ingress is parked, the old deployment "
            "drains, then the new one starts",
            metadata={"flow": document.flow},
        )


def _other_slots(running: DeploymentPlan, spec: FlowSpec) -> list[str]:
    """Steps whose messages would go to other slots: their order could not be kept across the switch."""
    found = []
    for step in spec.steps:
        before = next((item for item in running.steps if item.name == step.name), None)
        if before is None or (before.key, before.keyed, before.slots) == (step.key, step.keyed, step.slot_count):
            continue
        was, now = (
            _keying_words(before.key, before.keyed, before.slots),
            _keying_words(step.key, step.keyed, step.slot_count),
        )
        found.append(f"step {step.name!r} is {now}, was {was}")
    return found


def _keying_words(key: str, keyed: bool, slots: int) -> str:
    return f"keyed by {key or 'its message ids'} in {slots} slots" if keyed else "not keyed"


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
