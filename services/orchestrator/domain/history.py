"""What a change of a flow's document means to people, read off the document before and after it.

The entries are written into the document with the change itself, by the same compare-and-set, and leave it once
they are stored: so each decision that was made is recorded exactly once, whoever is killed in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from headrace.model.deployment import DeploymentPhase, PinPlan
from headrace.model.flow_spec import FlowSpec
from services.orchestrator.domain.documents import FlowDocument, OperationIntent
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.history_entry import HistoryEntry
from services.orchestrator.domain.snapshot import DeploymentView

# More than can ever wait; past it the oldest are given up rather than the flow.
MAX_WAITING = 200
MAX_DETAIL = 500

Facts = dict[str, object]


def noted(
    before: FlowDocument | None,
    after: FlowDocument,
    who: str,
    now: float,
    deployments: Mapping[int, DeploymentView] | None = None,
) -> FlowDocument:
    """`after` with the entries of this change. `deployments` are those that the decision rested on."""
    entries = list(after.history)
    number = after.history_next
    for facts in _changes(before, after, deployments or {}):
        by = str(facts.pop("who", "") or who)
        entries.append(HistoryEntry(number=number, at=now, who=by, flow=after.flow, **facts))  # type: ignore[arg-type]
        number += 1
    if number == after.history_next:
        return after
    return msgspec.structs.replace(after, history=tuple(entries[-MAX_WAITING:]), history_next=number)


def _changes(
    before: FlowDocument | None, after: FlowDocument, deployments: Mapping[int, DeploymentView]
) -> Iterator[Facts]:
    if before is None:
        yield {"what": "create"}
        return
    yield from _asked(before, after)
    yield from _came_of_it(before, after, deployments)
    if after.act != before.act:
        yield {"what": after.act.what, "detail": after.act.detail[:MAX_DETAIL]}
    work = before.letters.work
    if work is not None and after.letters.work is None and work.count:
        yield {"what": f"dead-letters-{work.action}", "who": work.who, "detail": f"{work.count} letters: {work.what}"}


def _asked(before: FlowDocument, after: FlowDocument) -> Iterator[Facts]:
    """What a person wanted."""
    intent, earlier = after.operation, before.operation
    if intent is not None and (earlier is None or earlier.id != intent.id):
        yield {
            "what": intent.verb,
            "version": intent.version,
            "deployment": intent.deployment,
            "detail": _details(after, intent),
            "operation": f"operations/{intent.id}",
        }
        return
    if intent is not None and earlier is not None and intent.cancelled and not earlier.cancelled:
        yield {"what": "cancel", "detail": intent.verb, "operation": f"operations/{intent.id}"}
    if after.flow_type != before.flow_type and (intent is None or intent == earlier) and after.draft == before.draft:
        yield {"what": "set-type", "version": after.latest_version, "detail": after.flow_type}
    if after.draft is not None and after.draft != before.draft:
        yield {"what": "draft", "detail": _references(before.draft, after.draft)[:MAX_DETAIL]}
    if after.refreshes > before.refreshes:
        yield {"what": "refresh-credentials", "deployment": after.active, "detail": after.refreshed[:MAX_DETAIL]}
    for version in sorted(set(after.deleted_versions) - set(before.deleted_versions)):
        yield {"what": "delete-version", "version": version}


def _references(before: FlowSpec | None, after: FlowSpec) -> str:
    """What a draft names: all of it, or what is other than in the draft before."""
    old = {step.name: step.runs for step in before.steps} if before is not None else {}
    new = {step.name: step.runs for step in after.steps}
    if not old:
        return ", ".join(f"{step}={component}" for step, component in new.items())
    changed = [
        f"{step}={component}" + (f" (was {old[step]})" if step in old else "")
        for step, component in new.items()
        if old.get(step) != component
    ]
    return ", ".join([*changed, *(f"without {step}" for step in old if step not in new)])


def _details(after: FlowDocument, intent: OperationIntent) -> str:
    if intent.verb == "stop":
        return after.stop_mode
    if intent.step:
        return f"{intent.step}={intent.replicas}"
    return intent.choice


def _came_of_it(
    before: FlowDocument, after: FlowDocument, deployments: Mapping[int, DeploymentView]
) -> Iterator[Facts]:
    """What the orchestrator decided."""
    if after.active and after.active != before.active:
        yield {
            "what": "running",
            "version": after.active_version,
            "deployment": after.active,
            "pins": _pins(deployments.get(after.active)),
        }
    if before.target and not after.target and after.active != before.target:
        view = deployments.get(before.target)
        cause = view.state.cause if view is not None and view.state is not None else ""
        yield {
            "what": "failed",
            "version": before.target_version,
            "deployment": before.target,
            "pins": _pins(view),
            "detail": cause[:MAX_DETAIL],
        }
    if after.state != before.state:
        if after.state == FlowState.STOPPED and before.state == FlowState.STOPPING:
            yield {"what": "stopped", "version": before.active_version}
        elif after.state == FlowState.SUSPENDED:
            yield {
                "what": "suspended",
                "version": after.active_version,
                "deployment": after.active,
                "detail": _why_suspended(after),
            }
    for number in before.live:
        view = deployments.get(number)
        failed = view is not None and view.state is not None and view.state.phase == DeploymentPhase.FAILED
        if number not in after.live and not failed:
            version = view.plan.version if view is not None and view.plan is not None else 0
            yield {"what": "retired", "version": version, "deployment": number}
    if after.ingress_repairs > before.ingress_repairs:
        yield {"what": "ingress-repaired", "detail": f"back to {after.ingress or 'closed'}"}
    if after.strays_moved > before.strays_moved:
        yield {"what": "strays-moved", "detail": f"{after.strays_moved - before.strays_moved} messages"}
    if after.stuck_redelivered > before.stuck_redelivered:
        count = after.stuck_redelivered - before.stuck_redelivered
        yield {"what": "stuck-redelivered", "detail": f"{count} messages"}


def _why_suspended(after: FlowDocument) -> str:
    record = after.suspension
    if record is None or not record.step:
        return ""
    return f"step {record.step}: {record.error_code}: {record.error_message}"[:MAX_DETAIL]


def _pins(view: DeploymentView | None) -> dict[str, PinPlan]:
    return {step.name: step.pin for step in view.plan.steps} if view is not None and view.plan is not None else {}
