"""The poller behind watches of hops, on a real broker: instances that are late, silent, gone or wrong; its own end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from nats.aio.client import Client

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.hop_recorder import HopRecorder
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.model.errors import HeadraceError, NotFound, Unavailable
from services.orchestrator import hop_feed
from services.orchestrator.domain.flow_metrics import StepBacklog
from services.orchestrator.hop_feed import HopFeed
from services.orchestrator.shared_feed import SharedFeeds
from tests.support.eventually import eventually, remains

PERIOD_S = 0.15
SUBJECT = subjects.hop_request_subject("default", "orders")


@dataclass
class Instance:
    """Answers, or not; counts how often it was asked."""

    recorder: HopRecorder
    asked: int = 0
    silent: bool = False
    late_s: float = 0.0

    @classmethod
    async def start(cls, connection: Client, name: str) -> Instance:
        recorder = HopRecorder(f"default.orders.d1.{name}.0", 1, name)
        made = cls(recorder)
        recorder.count_with(lambda: {"processed": recorder.phase(name, "hop", "", "r1").count}, revision="r1")
        await connection.subscribe(SUBJECT, cb=made._answer)
        return made

    async def _answer(self, message: Any) -> None:
        self.asked += 1
        if not self.silent:
            await asyncio.sleep(self.late_s)  # tidy: pace
            await message.respond(self.recorder.snapshot().SerializeToString())

    def work(self, count: int) -> None:
        for _ in range(count):
            self.recorder.record(self.recorder._step, "hop", "", "r1", 1_000_000)


@dataclass
class World:
    connection: Client
    feeds: SharedFeeds[HopFeed]
    problem: list[HeadraceError] = field(default_factory=list)
    backlog: dict[str, StepBacklog] = field(default_factory=dict)


@pytest.fixture
async def world(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name, value in (("PERIOD_S", PERIOD_S), ("ANSWER_WAIT_S", 0.1), ("GONE_S", 0.8), ("LINGER_S", 0.3)):
        monkeypatch.setattr(hop_feed, name, value)
    connection = await connect_nats(broker.url, "test")

    async def look(flow: str) -> dict[str, StepBacklog]:
        if made.problem:
            raise made.problem[0]
        return made.backlog

    made = World(connection, SharedFeeds(lambda flow: HopFeed(connection, "default", flow, look)))
    yield made
    await made.feeds.stop()
    await close_nats(connection)


def counted(feed: HopFeed, step: str) -> int:
    return feed.windows.window(60).counters.get((step, "r1"), {}).get("processed", 0)


async def test_whoever_is_silent_is_named_counted_later_and_forgotten_once_gone(world: World) -> None:
    price, check = [await Instance.start(world.connection, name) for name in ("price", "check")]
    price.work(100)  # before anybody watched
    async with world.feeds.watching("orders") as feed:
        await feed.wait(1, world.feeds.closed)
        check.silent = True
        price.work(3)
        check.work(4)
        await eventually(lambda: feed.silent == ["default.orders.d1.check.0"])
        await eventually(lambda: (counted(feed, "price"), counted(feed, "check")) == (3, 0))
        check.silent = False
        await eventually(lambda: (counted(feed, "check"), feed.silent) == (4, []))
        check.silent = True
        await eventually(lambda: feed.silent)
        await eventually(lambda: not feed.silent)
        assert counted(feed, "check") == 4


async def test_an_answer_that_is_late_counts_in_the_next_tick(world: World) -> None:
    price = await Instance.start(world.connection, "price")
    async with world.feeds.watching("orders") as feed:
        await feed.wait(1, world.feeds.closed)
        price.late_s = 0.12
        price.work(5)
        await eventually(lambda: counted(feed, "price") == 5)


async def test_what_is_no_snapshot_is_left_out_and_a_slow_watcher_skips(world: World) -> None:
    price = await Instance.start(world.connection, "price")

    async def nonsense(message: Any) -> None:
        await message.respond(b"\xff\xff")

    await world.connection.subscribe(SUBJECT, cb=nonsense)
    async with world.feeds.watching("orders") as feed, world.feeds.watching("orders") as same:
        assert feed is same
        await feed.wait(1, world.feeds.closed)
        price.work(2)
        await eventually(lambda: feed.told >= 4)
        seen = feed.told
        await feed.wait(seen - 1, world.feeds.closed)  # at once, and with the newest
        assert feed.told == seen
        assert counted(feed, "price") == 2


async def test_it_outlives_a_broker_that_is_away_and_ends_with_its_flow(world: World) -> None:
    world.backlog["price"] = StepBacklog(7, 1.0)
    async with world.feeds.watching("orders") as feed:
        await feed.wait(1, world.feeds.closed)
        assert feed.backlogs == {"price": StepBacklog(7, 1.0)}
        world.problem.append(Unavailable("the broker does not answer"))
        ticks = feed.told
        await eventually(lambda: feed.told > ticks + 2)
        assert feed.backlogs == {}
        world.problem[:] = [NotFound("there is no flow 'orders'")]
        with pytest.raises(NotFound):
            await feed.wait(10**9, world.feeds.closed)
    world.problem.clear()
    async with world.feeds.watching("orders") as again:
        assert again is not feed
        await again.wait(1, world.feeds.closed)


async def test_nobody_is_asked_while_nobody_watches_and_watches_end_in_good_order(world: World) -> None:
    price = await Instance.start(world.connection, "price")
    async with world.feeds.watching("orders") as feed:
        await feed.wait(1, world.feeds.closed)
    async with world.feeds.watching("orders") as soon:
        assert soon is feed, "who comes back soon finds it filled"
    await eventually(lambda: not world.feeds.running)
    asked = price.asked
    await remains(lambda: price.asked == asked, for_s=3 * PERIOD_S)
    async with world.feeds.watching("orders") as last:
        waiting = asyncio.create_task(last.wait(10**9, world.feeds.closed))
        world.feeds.close()
        async with asyncio.timeout(2):
            await waiting
