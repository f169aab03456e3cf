"""One reader of a flow's status, whoever watches; who comes gets a status that was read after it came."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.model.errors import NotFound
from services.orchestrator.shared_feed import SharedFeeds
from services.orchestrator.status_feed import StatusFeed
from tests.support.eventually import eventually


class Flow:
    """Its status says how often it was read; reading takes a moment."""

    def __init__(self) -> None:
        self.reads = 0
        self.gone = False
        self.watched: list[asyncio.Event] = []

    async def read(self, flow: str) -> flow_pb2.FlowStatus:
        self.reads += 1
        number = self.reads
        await asyncio.sleep(0.03)  # tidy: pace
        if self.gone:
            raise NotFound("there is no flow")
        return flow_pb2.FlowStatus(dropped=number)

    @contextlib.contextmanager
    def watching(self, flow: str) -> Iterator[asyncio.Event]:
        self.watched.append(asyncio.Event())
        yield self.watched[-1]
        self.watched.pop()

    def feeds(self) -> SharedFeeds[StatusFeed]:
        return SharedFeeds(lambda flow: StatusFeed(flow, self.read, self.watching))


async def test_who_comes_while_it_is_read_waits_for_the_next_reading() -> None:
    flow = Flow()
    feeds = flow.feeds()
    async with feeds.watching("orders") as feed:
        first = feed.look_now()
        await eventually(lambda: flow.reads, every_s=0.001)  # the first reading is under way
        second = feed.look_now()
        await feed.wait(first, feeds.closed)
        assert feed.status.dropped == 1
        await feed.wait(second, feeds.closed)
        assert feed.status.dropped == 2
    await eventually(lambda: not feeds.running and not flow.watched)


async def test_many_watchers_cost_one_reader_and_a_change_is_read_at_once() -> None:
    flow = Flow()
    feeds = flow.feeds()
    async with contextlib.AsyncExitStack() as stack:
        watched = [await stack.enter_async_context(feeds.watching("orders")) for _ in range(100)]
        await asyncio.gather(*(feed.wait(feed.look_now(), feeds.closed) for feed in watched))
        reads = flow.reads
        assert reads <= 2
        flow.watched[0].set()
        await watched[0].wait(reads, feeds.closed)
        assert flow.reads == reads + 1
        flow.gone = True
        flow.watched[0].set()
        with pytest.raises(NotFound):
            await watched[0].wait(10**9, feeds.closed)
    flow.gone = False
    async with feeds.watching("orders") as again:
        await again.wait(again.look_now(), feeds.closed)
    await feeds.stop()
