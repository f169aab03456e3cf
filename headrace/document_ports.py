"""What services need of the broker beside the path of messages: documents in buckets, and requests to its API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value and revision; `value` None means deleted (only from a watch)."""

    key: str
    value: bytes | None
    revision: int


class Bucket(Protocol):
    """A bucket of keys. Conflict where a compare-and-set does not fit, Unavailable when the broker is away."""

    async def get(self, key: str) -> Entry | None:
        """The newest value, or None."""

    async def create(self, key: str, value: bytes) -> int:
        """Writes a key that must not exist; answers the revision."""

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Compare-and-set; answers the new revision."""

    async def put(self, key: str, value: bytes) -> int:
        """Writes whatever was there."""

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Deletes a key (with compare-and-set where a revision is given); absent is fine."""

    async def purge(self, key: str) -> None:
        """Deletes a key with its history."""

    async def keys(self, pattern: str = ">") -> list[str]:
        """Live keys that match a subject pattern, sorted."""

    async def entries(self, pattern: str = ">") -> list[Entry]:
        """Live entries that match a subject pattern, sorted by key."""

    async def newest(self) -> int:
        """The revision of the newest write or delete of any key."""

    async def state(self) -> tuple[str, int]:
        """Which bucket it is (another one where it was made anew), and its newest revision."""

    async def next_change(self, pattern: str, after: int) -> Entry | None:
        """The first key that matches and whose newest change is above a revision; value None: it was deleted."""

    def told(self, pattern: str, tell: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Calls `tell` at each write of a key that matches: a hint to look, no more."""

    def watch(self, pattern: str = ">") -> AsyncGenerator[Entry | None, None]:
        """First the present entries, then None once, then each change."""


class Answer(Protocol):
    """What came back on a request."""

    @property
    def data(self) -> bytes: ...


class Requests(Protocol):
    """Request and one answer by core NATS; errors are those of nats-py (`nats.errors`). What is published before a
    request reaches the broker before it."""

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None: ...

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 0.5, *, headers: dict[str, str] | None = None
    ) -> Answer: ...
