"""Bounds how many bundles are received or sent at once, and how many callers may wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headrace.model.errors import Exhausted

MAX_WAITING = 64
MAX_WAIT_S = 20.0


class TransferSlots:
    """At most `limit` transfers; up to MAX_WAITING callers wait, for at most MAX_WAIT_S."""

    def __init__(self, limit: int) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._waiting = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Holds a slot; Exhausted when the registry is too busy."""
        if self._waiting >= MAX_WAITING:
            raise _busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                await self._slots.acquire()
        except TimeoutError as error:
            raise _busy() from error
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()


def _busy() -> Exhausted:
    return Exhausted(
        "the registry moves too many bundles at once", reason="REGISTRY_BUSY", next_step="Try again in a few seconds"
    )
