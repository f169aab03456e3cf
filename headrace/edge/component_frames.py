"""Frames of the `Process` stream to a component, whatever carries them: what waits, bounded, and what comes back.

What waits leaves together in the next frame, so that frames grow exactly as fast as the component falls behind,
without any timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

from headrace.api.component.v1.component_pb2 import (
    CallLot,
    EarlierOutput,
    Emit,
    End,
    EndedCalls,
    Event,
    Input,
    KeptSnapshot,
    Ping,
    ProcessRequest,
    ProcessResponse,
)
from headrace.edge.structured_log import get_logger
from headrace.model.step_snapshot import StepSnapshot
from headrace.ports import ComponentInput, EndedLot, StreamClosed, StreamFull

log = get_logger(__name__)

METHOD = "/headrace.api.component.v1.ComponentService/Process"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""As headrace.edge.grpc_server has it, which is not imported here for what it brings along."""
MAX_FRAME_INPUTS = 300
MAX_FRAME_BYTES = 512 * 1024
"""Where one input is not more by itself. Frames of 4 MiB fall out of the caches: four times the processor time a byte,
on either side."""
LEAST_LOT = 4
"""Fewer are cheaper one by one."""
MAX_INPUT_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024
MAX_QUEUED = 4096
MAX_QUEUED_BYTES = 64 * 1024 * 1024
_INPUT_OVERHEAD = 256
_HEADER_OVERHEAD = 16

OnEvents = Callable[[list[Event]], None]
OnClosed = Callable[[StreamClosed], None]
OnSpans = Callable[[Sequence[Any]], None]


class ComponentFrames:
    """What the implementations of the port share. `on_events` gets the events of one frame as a list, synchronously
    on the loop; `on_closed` is called once with the cause when the stream dies by itself, not after `close`.
    `on_spans` gets spans of the component's own code."""

    def __init__(
        self,
        *,
        on_events: OnEvents,
        on_closed: OnClosed,
        on_spans: OnSpans | None = None,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._on_events, self._on_closed, self._on_spans = on_events, on_closed, on_spans
        self._max_queued = max_queued
        self._queue: deque[tuple[ComponentInput, int]] = deque()
        self._queued_bytes = 0
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._unsent_pings: deque[int] = deque()
        self._nonce = 0
        self.component_takes_lots = False
        """As its handshake says."""
        self._on_ended: Callable[[EndedLot], None] | None = None
        self._started = False
        self._closing = False
        self._cause: StreamClosed | None = None

    def _wake(self) -> None:
        """Something waits for a frame."""
        raise NotImplementedError

    def _ended(self) -> None:
        """The stream is over by itself."""

    @property
    def queued(self) -> int:
        """Inputs that wait for a frame."""
        return len(self._queue)

    def send(self, inputs: Sequence[ComponentInput]) -> None:
        """See the port."""
        self._check_open()
        waiting, size = len(self._queue), 0
        sized: list[tuple[ComponentInput, int]] = []
        for given in inputs:
            input_size = len(given.body) + _INPUT_OVERHEAD if given.bare else _size(given)
            if input_size > MAX_INPUT_BYTES:
                raise ValueError(f"body: {len(given.body)} bytes fit no frame (limit {MAX_INPUT_BYTES})")
            size += input_size
            sized.append((given, input_size))
        # What comes while nothing waits is always let in, whatever its size.
        too_many = waiting + len(inputs) > self._max_queued or self._queued_bytes + size > MAX_QUEUED_BYTES
        if waiting and too_many:
            raise StreamFull(f"{waiting} inputs ({self._queued_bytes} bytes) wait for the component")
        self._queue.extend(sized)
        self._queued_bytes += size
        self._wake()

    def take_lots(self, on_ended: Callable[[EndedLot], None]) -> None:
        """See the port."""
        self._on_ended = on_ended

    async def ping(self, timeout_s: float) -> None:
        """See the port."""
        self._check_open()
        self._nonce += 1
        nonce = self._nonce
        pong = self._pings[nonce] = asyncio.get_running_loop().create_future()
        self._unsent_pings.append(nonce)
        self._wake()
        try:
            async with asyncio.timeout(timeout_s):
                await pong
        finally:
            self._pings.pop(nonce, None)

    def _check_open(self) -> None:
        if self._cause is not None or self._closing or not self._started:
            raise self._cause or StreamClosed("the stream is closed", "CANCELLED")

    @property
    def _waiting(self) -> bool:
        """Whether there is something for a frame."""
        return bool(self._queue or self._unsent_pings)

    def _next_frame(self) -> bytes:
        """Takes what fits the next one."""
        if self._unsent_pings:
            return ProcessRequest(ping=Ping(nonce=self._unsent_pings.popleft())).SerializeToString()
        queue = self._queue
        request = ProcessRequest()
        add = request.inputs.add
        in_lots, lot = self.component_takes_lots and self._on_ended is not None, list[ComponentInput]()
        if in_lots and LEAST_LOT <= len(queue) <= MAX_FRAME_INPUTS and self._queued_bytes <= MAX_FRAME_BYTES:
            lot = [given for given, _ in queue]
            content_type = lot[0].content_type
            if all([given.bare and given.content_type == content_type for given in lot]):  # noqa: C419
                queue.clear()
                self._queued_bytes = 0
                _fill_lot(request.lot, lot)
                return request.SerializeToString()
            lot = []
        size = count = 0
        while queue and count < MAX_FRAME_INPUTS:
            given, input_size = queue[0]
            if count and size + input_size > MAX_FRAME_BYTES:
                break
            size += input_size
            count += 1
            queue.popleft()
            if lot and not (given.bare and given.content_type == lot[0].content_type):
                # What comes in a lot comes after all else of its frame, and the order is kept.
                for earlier in lot:
                    _fill(add, earlier)
                lot.clear()
            if in_lots and given.bare:
                lot.append(given)
            else:
                _fill(add, given)
        self._queued_bytes -= size
        if len(lot) >= LEAST_LOT:
            _fill_lot(request.lot, lot)
        else:
            for given in lot:
                _fill(add, given)
        return request.SerializeToString()

    def _take(self, raw: bytes) -> None:
        """Hands on what a frame of the component holds; DecodeError when it is none."""
        response = ProcessResponse.FromString(raw)
        if response.HasField("pong"):
            pong = self._pings.get(response.pong.nonce)
            if pong is not None and not pong.done():
                pong.set_result(None)
        events = list(response.events)
        if response.ended:
            events = self._take_ended(response.ended, events)
        if events:
            try:
                self._on_events(events)
            except Exception:
                log.exception("events could not be handed over", count=len(events))
        if response.spans and self._on_spans is not None:
            self._on_spans(response.spans)

    def _take_ended(self, ended: Sequence[EndedCalls], events: list[Event]) -> list[Event]:
        """Hands lots on; answers the frame's events, with those that say the same where nobody takes lots."""
        before: list[Event] = []
        for each in ended:
            lot = ended_lot(each)
            if lot is None:
                before.append(Event())  # of no use, and counted as such, as an event of no call is
                continue
            if self._on_ended is None:
                before += events_of(lot)
                continue
            try:
                self._on_ended(lot)
            except Exception:
                log.exception("ended calls could not be handed over", count=len(lot.calls))
        return before + events

    def _end(self, cause: StreamClosed) -> None:
        """First cause wins; wakes whoever waits, tells the owner unless it asked for the end."""
        if self._cause is not None:
            return
        self._cause = cause
        self._queue.clear()
        self._queued_bytes = 0
        self._unsent_pings.clear()
        for pong in self._pings.values():
            if not pong.done():
                pong.set_exception(cause)
        if self._started and not self._closing:
            self._ended()
            self._on_closed(cause)


def _fill(add: Callable[..., Input], given: ComponentInput) -> None:
    """One input of a frame. Made in its place and with what it has only: a quarter of the time of a message with all
    fields that is then copied into the frame."""
    made = add(
        call=given.call,
        body=given.body,
        content_type=given.content_type,
        message_id=given.message_id,
        execution_id=given.execution_id,
        attempt=given.attempt,
        timeout_ms=given.timeout_ms,
        traceparent=given.traceparent,
    )
    headers = given.headers
    if headers:
        target = made.headers
        for name in headers:
            target[name] = headers[name]
    if given.wants_reply:
        made.wants_reply = True
    if given.baggage:
        made.baggage = given.baggage
    if given.passthrough:
        made.passthrough.extend([_earlier(item) for item in given.passthrough])
    if given.attachments:
        made.attachments.extend(given.attachments)
    if given.snapshot is not None:
        made.snapshot.CopyFrom(_kept(given.snapshot))


def _fill_lot(made: CallLot, lot: list[ComponentInput]) -> None:
    """A frame's bare inputs, field by field: less than half of what one message for each costs on either side."""
    made.calls.extend([given.call for given in lot])
    made.bodies.extend([given.body for given in lot])
    made.content_type, made.timeout_ms = lot[0].content_type, lot[0].timeout_ms
    made.message_ids.extend([given.message_id for given in lot])
    made.execution_ids.extend([given.execution_id for given in lot])
    made.traceparents.extend([given.traceparent for given in lot])


def ended_lot(ended: EndedCalls) -> EndedLot | None:
    """None where its lists do not fit each other: what it says of which call cannot be known."""
    calls, bodies = list(ended.calls), list(ended.bodies)
    began, over = list(ended.started_at_mono_ns), list(ended.ended_at_mono_ns)
    if not len(calls) == len(began) == len(over) or len(bodies) not in (0, len(calls)):
        return None
    return EndedLot(calls, bodies or None, ended.content_type, began, over)


def events_of(lot: EndedLot) -> list[Event]:
    """The events that say the same."""
    found: list[Event] = []
    bodies: Iterable[bytes | None] = lot.bodies or repeat(None, len(lot.calls))
    times = (lot.started_at_mono_ns, lot.ended_at_mono_ns)
    for call, body, began, over in zip(lot.calls, bodies, *times, strict=True):
        if body is not None:
            found.append(Event(call=call, data=Emit(body=body, content_type=lot.content_type)))
        found.append(Event(call=call, end=End(started_at_mono_ns=began, ended_at_mono_ns=over)))
    return found


def _size(given: ComponentInput) -> int:
    """Upper estimate of the bytes of one input in a frame."""
    size = len(given.body) + _INPUT_OVERHEAD
    headers = given.headers
    if headers:
        for name in headers:
            size += 4 * (len(name) + len(headers[name])) + _HEADER_OVERHEAD
    if given.passthrough:
        for item in given.passthrough:
            size += item.ByteSize() + _HEADER_OVERHEAD
    if given.attachments:
        for item in given.attachments:
            size += item.ByteSize() + _HEADER_OVERHEAD
    if given.baggage:
        size += len(given.baggage)
    if given.snapshot is not None:
        size += len(bytes(given.snapshot.value)) + _HEADER_OVERHEAD
    return size


def _kept(snapshot: StepSnapshot) -> KeptSnapshot:
    return KeptSnapshot(json=bytes(snapshot.value).decode(), revision=snapshot.revision)


def _earlier(item: Any) -> EarlierOutput:
    return EarlierOutput(
        step=item.step,
        body=item.body,
        content_type=item.content_type,
        headers=item.headers,
        attachments=item.attachments,
    )
