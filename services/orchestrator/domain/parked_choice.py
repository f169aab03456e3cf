"""What was parked for a start (or a RESTART) that failed for good: it waits for the next start, unless a person gives
it up. Then the next start parks under a new epoch, nobody reads the old one any more, and what lies there goes to the
dead letters as strays do.
"""

from __future__ import annotations

from headrace.model.errors import WrongState
from headrace.model.names import is_number
from services.orchestrator.domain.deployment_phases import OVER
from services.orchestrator.domain.documents import (
    FlowDocument,
    GivenUp,
    OperationDocument,
    OperationFailure,
    OperationIntent,
    change,
    current_epoch,
)
from services.orchestrator.domain.drain_choice import DEAD_LETTER, MOVE, WAIT, begin_drain_choice, drain_outcome
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.flow_verbs import numbered
from services.orchestrator.domain.operation_ends import Ending
from services.orchestrator.domain.snapshot import DeploymentView, Snapshot

PARKED = "p"


def keeps_parked(document: FlowDocument, view: DeploymentView | None) -> bool:
    """Whether this deployment, which never came to work, is the one for which messages are parked."""
    return (
        document.state == FlowState.STOPPED
        and view is not None
        and view.plan is not None
        and view.state is not None
        and view.state.phase in OVER
        and view.plan.parking_epoch == current_epoch(document)
    )


def begin_choice(document: FlowDocument, view: DeploymentView, intent: OperationIntent) -> FlowDocument:
    """Notes what is to become of the messages that wait for a deployment: one that drains, or one that failed."""
    if not keeps_parked(document, view):
        return begin_drain_choice(document, view, intent)
    if intent.choice == MOVE:
        raise WrongState(
            f"nothing of flow {document.flow!r} runs that could take what is parked for deployment {view.number}",
            reason="NOTHING_TO_MOVE_TO",
            next_step=f"Start it, the next deployment takes it: headrace flow start {document.flow}",
        )
    assert view.plan is not None
    changed = change(document, operation=numbered(intent, view.plan.version, view.number), edit=document.edit + 1)
    if intent.choice == DEAD_LETTER:
        epoch = current_epoch(document)
        given_up = GivenUp(epoch=epoch, deployment=view.number, operation=intent.id)
        changed = change(changed, parking_epoch=epoch + 1, parking_used=False, given_up=given_up)
    return changed


def is_given_up(document: FlowDocument, owner: str) -> bool:
    """Whether a person gave up what is parked under this owner (and under those before it)."""
    epoch = owner[1:]
    return owner.startswith(PARKED) and is_number(epoch) and int(epoch) <= document.given_up.epoch


def choice_outcome(snapshot: Snapshot, intent: OperationIntent, document: OperationDocument) -> Ending | None:
    """How a choice ends, of either kind."""
    flow = snapshot.flow
    if flow.given_up.operation == intent.id:
        return _given_up_outcome(snapshot, intent)
    if intent.choice == WAIT and keeps_parked(flow, snapshot.deployments.get(intent.deployment)):
        return Ending(message="what is parked is kept for the next start")
    return drain_outcome(snapshot, intent, document)


def _given_up_outcome(snapshot: Snapshot, intent: OperationIntent) -> Ending | None:
    flow = snapshot.flow
    count = flow.given_up.dead_lettered
    if snapshot.stream is None:
        return None
    left = sum(number for (owner, _, _), number in snapshot.stream.counts.items() if is_given_up(flow, owner))
    if not left:
        return Ending(message=f"{count} parked messages dead-lettered", dead_lettered=count)
    if intent.deadline and snapshot.now > intent.deadline:
        message = f"{count} parked messages are dead-lettered so far, {left} are left"
        next_step = f"It goes on by itself; see headrace flow status {flow.flow}"
        return Ending(failure=OperationFailure("DEADLINE_EXCEEDED", "STILL_SETTLING", message, next_step=next_step))
    return None
