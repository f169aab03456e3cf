"""What a leader of the past may leave behind in a flow's stream, since its update has no compare-and-set.

A *stale switch*: the ingress had been proved to belong to its owner, and the stream now gives it to another.
*Strays*: messages that were stored meanwhile under an owner for whom nobody works (any more).
"""

from __future__ import annotations

import msgspec

from headrace.model import subjects
from services.orchestrator.domain.actions import Action, MoveStrays, UpdateFlow
from services.orchestrator.domain.assets import dropping, owners, wanted_stream
from services.orchestrator.domain.deployment_phases import OVER
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
    ingress = subjects.ingress_filter(snapshot.workspace, snapshot.flow.flow)
    asked = wanted["subjects"]
    assert isinstance(asked, tuple)
    if stream.config.get("subject_transform") != wanted.get("subject_transform"):
        return True
    return stream.takes(ingress) != (ingress in asked)


def plan_strays(snapshot: Snapshot) -> list[Action]:
    """Moves what nobody works for; only where stream and decision agree."""
    wanted, stream, flow = wanted_stream(snapshot), snapshot.stream, snapshot.flow
    if wanted is None or stream is None or not flow.ingress_confirmed or dict(stream.config) != wanted:
        return []
    if dropping(flow):
        return []  # what a person drops is counted as dropped, not saved
    known = set(owners(snapshot))
    for number in flow.live:
        view = snapshot.deployments.get(number)
        if view is None or view.state is None or view.state.phase not in OVER:
            known.add(subjects.deployment_owner(number))
            if view is not None and view.plan is not None and view.plan.parking_epoch:
                known.add(subjects.parking_owner(view.plan.parking_epoch))
    strays = sorted(
        {
            owner
            for (owner, step, _), count in stream.counts.items()
            if count and owner not in known and not owner.startswith("c") and not step.startswith("_")
        }
    )
    return [MoveStrays(tuple(strays))] if strays else []
