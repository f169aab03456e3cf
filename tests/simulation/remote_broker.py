"""The broker and its buckets as a process has them, over its `Link`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import nats.errors

from headrace.document_ports import Entry
from headrace.model.errors import Unavailable
from tests.simulation.links import Link
from tests.support.memory_broker import MemoryBroker
from tests.support.memory_bucket import MemoryBucket
from tests.support.memory_stream import Answer

T = TypeVar("T")
CHANGES = ("STREAM.UPDATE", "STREAM.PURGE", "CONSUMER.CREATE", "CONSUMER.DELETE", "CONSUMER.PAUSE")


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


class RemoteBucket:
    """A bucket over a link; errors as `KvBucket` raises them."""

    def __init__(self, link: Link, bucket: MemoryBucket, guard: Callable[[], None] = lambda: None) -> None:
        self._link = link
        self._bucket = bucket
        self._guard = guard

    async def _do(self, method: str, *arguments: Any) -> Any:
        try:
            return await self._link.call(lambda: at_once(getattr(self._bucket, method)(*arguments)), 5.0)
        except TimeoutError:
            raise Unavailable(f"no answer for bucket {self._bucket.name}", reason="BROKER_UNREACHABLE") from None

    async def get(self, key: str) -> Any:
        return await self._do("get", key)

    async def create(self, key: str, value: bytes) -> Any:
        self._guard()
        return await self._do("create", key, value)

    async def update(self, key: str, value: bytes, revision: int) -> Any:
        self._guard()
        return await self._do("update", key, value, revision)

    async def put(self, key: str, value: bytes) -> Any:
        self._guard()
        return await self._do("put", key, value)

    async def delete(self, key: str, revision: int | None = None) -> Any:
        self._guard()
        return await self._do("delete", key, revision)

    async def purge(self, key: str) -> Any:
        self._guard()
        return await self._do("purge", key)

    async def keys(self, pattern: str = ">") -> Any:
        return await self._do("keys", pattern)

    async def entries(self, pattern: str = ">") -> Any:
        return await self._do("entries", pattern)

    async def newest(self) -> Any:
        return await self._do("newest")

    async def watch(self, pattern: str = ">") -> AsyncGenerator[Entry | None, None]:
        """Changes come in order; some are never told."""
        network = self._link.network
        async for entry in self._bucket.watch(pattern):
            if entry is not None and network.happens(network.faults.lost):
                continue
            await asyncio.sleep(self._link._wait())  # tidy: pace
            yield entry


class RemoteBroker:
    """A connection's `publish` and `request` over a link. What is published goes with the next request, whole."""

    def __init__(self, link: Link, broker: MemoryBroker, *, cluster: bool = False) -> None:
        self._link = link
        self._broker = broker
        self._server_info = {"cluster": "simulated"} if cluster else {}
        self._written: list[tuple[str, bytes, dict[str, str] | None]] = []

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self._written.append((subject, payload, headers))

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 5.0, *, headers: dict[str, str] | None = None
    ) -> Answer:
        written, self._written = self._written, []

        def arrive() -> Answer:
            for each in written:
                self._broker.answer(*each)
            return self._broker.answer(subject, payload, headers)

        try:
            changes = any(verb in subject for verb in CHANGES)
            return await self._link.call(arrive, timeout, changes=changes)
        except TimeoutError:
            raise nats.errors.TimeoutError from None
