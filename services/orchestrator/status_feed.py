"""A flow's status while somebody watches it: read when something of the flow changed, and every half second, since what
waits changes without a report. One reader per flow, whoever watches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from headrace.api.flow.v1 import flow_pb2
from services.orchestrator.shared_feed import SharedFeed

LOOK_S = 0.5
LEAST_PAUSE_S = 0.1


class StatusFeed(SharedFeed):
    """`status` is the newest; `begun` counts the reads that were begun, so that who comes can wait for one that began
    after: what a verb has done is seen by a watch that begins after it."""

    def __init__(
        self,
        flow: str,
        read: Callable[[str], Awaitable[flow_pb2.FlowStatus]],
        watching: Callable[[str], AbstractContextManager[asyncio.Event]],
    ) -> None:
        """`watching` gives an event that is set when something of the flow may have changed."""
        super().__init__(flow, 0.0)
        self._read, self._watching = read, watching
        self._look_now = asyncio.Event()
        self.status = flow_pb2.FlowStatus()
        self.begun = 0

    def look_now(self) -> int:
        """Reads soon; answers how often there will have been news before that."""
        self._look_now.set()
        return self.begun

    async def follow(self) -> None:
        with self._watching(self.flow) as changed:
            self._look_now = changed
            while self.wanted:
                changed.clear()
                self.begun += 1
                self.status = await self._read(self.flow)
                self.tell()
                await asyncio.sleep(LEAST_PAUSE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await changed.wait()
