"""More or fewer instances of a step of the running deployment: same pins, work shared.

The number lives in the deployment's mutable state; changing it raises the generation. An instance too many gives
way first (it pulls no more and finishes what it holds) and is stopped when it holds nothing, or after a limit:
what it still holds is then delivered to its siblings.
"""

from __future__ import annotations

import msgspec

from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState
from headrace.model.errors import InvalidInput, WrongState
from headrace.model.flow_spec import MAX_REPLICAS
from services.orchestrator.domain.actions import GIVE_WAY, CallInstance, SetState, StopInstance
from services.orchestrator.domain.documents import (
    FlowDocument,
    OperationDocument,
    OperationFailure,
    OperationIntent,
    change,
)
from services.orchestrator.domain.flow_states import RUNS, FlowState, wrong_state
from services.orchestrator.domain.operation_ends import Ending
from services.orchestrator.domain.sleeping import sleepers
from services.orchestrator.domain.slot_handover import moving, rebalanced_state
from services.orchestrator.domain.snapshot import WORKING, DeploymentView, InstanceView, Progress, Snapshot

# How long an instance may take to finish what it holds before it is stopped all the same.
GIVE_WAY_LIMIT_S = 60.0


def check_replicas(replicas: int) -> None:
    """InvalidInput unless 1 to 64."""
    if not 1 <= replicas <= MAX_REPLICAS:
        raise InvalidInput.at(
            "replicas",
            replicas,
            f"is not between 1 and {MAX_REPLICAS}",
            reason="REPLICAS_OUT_OF_RANGE",
            next_step="To have none, stop or suspend the flow",
        )


def begin_scale(document: FlowDocument, plan: DeploymentPlan | None, intent: OperationIntent) -> FlowDocument:
    """Notes the wish; the running deployment's state follows from it."""
    if document.state not in (*RUNS, FlowState.SUSPENDED) or not document.active or plan is None:
        raise wrong_state(document.flow, document.state, "scale")
    names = [step.name for step in plan.steps]
    if intent.step not in names:
        raise InvalidInput.at(
            "step",
            intent.step,
            f"is not a step of what runs (deployment {plan.deployment}); it has {', '.join(names)}",
            reason="STEP_NOT_FOUND",
            next_step="Name one of them; a step of the draft runs after publish",
        )
    if plan.step(intent.step).exclusive and intent.replicas > 1:
        raise WrongState(
            f"step {intent.step!r} runs an exclusive function: it cannot have {intent.replicas} instances",
            reason="EXCLUSIVE",
            next_step="Leave it at 1",
        )
    step = plan.step(intent.step)
    if step.keyed and intent.replicas > step.slots:
        raise WrongState(
            f"step {intent.step!r} has {step.slots} slots, each with one owner: of {intent.replicas} instances "
            f"{intent.replicas - step.slots} would have nothing to do",
            reason="TOO_FEW_SLOTS",
            next_step=f"Scale it to {step.slots} at most, or give it more `slots` in the flow file",
        )
    intent = msgspec.structs.replace(intent, version=document.active_version, deployment=document.active)
    return change(document, operation=intent, edit=document.edit + 1)


def scaled_state(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> SetState | None:
    """The running deployment's state with the number that a person asked for."""
    intent = snapshot.flow.operation
    if intent is None or intent.verb != "scale" or intent.deployment != view.number:
        return None
    document = snapshot.operations.get(intent.id)
    if state.phase != DeploymentPhase.ACTIVE or (document is not None and document.done):
        return None
    if state.replicas.get(intent.step, 1) == intent.replicas:
        return None
    scaled = msgspec.structs.replace(
        state,
        replicas={**state.replicas, intent.step: intent.replicas},
        generation=state.generation + 1,
        scaled_at=snapshot.now,
        scaled_generation=state.generation + 1,
    )
    moved = rebalanced_state(snapshot, view, scaled)
    return SetState(view.number, moved.state if moved else scaled, f"{intent.step} scaled to {intent.replicas}")


def let_go(snapshot: Snapshot, state: DeploymentState, instance: InstanceView) -> CallInstance | StopInstance | None:
    """The next thing for an instance that is not wanted any more; None: wait for it."""
    stop = StopInstance(instance.name, max(state.generation, instance.generation))
    late = snapshot.now > state.scaled_at + GIVE_WAY_LIMIT_S
    if not instance.up or late:
        return stop
    status = snapshot.statuses.get(instance.name)
    if status is None:
        return None
    if status.progress not in WORKING:
        return stop  # it never worked, or its component is broken: it can finish nothing
    if not status.gave_way or status.generation < state.generation:
        return CallInstance(instance.name, GIVE_WAY, state.generation)
    return stop if status.progress == Progress.DRAINED else None


def surplus(snapshot: Snapshot, deployment: int) -> list[InstanceView]:
    """Instances of a deployment that its documents do not want."""
    wanted = {instance.name for instance in snapshot.wanted_instances(deployment)}
    return [
        instance
        for instance in snapshot.instances.values()
        if instance.deployment == deployment and instance.name not in wanted
    ]


def scale_outcome(snapshot: Snapshot, intent: OperationIntent, document: OperationDocument) -> Ending | None:
    """Done when every instance wanted works with the new generation and none too many is left."""
    view = snapshot.deployments.get(intent.deployment)
    state = view.state if view is not None else None
    if state is None or snapshot.flow.active != intent.deployment:
        failure = OperationFailure("ABORTED", "OVERTAKEN", f"deployment {intent.deployment} runs no more")
        return Ending(failure=failure)
    if state.replicas.get(intent.step, 1) != intent.replicas:
        return None
    if intent.step in sleepers(snapshot):
        number = f"deployment {intent.deployment}"
        return Ending(message=f"step {intent.step!r} of {number} sleeps; it wakes with {intent.replicas} instances")
    late: list[str] = []
    for instance in snapshot.wanted_instances(intent.deployment):
        if instance.step != intent.step:
            continue
        status = snapshot.statuses.get(instance.name)
        if status is not None and status.progress == Progress.FAILED:
            return _failed(snapshot, intent, "STEP_FAILED", f"{instance.name}: {status.cause or 'it failed'}")
        if status is None or status.progress != Progress.ACTIVE or status.generation < state.generation:
            late.append(f"{instance.name} is {status.progress if status else 'not up'}")
    late += [f"{instance.name} finishes what it holds" for instance in surplus(snapshot, intent.deployment)]
    if view is not None and rebalanced_state(snapshot, view, state) is not None:
        late.append("slots have yet to be given to other owners")
    late += [f"slot {slot} waits for its former owner" for slot in moving(snapshot, intent.deployment, intent.step)]
    if not late:
        message = f"step {intent.step!r} of deployment {intent.deployment} has {intent.replicas} instances"
        owners = state.slots.get(intent.step, ())
        handed = sum(owner.generation >= state.scaled_generation for owner in owners)
        return Ending(message=f"{message}; {handed} of {len(owners)} slots were handed over" if owners else message)
    if intent.deadline and snapshot.now > intent.deadline:
        return _failed(snapshot, intent, "SCALE_TIMEOUT", "; ".join(late), code="DEADLINE_EXCEEDED")
    return None


def _failed(
    snapshot: Snapshot, intent: OperationIntent, reason: str, cause: str, *, code: str = "FAILED_PRECONDITION"
) -> Ending:
    flow = snapshot.flow.flow
    failure = OperationFailure(
        code,
        reason,
        f"step {intent.step!r} of {flow!r} does not have {intent.replicas} working instances: {cause}",
        next_step=f"It is tried on; to go back: headrace flow scale {flow} {intent.step}=N",
        metadata={"flow": flow, "step": intent.step},
    )
    return Ending(failure=failure)
