"""`NatsLane`: the JetStream lane over one connection to NATS (headrace.ports.JetStreamLane).

Publishes and acks share one wildcard inbox, each with a slot of its own (`lane_publishes`, `lane_acks`). When
the connection breaks, publishes already written end in PublishUnknown at the reconnect, not before and not at
their deadline: their answers can no longer come, and only from then on can a repeat with the same id succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from headrace.edge.checked_subjects import CheckedSubjects
from headrace.edge.lane_acks import TOKEN_LETTER, AckBook
from headrace.edge.lane_publishes import Answer, PublishBook, Tell, TellStored
from headrace.edge.lane_reads import READ_LETTER, ReadBook
from headrace.edge.lane_sends import SEND_LETTER, SendBook
from headrace.edge.nats_link import NatsLink
from headrace.edge.publish_each import publish_each
from headrace.edge.pull_consumption import HEARTBEAT_S, PullConsumption
from headrace.edge.structured_log import get_logger
from headrace.ports import (
    AckUnknown,
    BatchMessage,
    Delivery,
    Fence,
    Kept,
    LaneFull,
    PublishRefused,
    PublishUnknown,
    ReadFailed,
    Row,
    Stored,
)
from headrace.wire import jetstream, jetstream_answers
from headrace.wire.nats_protocol import Frame

log = get_logger(__name__)

A = TypeVar("A")

MAX_OUTSTANDING = 4096
MAX_OUTSTANDING_BYTES = 64 * 1024 * 1024
MAX_KEPT_BYTES = 8 * 1024 * 1024
MAX_BACKLOG_BYTES = 64 * 1024 * 1024


class NatsLane:
    """Has a connection of its own (`nats_link`), which is closed with it."""

    def __init__(
        self,
        link: NatsLink,
        *,
        max_outstanding: int = MAX_OUTSTANDING,
        max_outstanding_bytes: int = MAX_OUTSTANDING_BYTES,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._inbox = link.new_inbox()
        prefix = self._inbox.encode() + b"."
        self._skip = len(prefix)
        self._publishes = PublishBook(self._link, prefix, max_count=max_outstanding, max_bytes=max_outstanding_bytes)
        self._acks = AckBook(self._link, prefix, on_recovered=self._resume, on_unsettled=self._refill)
        self._reads = ReadBook(self._link, prefix)
        self._sends = SendBook(prefix, max_outstanding)
        self._batch_prefix = self._inbox.rpartition(".")[2][:22] + "-"
        self._batches = 0
        self._heartbeat_s = heartbeat_s
        self._consumptions: list[PullConsumption] = []
        self._consumptions_made = 0
        self._kept: list[tuple[str, bytes, Callable[[], None] | None]] = []
        self._kept_bytes = 0
        self._raw = CheckedSubjects().raw
        self._when_down: list[Callable[[], None]] = []
        self._ended = ""

    async def start(self) -> None:
        """Returns when the server knows the inbox."""
        self._link.attach(on_up=self._on_up, on_down=self._on_down, on_closed=self._on_connection_closed)
        self._link.subscribe(f"{self._inbox}.*", self._on_answers)
        await self.flush()

    def when_down(self, callback: Callable[[], None]) -> None:
        """See the port."""
        self._when_down.append(callback)

    @property
    def outstanding(self) -> int:
        return len(self._publishes) + len(self._acks)

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
        """See the port."""
        future: asyncio.Future[Stored] = self._loop.create_future()
        self._publish(subject, payload, _end_publish, future, message_id, traceparent, fence, timeout_s)
        return future

    def publish_told(
        self,
        subject: str,
        payload: bytes,
        tell: Tell,
        about: Any,
        *,
        message_id: str,
        traceparent: str = "",
        timeout_s: float = 5.0,
    ) -> None:
        """See the port."""
        self._publish(subject, payload, tell, about, message_id, traceparent, None, timeout_s)

    def publish_rows(
        self, subject: str, rows: Sequence[Row], tell: Tell, stored: TellStored, *, timeout_s: float = 5.0
    ) -> int:
        """See the port."""
        raw, several = self._raw(subject), len(rows) > 1
        if several and not self._ended and self._publishes.add_rows(raw, rows, timeout_s, tell, stored):
            return len(rows)
        return publish_each(self, subject, rows, tell, timeout_s=timeout_s)

    def _publish(
        self,
        subject: str,
        payload: bytes,
        tell: Tell,
        about: Any,
        message_id: str,
        traceparent: str,
        fence: Fence | None,
        timeout_s: float,
    ) -> None:
        size = len(payload)
        if self._publishes.is_full(size):
            waiting, held = len(self._publishes), self._publishes.bytes_waiting
            raise LaneFull(f"{waiting} publishes ({held} bytes) wait for the broker's answer")
        raw_subject = self._raw(subject)
        header = jetstream.publish_headers(message_id, traceparent, fence)
        if self._ended:
            self._loop.call_soon(tell, about, PublishUnknown(self._ended))
        elif size + len(header) > self._link.max_payload:
            text = f"{size + len(header)} bytes exceed the broker's maximum of {self._link.max_payload}"
            self._loop.call_soon(tell, about, PublishRefused(jetstream.MESSAGE_TOO_LARGE, text))
        else:
            self._publishes.add(raw_subject, header, payload, timeout_s, tell, about)

    def publish_batch(self, messages: Sequence[BatchMessage], *, timeout_s: float = 5.0) -> asyncio.Future[Stored]:
        """See the port."""
        if not 0 < len(messages) <= jetstream.MAX_BATCH_MESSAGES:
            raise ValueError(f"messages: a batch has 1 to {jetstream.MAX_BATCH_MESSAGES}, not {len(messages)}")
        size = sum(len(message.payload) for message in messages)
        if self._publishes.is_full(size):
            raise LaneFull(f"{len(self._publishes)} publishes wait for the broker's answer")
        self._batches += 1
        batch = f"{self._batch_prefix}{self._batches}".encode()
        headers = []
        for number, message in enumerate(messages, 1):
            self._raw(message.subject)
            headers.append(jetstream.batch_headers(message, batch, number, last=number == len(messages)))
        if self._ended:
            return _failed(PublishUnknown(self._ended))
        for message, header in zip(messages, headers, strict=True):
            if len(message.payload) + len(header) > self._link.max_payload:
                text = f"a message to {message.subject} exceeds the broker's maximum of {self._link.max_payload} bytes"
                return _failed(PublishRefused(jetstream.MESSAGE_TOO_LARGE, text))
        future: asyncio.Future[Stored] = self._loop.create_future()
        self._publishes.add_batch(messages, headers, timeout_s, _end_publish, future)
        return future

    async def last_message(self, stream: str, subject: str, *, timeout_s: float = 2.0) -> Kept | None:
        """See the port."""
        self._raw(subject)
        request = jetstream.last_message_request(stream, subject)
        return await self._ask(request, jetstream_answers.parse_message_answer, timeout_s)

    async def ack_floor(self, stream: str, consumer: str, *, timeout_s: float = 2.0) -> tuple[int, int]:
        """See the port."""
        return await self._ask(
            jetstream.consumer_request(stream, consumer), jetstream_answers.parse_ack_floor, timeout_s
        )

    async def purge_through(self, stream: str, subject: str, sequence: int, *, timeout_s: float = 2.0) -> int:
        """See the port."""
        self._raw(subject)
        request = jetstream.purge_request(stream, subject, sequence)
        return await self._ask(request, jetstream_answers.parse_purged, timeout_s)

    async def _ask(self, request: tuple[str, bytes], parse: Callable[[bytes], A], timeout_s: float) -> A:
        self._raw(request[0])
        try:
            async with asyncio.timeout(timeout_s):
                if self._ended:
                    raise ReadFailed(self._ended)
                await self._link.wait_up()
                return parse(await self._reads.ask(*request))
        except TimeoutError as late:
            raise ReadFailed(f"no answer within {timeout_s:g} s") from late
        except (ConnectionError, jetstream_answers.MalformedAnswer) as error:
            raise ReadFailed(str(error)) from error

    async def room(self) -> None:
        """See the port."""
        await self._publishes.room()

    def consume(
        self, stream: str, consumer: str, *, credit: int, on_deliveries: Callable[[list[Delivery]], None]
    ) -> PullConsumption:
        """See the port. ConnectionError when the lane is closed."""
        self._raw(jetstream.pull_subject(stream, consumer))
        if self._ended:
            raise ConnectionError(self._ended)
        self._consumptions_made += 1
        consumption = PullConsumption(
            self._link,
            self._acks,
            f"{self._inbox}.c{self._consumptions_made}",
            stream,
            consumer,
            credit,
            on_deliveries,
            on_stopped=self._forget,
            heartbeat_s=self._heartbeat_s,
        )
        self._consumptions.append(consumption)
        if self._link.up and not self._acks.recovering:
            consumption.resume()
        return consumption

    def acknowledge(self, delivery: Delivery) -> asyncio.Future[None]:
        """See the port."""
        future: asyncio.Future[None] = self._loop.create_future()
        self.acknowledge_told(delivery, _end_ack, future)
        return future

    def acknowledge_told(self, delivery: Delivery, tell: Callable[[Any, AckUnknown | None], None], about: Any) -> None:
        """See the port."""
        if self._ended:
            self._loop.call_soon(tell, about, AckUnknown(self._ended))
        else:
            self._acks.add(delivery.token, delivery.source, tell, about)

    def extend(self, delivery: Delivery) -> None:
        """See the port. Not kept while the connection is down."""
        if self._link.up:
            self._link.write(b"PUB %b 4\r\n+WPI\r\n" % delivery.token)

    def send(self, subject: str, payload: bytes, *, on_unheard: Callable[[], None] | None = None) -> None:
        """See the port. ValueError for a payload beyond the broker's maximum."""
        self._raw(subject)
        if len(payload) > self._link.max_payload:
            raise ValueError(f"payload: {len(payload)} bytes exceed the broker's maximum of {self._link.max_payload}")
        if self._link.up:
            if self._link.write_backlog > MAX_BACKLOG_BYTES:
                raise LaneFull(f"{self._link.write_backlog} bytes wait to be written")
            self._write_send(subject, payload, on_unheard)
            return
        size = len(subject) + len(payload)
        if self._kept_bytes + size > MAX_KEPT_BYTES:
            raise LaneFull(f"{self._kept_bytes} bytes wait for the connection")
        self._kept.append((subject, payload, on_unheard))
        self._kept_bytes += size

    def _write_send(self, subject: str, payload: bytes, on_unheard: Callable[[], None] | None) -> None:
        to = f"{subject} {self._sends.add(on_unheard)}" if on_unheard is not None else subject
        self._link.write(f"PUB {to} {len(payload)}\r\n".encode() + payload + b"\r\n")

    def listen(self, subject: str, on_message: Callable[[bytes], None]) -> None:
        """Core NATS subscription, until the lane is closed: each payload is handed over, on the loop, as it is
        read; restored after a reconnect."""
        self._raw(subject)

        def heard(frames: list[Frame]) -> None:
            for frame in frames:
                try:
                    on_message(frame[3])
                except Exception:
                    log.exception("a message could not be handled", subject=subject)

        self._link.subscribe(subject, heard)

    async def flush(self, timeout_s: float = 2.0) -> None:
        """See the port. Calls of one turn of the loop share one PING."""
        async with asyncio.timeout(timeout_s):
            if self._ended:
                raise ConnectionError(self._ended)
            await self._link.wait_up()
            mark = self._sends.mark
            await asyncio.shield(self._link.ping())
            self._sends.heard(mark)

    async def close(self, timeout_s: float = 2.0) -> None:
        """See the port."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        if self._consumptions:
            stops = [asyncio.ensure_future(consumption.stop()) for consumption in list(self._consumptions)]
            _, late = await asyncio.wait(stops, timeout=timeout_s)
            for stop in late:
                stop.cancel()
            await asyncio.gather(*stops, return_exceptions=True)
        remaining = deadline - asyncio.get_running_loop().time()
        if self.outstanding and remaining > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self._publishes.answered()
                    await self._acks.confirmed()
        self._end("the lane is closed")
        await self._link.close()

    def _on_answers(self, frames: list[Frame]) -> None:
        for _, subject, _, data, headers in self._publishes.answers(frames):
            token = subject[self._skip :]
            if token.startswith(TOKEN_LETTER):
                self._acks.answer(token, headers)
            elif token.startswith(READ_LETTER):
                self._reads.answer(token, data, headers)
            elif token.startswith(SEND_LETTER):
                self._sends.answer(token)

    def _on_down(self) -> None:
        self._acks.disconnected()
        self._sends.clear()
        self._reads.end_all("the connection broke before the broker answered")
        for consumption in self._consumptions:
            consumption.pause()
        for callback in self._when_down:
            callback()

    def _on_up(self) -> None:
        self._acks.reconnected()  # resumes the pulls when these acks are confirmed
        for kept in self._kept:
            self._write_send(*kept)
        self._kept.clear()
        self._kept_bytes = 0
        self._publishes.reconnected()

    def _on_connection_closed(self) -> None:
        if not self._ended:
            log.error("the connection to the broker is closed for good", outstanding=self.outstanding)
        self._end("the connection to the broker is closed")

    def _resume(self) -> None:
        for consumption in self._consumptions:
            consumption.resume()

    def _refill(self) -> None:
        for consumption in self._consumptions:
            consumption.release(0)

    def _forget(self, consumption: PullConsumption) -> None:
        if consumption in self._consumptions:
            self._consumptions.remove(consumption)

    def _end(self, cause: str) -> None:
        if self._ended:
            return
        self._ended = cause
        for consumption in list(self._consumptions):
            consumption.abandon()
        self._publishes.end_all(cause)
        self._reads.end_all(cause)
        self._acks.end_all(cause)


def _end_publish(future: asyncio.Future[Stored], answer: Answer) -> None:
    if future.done():
        return
    if isinstance(answer, Stored):
        future.set_result(answer)
    else:
        future.set_exception(answer)


def _end_ack(future: asyncio.Future[None], error: AckUnknown | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # whoever does not look leaves it to the redelivery


def _failed(error: Exception) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
