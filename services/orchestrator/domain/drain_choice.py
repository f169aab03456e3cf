"""A drain that passes its limit: a person chooses per deployment to wait on, dead-letter the rest, or move it.

To dead-letter or to move: the deployment's consumers are paused, what is in work gets a grace, its instances are
stopped; when its agent says that none is left, its owner leaves the stream, and then what is stored goes elsewhere
in batches. So nothing works on a message while it is being moved, and nothing is stored behind the mover's back.
"""

from __future__ import annotations

import msgspec

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentState, DrainDecision
from headrace.model.errors import WrongState
from services.orchestrator.domain.actions import SetState, SettleMessages, StopInstance
from services.orchestrator.domain.documents import (
    FlowDocument,
    OperationDocument,
    OperationFailure,
    OperationIntent,
    change,
)
from services.orchestrator.domain.flow_states import SUSPENDED_STATES
from services.orchestrator.domain.operation_ends import Ending
from services.orchestrator.domain.snapshot import DeploymentView, Snapshot

WAIT = "WAIT"
DEAD_LETTER = "DEAD_LETTER"
MOVE = "MOVE"
VERB = "drain-choice"
# What is in work when a person chooses may take so long to finish before it is cut off.
SETTLE_GRACE_S = 5.0


def drain_deadline(flow: FlowDocument, state: DeploymentState) -> float:
    """Unix seconds from which a draining deployment asks for a person's choice."""
    waited = state.drain.until if state.drain is not None and state.drain.choice == WAIT else 0.0
    return max(state.changed_at + flow.drain_limit_s, waited)


def settling(state: DeploymentState | None) -> bool:
    """Whether what waits is being stored elsewhere: nothing may work on it any more."""
    return (
        state is not None
        and state.phase == DeploymentPhase.DRAINING
        and state.drain is not None
        and state.drain.choice in (DEAD_LETTER, MOVE)
    )


def can_move_to(flow: FlowDocument, number: int) -> bool:
    """Whether messages of a deployment can be given to the one that runs."""
    return flow.active not in (0, number) and flow.ingress == subjects.deployment_owner(flow.active)


def begin_drain_choice(document: FlowDocument, view: DeploymentView, intent: OperationIntent) -> FlowDocument:
    """Notes the choice; the deployment's state follows from it."""
    state, number = view.state, view.number
    if state is None or state.phase != DeploymentPhase.DRAINING or number not in document.live:
        phase = state.phase if state is not None else "unknown"
        raise WrongState(
            f"deployment {number} of flow {document.flow!r} is {phase}: only one that drains needs a choice",
            reason="NOT_DRAINING",
            next_step=f"See headrace flow status {document.flow}",
            metadata={"phase": str(phase)},
        )
    if settling(state):
        assert state.drain is not None
        raise WrongState(
            f"deployment {number} of flow {document.flow!r}: {state.drain.choice} was chosen and is being done",
            reason="ALREADY_CHOSEN",
            next_step=f"See headrace flow status {document.flow}",
        )
    if intent.choice == MOVE and not can_move_to(document, number):
        raise WrongState(
            f"flow {document.flow!r} has no running deployment that could take the messages of deployment {number}",
            reason="NOTHING_TO_MOVE_TO",
            next_step=f"Use headrace flow drain-choice {document.flow} --deployment {number} dead-letter (or wait)",
        )
    intent = msgspec.structs.replace(intent, version=view.plan.version if view.plan else 0, deployment=number)
    return change(document, operation=intent, edit=document.edit + 1)


def chosen_state(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> SetState | None:
    """The deployment's state with the person's choice; or without it, where it cannot be carried out any more."""
    flow, drain = snapshot.flow, state.drain
    if state.phase != DeploymentPhase.DRAINING:
        return None
    intent = flow.operation
    if (
        intent is not None
        and intent.verb == VERB
        and intent.deployment == view.number
        and (drain is None or drain.operation != intent.id)
    ):
        document = snapshot.operations.get(intent.id)
        if document is None or not document.done:
            return SetState(view.number, _with(state, _decision(snapshot, intent, drain)), f"{intent.choice} chosen")
    if drain is not None and drain.choice == MOVE and not can_move_to(flow, view.number):
        back = msgspec.structs.replace(drain, choice=WAIT, until=snapshot.now)
        return SetState(view.number, _with(state, back), "nothing to move to any more: it drains on")
    return None


def _decision(snapshot: Snapshot, intent: OperationIntent, before: DrainDecision | None) -> DrainDecision:
    limit_s = intent.deadline - intent.created_at
    return DrainDecision(
        operation=intent.id,
        choice=intent.choice,
        decided_at=snapshot.now,
        until=snapshot.now + limit_s if intent.choice == WAIT else 0.0,
        incarnation=intent.incarnation,
        dead_lettered=before.dead_lettered if before else 0,
        moved=before.moved if before else 0,
    )


def _with(state: DeploymentState, drain: DrainDecision) -> DeploymentState:
    return msgspec.structs.replace(state, drain=drain, generation=state.generation + 1)


def stop_workers(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> list[StopInstance]:
    """Stops every instance once nothing is in work, or the grace is over."""
    assert state.drain is not None
    prefix = subjects.step_consumer(view.number, "")
    own = [consumer for name, consumer in snapshot.consumers.items() if name.startswith(prefix)]
    quiet = all(consumer.paused and not consumer.in_flight for consumer in own)
    if not quiet and snapshot.now < state.drain.decided_at + SETTLE_GRACE_S:
        return []
    return [
        StopInstance(instance.name, max(state.generation, instance.generation))
        for instance in snapshot.instances.values()
        if instance.deployment == view.number and not instance.stopping
    ]


def nobody_works(snapshot: Snapshot, number: int) -> bool:
    """The agent says that no instance of the deployment is left."""
    return snapshot.agent_known and not any(instance.deployment == number for instance in snapshot.instances.values())


def settle(snapshot: Snapshot, view: DeploymentView) -> SettleMessages | None:
    """The next batch, when nothing can work on it or add to it."""
    flow, stream, number = snapshot.flow, snapshot.stream, view.number
    if stream is None or number not in flow.closed or not nobody_works(snapshot, number):
        return None
    if stream.takes(subjects.owner_filter(snapshot.workspace, flow.flow, subjects.deployment_owner(number))):
        return None
    return SettleMessages(number)


def drain_outcome(snapshot: Snapshot, intent: OperationIntent, document: OperationDocument) -> Ending | None:
    """WAIT is done when it is written; the others when the deployment is retired."""
    view = snapshot.deployments.get(intent.deployment)
    state = view.state if view is not None else None
    drain = state.drain if state is not None else None
    if drain is None or drain.operation != intent.id:
        if state is not None and state.phase != DeploymentPhase.DRAINING:
            return Ending(message=f"deployment {intent.deployment} had drained before the choice was needed")
        return None
    assert state is not None
    counts = f"{drain.dead_lettered} messages dead-lettered, {drain.moved} moved"
    if intent.choice == WAIT:
        limit_s = intent.deadline - intent.created_at
        return Ending(message=f"deployment {intent.deployment} drains on for another {limit_s:g} s")
    if state.phase != DeploymentPhase.DRAINING:
        return Ending(
            message=f"deployment {intent.deployment} is done: {counts}",
            dead_lettered=drain.dead_lettered,
            moved=drain.moved,
        )
    if drain.choice == WAIT:
        message = f"the flow was stopped or switched meanwhile: deployment {intent.deployment} drains on; {counts}"
        return Ending(failure=OperationFailure("ABORTED", "NOTHING_TO_MOVE_TO", message))
    if intent.deadline and snapshot.now > intent.deadline:
        message = f"deployment {intent.deployment} is not done yet: {counts}"
        next_step = f"It goes on by itself; see headrace flow status {snapshot.flow.flow}"
        return Ending(failure=OperationFailure("DEADLINE_EXCEEDED", "STILL_SETTLING", message, next_step=next_step))
    return None


def drain_problem(snapshot: Snapshot, view: DeploymentView, waiting: int, in_flight: int) -> str:
    """What `flow status` says of a drain past its limit; empty within it."""
    flow, state = snapshot.flow, view.state
    if state is None or state.phase != DeploymentPhase.DRAINING or settling(state):
        return ""
    if flow.state in SUSPENDED_STATES or snapshot.now < drain_deadline(flow, state):
        return ""
    choices = "wait, dead-letter or move" if can_move_to(flow, view.number) else "wait or dead-letter"
    first = f"headrace flow drain-choice {flow.flow} --deployment {view.number}"
    return (
        f"deployment {view.number} has been draining for {snapshot.now - state.changed_at:.0f} s (limit "
        f"{flow.drain_limit_s:g} s): {waiting} messages wait, {in_flight} are in work. Choose {choices}: {first} wait"
        f" | {first} dead-letter" + (f" | {first} move" if can_move_to(flow, view.number) else "")
    )
