"""Lets a durable begin anew that has nothing to deliver though something is stored for it.

A plain reset goes back to the acknowledged floor, which is beyond such a message; one to sequence 1 goes back to all
that is stored. The durable is paused meanwhile, so that nothing is in anybody's hands that would be delivered twice;
a pause that is left behind by a kill is taken back by the planner.
"""

from __future__ import annotations

import msgspec

from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from services.orchestrator.caller import ORCHESTRATOR
from services.orchestrator.domain.actions import RedeliverStuck
from services.orchestrator.domain.assets import consumer_view
from services.orchestrator.domain.history import noted
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.stores import Stores

log = get_logger(__name__)


class StuckRedelivery:
    """Keeps nothing."""

    def __init__(self, stores: Stores, assets: JetStreamAssets) -> None:
        self._stores = stores
        self._assets = assets

    async def redeliver(self, snapshot: Snapshot, action: RedeliverStuck) -> None:
        """Looks once more while nothing can be delivered; then counts, and resets."""
        stream = subjects.flow_stream(snapshot.workspace, snapshot.flow.flow)
        await self._assets.pause_consumer(stream, action.durable, paused=True)
        try:
            if await self._is_stuck(stream, action):
                await self._count(snapshot, action)
                await self._assets.reset_consumer(stream, action.durable, to_sequence=1)
        finally:
            await self._assets.pause_consumer(stream, action.durable, paused=False)

    async def _is_stuck(self, stream: str, action: RedeliverStuck) -> bool:
        info = await self._assets.consumer_info(stream, action.durable)
        view = consumer_view(info) if info is not None else None
        if view is None or view.pending or view.in_flight or view.moved != action.moved:
            return False
        for subject in action.filters:
            if await self._assets.next_message(stream, subject, 1) is not None:
                return True
        return False

    async def _count(self, snapshot: Snapshot, action: RedeliverStuck) -> None:
        flow = snapshot.flow
        counted = msgspec.structs.replace(flow, stuck_redelivered=flow.stuck_redelivered + action.stored)
        await self._stores.write_flow(
            noted(flow, counted, ORCHESTRATOR, snapshot.now, snapshot.deployments), snapshot.flow_revision
        )
        log.error(
            "messages that were stored and not delivered are delivered again",
            flow=flow.flow,
            consumer=action.durable,
            n=action.stored,
        )
