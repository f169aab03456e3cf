"""Stores messages of one stream together while many wait, for brokers that sync every write; the one home of that.

Each message is told its own answer, as if it had been published alone. A batch is stored as a whole or not at all, and
a refusal does not name the message it is for: it is sent again in parts, in the end one by one, so that whoever is at
fault gets the refusal and the others are stored. Ids are what makes that safe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from headrace.edge.structured_log import get_logger
from headrace.model.commit_pace import FEW, LEAST, MOST, MOST_BYTES, CommitPace
from headrace.ports import BatchMessage, Fence, LaneFull, PublishRefused, PublishUnknown, Row, Stored

log = get_logger(__name__)

MAX_WAITING = 4096
MAX_WAITING_BYTES = 64 * 1024 * 1024
FULL_RETRY_S = 0.005
TIMEOUT_S = 5.0
LEAST_TIME_S = 0.05

Answer = Stored | PublishRefused | PublishUnknown
Tell = Callable[[Any, Answer], None]
TellStored = Callable[[list[Any]], None]
# One message, or a row that is stored in its order or not at all; until when (the loop's clock), who is told, and who
# may be told of many at once that they are stored; bytes.
Waiting = tuple[Sequence[BatchMessage], float, Tell, Any, TellStored | None, int]


class BatchTransport(Protocol):
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
    ) -> asyncio.Future[Stored]: ...

    def publish_batch(self, messages: Sequence[BatchMessage], *, timeout_s: float = 5.0) -> asyncio.Future[Stored]: ...


class GroupCommit:
    """Messages of one stream, from one sender; those to other streams must not come here. Create inside the loop."""

    def __init__(self, transport: BatchTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pace = CommitPace()
        self._waiting: deque[Waiting] = deque()
        self._bytes = self._count = 0
        # Parts of batches that were refused: sent before what waits, each as it is.
        self._parts: deque[list[Waiting]] = deque()
        self._alone: deque[Waiting] = deque()
        """Those of them that go one by one, without being counted: nobody waits behind them."""
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._ended = ""

    @property
    def waiting(self) -> int:
        """Messages that are not written yet."""
        return self._count + len(self._alone) + sum(_messages(part) for part in self._parts)

    def publish_told(
        self,
        subject: str,
        payload: bytes,
        tell: Tell,
        about: Any,
        *,
        message_id: str,
        traceparent: str = "",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`tell(about, answer)` is called once, later. LaneFull (nothing was taken) past the bound, ValueError for
        what cannot be sent."""
        self.publish_in_order(
            (BatchMessage(subject, payload, message_id, traceparent),), tell, about, timeout_s=timeout_s
        )

    def publish_in_order(
        self, messages: Sequence[BatchMessage], tell: Tell, about: Any, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        """As `publish_told`, of messages of one subject: they are stored one after the other, or none is. `Stored`
        names the last. Whoever needs the order across calls waits for the answer."""
        self._add(messages, tell, about, timeout_s)
        self._pump()

    def publish_rows(
        self, subject: str, rows: Sequence[Row], tell: Tell, stored: TellStored, *, timeout_s: float = TIMEOUT_S
    ) -> int:
        """As `publish_told` of each (see the port's). More than go one by one are written at the end of this turn of
        the loop, with those that come in it."""
        taken = self._add_rows(subject, rows, tell, stored, self._loop.time() + timeout_s)
        if self._count <= FEW:
            self._pump()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump_together)
        return taken

    def _add_rows(self, subject: str, rows: Sequence[Row], tell: Tell, stored: TellStored, until: float) -> int:
        if self._ended:
            for row in rows:
                self._loop.call_soon(tell, row[3], PublishUnknown(self._ended))
            return len(rows)
        add, number = self._waiting.append, 0
        if not subject.isprintable() or " " in subject:
            return number
        for payload, message_id, traceparent, about in rows:
            if self._count >= MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
                break
            if not (message_id.isprintable() and traceparent.isprintable()):
                break
            size = len(payload)
            self._count += 1
            self._bytes += size
            add(((BatchMessage(subject, payload, message_id, traceparent),), until, tell, about, stored, size))
            number += 1
        return number

    def _pump_together(self) -> None:
        self._scheduled = False
        self._pump()

    def _add(self, messages: Sequence[BatchMessage], tell: Tell, about: Any, timeout_s: float) -> None:
        if self._ended:
            self._loop.call_soon(tell, about, PublishUnknown(self._ended))
            return
        if self._count >= MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
            raise LaneFull(f"{self._count} messages ({self._bytes} bytes) wait to be stored together")
        for message in messages:
            texts = (message.subject, message.message_id, message.traceparent)
            if " " in message.subject or not all(text.isprintable() for text in texts):
                raise ValueError("a subject, message id or traceparent holds characters that cannot be sent")
        size = sum(len(message.payload) for message in messages)
        self._count += len(messages)
        self._bytes += size
        self._waiting.append((messages, self._loop.time() + timeout_s, tell, about, None, size))

    def publish(
        self, subject: str, payload: bytes, *, message_id: str, traceparent: str = "", timeout_s: float = TIMEOUT_S
    ) -> asyncio.Future[Stored]:
        """As `publish_told`; the future ends in Stored, PublishRefused or PublishUnknown."""
        future: asyncio.Future[Stored] = self._loop.create_future()
        self.publish_told(
            subject,
            payload,
            _end_future,
            future,
            message_id=message_id,
            traceparent=traceparent,
            timeout_s=timeout_s,
        )
        return future

    def end(self, cause: str) -> None:
        """What is not written yet ends in PublishUnknown, and so does what comes."""
        self._ended = cause
        if self._timer is not None:
            self._timer.cancel()
        left = [*self._alone, *(one for part in self._parts for one in part), *self._waiting]
        self._alone.clear()
        self._parts.clear()
        self._waiting.clear()
        for _, _, tell, about, _, _ in left:
            tell(about, PublishUnknown(cause))

    def _pump(self) -> None:
        pace, waiting = self._pace, self._waiting
        while self._parts or waiting:
            step = pace.next_step(MOST if self._parts else self._count, self._loop.time())
            if step.batch or (step.singles and len(waiting[0][0]) > 1):
                if not self._send_batch(self._parts.popleft() if self._parts else self._take()):
                    return
            elif step.singles:
                for _ in range(step.singles):
                    if not waiting or len(waiting[0][0]) > 1:
                        break
                    if not self._send_single(waiting.popleft()):
                        return
            else:
                if step.wait_s:
                    self._look_again(step.wait_s)
                return

    def _take(self) -> list[Waiting]:
        waiting, batch, count, size = self._waiting, list[Waiting](), 0, 0
        while waiting:
            count, size = count + len(waiting[0][0]), size + waiting[0][5]
            if batch and (count > MOST or size > MOST_BYTES):
                break
            batch.append(waiting.popleft())
        self._count -= _messages(batch)
        self._bytes -= sum(one[5] for one in batch)
        return batch

    def _look_again(self, delay_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._send_alone()
        self._pump()

    def _left_s(self, one: Waiting) -> float:
        return max(LEAST_TIME_S, one[1] - self._loop.time())

    # One by one

    def _send_single(self, one: Waiting) -> bool:
        """False when the transport has no room: it went back to the head of the line."""
        self._pace.singles += 1
        self._count -= 1
        self._bytes -= one[5]
        if self._write(one, self._single_answered):
            return True
        self._pace.singles -= 1
        self._count += 1
        self._bytes += one[5]
        self._waiting.appendleft(one)
        return False

    def _write(self, one: Waiting, answered: Callable[[Waiting, asyncio.Future[Stored]], None]) -> bool:
        message = one[0][0]
        try:
            future = self._transport.publish(
                message.subject,
                message.payload,
                message_id=message.message_id,
                traceparent=message.traceparent,
                timeout_s=self._left_s(one),
            )
        except LaneFull:
            self._look_again(FULL_RETRY_S)
            return False
        future.add_done_callback(partial(answered, one))
        return True

    def _single_answered(self, one: Waiting, future: asyncio.Future[Stored]) -> None:
        self._pace.singles -= 1
        _tell(one, future)
        if self._parts or self._waiting:
            self._pump()

    def _send_alone(self) -> None:
        while self._alone:
            one = self._alone.popleft()
            if not self._write(one, _tell):
                self._alone.appendleft(one)
                return

    # Together

    def _send_batch(self, batch: list[Waiting]) -> bool:
        try:
            messages = [message for one in batch for message in one[0]]
            future = self._transport.publish_batch(messages, timeout_s=self._left_s(batch[0]))
        except LaneFull:
            self._parts.appendleft(batch)
            self._look_again(FULL_RETRY_S)
            return False
        self._pace.batch_began(self._loop.time())
        future.add_done_callback(partial(self._answered, batch))
        return True

    def _answered(self, batch: list[Waiting], future: asyncio.Future[Stored]) -> None:
        self._pace.batch_ended(self._loop.time())
        error = PublishUnknown("given up") if future.cancelled() else future.exception()
        if error is None:
            stored = future.result()
            sequence = stored.sequence - _messages(batch)
            lots: dict[TellStored, list[Any]] = {}
            for messages, _, tell, about, tell_stored, _ in batch:
                sequence += len(messages)
                if tell_stored is None:
                    tell(about, Stored(sequence, False))
                else:
                    lots.setdefault(tell_stored, []).append(about)
            for tell_stored, lot in lots.items():
                tell_stored(lot)
        elif isinstance(error, PublishRefused):
            self._split(batch, error)
        else:
            unknown = error if isinstance(error, PublishUnknown) else PublishUnknown(str(error))
            for _, _, tell, about, _, _ in batch:
                tell(about, unknown)
        self._pump()

    def _split(self, batch: list[Waiting], refused: PublishRefused) -> None:
        """Nothing of it was stored. A full edge: by edge, then by half, since a part may still fit. Anything else
        (a known id, a message that is too large): each by itself."""
        if len(batch) == 1:
            batch[0][2](batch[0][3], refused)
            return
        parts = [[one] for one in batch]
        if refused.edge_full:
            edges: dict[str, list[Waiting]] = {}
            for one in batch:
                edges.setdefault(one[0][0].subject, []).append(one)
            parts = list(edges.values())
            if len(parts) == 1:
                half = len(batch) // 2
                parts = [batch[:half], batch[half:]]
        elif not refused.duplicate_inside:
            log.warning("a batch is refused, its messages go one by one", error=str(refused), messages=len(batch))
        for part in parts:
            if len(part) >= LEAST:
                self._parts.append(part)
            else:
                self._parts += [[one] for one in part if len(one[0]) > 1]
                self._alone += [one for one in part if len(one[0]) == 1]
        self._send_alone()


def _messages(batch: Sequence[Waiting]) -> int:
    return sum(len(one[0]) for one in batch)


def _tell(one: Waiting, future: asyncio.Future[Stored]) -> None:
    _, _, tell, about, _, _ = one
    error = PublishUnknown("given up") if future.cancelled() else future.exception()
    if error is None:
        tell(about, future.result())
    else:
        tell(about, error if isinstance(error, PublishRefused | PublishUnknown) else PublishUnknown(str(error)))


def _end_future(future: asyncio.Future[Stored], answer: Answer) -> None:
    """A `Tell` that ends a future."""
    if future.done():
        return
    if isinstance(answer, Stored):
        future.set_result(answer)
    else:
        future.set_exception(answer)
        future.exception()  # whoever does not look need not be warned
