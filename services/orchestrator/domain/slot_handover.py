"""Slots of keyed steps from owner to owner, and from deployment to deployment.

The state's owners are decided by compare-and-set. A slot's former durable goes when no instance that knows the
decision holds anything of it; then the new owner's is made, under a name that was never used. In a switch without
parking a slot of the new deployment opens when nothing of the older ones can come to it any more.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState, SlotOwner
from services.orchestrator.domain.actions import SetState
from services.orchestrator.domain.deployment_phases import OVER
from services.orchestrator.domain.slot_owners import balanced, leases_of
from services.orchestrator.domain.snapshot import WORKING, DeploymentView, Progress, Snapshot, StatusView

# How long a former owner may take to finish what it holds of a slot.
HAND_OVER_LIMIT_S = 60.0
_READY = (Progress.WARM, Progress.ACTIVE)


def first_owners(plan: DeploymentPlan, replicas: dict[str, int], generation: int) -> dict[str, tuple[SlotOwner, ...]]:
    """Owners of a deployment that begins."""
    return {
        step.name: balanced((), step.slots, range(replicas.get(step.name, 1)), generation)
        for step in plan.steps
        if step.keyed
    }


def rebalanced_state(snapshot: Snapshot, view: DeploymentView, state: DeploymentState) -> SetState | None:
    """The state with other owners, where slots have to move; None while they stay or wait for new replicas."""
    if view.plan is None:
        return None
    generation = state.generation + 1
    changed: dict[str, tuple[SlotOwner, ...]] = {}
    for step in view.plan.steps:
        if not step.keyed:
            continue
        now = state.slots.get(step.name, ())
        owners = balanced(now, step.slots, _candidates(snapshot, view, state, step.name), generation)
        if owners != now:
            changed[step.name] = owners
    if not changed:
        return None
    after = msgspec.structs.replace(
        state, slots={**state.slots, **changed}, generation=generation, slots_moved_at=snapshot.now
    )
    return SetState(view.number, after, f"slots of {', '.join(changed)} get other owners")


def _candidates(snapshot: Snapshot, view: DeploymentView, state: DeploymentState, step: str) -> set[int]:
    """Replicas that may own slots. A new one gets its share when all new ones can work, so that no slot waits for
    a start; one that fails to start gets none."""
    wanted = set(range(state.replicas.get(step, 1)))
    owning = {owner.replica for owner in state.slots.get(step, ())} & wanted
    if not owning:
        return wanted
    new = wanted - owning
    if state.phase != DeploymentPhase.ACTIVE or not new:
        return owning
    progress = {
        instance.replica: status.progress
        for instance in snapshot.wanted_instances(view.number)
        if instance.step == step and (status := snapshot.statuses.get(instance.name)) is not None
    }
    if any(progress.get(replica) not in (*_READY, Progress.FAILED) for replica in new):
        return owning
    return owning | {replica for replica in new if progress[replica] in _READY}


def leases(state: DeploymentState, step: str, replica: int) -> tuple[tuple[int, int], ...]:
    """What an instance owns now, for its lifecycle calls."""
    return leases_of(state.slots.get(step, ()), replica)


def durables(plan: DeploymentPlan, state: DeploymentState, step: str) -> dict[str, int]:
    """Names of a step's durables, with the slot of each (0 where the step is not keyed)."""
    if not plan.step(step).keyed:
        return {subjects.step_consumer(plan.deployment, step): subjects.SINGLE_SLOT}
    owners = state.slots.get(step, ())
    return {
        subjects.slot_consumer(plan.deployment, step, slot, owner.generation): slot for slot, owner in enumerate(owners)
    }


def former(snapshot: Snapshot, deployment: int, step: str, slot: int) -> list[str]:
    """Durables of a slot that belonged to earlier owners and are still there."""
    state = snapshot.deployments[deployment].state
    owners = state.slots.get(step, ()) if state is not None else ()
    prefix = subjects.slot_prefix(deployment, step, slot)
    now = subjects.slot_consumer(deployment, step, slot, owners[slot].generation) if slot < len(owners) else ""
    return [name for name in snapshot.consumers if name.startswith(prefix) and name != now]


def let_go_of(snapshot: Snapshot, durable: str) -> bool:
    """Whether a durable of a former owner can be deleted: whoever could hold something of it has said that it does
    not, is confirmed dead, or took too long. False for a durable that is no former one."""
    parsed = subjects.parse_slot_consumer(durable)
    view = snapshot.deployments.get(parsed.deployment) if parsed is not None else None
    if parsed is None or view is None or view.state is None:
        return True
    owners = view.state.slots.get(parsed.step, ())
    if parsed.slot >= len(owners) or snapshot.now > view.state.slots_moved_at + HAND_OVER_LIMIT_S:
        return True
    if not snapshot.agent_known:
        return False
    lease = (parsed.slot, parsed.generation)
    for instance in snapshot.instances.values():
        if (instance.deployment, instance.step) != (parsed.deployment, parsed.step):
            continue
        if instance.up or instance.stopping:
            status = snapshot.statuses.get(instance.name)
            if status is None or _may_hold(status, lease, owners[parsed.slot].generation):
                return False
    return True


def _may_hold(status: StatusView, lease: tuple[int, int], decided: int) -> bool:
    """One that has not begun to work pulls from nothing; it begins with what is decided now."""
    return lease in status.slots or (status.progress in WORKING and status.generation < decided)


def moving(snapshot: Snapshot, deployment: int, step: str) -> list[int]:
    """Slots of a step whose owner's durable is not there yet."""
    view = snapshot.deployments[deployment]
    if view.plan is None or view.state is None:
        return []
    return [slot for name, slot in durables(view.plan, view.state, step).items() if name not in snapshot.consumers]


def waits_for_slot(snapshot: Snapshot, deployment: int, step: str, slot: int) -> int:
    """The older deployment for which a slot of a keyed step waits, so that order is kept; 0 when for none. A replay has
    no place in the order, so it waits for nobody."""
    view = snapshot.deployments.get(deployment)
    if view is not None and view.plan is not None and view.plan.side:
        return 0
    for number in snapshot.flow.live:
        if number < deployment and not _slot_over(snapshot, number, step, slot):
            return number
    return 0


def _slot_over(snapshot: Snapshot, deployment: int, step: str, slot: int) -> bool:
    """Nothing of a deployment can come to its slot any more, and nothing is left in it."""
    flow, view = snapshot.flow, snapshot.deployments.get(deployment)
    if view is None or view.state is None or view.state.phase in OVER:
        return True
    if view.plan is None or all(item.name != step for item in view.plan.steps):
        return True
    if view.state.phase != DeploymentPhase.DRAINING or not flow.ingress_confirmed or not snapshot.agent_known:
        return False
    if flow.ingress == subjects.deployment_owner(deployment) or snapshot.stream is None:
        return False
    owners = snapshot.owners_of(deployment)
    if any(snapshot.stream.stored(owner, step, slot) for owner in owners):
        return False
    return all(
        not any(snapshot.stream.stored(owner, sender) for owner in owners) and _quiet(snapshot, view, sender)
        for sender in upstream(view.plan, step)
    )


def _quiet(snapshot: Snapshot, view: DeploymentView, step: str) -> bool:
    """Every instance of a step, wanted or not, has drained."""
    assert view.state is not None
    of_step = [item for item in snapshot.instances.values() if (item.deployment, item.step) == (view.number, step)]
    return snapshot.all_drained(of_step, view.state.generation)


def upstream(plan: DeploymentPlan, step: str) -> Iterator[str]:
    """Every step from which messages can come to this one."""
    reached, pending = {step}, [step]
    while pending:
        receiver = pending.pop()
        for sender in plan.steps:
            if receiver in sender.successors and sender.name not in reached:
                reached.add(sender.name)
                pending.append(sender.name)
                yield sender.name
