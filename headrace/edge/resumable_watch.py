"""Watches of a bucket that a client can go on with after it was away.

What a watch says follows from the bucket alone: the present entry of every key that changed above a revision, in order.
So nothing is kept for a client that is away, and one that comes back gets what it missed, each key once. Writes are
only hints to look; a look every few seconds finds what no hint told of.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from headrace.document_ports import Bucket, Entry
from headrace.model.errors import OutOfRange
from headrace.model.opaque_tokens import make_token, read_token

# A watch that has nothing to say says where it is.
IDLE_S = 5.0
# Entries of one message, and their bytes.
MOST_AT_ONCE = 100
MOST_BYTES = 1024 * 1024
# A hint comes about when the write is stored: how long to wait for it, look by look.
LOOKS_S = (0.01, 0.05, 0.2)

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class WatchStep:
    """What changed, in order (`value` None: the key is gone), and the token of where the watch is now."""

    entries: tuple[Entry, ...]
    token: str
    synced: bool


@dataclass(frozen=True, slots=True)
class ResumableWatch:
    """`kind` names what is watched, with its filter: a token of another kind is refused."""

    bucket: Bucket
    pattern: str
    kind: str

    async def follow(self, token: str, stopping: asyncio.Event) -> AsyncGenerator[WatchStep, None]:
        """Without a token: all that is there first. Else what changed since; OutOfRange where that is not known."""
        incarnation, newest = await self.bucket.state()
        changed = asyncio.Event()
        async with self.bucket.told(self.pattern, changed.set):
            if token:
                position, synced = self._position(token, incarnation, newest), False
            else:
                position, synced = newest, True
                async for step in self._present(incarnation, newest):
                    position = max(position, step.entries[-1].revision) if step.entries else position
                    yield step
            loop = asyncio.get_running_loop()
            told_at = loop.time()
            while not stopping.is_set():
                changed.clear()
                now, newest = await self.bucket.state()
                if now != incarnation:
                    raise _gone()
                async for entries in self._changes(position):
                    position = entries[-1].revision
                    yield WatchStep(entries, self._token(incarnation, position), synced)
                    told_at = loop.time()
                # Everything below was looked at, whatever key it was of.
                position = max(position, newest)
                if not synced or loop.time() - told_at >= IDLE_S:
                    synced, told_at = True, loop.time()
                    yield WatchStep((), self._token(incarnation, position), synced)
                await self._wait(changed, stopping, told_at + IDLE_S - loop.time(), position)

    async def _present(self, incarnation: str, newest: int) -> AsyncGenerator[WatchStep, None]:
        entries = sorted(await self.bucket.entries(self.pattern), key=lambda entry: entry.revision)
        while True:
            part = tuple(entries[: _fitting(entries)])
            del entries[: len(part)]
            revision = part[-1].revision if part else 0
            if entries:
                yield WatchStep(part, self._token(incarnation, revision), synced=False)
            else:
                yield WatchStep(part, self._token(incarnation, max(revision, newest)), synced=True)
                return

    async def _changes(self, position: int) -> AsyncGenerator[tuple[Entry, ...], None]:
        found: list[Entry] = []
        while (entry := await self.bucket.next_change(self.pattern, position)) is not None:
            position = entry.revision
            if found and _fitting([*found, entry]) <= len(found):
                yield tuple(found)
                found = []
            found.append(entry)
        if found:
            yield tuple(found)

    async def _wait(self, changed: asyncio.Event, stopping: asyncio.Event, limit_s: float, position: int) -> None:
        """Until a write is told of and stored, or it is time to say something."""
        waits = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(stopping.wait())]
        try:
            await asyncio.wait(waits, timeout=max(0.0, limit_s), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if changed.is_set():
            for pause_s in LOOKS_S:
                await asyncio.sleep(pause_s)
                if await self.bucket.next_change(self.pattern, position) is not None:
                    return

    def _position(self, token: str, incarnation: str, newest: int) -> int:
        of, revision = read_token("revision", self.kind, token, 2)
        if of != incarnation or int(revision) > newest:
            raise _gone()
        return int(revision)

    def _token(self, incarnation: str, revision: int) -> str:
        return make_token(self.kind, incarnation, str(revision))


def _gone() -> OutOfRange:
    return OutOfRange(
        "what this watch would go on from is not there any more: the mesh's data are others than they were",
        reason="REVISION_GONE",
        next_step="Watch again without a revision: you get all that is there now",
    )


def _fitting(entries: Sequence[Entry]) -> int:
    """How many of them, from the first on, one message may hold; at least one where there is any."""
    size = 0
    for count, entry in enumerate(entries[:MOST_AT_ONCE]):
        size += len(entry.value or b"")
        if count and size > MOST_BYTES:
            return count
    return min(len(entries), MOST_AT_ONCE)


async def messages_of(
    watch: ResumableWatch, token: str, stopping: asyncio.Event, make: Callable[[WatchStep], Awaitable[M]]
) -> AsyncGenerator[M, None]:
    """The stream's messages: one for each step."""
    async with contextlib.aclosing(watch.follow(token, stopping)) as steps:
        async for step in steps:
            yield await make(step)
