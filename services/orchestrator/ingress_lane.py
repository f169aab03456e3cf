"""The way of injected messages to the ingress: a lane of their own, opened by the first of them.

Over the connection of API calls each publish costs a request of nats-py (70 µs) and goes alone. A lane writes in one go
what waits, and where the broker syncs every write it is stored in batches.
"""

from __future__ import annotations

import asyncio

from headrace.edge.faulty_lane import lane_with_faults
from headrace.edge.ingress_publisher import IngressPublisher
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.nats_link import NatsLink

OPEN_LIMIT_S = 5.0
CLOSE_LIMIT_S = 1.0


class IngressLane:
    """Of one orchestrator. `urls` are the broker's."""

    def __init__(self, urls: str, workspace: str) -> None:
        self._urls, self._workspace = urls, workspace
        self._opening = asyncio.Lock()
        self._lane: NatsLane | None = None
        self._publisher: IngressPublisher | None = None

    async def publisher(self) -> IngressPublisher:
        """Unavailable BROKER_UNREACHABLE where no server answers within 5 s."""
        if self._publisher is None:
            async with self._opening:
                if self._publisher is None:
                    link = await NatsLink.connect(self._urls, "orchestrator ingress", timeout_s=OPEN_LIMIT_S)
                    self._lane = lane_with_faults(NatsLane(link))
                    await self._lane.start()
                    self._publisher = IngressPublisher(self._lane, self._workspace)
        return self._publisher

    async def close(self) -> None:
        """Waits a moment for answers, then ends; publishes that are left end in PublishUnknown."""
        if self._lane is not None:
            await self._lane.close(CLOSE_LIMIT_S)
