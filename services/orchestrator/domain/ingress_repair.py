"""A stale switch: the ingress had been proved to belong to its owner, and the stream now gives it to another, since
its update has no compare-and-set. What was stored meanwhile are strays (`strays`). On a cluster, where the stream
says who the owner is, a decision is never overtaken by an older one: there this finds a stream that was made anew."""

from __future__ import annotations

import msgspec

from headrace.model import subjects
from services.orchestrator.domain.actions import Action, UpdateFlow
from services.orchestrator.domain.assets import wanted_stream
from services.orchestrator.domain.snapshot import Snapshot


def plan_ingress_repair(snapshot: Snapshot) -> list[Action]:
    """Counts a stale switch and asks for a new proof; the stream itself is put right as whatever differs is."""
    flow = snapshot.flow
    if not is_switched(snapshot):
        return []
    repaired = msgspec.structs.replace(
        flow,
        ingress_confirmed=False,
        ingress_repairs=flow.ingress_repairs + 1,
        assets_generation=flow.assets_generation + 1,
    )
    return [UpdateFlow(repaired, "the ingress was switched by somebody who was not to")]


def is_switched(snapshot: Snapshot) -> bool:
    """Whether the ingress, proved once, belongs to another owner than was decided."""
    wanted, stream = wanted_stream(snapshot), snapshot.stream
    if wanted is None or stream is None or not snapshot.flow.ingress_confirmed:
        return False
    if snapshot.fenced:
        return stream.owner.owner != snapshot.flow.ingress
    ingress = subjects.ingress_filter(snapshot.workspace, snapshot.flow.flow)
    asked = wanted["subjects"]
    assert isinstance(asked, tuple)
    if stream.config.get("subject_transform") != wanted.get("subject_transform"):
        return True
    return stream.takes(ingress) != (ingress in asked)
