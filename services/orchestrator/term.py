"""What only the leader does: reconcile loops, ticks, watches of agent and sidecars. Begun and ended as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from services.orchestrator.history_log import HistoryLog
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.lease import Lease
from services.orchestrator.reconcile_loop import FlowLoops
from services.orchestrator.scheduler import Scheduler
from services.orchestrator.stores import Stores


@dataclass
class Term:
    """Between `begin` and `end` this process leads."""

    lease: Lease
    stores: Stores
    loops: FlowLoops
    scheduler: Scheduler
    observer: InstanceObserver
    history: HistoryLog

    async def begin(self) -> None:
        self.observer.start()
        self.scheduler.start()
        self.loops.start()
        for name in await self.stores.flow_names():
            self.loops.wake(name)
        await self.history.record_leader(self.lease.epoch, self.lease.name, self.lease.previous, self.stores.now())
        await self.history.record_deleted(self.stores)

    async def end(self) -> None:
        """Whatever is being done is ended, finished or not; the next leader goes on from what is stored."""
        await self.loops.stop()
        await self.scheduler.stop()
        await self.observer.pause()

    async def find_new(self) -> None:
        """Flows that no watch told of; every loop looks again every few seconds by itself."""
        if not self.lease.leading:
            return
        for name in {*await self.stores.flow_names(), *self.observer.flows()}:
            if not self.loops.knows(name):
                self.loops.wake(name)
