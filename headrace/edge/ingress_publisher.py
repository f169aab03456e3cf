"""The one way to a flow's ingress, for all who send stimuli: gateways, timers, injection, strays that are moved.

On one server a stimulus goes to `in.<trigger>.<slot>`, and the broker's transform gives it its owner. On a cluster
(`fenced`) it goes to the owner's subject, on the condition that it still is the owner (headrace.model.ingress_owner);
refused, nothing of it was stored: the owner is read again, and it goes there.

Where the one server syncs every write (`together`), stimuli of one flow that wait are stored in batches; a lone one
goes at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import msgspec

from headrace.edge.group_commit import BatchTransport, GroupCommit, Tell
from headrace.model import subjects
from headrace.model.ingress_owner import FENCES, decode_owner
from headrace.ports import Fence, JetStreamLane, Kept, LaneFull, PublishRefused, PublishUnknown, ReadFailed, Stored

READ_LIMIT_S = 1.0
FIRST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.05
FREE_TRIES = 2
"""Refusals in a row after which a publish waits a moment; the fence of another sender costs one."""


class IngressTransport(Protocol):
    """What is needed of the connection; `JetStreamLane` has it."""

    def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        traceparent: str = "",
        fence: Fence | None = None,
        timeout_s: float = 5.0,
    ) -> Awaitable[Stored]: ...

    async def last_message(self, stream: str, subject: str, *, timeout_s: float = 2.0) -> Kept | None: ...


@dataclass(frozen=True, slots=True)
class _Known:
    """The owner as read, and the sequence of that message: fence n has the sequence that is n higher."""

    owner: str
    sequence: int


@dataclass(slots=True)
class _Flow:
    """The fences of a flow that no publish of ours uses. The last one that served is used next, those that somebody
    else uses last: so senders come to use different ones."""

    free: deque[int]
    known: _Known | None = None
    reading: asyncio.Task[_Known] | None = None
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class IngressPublisher:
    """At most `FENCES` publishes of a flow are under way on a cluster; the rest wait, in order of arrival."""

    def __init__(self, transport: IngressTransport, workspace: str) -> None:
        self._transport = transport
        self._workspace = workspace
        self._flows: dict[str, _Flow] = {}
        self._groups: dict[str, GroupCommit] = {}

    async def publish(
        self,
        flow: str,
        trigger: str,
        slot: int,
        payload: bytes,
        *,
        fenced: bool,
        together: bool = False,
        message_id: str,
        traceparent: str = "",
        timeout_s: float = 5.0,
    ) -> Stored:
        """Stored, or what the transport raises: PublishRefused (not stored), PublishUnknown (`no_responders`: the
        ingress is closed, or its stream has no leader). `together` needs a lane as transport.

        On a cluster also LaneFull and ReadFailed: nothing was stored within the limit, for certain; and a payload's
        time of writing lies up to that limit before it is written.
        """
        if not fenced:
            return await self._way(flow, together)(
                subjects.ingress_subject(self._workspace, flow, trigger, slot),
                payload,
                message_id=message_id,
                traceparent=traceparent,
                timeout_s=timeout_s,
            )
        entry = self._flows.get(flow)
        if entry is None:
            entry = self._flows[flow] = _Flow(deque(random.sample(range(1, FENCES + 1), FENCES)))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        tries = 0
        while True:
            known = entry.known or await self._read(flow, entry)
            number = await _take(entry, deadline)
            served = False
            try:
                stored = await self._transport.publish(
                    subjects.data_subject(self._workspace, flow, known.owner, trigger, slot),
                    payload,
                    message_id=message_id,
                    traceparent=traceparent,
                    fence=Fence(subjects.ingress_owner_subject(self._workspace, flow, number), known.sequence + number),
                    timeout_s=max(0.05, deadline - loop.time()),
                )
                served = True
                return stored
            except PublishRefused as refused:
                if not refused.fenced:
                    served = True
                    raise
                if not refused.fence_in_use and entry.known is known:
                    entry.known = None
            except PublishUnknown as unknown:
                if unknown.no_responders and entry.known is known:
                    entry.known = None
                raise
            finally:
                _give_back(entry, number, served=served)
            tries += 1
            if loop.time() >= deadline:
                raise LaneFull(f"the ingress of {flow} did not settle in time")
            if tries > FREE_TRIES:
                pause = min(FIRST_PAUSE_S * 2 ** min(tries - FREE_TRIES, 8), LONGEST_PAUSE_S)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311

    def publish_told(
        self,
        flow: str,
        trigger: str,
        slot: int,
        payload: bytes,
        tell: Tell,
        about: Any,
        *,
        together: bool = False,
        message_id: str,
        traceparent: str = "",
        timeout_s: float = 5.0,
    ) -> None:
        """As `publish` where the ingress is not fenced, and needs a lane: `tell(about, answer)` is called once, as the
        answer is read, never before this returns. LaneFull: nothing was taken, and nothing is told."""
        way = self._group(flow) if together else cast("JetStreamLane", self._transport)
        way.publish_told(
            subjects.ingress_subject(self._workspace, flow, trigger, slot),
            payload,
            tell,
            about,
            message_id=message_id,
            traceparent=traceparent,
            timeout_s=timeout_s,
        )

    def _way(self, flow: str, together: bool) -> Callable[..., Awaitable[Stored]]:
        return self._group(flow).publish if together else self._transport.publish

    def _group(self, flow: str) -> GroupCommit:
        group = self._groups.get(flow)
        if group is None:
            group = self._groups[flow] = GroupCommit(cast(BatchTransport, self._transport))
        return group

    async def _read(self, flow: str, entry: _Flow) -> _Known:
        """The owner as the stream has it; all who ask at the same time share one read."""
        if entry.reading is None:
            entry.reading = asyncio.create_task(self._read_once(flow, entry), name=f"ingress of {flow}")
            entry.reading.add_done_callback(_Settled(entry))
        return await asyncio.shield(entry.reading)

    async def _read_once(self, flow: str, entry: _Flow) -> _Known:
        kept = await self._transport.last_message(
            subjects.flow_stream(self._workspace, flow),
            subjects.ingress_owner_subject(self._workspace, flow, 0),
            timeout_s=READ_LIMIT_S,
        )
        try:
            owner = decode_owner(kept.payload).owner if kept is not None else ""
        except msgspec.DecodeError as error:
            raise ReadFailed(f"the owner of the ingress of {flow} cannot be read: {error}") from error
        if kept is None or not owner:
            raise PublishUnknown(f"the ingress of {flow} is closed", no_responders=True)
        entry.known = _Known(owner, kept.sequence)
        return entry.known


@dataclass(frozen=True, slots=True)
class _Settled:
    """Forgets a read that is over; its error is for those who waited."""

    entry: _Flow

    def __call__(self, reading: asyncio.Task[_Known]) -> None:
        self.entry.reading = None
        if not reading.cancelled():
            reading.exception()


async def _take(entry: _Flow, deadline: float) -> int:
    """A free fence, waited for in line; LaneFull past the deadline."""
    while not entry.free:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiting.append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as error:
            if turn.cancelled():
                entry.waiting.remove(turn)
            else:
                _wake_next(entry)  # its turn had come
            if isinstance(error, TimeoutError):
                raise LaneFull(f"{FENCES} publishes to the ingress wait for the broker's answer") from error
            raise
    return entry.free.pop()


def _give_back(entry: _Flow, number: int, *, served: bool) -> None:
    if served:
        entry.free.append(number)
    else:
        entry.free.appendleft(number)
    _wake_next(entry)


def _wake_next(entry: _Flow) -> None:
    while entry.waiting:
        turn = entry.waiting.popleft()
        if not turn.done():
            turn.set_result(None)
            return
