"""One read for all who ask at the same time, and none that is older than the question."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Found = TypeVar("Found")


class SharedReads(Generic[Found]):
    """Whoever asks while a read is under way shares the next one, which begins when that has ended: so nobody gets what
    was read before they asked, and of any number of callers two reads at most are under way or wait."""

    def __init__(self, read: Callable[[str], Awaitable[Found]]) -> None:
        self._read = read
        self._running: dict[str, asyncio.Task[Found]] = {}
        self._next: dict[str, asyncio.Task[Found]] = {}

    async def get(self, key: str) -> Found:
        """What `read(key)` answers or raises."""
        running = self._running.get(key)
        if running is None:
            task = self._running[key] = self._task(key, None)
        elif (following := self._next.get(key)) is not None:
            task = following
        else:
            task = self._next[key] = self._task(key, running)
        return await asyncio.shield(task)

    def _task(self, key: str, after: asyncio.Task[Found] | None) -> asyncio.Task[Found]:
        task = asyncio.create_task(self._run(key, after), name=f"read of {key}")
        task.add_done_callback(_look)
        return task

    async def _run(self, key: str, after: asyncio.Task[Found] | None) -> Found:
        if after is not None:
            await asyncio.wait([after])
        try:
            return await self._read(key)
        finally:
            following = self._next.pop(key, None)
            if following is not None:
                self._running[key] = following
            else:
                del self._running[key]


def _look(task: asyncio.Task[Found]) -> None:
    """Its error is for those who asked; they may have left."""
    if not task.cancelled():
        task.exception()
