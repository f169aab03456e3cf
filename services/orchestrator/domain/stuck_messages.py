"""Messages that are stored and that their durable will never deliver: a broker that was killed may have kept an
acknowledgement and lost the removal. A drain would wait for such a message for ever, and it takes room on its edge.

A single look proves nothing: an acknowledgement comes a moment before the removal, and infos of stream and consumer
are not of one moment. So a durable is only suspected, and let begin anew when `SURE_S` later it has neither delivered
nor acknowledged anything and still shows nothing to do. Whoever reads there tells whether the message was done before.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.model.names import is_number
from services.orchestrator.domain.actions import Action, RedeliverStuck
from services.orchestrator.domain.assets import wanted_consumers
from services.orchestrator.domain.snapshot import ConsumerView, Snapshot, StreamView, Suspicion

SURE_S = 5.0
SLACK_S = 0.05


def suspicions(
    stream: StreamView | None, consumers: Mapping[str, ConsumerView], before: Mapping[str, Suspicion], now: float
) -> dict[str, Suspicion]:
    """Durables that have nothing to deliver though something is stored for them. `before` is what the last look
    found: the time since when stays while the durable has not moved."""
    if stream is None or not stream.counts:
        return {}
    found = {}
    for name, view in consumers.items():
        if view.paused or view.pending or view.in_flight or not (stored := stored_for(stream, view)):
            continue
        known = before.get(name)
        since = known.since if known is not None and known.moved == view.moved else now
        found[name] = Suspicion(view.moved, since, stored)
    return found


def stored_for(stream: StreamView, view: ConsumerView) -> int:
    """Messages that are stored under the durable's filters."""
    count = 0
    for subject in filters_of(view.config):
        owner, step, slot = subject.split(".")[3:6]
        count += stream.stored(owner, step, int(slot) if is_number(slot) else None)
    return count


def filters_of(config: Mapping[str, object]) -> tuple[str, ...]:
    """Subjects that a durable reads."""
    several = config.get("filter_subjects")
    return tuple(several) if isinstance(several, tuple) else (str(config.get("filter_subject", "")),)


def plan_stuck(snapshot: Snapshot) -> list[Action]:
    """One durable at a time, and only one that is as it was decided and is meant to deliver."""
    if not snapshot.suspicions:
        return []
    wanted = wanted_consumers(snapshot)
    for name, suspicion in sorted(snapshot.suspicions.items()):
        view = snapshot.consumers.get(name)
        if view is None or snapshot.now - suspicion.since < SURE_S or wanted.get(name) != (dict(view.config), False):
            continue
        return [RedeliverStuck(name, filters_of(view.config), suspicion.moved, suspicion.stored)]
    return []


def recheck_s(snapshot: Snapshot) -> float | None:
    """When to look at what is suspected again; None while nothing is."""
    ages = [snapshot.now - suspicion.since for suspicion in snapshot.suspicions.values()]
    left = [SURE_S - age + SLACK_S if 0 <= age < SURE_S else SURE_S for age in ages]
    return min(left, default=None)
