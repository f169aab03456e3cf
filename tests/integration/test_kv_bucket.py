"""KvBucket against a real broker."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model.errors import Conflict


async def test_changes_are_compare_and_set(broker: BrokerProcess) -> None:
    connection = await connect_nats(broker.url, "test")
    bucket = await KvBucket.open(connection, "hr_default_flows")
    first = await bucket.create("flow.a", b"1")
    with pytest.raises(Conflict):
        await bucket.create("flow.a", b"2")
    await bucket.update("flow.a", b"2", first)
    with pytest.raises(Conflict):
        await bucket.update("flow.a", b"3", first)
    await bucket.create("version.a.1", b"v")
    assert await bucket.keys("flow.*") == ["flow.a"]
    assert [(entry.key, entry.value) for entry in await bucket.entries()] == [("flow.a", b"2"), ("version.a.1", b"v")]
    await bucket.delete("flow.a")
    assert await bucket.get("flow.a") is None
    assert await bucket.keys("flow.*") == []
    await bucket.create("flow.a", b"again")
    await close_nats(connection)


async def test_watch_gives_present_entries_then_changes(broker: BrokerProcess) -> None:
    connection = await connect_nats(broker.url, "test")
    bucket = await KvBucket.open(connection, "hr_default_routes")
    await bucket.put("orders", b"1")
    seen: list[bytes | None] = []
    async with asyncio.timeout(10), contextlib.aclosing(bucket.watch()) as watch:
        async for entry in watch:
            if entry is None:
                await bucket.put("orders", b"2")
                await bucket.delete("orders")
                continue
            seen.append(entry.value)
            if entry.value is None:
                break
    assert seen == [b"1", b"2", None]
    await close_nats(connection)
