"""What to do about the stream and the consumers of a flow: made, repaired, opened, removed."""

from __future__ import annotations

from headrace.model import subjects
from services.orchestrator.domain.actions import (
    Action,
    ConfirmIngress,
    DeleteConsumer,
    EnsureConsumer,
    EnsureStream,
    PauseConsumer,
    PurgeBarriers,
    PurgeCursors,
    PurgeOwners,
)
from services.orchestrator.domain.assets import wanted_consumers, wanted_stream
from services.orchestrator.domain.slot_handover import former, let_go_of
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.domain.stuck_messages import filters_of


def plan_stream(snapshot: Snapshot) -> list[Action]:
    """Create it, repair it, prove the ingress, clear old barriers and cursors."""
    wanted = wanted_stream(snapshot)
    if wanted is None:
        return []
    stream = snapshot.stream
    if stream is None:
        return [EnsureStream(wanted, create=True, why="missing")]
    if dict(stream.config) != wanted:
        different = sorted(key for key in {*wanted, *stream.config} if stream.config.get(key) != wanted.get(key))
        return [EnsureStream(wanted, create=False, why=f"differs in {', '.join(different)}")]
    if not snapshot.flow.ingress_confirmed:
        return [ConfirmIngress(snapshot.flow.ingress)]
    barriers = {owner for owner, step, _ in stream.counts if step == subjects.BARRIER_STEP}
    workspace, flow = snapshot.workspace, snapshot.flow.flow
    # Those of deployments that are over, or unknown: nobody goes on from them.
    over = {owner for owner in stream.cursors if not stream.takes(subjects.owner_filter(workspace, flow, owner))}
    # Left by the time in which the stream had several copies: whoever still goes by them is to find out.
    left = [PurgeOwners()] if stream.says_owner and not snapshot.fenced else []
    return [*map(PurgeBarriers, sorted(barriers)), *map(PurgeCursors, sorted(over)), *left]


def plan_consumers(snapshot: Snapshot) -> list[Action]:
    """Missing ones are created, different ones repaired, those of nobody deleted."""
    stream = snapshot.stream
    if stream is None or not snapshot.flow.has_stream:
        return []
    actions: list[Action] = []
    wanted = wanted_consumers(snapshot)
    for name, (config, paused) in wanted.items():
        view = snapshot.consumers.get(name)
        if view is None:
            listed = all(stream.takes(subjects.owner_filter_of(item)) for item in filters_of(config))
            if listed and not _has_former(snapshot, name):
                actions.append(EnsureConsumer(config, paused))
        elif dict(view.config) != config:
            moved = filters_of(view.config) != filters_of(config)
            actions.append(EnsureConsumer(config, paused, recreate=moved))
        elif view.paused != paused:
            actions.append(PauseConsumer(name, paused))
    actions += [
        DeleteConsumer(name) for name in sorted(snapshot.consumers) if name not in wanted and let_go_of(snapshot, name)
    ]
    return actions


def _has_former(snapshot: Snapshot, durable: str) -> bool:
    """Two durables of one slot are refused by the broker: the former goes first."""
    slot = subjects.parse_slot_consumer(durable)
    return slot is not None and bool(former(snapshot, slot.deployment, slot.step, slot.slot))
