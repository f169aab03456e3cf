"""What the simulation believes of KV buckets, held against a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from headrace.model.errors import Conflict
from tests.contract.broker_sides import Side
from tests.support.eventually import eventually


async def test_kv_changes_are_compare_and_set(side: Side) -> None:
    bucket = side.bucket
    first = await bucket.create("flow.a", b"1")
    with pytest.raises(Conflict):
        await bucket.create("flow.a", b"2")
    second = await bucket.update("flow.a", b"2", first)
    assert second > first
    with pytest.raises(Conflict):
        await bucket.update("flow.a", b"3", first)
    with pytest.raises(Conflict):
        await bucket.delete("flow.a", first)
    with pytest.raises(Conflict):
        await bucket.update("flow.absent", b"3", first)
    assert (await bucket.get("flow.a")).value == b"2"
    await bucket.put("flow.b", b"other")
    assert (await bucket.get("flow.a")).revision == second


async def test_kv_delete_then_create(side: Side) -> None:
    bucket = side.bucket
    first = await bucket.create("a.b", b"1")
    await bucket.delete("a.b", first)
    assert await bucket.get("a.b") is None
    assert await bucket.keys("a.*") == []
    with pytest.raises(Conflict):
        await bucket.update("a.b", b"2", first)
    assert await bucket.create("a.b", b"again") > first
    await bucket.delete("never.there")
    await bucket.put("a.c", b"c")
    await bucket.purge("a.c")
    assert [(entry.key, entry.value) for entry in await bucket.entries("a.>")] == [("a.b", b"again")]


async def test_changes_above_a_revision_come_in_order_deletes_too(side: Side) -> None:
    bucket = side.bucket
    which, newest = await bucket.state()
    assert await bucket.next_change("flow.*", newest) is None
    told: list[bool] = []
    async with bucket.told("flow.*", lambda: told.append(True)):
        first = await bucket.create("flow.a", b"1")
        await bucket.put("other.x", b"x")
        await bucket.put("flow.b", b"2")
        await bucket.delete("flow.a")
        await eventually(lambda: len(told) == 3)
    await bucket.put("flow.c", b"3")
    await bucket.purge("flow.c")
    seen, position = [], newest
    while (entry := await bucket.next_change("flow.*", position)) is not None:
        assert entry.revision > position
        position = entry.revision
        seen.append((entry.key, entry.value))
    assert seen == [("flow.b", b"2"), ("flow.a", None), ("flow.c", None)], "each key once, as it is now"
    assert (await bucket.state()) == (which, position)
    assert position > first
    assert len(told) == 3, "nobody is told after the end"


async def test_kv_watch(side: Side) -> None:
    bucket = side.bucket
    await bucket.put("flow.a", b"1")
    await bucket.put("other.a", b"1")
    seen = []
    async with asyncio.timeout(10), contextlib.aclosing(bucket.watch("flow.*")) as watch:
        async for entry in watch:
            if entry is None:
                await bucket.put("flow.a", b"2")
                await bucket.delete("flow.a")
                continue
            seen.append((entry.key, entry.value))
            if entry.value is None:
                break
    assert seen == [("flow.a", b"1"), ("flow.a", b"2"), ("flow.a", None)]


async def test_kv_forgets_after_its_ttl(side: Side) -> None:
    bucket = await side.forgetful(1.0)
    first = await bucket.create("leader", b"1")
    second = await bucket.update("leader", b"2", first)
    with pytest.raises(Conflict):
        await bucket.create("leader", b"3")

    async def forgotten() -> bool:
        return await bucket.get("leader") is None

    await eventually(forgotten, within_s=5.0)
    with pytest.raises(Conflict):
        await bucket.update("leader", b"4", second)
    assert await bucket.create("leader", b"5") > second
