"""Looks at the instances of a flow once a second while somebody watches its hops: one poller per flow, whoever watches.

A question goes to all instances at once; answers are taken whenever they come. A tick ends when all that answered the
last one have answered, or a moment later: whoever is late counts in the next tick.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model import subjects
from headrace.model.errors import HeadraceError, NotFound, Unavailable
from headrace.model.hop_windows import HopWindows, Look
from headrace.wire.hops import look_of
from services.orchestrator.domain.flow_metrics import StepBacklog
from services.orchestrator.mesh_queries import readable_snapshot

log = get_logger(__name__)

T = TypeVar("T")
V = TypeVar("V", bound=Hashable)

PERIOD_S = 1.0
# What comes later than this after the question counts in the next tick.
ANSWER_WAIT_S = 0.25
# Whoever has not answered for so long is gone, and is not waited for or named any more.
GONE_S = 5.0
# A watch that is begun again soon (grpcurl, a reconnect) finds its windows filled.
LINGER_S = 5.0
MOST_INSTANCES = 10_000


class HopFeed:
    """The windows of one flow, what is stored for its steps, and how often both were renewed (`ticks`); `wait` for
    more. `look` reads what is stored, and raises NotFound when the flow is gone."""

    def __init__(
        self, connection: Client, workspace: str, flow: str, look: Callable[[], Awaitable[Mapping[str, StepBacklog]]]
    ) -> None:
        self._connection, self._workspace, self.flow = connection, workspace, flow
        self._look = look
        self.backlogs: Mapping[str, StepBacklog] = {}
        self._changed = asyncio.Event()
        self._answers: dict[str, Look] = {}
        self._heard_at: dict[str, float] = {}
        self._expected: set[str] = set()
        self._complete = asyncio.Event()
        self.windows = HopWindows()
        self.silent: list[str] = []
        self.time_unix_ns = 0
        self.watchers = 0
        self.ended: HeadraceError | None = None
        self.over = False
        self.left_at = 0.0
        self._made: dict[Hashable, Any] = {}

    @property
    def ticks(self) -> int:
        return self.windows.ticks

    async def wait(self, ticks: int, closed: asyncio.Event) -> None:
        """Returns when there were more ticks than these, or when `closed` is set; raises what ended the feed."""
        while self.ticks <= ticks and not closed.is_set():
            if self.over:
                raise self.ended or Unavailable("the watch of hops ended", next_step="Watch again")
            changed = self._changed
            await changed.wait()

    def made(self, view: V, make: Callable[[HopFeed, V], T]) -> T:
        """`make(self, view)`, made once a tick for all who look alike."""
        if view not in self._made:
            self._made[view] = make(self, view)
        made: T = self._made[view]
        return made

    def wake(self) -> None:
        """Everybody who waits looks again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def run(self) -> None:
        """Until nobody has watched for a while, or the flow is gone."""
        subscription: Subscription | None = None
        loop = asyncio.get_running_loop()
        try:
            inbox = self._connection.new_inbox()
            subscription = await self._connection.subscribe(inbox, cb=self._note)
            due = loop.time()
            while self.watchers or loop.time() - self.left_at < LINGER_S:
                await self._look_at_flow()
                await self._tick(inbox)
                due = max(due + PERIOD_S, loop.time())
                await asyncio.sleep(due - loop.time())
        except HeadraceError as error:
            self.ended = error
        except Exception as error:
            log.exception("hops are watched no more", flow=self.flow)
            self.ended = Unavailable(f"the watch of hops of {self.flow!r} ended: {error!r}", next_step="Watch again")
        finally:
            self.over = True  # in the same turn as the last look at `watchers`: nobody joins what ends
            self.wake()
            if subscription is not None and self._connection.is_connected:
                await subscription.unsubscribe()

    async def _look_at_flow(self) -> None:
        try:
            self.backlogs = await self._look()
        except NotFound:
            raise
        except HeadraceError as error:  # the broker is away: the windows go on, with nothing in them
            self.backlogs = {}
            log.debug("what is stored for the flow is not known", flow=self.flow, error=str(error))

    async def _note(self, message: Msg) -> None:
        snapshot = readable_snapshot(message.data) if message.data else None  # empty: nobody listens
        if snapshot is None or len(self._answers) >= MOST_INSTANCES:
            return
        self._answers[snapshot.instance] = look_of(snapshot)
        self._expected.discard(snapshot.instance)
        if not self._expected:
            self._complete.set()

    async def _tick(self, inbox: str) -> None:
        loop = asyncio.get_running_loop()
        asked_at, self.time_unix_ns = loop.time(), time.time_ns()
        known = {name for name, heard in self._heard_at.items() if asked_at - heard < GONE_S}
        self._expected = set(known)
        self._complete.clear()
        if self._connection.is_connected:
            await self._connection.publish(subjects.hop_request_subject(self._workspace, self.flow), b"", reply=inbox)
        # Who is there is not known yet: the first tick waits for everybody.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_WAIT_S):
                await (self._complete.wait() if known else asyncio.Event().wait())
        looks, self._answers = self._answers, {}
        self._heard_at = {name: heard for name, heard in self._heard_at.items() if name in known}
        self._heard_at.update(dict.fromkeys(looks, asked_at))
        self.silent = sorted(known - looks.keys())
        self.windows.tick(asked_at, looks.values())
        self._made.clear()
        self.wake()


class HopFeeds:
    """All feeds of one orchestrator. `close` them before the server ends its calls, `stop` after."""

    def __init__(
        self, connection: Client, workspace: str, look: Callable[[str], Awaitable[Mapping[str, StepBacklog]]]
    ) -> None:
        """`look` reads what is stored for a flow's steps; NotFound when there is no such flow (any more)."""
        self._connection, self._workspace, self._look = connection, workspace, look
        self._feeds: dict[str, HopFeed] = {}
        self._tasks: dict[HopFeed, asyncio.Task[None]] = {}
        self.closed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watching(self, flow: str) -> AsyncIterator[HopFeed]:
        """The flow's feed, which looks at least until this ends."""
        feed = self._feeds.get(flow)
        if feed is None or feed.over:
            feed = self._feeds[flow] = HopFeed(self._connection, self._workspace, flow, lambda: self._look(flow))
            feed.watchers += 1
            task = self._tasks[feed] = asyncio.create_task(feed.run(), name=f"hops of {flow}")
            task.add_done_callback(lambda _: self._forget(feed))
        else:
            feed.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            feed.left_at = asyncio.get_running_loop().time()

    def _forget(self, feed: HopFeed) -> None:
        self._tasks.pop(feed, None)
        if self._feeds.get(feed.flow) is feed:
            del self._feeds[feed.flow]

    def close(self) -> None:
        """Watches end in good order."""
        self.closed.set()
        for feed in self._feeds.values():
            feed.wake()

    async def stop(self) -> None:
        """Ends all pollers."""
        await end_tasks(list(self._tasks.values()))
