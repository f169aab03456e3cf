"""The newest look at each flow, kept for those who ask about all of them: metrics, health, status.

Filled by the reconcile loops, which look at a flow whenever something of it changes; so asking costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from services.orchestrator.domain.flow_health import Health, flow_health
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.flow_events import FlowEvents
from services.orchestrator.instance_observer import InstanceObserver


class FlowBoard:
    """Of the leader; empty elsewhere. `knows` says which flows are looked at now."""

    def __init__(self, observer: InstanceObserver, *pass_on: Callable[[Snapshot], None]) -> None:
        """Each look is passed on to whoever else wants it."""
        self._observer, self._pass_on = observer, pass_on
        self._newest: dict[str, Snapshot] = {}
        self._events = FlowEvents()
        self.watching = self._events.watching
        """An event that is set by the next look at a flow: its health may be another one then."""
        self.knows: Callable[[str], bool] = lambda flow: True

    def observe(self, snapshot: Snapshot) -> None:
        """A loop has looked at its flow."""
        flow = snapshot.flow.flow
        self._newest[flow] = snapshot
        self._events.announce(flow)
        for take in self._pass_on:
            take(snapshot)

    def flows(self) -> dict[str, Snapshot]:
        """By name, without those that are gone."""
        for name in [name for name in self._newest if not self.knows(name)]:
            del self._newest[name]
        return self._newest

    def health(self, flow: str) -> Health | None:
        """None where there is no such flow, or none that was looked at yet."""
        snapshot = self._newest.get(flow)
        if snapshot is None or not self.knows(flow):
            return None
        _, statuses = self._observer.views_of(flow)
        return flow_health(snapshot, statuses, agent_known=self._observer.agent_known)
