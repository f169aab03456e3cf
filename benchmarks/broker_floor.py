"""What the broker alone takes: a message stored in a work queue, delivered by a pull consumer, acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from benchmarks.raw_nats import RawNats
from benchmarks.sampling import open_loop, summary_us

BODY = b"x" * 256
NAME, SUBJECT, ACKS, PULLS = "floor", "floor.s", "floor.acks", "floor.pull"
WINDOW = 512
API_LIMIT_S = 5.0


class WorkQueue:
    """One connection, a work queue with a consumer; acknowledges what is delivered. `on_message` gets its payload,
    `on_stored` the broker's answers to publishes."""

    def __init__(
        self,
        subject: str = SUBJECT,
        *,
        body: bytes = BODY,
        window: int = WINDOW,
        copies: int = 1,
        stream: str = "",
        consumer: str = "c",
    ) -> None:
        """`stream` and `consumer`: those that are there already; else one of `copies` is made. At most `window`
        publishes wait for their answer."""
        self.body, self.window = body, window
        self._subject, self._copies, self._stream, self._consumer = subject, copies, stream, consumer
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._client: RawNats
        self.on_message: Callable[[bytes], object] = lambda payload: None
        self.on_stored: Callable[[], object] = lambda: None

    def _heard(self, subject: str, reply: str, payload: bytes) -> None:
        if subject == ACKS:
            self.on_stored()
        elif subject in self._answers:
            self._answers.pop(subject).set_result(payload)
        elif reply.startswith("$JS.ACK"):
            self.on_message(payload)
            self._client.publish(reply, b"+ACK")

    async def _api(self, subject: str, body: dict[str, Any]) -> None:
        inbox = f"floor.inbox.{time.time_ns()}"
        self._answers[inbox] = waiter = asyncio.get_running_loop().create_future()
        self._client.publish(f"$JS.API.{subject}", json.dumps(body).encode(), inbox)
        async with asyncio.timeout(API_LIMIT_S):
            answer = json.loads(await waiter)
        if "error" in answer:
            raise RuntimeError(answer["error"])

    def publish(self, payload: bytes, message_id: str) -> None:
        self._client.publish(self._subject, payload, ACKS, message_id)

    @contextlib.asynccontextmanager
    async def opened(self, host: str, port: int) -> AsyncIterator[WorkQueue]:
        """There inside, gone afterwards."""
        self._client = await RawNats.connect(host, port, self._heard)
        for number, subject in enumerate(("floor.inbox.*", PULLS, ACKS), 1):
            self._client.subscribe(subject, number)
        if not self._stream:
            await self._make()
        pull = b'{"batch":1000000,"expires":600000000000}'
        self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream or NAME}.{self._consumer}", pull, PULLS)
        try:
            yield self
            if not self._stream:
                await self._api(f"STREAM.DELETE.{NAME}", {})
        finally:
            self._client.close()

    async def _make(self) -> None:
        stream = {
            "name": NAME,
            "subjects": [self._subject],
            "retention": "workqueue",
            "storage": "file",
            "num_replicas": self._copies,
        }
        consumer = {
            "durable_name": self._consumer,
            "ack_policy": "explicit",
            "max_ack_pending": 10_000,
            "filter_subject": self._subject,
        }
        await self._api(f"STREAM.CREATE.{NAME}", stream)
        await self._api(f"CONSUMER.DURABLE.CREATE.{NAME}.{self._consumer}", {"stream_name": NAME, "config": consumer})


async def publish_to_deliver(
    address: tuple[str, int], rate: float, seconds: float, queue: WorkQueue | None = None
) -> dict[str, float]:
    """Write a message with an id, read it from the consumer, acknowledge; open loop. Microseconds."""
    samples: list[int] = []
    async with (queue or WorkQueue()).opened(*address) as queue:
        queue.on_message = lambda payload: samples.append(time.time_ns() - int(payload[:20]))
        await open_loop(rate, seconds, lambda due: queue.publish(b"%020d" % time.time_ns() + BODY[20:], f"m{due}"))
        await asyncio.sleep(0.2)
    return summary_us(samples[len(samples) // 10 :])


async def publish_to_stored(address: tuple[str, int], rate: float, seconds: float) -> dict[str, float]:
    """Write a message with an id, read that it is stored (in `durable`: after its fsync); one at a time."""
    samples: list[int] = []
    async with WorkQueue().opened(*address) as queue:
        sent: list[int] = []
        queue.on_stored = lambda: samples.append(time.time_ns() - sent.pop(0))

        def fire(due: int) -> None:
            sent.append(time.time_ns())
            queue.publish(BODY, f"m{due}")

        await open_loop(rate, seconds, fire)
        await asyncio.sleep(0.2)
    return summary_us(samples[len(samples) // 10 :])


async def saturated_broker(
    address: tuple[str, int], broker_cpu_s: Callable[[], float], seconds: float, queue: WorkQueue | None = None
) -> dict[str, float]:
    """As many as it takes; and its processor time for a store, a delivery and an acknowledgement."""
    room, waiting, delivered = asyncio.Event(), 0, 0

    def stored() -> None:
        nonlocal waiting
        waiting -= 1
        room.set()

    def heard(payload: bytes) -> None:
        nonlocal delivered
        delivered += 1

    async with (queue or WorkQueue()).opened(*address) as queue:
        queue.on_stored, queue.on_message = stored, heard
        began, cpu, number = time.monotonic(), broker_cpu_s(), 0
        while time.monotonic() - began < seconds:
            while waiting < queue.window:
                number += 1
                waiting += 1
                queue.publish(queue.body, f"s{number}")
            room.clear()
            async with asyncio.timeout(API_LIMIT_S):
                await room.wait()
        took, used = time.monotonic() - began, broker_cpu_s() - cpu
        async with asyncio.timeout(API_LIMIT_S):
            while waiting:
                await asyncio.sleep(0.01)
    return {"messages_per_s": round(delivered / took), "broker_us": round(used / max(1, delivered) * 1e6, 1)}
