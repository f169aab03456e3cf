"""The two sides that the broker model's suite is run against: a real nats-server, and the model in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.model.flow_stream import flow_stream_config, ingress_transform
from tests.support.memory_broker import ApiRefusal, MemoryBroker
from tests.support.memory_bucket import MemoryBucket

STREAM = "hr_default_orders"
SECOND = 1_000_000_000
NOTHING_WITHIN_S = 0.2


class Side:
    """One of the two brokers: its assets, a bucket, and a puller's part."""

    assets: JetStreamAssets
    bucket: Any

    async def take(self, durable: str) -> tuple[int, str] | None:
        """Sequence and subject of the next message, unacknowledged; None when none is given."""
        raise NotImplementedError

    async def ack(self, durable: str, sequence: int) -> None:
        raise NotImplementedError

    async def forgetful(self, ttl_s: float) -> Any:
        """A bucket that forgets."""
        raise NotImplementedError


@dataclass
class MemorySide(Side):
    broker: MemoryBroker

    def __post_init__(self) -> None:
        self.assets = JetStreamAssets(self.broker)  # type: ignore[arg-type]
        self.bucket = self.broker.bucket("test")

    async def take(self, durable: str) -> tuple[int, str] | None:
        try:
            message = self.broker.take(STREAM, durable)
        except ApiRefusal:
            return None
        return (message.sequence, message.subject) if message is not None else None

    async def ack(self, durable: str, sequence: int) -> None:
        self.broker.ack(STREAM, durable, sequence)

    async def forgetful(self, ttl_s: float) -> Any:
        return MemoryBucket("forgetful", ttl_s=ttl_s, clock=asyncio.get_running_loop().time)


class RealSide(Side):
    def __init__(self, connection: Any, bucket: KvBucket) -> None:
        self.assets = JetStreamAssets(connection)
        self.bucket = bucket
        self._connection = connection
        self._held: dict[tuple[str, int], Any] = {}

    async def take(self, durable: str) -> tuple[int, str] | None:
        reader = await self._connection.jetstream().pull_subscribe_bind(durable, stream=STREAM)
        try:
            (message,) = await reader.fetch(1, timeout=NOTHING_WITHIN_S)
        except (TimeoutError, nats.errors.Error):
            return None
        finally:
            await reader.unsubscribe()
        sequence = message.metadata.sequence.stream
        self._held[durable, sequence] = message
        return sequence, message.subject

    async def ack(self, durable: str, sequence: int) -> None:
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self._held[durable, sequence].ack_sync(timeout=0.5)

    async def forgetful(self, ttl_s: float) -> Any:
        return await KvBucket.open(self._connection, "forgetful", ttl_s=ttl_s)


@pytest.fixture(params=["memory", "real"])
async def side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Side]:
    if request.param == "memory":
        yield MemorySide(MemoryBroker(asyncio.get_running_loop().time))
        return
    broker = BrokerProcess(tmp_path / "broker")
    await broker.start()
    connection = await connect_nats(broker.url, "test")
    yield RealSide(connection, await KvBucket.open(connection, "test"))
    await close_nats(connection)
    await broker.stop()


def config(*owners: str, ingress: str = "", limit: int = 100) -> dict[str, Any]:
    listed = [subjects.ingress_filter("default", "orders")] if ingress else []
    listed += [subjects.owner_filter("default", "orders", owner) for owner in owners]
    made: dict[str, Any] = flow_stream_config(STREAM, listed, max_waiting=limit)
    made |= {"subjects": listed, "metadata": {"headrace-flow": "orders", "headrace-generation": "1"}}
    if ingress:
        made["subject_transform"] = ingress_transform("default", "orders", ingress)
    return made


def at(owner: str, step: str = "order") -> str:
    return subjects.data_subject("default", "orders", owner, step)


def durable(name: str, *filters: str, ack_wait_s: float = 30.0) -> dict[str, Any]:
    made: dict[str, Any] = {
        "durable_name": name,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * SECOND),
        "max_deliver": -1,
        "max_ack_pending": 1000,
        "deliver_policy": "all",
        "replay_policy": "instant",
        "metadata": {"headrace-flow": "orders"},
    }
    made |= {"filter_subject": filters[0]} if len(filters) == 1 else {"filter_subjects": list(filters)}
    return made


async def put(side: Side, subject: str, message_id: str) -> dict[str, Any]:
    return await side.assets.publish(subject, b"x", {"Nats-Msg-Id": message_id})


INGRESS = at("in")
