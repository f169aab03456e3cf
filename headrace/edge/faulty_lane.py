"""A JetStream lane with fault points round everything it does; made only where HEADRACE_FAULTS is set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from headrace.edge.fault_points import FaultInjected, FaultPlan, installed_faults
from headrace.edge.publish_each import publish_each
from headrace.model import subjects
from headrace.ports import AckUnknown, BatchMessage, Consumption, Delivery, Kept, PublishUnknown, Row, Stored

WRITTEN_AFTER_S = 0.002
"""What is queued in one turn of the loop has left the process by then, unless the socket is full."""

Tell = Callable[[Any, Any], None]


def lane_with_faults(lane: Any) -> Any:
    """The lane itself, unless this process has fault points on."""
    faults = installed_faults()
    return lane if faults is None else FaultyLane(lane, faults)


class FaultyLane:
    """Has every method of the lane inside (`JetStreamLane` and what its owner calls besides)."""

    def __init__(self, inside: Any, faults: FaultPlan) -> None:
        self._inside = inside
        self._faults = faults
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def publish(self, subject: str, payload: bytes, **options: Any) -> asyncio.Future[Stored]:
        """See the port. A dead letter has points of its own."""
        dead_letter = subjects.is_dead_letter(subject)
        try:
            self._faults.reach("before-dead-letter" if dead_letter else "before-publish")
        except FaultInjected as fault:
            return self._failed(PublishUnknown(f"never written: {fault}"))
        answer: asyncio.Future[Stored] = self._inside.publish(subject, payload, **options)
        if dead_letter:
            return self._passed_on(answer, "", "after-dead-letter", PublishUnknown)
        self._soon("after-publish")
        return self._passed_on(answer, "before-publish-ack", "after-publish-ack", PublishUnknown)

    def publish_told(self, subject: str, payload: bytes, tell: Tell, about: Any, **options: Any) -> None:
        """See the port."""
        _then(self.publish(subject, payload, **options), tell, about)

    def publish_rows(self, subject: str, rows: Sequence[Row], tell: Tell, stored: Any, **options: Any) -> int:
        """See the port. Each passes the points by itself."""
        return publish_each(self, subject, rows, tell, **options)

    def acknowledge_told(self, delivery: Delivery, tell: Tell, about: Any) -> None:
        """See the port."""
        _then(self.acknowledge(delivery), tell, about)

    def publish_batch(self, messages: Sequence[BatchMessage], **options: Any) -> asyncio.Future[Stored]:
        """See the port."""
        try:
            self._faults.reach("before-commit")
        except FaultInjected as fault:
            return self._failed(PublishUnknown(f"never written: {fault}"))
        answer: asyncio.Future[Stored] = self._inside.publish_batch(messages, **options)
        self._soon("after-commit")
        return self._passed_on(answer, "before-commit-ack", "after-commit-ack", PublishUnknown)

    async def last_message(self, stream: str, subject: str, **options: Any) -> Kept | None:
        """See the port."""
        self._faults.reach("before-cursor")
        kept: Kept | None = await self._inside.last_message(stream, subject, **options)
        self._faults.reach("after-cursor")
        return kept

    def consume(
        self, stream: str, consumer: str, *, credit: int, on_deliveries: Callable[[list[Delivery]], None]
    ) -> Consumption:
        """See the port."""

        def deliver(deliveries: list[Delivery]) -> None:
            self._faults.reach("after-fetch")
            on_deliveries(deliveries)

        self._faults.reach("before-fetch")
        inside = self._inside.consume(stream, consumer, credit=credit, on_deliveries=deliver)
        return FaultyConsumption(inside, self._faults)

    def acknowledge(self, delivery: Delivery) -> asyncio.Future[None]:
        """See the port."""
        try:
            self._faults.reach("before-ack")
        except FaultInjected as fault:
            return self._failed(AckUnknown(f"never written: {fault}"))
        answer: asyncio.Future[None] = self._inside.acknowledge(delivery)
        self._soon("after-ack")
        return self._passed_on(answer, "before-ack-confirm", "after-ack-confirm", AckUnknown)

    def send(self, subject: str, payload: bytes, **options: Any) -> None:
        """See the port. Log lines are sent too; only a reply passes points."""
        reply = subjects.is_reply(subject)
        if reply:
            self._faults.reach("before-reply")
        self._inside.send(subject, payload, **options)
        if reply:
            self._soon("after-reply")

    def _soon(self, point: str) -> None:
        self._loop.call_later(WRITTEN_AFTER_S, self._faults.reach, point)

    def _failed(self, error: Exception) -> asyncio.Future[Any]:
        outer: asyncio.Future[Any] = self._loop.create_future()
        outer.set_exception(error)
        return outer

    def _passed_on(
        self, inside: asyncio.Future[Any], before: str, after: str, lost: Callable[[str], Exception]
    ) -> asyncio.Future[Any]:
        """A future that ends as the inner one does, with a point before and one after its callbacks have run."""
        outer: asyncio.Future[Any] = self._loop.create_future()
        inside.add_done_callback(partial(self._answered, outer, before, after, lost))
        return outer

    def _answered(
        self,
        outer: asyncio.Future[Any],
        before: str,
        after: str,
        lost: Callable[[str], Exception],
        inside: asyncio.Future[Any],
    ) -> None:
        if outer.done() or inside.cancelled():
            outer.cancel()
            return
        error = inside.exception()
        if error is not None:
            outer.set_exception(error)
            outer.exception()  # whoever does not look need not be warned
            return
        try:
            if before:
                self._faults.reach(before)
        except FaultInjected as fault:
            outer.set_exception(lost(f"the answer was lost: {fault}"))
            return
        outer.set_result(inside.result())
        self._loop.call_soon(self._faults.reach, after)


def _then(future: asyncio.Future[Any], tell: Tell, about: Any) -> None:
    def done(_: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            tell(about, future.exception() or future.result())

    future.add_done_callback(done)


class FaultyConsumption:
    """Implements `headrace.ports.Consumption`."""

    def __init__(self, inside: Consumption, faults: FaultPlan) -> None:
        self._inside = inside
        self._faults = faults

    @property
    def problem(self) -> str:
        return self._inside.problem

    def release(self, count: int = 1) -> None:
        self._faults.reach("before-fetch")
        self._inside.release(count)

    async def stop(self) -> None:
        await self._inside.stop()
