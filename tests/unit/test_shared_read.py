"""Reads that are shared are never older than the question, and errors reach all who asked."""

from __future__ import annotations

import asyncio

import pytest

from services.orchestrator.shared_read import SharedReads


class Source:
    def __init__(self) -> None:
        self.value, self.reads, self.under_way = 0, 0, 0

    async def read(self, key: str) -> int:
        self.reads += 1
        self.under_way += 1
        assert self.under_way == 1
        value = self.value
        for _ in range(5):
            await asyncio.sleep(0)
        self.under_way -= 1
        if key == "broken":
            raise LookupError(key)
        return value


async def test_nobody_gets_what_was_read_before_they_asked() -> None:
    source = Source()
    reads = SharedReads(source.read)

    async def ask(turn: int) -> tuple[int, int]:
        for _ in range(turn):
            await asyncio.sleep(0)
        source.value += 1
        asked_at = source.value
        return asked_at, await reads.get("key")

    answers = await asyncio.gather(*(ask(turn) for turn in range(30)))
    assert all(found >= asked_at for asked_at, found in answers)
    assert source.reads < len(answers) / 2
    assert await reads.get("key") == 30


async def test_an_error_is_told_to_all_and_the_next_read_is_a_new_one() -> None:
    source = Source()
    reads = SharedReads(source.read)
    told = await asyncio.gather(*(reads.get("broken") for _ in range(10)), return_exceptions=True)
    assert all(isinstance(one, LookupError) for one in told)
    assert source.reads == 2
    with pytest.raises(LookupError):
        await reads.get("broken")


async def test_a_caller_who_leaves_takes_nothing_from_the_others() -> None:
    source = Source()
    reads = SharedReads(source.read)
    first, second, third = (asyncio.ensure_future(reads.get("key")) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    assert await third == 0
    assert await reads.get("key") == 0
