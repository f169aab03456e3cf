"""Slots of a keyed step as people see them: owner, what waits, and what they wait for themselves."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.api.flow.v1 import flow_pb2
from headrace.model.names import instance_name
from services.orchestrator.domain.slot_handover import durables, waits_for_slot
from services.orchestrator.domain.snapshot import DeploymentView, Snapshot

FORMER_OWNER = "former owner"


def durables_of(view: DeploymentView, step: str) -> Iterable[str]:
    """Names of a step's durables, as decided."""
    return durables(view.plan, view.state, step) if view.plan is not None and view.state is not None else ()


def slot_statuses(snapshot: Snapshot, view: DeploymentView, step: str) -> list[flow_pb2.SlotStatus]:
    """One per slot; none where the step is not keyed."""
    plan, state = view.plan, view.state
    if plan is None or state is None or not plan.step(step).keyed:
        return []
    found = []
    owners = snapshot.owners_of(view.number)
    for (name, slot), owner in zip(durables(plan, state, step).items(), state.slots.get(step, ()), strict=True):
        consumer = snapshot.consumers.get(name)
        in_flight = consumer.in_flight if consumer is not None else 0
        stored = sum(snapshot.stream.stored(of, step, slot) for of in owners) if snapshot.stream is not None else 0
        older = waits_for_slot(snapshot, view.number, step, slot)
        found.append(
            flow_pb2.SlotStatus(
                slot=slot,
                owner=instance_name(snapshot.workspace, snapshot.flow.flow, view.number, step, owner.replica),
                generation=owner.generation,
                waiting=max(0, stored - in_flight),
                in_flight=in_flight,
                waits_for=f"d{older}" if older else FORMER_OWNER if consumer is None else "",
            )
        )
    return found
