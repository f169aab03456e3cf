"""What only the leader does: reconcile loops, ticks, watches of agent and sidecars. Begun and ended as a whole."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from headrace.edge.structured_log import get_logger
from headrace.model.errors import HeadraceError
from services.orchestrator.history_log import HistoryLog
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.lease import Lease
from services.orchestrator.nudges import Nudges
from services.orchestrator.reconcile_loop import FlowLoops
from services.orchestrator.sampling_changes import SamplingChanges
from services.orchestrator.scheduler import Scheduler
from services.orchestrator.stores import Stores

log = get_logger(__name__)

BEGIN_LIMIT_S = 0.6


@dataclass
class Term:
    """Between `begin` and `end` this process leads."""

    lease: Lease
    stores: Stores
    loops: FlowLoops
    scheduler: Scheduler
    observer: InstanceObserver
    history: HistoryLog
    nudges: Nudges | None = None
    sampling: SamplingChanges | None = None
    _recorded: int = 0
    _newest: int = -1
    _revisions: dict[str, int] = field(default_factory=dict)

    async def begin(self) -> None:
        """Never fails: what the broker did not do is done by the next `find_new`."""
        self._newest, self._revisions = -1, {}
        self.observer.start()
        self.scheduler.start()
        if self.nudges is not None:
            self.nudges.start()
        self.loops.start()
        try:
            async with asyncio.timeout(BEGIN_LIMIT_S):  # the lease has to be renewed meanwhile
                await self.find_new()
        except (HeadraceError, TimeoutError) as error:
            log.warning("a term begins late", error=str(error)[:200] or "timeout")

    async def end(self) -> None:
        """Whatever is being done is ended, finished or not; the next leader goes on from what is stored."""
        await self.loops.stop()
        if self.nudges is not None:
            await self.nudges.stop()
        await self.scheduler.stop()
        await self.observer.pause()

    async def find_new(self) -> None:
        """Flows whose change no watch told of, and once a term the history's entries that are nobody's else. While
        nothing was written it costs one request, however many flows there are."""
        if not self.lease.leading:
            return
        newest = await self.stores.flows.newest()
        changed: set[str] = set()
        if newest != self._newest:
            revisions = await self.stores.flow_revisions()
            changed = {name for name, revision in revisions.items() if self._revisions.get(name) != revision}
            self._newest, self._revisions = newest, revisions
        for name in {*self._revisions, *self.observer.flows()}:
            if name in changed or not self.loops.knows(name):
                self.loops.wake(name)
        if self._recorded != self.lease.epoch:
            epoch = self.lease.epoch
            await self.history.record_leader(epoch, self.lease.name, self.lease.previous, self.stores.now())
            await self.history.record_deleted(self.stores)
            if self.sampling is not None:
                await self.sampling.record_left()
            self._recorded = epoch
