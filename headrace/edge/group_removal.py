"""Acknowledgements of one consumer in groups, for brokers that sync every write.

In a work queue each acknowledged message is removed by itself, which is a write and a sync. So where many are done, the
messages up to the last of them are removed by one purge of their subject, which is one sync. Where the consumer
delivers that subject and no other, they are no longer pending then either; else they are acknowledged as ever, which
costs the broker next to nothing once they are gone. A purge asks nobody whose the messages are: it is only done where
the deliveries prove that they were all ours (headrace.model.delivery_chain).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from headrace.edge.structured_log import get_logger
from headrace.model.delivery_chain import DeliveryChain
from headrace.ports import AckUnknown, Delivery, ReadFailed

log = get_logger(__name__)

LEAST = 12
"""Fewer are acknowledged at once, each by itself."""
LIMIT_S = 2.0
CONFIRM_LIMIT_S = 0.5

Tell = Callable[[Any, AckUnknown | None], None]
Done = tuple[Delivery, Tell, Any]


class RemovalTransport(Protocol):
    """What is needed of the connection; `JetStreamLane` has it."""

    def acknowledge_told(
        self, delivery: Delivery, tell: Callable[[Any, AckUnknown | None], None], about: Any
    ) -> None: ...

    async def ack_floor(self, stream: str, consumer: str, *, timeout_s: float = 2.0) -> tuple[int, int]: ...

    async def purge_through(self, stream: str, subject: str, sequence: int, *, timeout_s: float = 2.0) -> int: ...


class GroupRemoval:
    """Of one consumer, whose messages on `subject` can be removed together; `only`: it has no others. Create inside
    the loop."""

    def __init__(
        self, transport: RemovalTransport, stream: str, consumer: str, subject: str, *, only: bool = False
    ) -> None:
        self._only = only
        self._transport = transport
        self._stream, self._consumer, self._subject = stream, consumer, subject
        self._loop = asyncio.get_running_loop()
        self._chain = DeliveryChain(subject)
        self._done: list[Done] = []
        self._scheduled = False
        self._held = 0
        self._unconfirmed = 0
        self._confirmed = asyncio.Event()
        self._removing: asyncio.Task[None] | None = None
        self.purged = 0
        """Messages removed together so far."""

    def delivered(self, deliveries: Sequence[Delivery]) -> None:
        """What the consumer gave us, all of it, in order."""
        for delivery in deliveries:
            self._chain.delivered(
                delivery.consumer_sequence, delivery.stream_sequence, delivery.attempt, delivery.subject
            )

    def acknowledge(self, delivery: Delivery, tell: Tell, about: Any) -> None:
        """`tell(about, None)` when the broker has confirmed it, else with the cause; once, later."""
        self._done.append((delivery, tell, about))
        if not self._scheduled and self._removing is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    @property
    def waiting(self) -> int:
        """Acknowledgements that are not written yet."""
        return len(self._done) + self._held

    def hurry(self) -> None:
        """What waits is acknowledged now, each by itself. The lane repeats acknowledgements after a reconnect before it
        pulls again: called when the connection breaks, so that it knows of all."""
        done, self._done = self._done, []
        self._acknowledge(done)

    def end(self) -> None:
        """As `hurry`, and nothing more is removed together."""
        if self._removing is not None:
            self._removing.cancel()
        self.hurry()

    def _flush(self) -> None:
        """All that ended in one turn of the loop, or while others were removed."""
        self._scheduled = False
        done, self._done = self._done, []
        for delivery, _, _ in done:
            self._chain.done(delivery.consumer_sequence, delivery.stream_sequence)
        if len(done) < LEAST or self._chain.ready < LEAST:
            self._acknowledge(done)
            return
        self._held = len(done)
        self._removing = self._loop.create_task(self._remove(done), name=f"removes from {self._consumer}")
        self._removing.add_done_callback(self._removed)

    async def _remove(self, done: list[Done]) -> None:
        try:
            floor = await self._transport.ack_floor(self._stream, self._consumer, timeout_s=LIMIT_S)
            through, count = self._chain.through(*floor)
            if count >= LEAST:
                await self._transport.purge_through(self._stream, self._subject, through, timeout_s=LIMIT_S)
                self.purged += count
                if self._only:
                    done = self._confirm(done, through)
        except ReadFailed as error:
            log.debug("not removed together", consumer=self._consumer, error=str(error))
        finally:
            self._held = 0
            self._acknowledge(done)
        if self._unconfirmed:
            # So that the floor is asked after them. One that takes longer (its consumer forgot the message with the
            # broker's death) keeps nobody waiting.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONFIRM_LIMIT_S):
                    self._confirmed.clear()
                    await self._confirmed.wait()

    def _confirm(self, done: list[Done], through: int) -> list[Done]:
        """What the purge removed is over; answers the others."""
        left = []
        for one in done:
            delivery, tell, about = one
            if delivery.stream_sequence > through:
                left.append(one)
            else:
                self._chain.confirmed(delivery.consumer_sequence, delivery.stream_sequence)
                tell(about, None)
        return left

    def _acknowledge(self, done: Sequence[Done]) -> None:
        self._unconfirmed += len(done)
        for one in done:
            self._transport.acknowledge_told(one[0], self._answered, one)

    def _answered(self, one: Done, error: AckUnknown | None) -> None:
        delivery, tell, about = one
        if error is None:
            self._chain.confirmed(delivery.consumer_sequence, delivery.stream_sequence)
        self._unconfirmed -= 1
        if not self._unconfirmed:
            self._confirmed.set()
        tell(about, error)

    def _removed(self, task: asyncio.Task[None]) -> None:
        self._removing = None
        if not task.cancelled() and task.exception() is not None:
            log.error("removing failed", consumer=self._consumer, error=repr(task.exception()))
        if self._done and not self._scheduled:
            self._flush()
