"""A JetStream lane that stores and acknowledges messages of one stream together while there are many.

For brokers that sync every write (headrace.edge.group_commit, headrace.edge.group_removal). Everything else, and what
goes to other streams, passes through as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from headrace.edge.group_commit import GroupCommit
from headrace.edge.group_removal import GroupRemoval
from headrace.ports import AckUnknown, BatchMessage, Consumption, Delivery, Fence, Row, Stored

LOOK_S = 0.005


class GroupingLane:
    """Has every method of the lane inside. `prefix` is what the subjects of the one stream begin with; of what is
    consumed there, messages on the subject that `removable` says of the consumer are acknowledged together; `only`:
    no consumer delivers others."""

    def __init__(self, inside: Any, prefix: str, removable: Callable[[str], str], *, only: bool = False) -> None:
        self._inside = inside
        self._prefix = prefix
        self._group = GroupCommit(inside)
        self._removable, self._only = removable, only
        self._removals: dict[str, GroupRemoval] = {}
        """By the last token of their subjects: the slot."""
        inside.when_down(self._hurry)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    @property
    def outstanding(self) -> int:
        """See the port."""
        return int(self._inside.outstanding) + self.waiting

    def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        traceparent: str = "",
        fence: Fence | None = None,
        timeout_s: float = 5.0,
    ) -> asyncio.Future[Stored]:
        """See the port. Together with others where the stream is the one, and no fence is asked for."""
        if fence is None and message_id and subject.startswith(self._prefix):
            return self._group.publish(
                subject, payload, message_id=message_id, traceparent=traceparent, timeout_s=timeout_s
            )
        answer: asyncio.Future[Stored] = self._inside.publish(
            subject, payload, message_id=message_id, traceparent=traceparent, fence=fence, timeout_s=timeout_s
        )
        return answer

    def publish_told(self, subject: str, payload: bytes, tell: Any, about: Any, **options: Any) -> None:
        """See the port."""
        if subject.startswith(self._prefix) and options.get("message_id"):
            self._group.publish_told(subject, payload, tell, about, **options)
        else:
            self._inside.publish_told(subject, payload, tell, about, **options)

    def publish_rows(self, subject: str, rows: Sequence[Row], tell: Any, stored: Any, **options: Any) -> int:
        """See the port."""
        if subject.startswith(self._prefix):
            return self._group.publish_rows(subject, rows, tell, stored, **options)
        return int(self._inside.publish_rows(subject, rows, tell, stored, **options))

    def publish_in_order(self, messages: Sequence[BatchMessage], tell: Any, about: Any) -> None:
        """Messages of one subject: stored one after the other, or none is; `tell(about, answer)` as in `publish_told`,
        `Stored` names the last."""
        self._group.publish_in_order(messages, tell, about)

    def acknowledge_told(self, delivery: Delivery, tell: Any, about: Any) -> None:
        """See the port."""
        removal = self._removals.get(delivery.subject.rpartition(".")[2])
        if removal is None:
            self._inside.acknowledge_told(delivery, tell, about)
        else:
            removal.acknowledge(delivery, tell, about)

    async def close(self, timeout_s: float = 2.0) -> None:
        """See the port."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.waiting and loop.time() < deadline:  # noqa: ASYNC110  (no event on the path for the sake of its end)
            await asyncio.sleep(LOOK_S)
        self._group.end("the lane is closed")
        for removal in self._removals.values():
            removal.end()
        await self._inside.close(max(0.0, deadline - loop.time()))
        await asyncio.sleep(0)  # those who wait are told

    @property
    def waiting(self) -> int:
        """Messages and acknowledgements that are not written yet."""
        return self._group.waiting + sum(removal.waiting for removal in self._removals.values())

    def _hurry(self) -> None:
        for removal in self._removals.values():
            removal.hurry()

    def consume(
        self, stream: str, consumer: str, *, credit: int, on_deliveries: Callable[[list[Delivery]], None]
    ) -> Consumption:
        """See the port."""
        subject = self._removable(consumer)
        slot = subject.rpartition(".")[2]
        removal = GroupRemoval(self._inside, stream, consumer, subject, only=self._only)
        former, self._removals[slot] = self._removals.get(slot), removal
        if former is not None:
            former.end()

        def deliver(deliveries: list[Delivery]) -> None:
            removal.delivered(deliveries)
            on_deliveries(deliveries)

        consumption: Consumption = self._inside.consume(stream, consumer, credit=credit, on_deliveries=deliver)
        return consumption

    def acknowledge(self, delivery: Delivery) -> asyncio.Future[None]:
        """See the port."""
        removal = self._removals.get(delivery.subject.rpartition(".")[2])
        if removal is None:
            answer: asyncio.Future[None] = self._inside.acknowledge(delivery)
            return answer
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        removal.acknowledge(delivery, _end_ack, future)
        return future


def _end_ack(future: asyncio.Future[None], error: AckUnknown | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # whoever does not look leaves it to the redelivery
