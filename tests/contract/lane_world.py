"""The world of the lane suite: a real broker, a proxy before it, one work-queue stream as flows have them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from nats.aio.client import Client

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.grouping_lane import GroupingLane
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.nats_link import NatsLink
from headrace.model.flow_stream import flow_stream_config
from headrace.ports import Consumption, Delivery, JetStreamLane
from tests.support.tcp_proxy import TcpProxy

STREAM = "hr_default_orders"
CONSUMER = "d1_price"
SUBJECT = "hr.default.orders.d1.price.0"
FULL_AT = 5000

# Opens a lane to a URL; the keywords are `max_outstanding` and `heartbeat_s`.
OpenLane = Callable[..., AbstractAsyncContextManager[JetStreamLane]]


@asynccontextmanager
async def nats_lane(url: str, *, max_outstanding: int = 4096, heartbeat_s: float = 0.3) -> AsyncIterator[JetStreamLane]:
    lane = NatsLane(
        await NatsLink.connect(url, "lane under test"), max_outstanding=max_outstanding, heartbeat_s=heartbeat_s
    )
    await lane.start()
    try:
        yield lane
    finally:
        await lane.close(timeout_s=0.5)


@asynccontextmanager
async def grouping_lane(url: str, **options: Any) -> AsyncIterator[JetStreamLane]:
    """What brokers that sync every write are used through."""
    async with nats_lane(url, **options) as lane:
        yield GroupingLane(lane, "hr.default.orders.", lambda consumer: SUBJECT, only=True)


IMPLEMENTATIONS: list[OpenLane] = [nats_lane]


@dataclass
class World:
    """Broker and proxy with the stream in place; `api` talks to the broker directly."""

    broker: BrokerProcess
    proxy: TcpProxy
    admin: Client
    open_lane: OpenLane
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def lane(self, **options: Any) -> AbstractAsyncContextManager[JetStreamLane]:
        """A lane whose connection runs through the proxy."""
        return self.open_lane(self.proxy.url, **options)

    async def api(self, method: str, request: object = None) -> dict[str, Any]:
        """One request to the JetStream API; AssertionError when it is refused."""
        answer = await self.admin.request(f"$JS.API.{method}", msgspec.json.encode(request or {}), timeout=5)
        decoded: dict[str, Any] = msgspec.json.decode(answer.data)
        assert "error" not in decoded, decoded
        return decoded

    async def make_stream(self, **changes: object) -> None:
        config = flow_stream_config(STREAM, ["hr.default.orders.d1.>"], max_waiting=FULL_AT) | changes
        await self.api(f"STREAM.CREATE.{STREAM}", config)

    async def make_consumer(self, *, ack_wait_s: float = 30.0, **changes: object) -> None:
        config = {
            "durable_name": CONSUMER,
            "ack_policy": "explicit",
            "ack_wait": int(ack_wait_s * 1e9),
            "max_ack_pending": 1000,
            "filter_subject": SUBJECT,
            **changes,
        }
        request = {"stream_name": STREAM, "config": config}
        await self.api(f"CONSUMER.CREATE.{STREAM}.{CONSUMER}.{SUBJECT}", request)

    async def pause_consumer(self, seconds: float) -> None:
        until = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        await self.api(f"CONSUMER.PAUSE.{STREAM}.{CONSUMER}", {"pause_until": until})

    async def delete_consumer(self) -> None:
        await self.api(f"CONSUMER.DELETE.{STREAM}.{CONSUMER}")

    async def stored(self) -> int:
        """Messages in the stream."""
        info = await self.api(f"STREAM.INFO.{STREAM}")
        return int(info["state"]["messages"])

    async def fill(self, count: int) -> list[bytes]:
        """Stores messages around the lane and answers their bodies, in order."""
        bodies = [b"%d" % next(self.numbers) for _ in range(count)]
        for body in bodies:
            answer = await self.admin.request(SUBJECT, body, timeout=5, headers={"Nats-Msg-Id": f"m{body.decode()}"})
            assert b'"error"' not in answer.data, answer.data
        return bodies


@asynccontextmanager
async def make_world(broker: BrokerProcess, open_lane: OpenLane) -> AsyncIterator[World]:
    proxy = TcpProxy(broker.port)
    await proxy.start()
    admin = await connect_nats(broker.url, "test admin")
    world = World(broker, proxy, admin, open_lane)
    await world.make_stream()
    await world.make_consumer()
    try:
        yield world
    finally:
        await proxy.stop()
        await close_nats(admin)


class Inbox:
    """Collects what a consumption hands over."""

    def __init__(self) -> None:
        self.batches: list[list[Delivery]] = []
        self.consumption: Consumption | None = None

    def take(self, deliveries: list[Delivery]) -> None:
        self.batches.append(deliveries)

    @property
    def deliveries(self) -> list[Delivery]:
        return [delivery for batch in self.batches for delivery in batch]

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.payload for delivery in self.deliveries]
