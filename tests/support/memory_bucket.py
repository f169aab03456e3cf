"""A KV bucket in memory with the face of `headrace.edge.kv_bucket.KvBucket`; tests/contract holds it to that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import lru_cache

from headrace.edge.kv_bucket import Entry
from headrace.model.errors import Conflict


@lru_cache(maxsize=65_536)
def matches(pattern: str, subject: str) -> bool:
    """Whether a NATS subject pattern (`*`, `>`) takes a subject."""
    if pattern == subject or pattern == ">":
        return True
    wanted, parts = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(parts) > index
        if index >= len(parts) or token not in ("*", parts[index]):
            return False
    return len(parts) == len(wanted)


@dataclass
class MemoryBucket:
    """`on_write(key, old, new)` is told of each change before it is made; None is an absent value."""

    name: str
    on_write: Callable[[str, bytes | None, bytes | None], None] | None = None
    revision: int = 0
    values: dict[str, tuple[bytes | None, int]] = field(default_factory=dict)
    # Seconds after which a value is forgotten, 0 for never, by this clock; nobody is told of it.
    ttl_s: float = 0.0
    clock: Callable[[], float] = lambda: 0.0
    written: dict[str, float] = field(default_factory=dict)
    listeners: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    watchers: list[tuple[str, asyncio.Queue[Entry | None]]] = field(default_factory=list)

    def read(self, key: str) -> Entry | None:
        value, revision = self._value(key)
        return Entry(key, value, revision) if value is not None else None

    def _value(self, key: str) -> tuple[bytes | None, int]:
        if self.ttl_s and self.clock() - self.written.get(key, 0.0) >= self.ttl_s:
            return None, 0
        return self.values.get(key, (None, 0))

    def _write(self, key: str, value: bytes | None) -> int:
        if self.on_write is not None:
            self.on_write(key, self.values.get(key, (None, 0))[0], value)
        self.revision += 1
        self.values[key] = (value, self.revision)
        if self.ttl_s:
            self.written[key] = self.clock()
        entry = Entry(key, value, self.revision)
        for pattern, queue in self.watchers:
            if matches(pattern, key):
                queue.put_nowait(entry)
        for pattern, tell in self.listeners:
            if matches(pattern, key):
                tell()
        return self.revision

    async def get(self, key: str) -> Entry | None:
        return self.read(key)

    async def create(self, key: str, value: bytes) -> int:
        if self.read(key) is not None:
            raise Conflict(f"{key} exists already", reason="KEY_EXISTS")
        return self._write(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        self._check(key, revision)
        return self._write(key, value)

    def _check(self, key: str, revision: int) -> None:
        if self._value(key)[1] != revision:
            raise Conflict(f"{key} was changed meanwhile", reason="REVISION_CHANGED")

    async def put(self, key: str, value: bytes) -> int:
        return self._write(key, value)

    async def delete(self, key: str, revision: int | None = None) -> None:
        if revision is not None:
            self._check(key, revision)
        self._write(key, None)

    async def purge(self, key: str) -> None:
        self._write(key, None)

    async def keys(self, pattern: str = ">") -> list[str]:
        return [entry.key for entry in await self.entries(pattern)]

    async def entries(self, pattern: str = ">") -> list[Entry]:
        return [
            Entry(key, value, revision)
            for key, (value, revision) in sorted(self.values.items())
            if value is not None and matches(pattern, key)
        ]

    async def newest(self) -> int:
        return self.revision

    async def state(self) -> tuple[str, int]:
        return "memory", self.revision

    async def next_change(self, pattern: str, after: int) -> Entry | None:
        changed = [
            Entry(key, value, revision)
            for key, (value, revision) in self.values.items()
            if revision > after and matches(pattern, key)
        ]
        return min(changed, key=lambda entry: entry.revision, default=None)

    @contextlib.asynccontextmanager
    async def told(self, pattern: str, tell: Callable[[], None]) -> AsyncIterator[None]:
        place = (pattern, tell)
        self.listeners.append(place)
        try:
            yield
        finally:
            self.listeners.remove(place)

    async def watch(self, pattern: str = ">") -> AsyncGenerator[Entry | None, None]:
        queue: asyncio.Queue[Entry | None] = asyncio.Queue()
        for entry in await self.entries(pattern):
            queue.put_nowait(entry)
        queue.put_nowait(None)
        place = (pattern, queue)
        self.watchers.append(place)
        try:
            while True:
                yield await queue.get()
        finally:
            self.watchers.remove(place)
