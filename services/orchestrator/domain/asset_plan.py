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
)
from services.orchestrator.domain.assets import wanted_consumers, wanted_stream
from services.orchestrator.domain.snapshot import Snapshot


def plan_stream(snapshot: Snapshot) -> list[Action]:
    """Create it, repair it, prove the ingress, clear old barriers."""
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
    barriers = {owner for owner, step in stream.counts if step == subjects.BARRIER_STEP}
    return [PurgeBarriers(owner) for owner in sorted(barriers)]


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
            if all(stream.takes(_owner_filter(item)) for item in _filters(config)):
                actions.append(EnsureConsumer(config, paused))
        elif dict(view.config) != config:
            moved = _filters(dict(view.config)) != _filters(config)
            actions.append(EnsureConsumer(config, paused, recreate=moved))
        elif view.paused != paused:
            actions.append(PauseConsumer(name, paused))
    actions += [DeleteConsumer(name) for name in sorted(snapshot.consumers) if name not in wanted]
    return actions


def _filters(config: dict[str, object]) -> tuple[str, ...]:
    several = config.get("filter_subjects")
    return tuple(several) if isinstance(several, tuple) else (str(config.get("filter_subject", "")),)


def _owner_filter(subject: str) -> str:
    parsed = subjects.parse_data_subject(subject)
    return subjects.owner_filter(parsed.workspace, parsed.flow, parsed.owner)
