"""Calls that are done once, however often they come (AIP-155): the first answer is kept and given again.

A record per method and request id, with a TTL: written before the call begins, completed with its answer. A record
without an answer, on which this process is not at work, says that nobody knows how far the call came. It is then done
again as a repeat. So what a call changes carries its ticket's mark, by the same compare-and-set: the repeat sees that
it was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from nats.aio.client import Client

from headrace.document_ports import Bucket
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.structured_log import get_logger
from headrace.model import bucket_names
from headrace.model.errors import Conflict, DeadlineExceeded, HeadraceError, InvalidInput, Unavailable

log = get_logger(__name__)

KEPT_S = 24 * 3600.0
MAX_REQUEST_ID = 200
# How long a repeat waits for the first call, which is still at work.
WAIT_S = 10.0
LOOK_S = 0.05

M = TypeVar("M")


class RequestRecord(msgspec.Struct, frozen=True):
    """`request`: digest of the whole request. `answer`: the message's bytes, None while nobody has answered."""

    request: str
    owner: str
    answer: bytes | None = None
    note: str = ""


@dataclass
class Ticket:
    """One call that is done once. `mark` is empty, and nothing is kept, where the caller gave no request id."""

    mark: str = ""
    # An earlier call under this id may have done its work already.
    repeated: bool = False
    _record: RequestRecord = field(default_factory=lambda: RequestRecord("", ""))
    _revision: int = 0
    _bucket: Bucket | None = None

    @property
    def note(self) -> str:
        """What this call, or the earlier one, wrote down."""
        return self._record.note

    async def write(self, note: str) -> None:
        """Writes down, before anything is done, what a repeat has to know."""
        await self._replace(msgspec.structs.replace(self._record, note=note))

    async def answered(self, answer: bytes) -> None:
        await self._replace(msgspec.structs.replace(self._record, answer=answer))

    async def refused(self) -> None:
        """Nothing was done: the next one under this id is a first one."""
        if self._bucket is not None:
            await self._bucket.delete(self.mark, self._revision)

    async def _replace(self, record: RequestRecord) -> None:
        if self._bucket is not None:
            self._revision = await self._bucket.update(self.mark, msgspec.msgpack.encode(record), self._revision)
        self._record = record


class RequestBook:
    """Of one process. Several may share the bucket; methods are named in full."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._owner = uuid.uuid4().hex
        self._working: set[str] = set()

    @classmethod
    async def open(cls, connection: Client, workspace: str, guard: Callable[[], None] = lambda: None) -> RequestBook:
        """On the workspace's bucket, made where it is not there."""
        bucket = await KvBucket.open(connection, bucket_names.request_bucket(workspace), guard=guard, ttl_s=KEPT_S)
        return cls(bucket)

    async def once(
        self,
        method: str,
        request: Any,
        kind: type[M],
        work: Callable[[Ticket], Awaitable[M]],
        *,
        request_id: str | None = None,
    ) -> M:
        """The answer of `work` (a message of that kind), or the one that was given under this id before.

        `request` is a message with a `request_id`, or whatever message the id stands for. InvalidInput
        REQUEST_ID_REUSED where the id came with another request; Conflict while the first call is still at work.
        """
        identifier = request.request_id if request_id is None else request_id
        if not identifier:
            return await work(Ticket())
        if len(identifier) > MAX_REQUEST_ID:
            raise InvalidInput.at("request_id", identifier, f"is longer than {MAX_REQUEST_ID} characters")
        mark = hashlib.sha256(f"{method}\n{identifier}".encode(errors="replace")).hexdigest()[:32]
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        found = await self._claimed(mark, digest, identifier)
        if isinstance(found, bytes):
            answer: M = kind.FromString(found)  # type: ignore[attr-defined]
            return answer
        self._working.add(mark)
        try:
            return await self._worked(found, work)
        finally:
            self._working.discard(mark)

    async def _worked(self, ticket: Ticket, work: Callable[[Ticket], Awaitable[M]]) -> M:
        try:
            answer = await work(ticket)
        except (Unavailable, DeadlineExceeded):
            raise  # nobody knows what was done: the next one under this id is a repeat
        except HeadraceError:
            with contextlib.suppress(HeadraceError):
                await ticket.refused()
            raise
        try:
            await ticket.answered(answer.SerializeToString())  # type: ignore[attr-defined]
        except HeadraceError as error:
            log.warning("an answer could not be kept", error=str(error)[:300])
        return answer

    async def _claimed(self, mark: str, digest: str, identifier: str) -> Ticket | bytes:
        """The answer that is there, or the ticket of a call that is to be done now."""
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while asyncio.get_running_loop().time() < deadline:
            entry = await self._bucket.get(mark)
            record = msgspec.msgpack.decode(entry.value or b"", type=RequestRecord) if entry else None
            if record is not None and record.request != digest:
                raise InvalidInput.at(
                    "request_id",
                    identifier,
                    "came with another request before",
                    reason="REQUEST_ID_REUSED",
                    next_step="Draw a new one for each request; repeat a request unchanged",
                )
            if record is not None and record.answer is not None:
                return record.answer
            if mark in self._working:
                await asyncio.sleep(LOOK_S)
                continue
            mine = RequestRecord(digest, self._owner, note=record.note if record else "")
            raw = msgspec.msgpack.encode(mine)
            try:
                if entry is None:
                    revision = await self._bucket.create(mark, raw)
                else:
                    revision = await self._bucket.update(mark, raw, entry.revision)
            except Conflict:
                continue
            return Ticket(mark, entry is not None, mine, revision, self._bucket)
        raise Conflict(
            f"the call under request_id {identifier!r} is still at work",
            reason="REQUEST_IN_PROGRESS",
            next_step="Try again with the same request_id",
            metadata={"retry_after_ms": "1000"},
        )
