"""Verbs that wait for the operation at work on their flow: one after another, in order of arrival.

The queue is in memory: it ends with the process, and callers repeat their call with the same request id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from headrace.model.errors import Exhausted
from services.orchestrator.domain.flow_verbs import check_free
from services.orchestrator.reconcile_loop import FlowLoops
from services.orchestrator.stores import Stores

MOST_WAITING = 100
LOOK_S = 1.0


class VerbQueue:
    """One line per flow."""

    def __init__(self, stores: Stores, loops: FlowLoops) -> None:
        self._stores = stores
        self._loops = loops
        self._lines: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def turn(self, flow: str, verb: str, limit_s: float) -> AsyncIterator[None]:
        """Entered when nothing is at work on the flow and everybody who came earlier has begun.

        Past the limit: WrongState BUSY naming what is at work. Exhausted when too many wait.
        """
        if self._waiting.get(flow, 0) >= MOST_WAITING:
            raise Exhausted(f"{MOST_WAITING} calls wait for flow {flow!r} already", next_step="Try again later")
        self._waiting[flow] = self._waiting.get(flow, 0) + 1
        line = self._lines.setdefault(flow, asyncio.Lock())
        held = False
        try:
            try:
                async with asyncio.timeout(limit_s):
                    await line.acquire()
                    held = True
                    await self._free(flow, verb)
            except TimeoutError:
                check_free((await self._stores.existing_flow(flow))[0], verb)
                raise Exhausted(
                    f"the turn of {verb} did not come within {limit_s:g} s", next_step="Try again"
                ) from None
            yield
        finally:
            if held:
                line.release()
            self._waiting[flow] -= 1
            if not self._waiting[flow]:
                del self._waiting[flow], self._lines[flow]

    async def _free(self, flow: str, verb: str) -> None:
        with self._loops.watching(flow) as changed:
            while True:
                changed.clear()
                document, _ = await self._stores.existing_flow(flow)
                if document.operation is None and not document.target:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await changed.wait()
