"""The leader's lease: a key in a bucket whose entries expire, renewed by compare-and-set.

`check` is called before everything that leaves the process; it goes by the monotonic clock alone, so that it
is right also after the process was stopped or the broker did not answer. The broker keeps the lease longer
than its holder believes in it, so that two never lead; what is on its way when a lease ends is fenced by the
epoch (`domain.leadership`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable

from nats.aio.client import Client

from headrace.document_ports import Bucket, Entry
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.structured_log import get_logger
from headrace.model import bucket_names
from headrace.model.errors import Conflict, HeadraceError, Unavailable
from services.orchestrator.domain.documents import decode, encode
from services.orchestrator.domain.leadership import EpochDocument, LeaseDocument, LeaseTerms

log = get_logger(__name__)

LEASE_KEY = "leader"
# Written in place of a lease that was given back: nobody believes in it any more.
RELEASED = LeaseDocument("", "", "")
EPOCH_KEY = "epoch"
CAS_ATTEMPTS = 8


class Lease:
    """Owned by one task that calls `run`; everything else only asks."""

    def __init__(
        self,
        connection: Client,
        workspace: str,
        epochs: Bucket,
        *,
        name: str = "",
        terms: LeaseTerms | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`epochs` is the bucket that keeps the epoch. A process that is given the `name` of a dead one takes
        its lease over at once: whoever starts it has to know that the other is dead."""
        self._connection = connection
        self._workspace = workspace
        self._epochs = epochs
        self._terms = terms or LeaseTerms()
        self._monotonic = monotonic
        self._incarnation = secrets.token_hex(6)
        self.name = name or f"orchestrator-{self._incarnation}"
        self.address = ""
        self.epoch = 0
        self.leader: LeaseDocument | None = None
        """Who led when it was last looked."""
        self.previous: EpochDocument | None = None
        """Who led before this term."""
        self._bucket: Bucket | None = None
        self._revision = 0
        self._valid_until = 0.0
        self._wait_until = 0.0
        self._seen_revision = 0
        self._serving = False
        self._changed: set[asyncio.Event] = set()

    # What others ask.

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        return self._serving and self._monotonic() < self._valid_until

    def check(self) -> None:
        """Unavailable, naming the leader, when this process may not act (any more)."""
        if not self.leading:
            raise self.refusal()
        if not self._connection.is_connected:  # else it would be kept and sent who knows when
            raise Unavailable("the broker is not connected", reason="BROKER_UNREACHABLE", next_step="Try again")

    def is_own(self, leader: LeaseDocument) -> bool:
        return leader.incarnation == self._incarnation

    def refusal(self) -> Unavailable:
        leader = self.leader
        others = leader is not None and leader.incarnation != self._incarnation
        where = f"{leader.name} at {leader.address}" if leader and others else "not known at the moment"
        metadata = {"leader": leader.address} if leader and others else {}
        return Unavailable(
            f"this orchestrator ({self.name}) does not lead; the leader is {where}",
            reason="NOT_LEADER",
            next_step="Try again with the same request_id",
            metadata={**metadata, "retry_after_ms": "300"},
        )

    @contextlib.contextmanager
    def watching(self):  # type: ignore[no-untyped-def]
        """An event that is set at each change of who leads."""
        event = asyncio.Event()
        self._changed.add(event)
        try:
            yield event
        finally:
            self._changed.discard(event)

    # The owner's side.

    async def run(self, on_gained: Callable[[], Awaitable[None]], on_lost: Callable[[], Awaitable[None]]) -> None:
        """For ever: tries to get the lease, keeps it. Between `on_gained` and `on_lost` this process leads."""
        while True:
            pause_s = await self.step(on_gained, on_lost)
            await asyncio.sleep(pause_s)

    async def step(self, on_gained: Callable[[], Awaitable[None]], on_lost: Callable[[], Awaitable[None]]) -> float:
        """One look or one renewal; answers how long to wait for the next."""
        terms = self._terms
        try:
            if not self._serving:
                async with asyncio.timeout(terms.ttl):
                    gained = await self._try_to_get()
                if gained:
                    self._serving = True
                    await on_gained()
                    self._tell()
                return terms.renew if gained else terms.poll
            limit_s = max(0.01, min(terms.renew, self._valid_until - self._monotonic()))
            async with asyncio.timeout(limit_s):
                await self._renew()
        except (HeadraceError, TimeoutError) as error:
            log.warning("lease: the broker did not do it", error=str(error)[:200] or "timeout", leading=self.leading)
        if self._serving and not self.leading:
            await self._lose(on_lost)
            return 0.0
        return min(terms.renew, max(0.0, self._valid_until - self._monotonic())) if self._serving else terms.poll

    async def release(self) -> None:
        """Gives the lease back, so that a standby need not wait for its end. Never raises."""
        revision, self._serving, self._valid_until = self._revision, False, 0.0
        if not revision or self._bucket is None:
            return
        self._revision = 0
        with contextlib.suppress(HeadraceError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._bucket.update(LEASE_KEY, encode(RELEASED), revision)

    async def _lose(self, on_lost: Callable[[], Awaitable[None]]) -> None:
        log.warning("lease lost: this orchestrator stops acting", name=self.name, epoch=self.epoch)
        self._serving, self._revision, self._valid_until = False, 0, 0.0
        self._tell()
        await on_lost()

    def _tell(self) -> None:
        for event in self._changed:
            event.set()

    async def _open(self) -> Bucket:
        """The bucket; when it had to be made anew though somebody led already, that one's term is waited for."""
        if self._bucket is None:
            name = bucket_names.lease_bucket(self._workspace)
            known = await KvBucket.exists(self._connection, name)
            self._bucket = await KvBucket.open(self._connection, name, ttl_s=self._terms.ttl)
            if not known and not self._serving and await self._epochs.get(EPOCH_KEY) is not None:
                log.warning("lease bucket was lost, it is made anew")
                self._wait_until = self._monotonic() + self._terms.ttl
        return self._bucket

    async def _look(self, bucket: Bucket) -> Entry | None:
        entry = await bucket.get(LEASE_KEY)
        seen = decode(entry.value or b"", LeaseDocument) if entry is not None else None
        if seen == RELEASED:
            seen, self._wait_until = None, 0.0
        elif entry is not None and entry.revision != self._seen_revision:
            # Its holder renewed it a moment ago and believes in it for nearly the whole term: should the key be gone
            # at the next look, it did not expire, but was lost with its bucket.
            self._seen_revision = entry.revision
            self._wait_until = self._monotonic() + self._terms.ttl
        if seen != self.leader:
            self.leader = seen
            self._tell()
        return entry

    async def _try_to_get(self) -> bool:
        try:
            bucket = await self._open()
            entry = await self._look(bucket)
            if entry is not None and self.leader is not None and self.leader.name != self.name:
                return False
            if entry is None and self._monotonic() < self._wait_until:
                return False
            asked_at = self._monotonic()
            mine = LeaseDocument(self.name, self._incarnation, self.address)
            if entry is None:
                self._revision = await bucket.create(LEASE_KEY, encode(mine))
            else:  # this process's own from before, or that of the dead process whose place it has taken
                self._revision = await bucket.update(LEASE_KEY, encode(mine), entry.revision)
            self._valid_until = self._terms.valid_until(asked_at)
            self.epoch = await self._raise_epoch()
            await self._write(bucket)
        except Conflict:
            return False
        except Unavailable:
            self._bucket = None
            raise
        if self._monotonic() >= self._valid_until:
            return False
        log.info("lease taken: this orchestrator leads", name=self.name, epoch=self.epoch)
        return True

    async def _raise_epoch(self) -> int:
        for _ in range(CAS_ATTEMPTS):
            entry = await self._epochs.get(EPOCH_KEY)
            before = decode(entry.value or b"", EpochDocument) if entry is not None else None
            after = EpochDocument((before.epoch if before else 0) + 1, self.name, self._incarnation, time.time())
            try:
                if entry is None:
                    await self._epochs.create(EPOCH_KEY, encode(after))
                else:
                    await self._epochs.update(EPOCH_KEY, encode(after), entry.revision)
            except Conflict:
                continue
            self.previous = before
            return after.epoch
        raise Conflict("the epoch keeps changing", reason="BUSY", next_step="Try again")

    async def _write(self, bucket: Bucket) -> None:
        asked_at = self._monotonic()
        self.leader = LeaseDocument(self.name, self._incarnation, self.address, self.epoch)
        self._revision = await bucket.update(LEASE_KEY, encode(self.leader), self._revision)
        self._valid_until = self._terms.valid_until(asked_at)

    async def _renew(self) -> None:
        try:
            bucket = await self._open()
            try:
                await self._write(bucket)
            except Conflict:
                await self._win_back(bucket)
        except Unavailable:
            self._bucket = None  # the bucket itself may be gone
            raise

    async def _win_back(self, bucket: Bucket) -> None:
        """The key is not as it was left: an own renewal without an answer, a lost bucket, or somebody else's."""
        entry = await self._look(bucket)
        if entry is None:
            asked_at = self._monotonic()
            mine = LeaseDocument(self.name, self._incarnation, self.address, self.epoch)
            if not await self._epoch_is_own():
                self._valid_until = 0.0
                return
            self._revision = await bucket.create(LEASE_KEY, encode(mine))
            self._valid_until = self._terms.valid_until(asked_at)
            self.leader = mine
        elif self.leader is not None and self.leader.incarnation == self._incarnation:
            self._revision = entry.revision
            await self._write(bucket)
        else:
            self._valid_until = 0.0

    async def _epoch_is_own(self) -> bool:
        entry = await self._epochs.get(EPOCH_KEY)
        return entry is not None and decode(entry.value or b"", EpochDocument).incarnation == self._incarnation
