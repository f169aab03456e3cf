"""One loop that looks at something of a flow while somebody watches it, however many watch.

Watchers take the newest of it when they are ready for it: nothing is queued for one that is slow, it skips.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import HeadraceError, Unavailable

log = get_logger(__name__)


class SharedFeed:
    """`follow` is what a kind of feed does: as long as it is `wanted` it looks, and says `tell` after each look. What
    it raises ends all its watches."""

    def __init__(self, flow: str, linger_s: float) -> None:
        """It goes on for `linger_s` after the last watcher left."""
        self.flow = flow
        self._linger_s = linger_s
        self._changed = asyncio.Event()
        self._ended: HeadraceError | None = None
        self._left_at = 0.0
        self.watchers = 0
        self.over = False
        self.told = 0
        """How often there was news."""

    @property
    def wanted(self) -> bool:
        """Whether to look once more."""
        return self.watchers > 0 or asyncio.get_running_loop().time() - self._left_at < self._linger_s

    async def follow(self) -> None:
        """Returns when it is not wanted any more, and sets `over` in the same turn: nobody joins what ends."""
        raise NotImplementedError

    def tell(self) -> None:
        """There is news."""
        self.told += 1
        self.wake()

    def wake(self) -> None:
        """Everybody who waits looks again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, told: int, closed: asyncio.Event) -> None:
        """Returns when there was news more than so often, or when `closed` is set; raises what ended the feed."""
        while self.told <= told and not closed.is_set():
            if self.over:
                raise self._ended or Unavailable("the watch ended", next_step="Watch again")
            changed = self._changed
            await changed.wait()

    async def run(self) -> None:
        """The feed's task."""
        try:
            await self.follow()
        except HeadraceError as error:
            self._ended = error
        except Exception as error:
            log.exception("a watch ended", flow=self.flow, feed=type(self).__name__)
            self._ended = Unavailable(f"the watch of {self.flow!r} ended: {error!r}", next_step="Watch again")
        finally:
            self.over = True
            self.wake()

    @contextlib.contextmanager
    def watched(self):  # type: ignore[no-untyped-def]
        """It is wanted at least until this ends."""
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1
            self._left_at = asyncio.get_running_loop().time()


F = TypeVar("F", bound=SharedFeed)


class SharedFeeds(Generic[F]):
    """All feeds of a kind in one orchestrator. `close` them before the server ends its calls, `stop` after."""

    def __init__(self, make: Callable[[str], F]) -> None:
        """`make` a feed of a flow."""
        self._make = make
        self._feeds: dict[str, F] = {}
        self._tasks: dict[F, asyncio.Task[None]] = {}
        self.closed = asyncio.Event()

    @property
    def running(self) -> int:
        """How many feeds look at something."""
        return len(self._tasks)

    @contextlib.asynccontextmanager
    async def watching(self, flow: str) -> AsyncIterator[F]:
        """The flow's feed, which looks at least until this ends."""
        feed = self._feeds.get(flow)
        fresh = feed is None or feed.over
        if feed is None or fresh:
            feed = self._feeds[flow] = self._make(flow)
        with feed.watched():
            if fresh:
                task = self._tasks[feed] = asyncio.create_task(feed.run(), name=f"{type(feed).__name__} {flow}")
                task.add_done_callback(lambda _, feed=feed: self._forget(feed))  # type: ignore[misc]
            yield feed

    def _forget(self, feed: F) -> None:
        self._tasks.pop(feed, None)
        if self._feeds.get(feed.flow) is feed:
            del self._feeds[feed.flow]

    def close(self) -> None:
        """Watches end in good order."""
        self.closed.set()
        for feed in self._feeds.values():
            feed.wake()

    async def stop(self) -> None:
        """Ends all of them."""
        await end_tasks(list(self._tasks.values()))
