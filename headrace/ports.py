"""The ports behind which the hot path's transports sit; each has a contract suite in `tests/contract`.

`JetStreamLane`: publish, consume and acknowledge on one JetStream server. `ComponentStream`: the batched
stream to one component process. Delivery logic (services/sidecar) knows only these, so that what is under
them can be replaced. Both call back synchronously with lists, once per read: no queue per message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from headrace.model.step_snapshot import StepSnapshot


class Delivery(msgspec.Struct, eq=False):
    """One message delivered by a consumer. `token` (its ack subject) and `source` are the lane's own."""

    subject: str
    payload: bytes
    message_id: str
    traceparent: str
    stream_sequence: int
    attempt: int
    """1 for the first delivery."""
    stored_at_unix_ns: int
    """When the broker stored it (broker's clock)."""
    received_at_unix_ns: int
    received_at_mono_ns: int
    token: bytes
    consumer_sequence: int = 0
    """Number of this delivery among all of its consumer, from 1; begins anew when the consumer is reset."""
    source: Any = None


class Stored(msgspec.Struct, frozen=True, gc=False):
    """The broker has the message; `duplicate` when it had it before."""

    sequence: int
    duplicate: bool


class BatchMessage(msgspec.Struct, frozen=True, gc=False):
    """One message of an atomic batch. `rollup` replaces what its subject holds; with `expected_last` (0: none) the
    batch is stored only while that is the stream sequence of the last message on its subject."""

    subject: str
    payload: bytes
    message_id: str = ""
    traceparent: str = ""
    rollup: bool = False
    expected_last: int | None = None


Row = tuple[bytes, str, str, Any]
"""A message of many to one subject: payload, message id, traceparent, and what it is about to whoever publishes it."""


class Fence(msgspec.Struct, frozen=True, gc=False):
    """A condition of a publish: `sequence` is the stream sequence of the last message on `subject`. Servers of a
    cluster let one publish at a time be under way with the same subject here; another is refused meanwhile."""

    subject: str
    sequence: int


class Kept(msgspec.Struct, frozen=True, gc=False):
    """A message as the stream keeps it."""

    sequence: int
    payload: bytes


class PublishRefused(Exception):
    """The broker answered: not stored. `code` is JetStream's err_code, for example 10077 (edge full)."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code
        self.description = description

    @property
    def edge_full(self) -> bool:
        return self.code == 10077

    @property
    def fenced(self) -> bool:
        """The subject's last message is not the expected one: somebody else wrote it, or this batch was stored
        before."""
        return self.code in (10071, 10164)

    @property
    def fence_in_use(self) -> bool:
        """Another publish with this fence, or one to the fence's own subject, is under way (clusters only)."""
        return self.code == 10164

    @property
    def duplicate_inside(self) -> bool:
        """An id of the batch is known, or occurs twice in it; nothing was stored, and nobody says which."""
        return self.code == 10201


class PublishUnknown(Exception):
    """No answer, no responders, or the connection died: stored or not; repeat with the same id."""

    def __init__(self, cause: str, *, no_responders: bool = False) -> None:
        super().__init__(cause)
        self.no_responders = no_responders


class ReadFailed(Exception):
    """The broker did not answer a read, or could not: try again."""


class LaneFull(Exception):
    """As many publishes (or bytes) without an answer as the lane allows: wait for `room`, then publish again.

    Nothing was written.
    """


class AckUnknown(Exception):
    """An ack was not confirmed in time: the message may be delivered again.

    `no_responders`: the consumer is not there (deleted, or its stream is gone or not up yet).
    """

    def __init__(self, cause: str, *, no_responders: bool = False) -> None:
        super().__init__(cause)
        self.no_responders = no_responders


class Consumption(Protocol):
    """A running pull on one durable consumer."""

    @property
    def problem(self) -> str:
        """Why nothing comes (consumer deleted, server away); empty while all is well. It keeps trying."""

    def release(self, count: int = 1) -> None:
        """Returns credit: `count` delivered messages are finished with; more may be asked for."""

    async def stop(self) -> None:
        """Asks for no more; messages already delivered were all handed over when it returns."""


class JetStreamLane(Protocol):
    """Publish, consume, acknowledge; bounded, with deadlines, no call waits for ever."""

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
        """Writes now (batched per loop turn); the future ends in Stored, PublishRefused or PublishUnknown. Where
        `fence` does not hold it is refused (`PublishRefused.fenced`); a known id is found known before that.

        Raises LaneFull at once (nothing written), ValueError for a subject or id that cannot be sent. While the
        connection is down it is kept, up to its deadline, and written first thing after the reconnect.
        """

    def publish_told(
        self,
        subject: str,
        payload: bytes,
        tell: Callable[[Any, Stored | PublishRefused | PublishUnknown], None],
        about: Any,
        *,
        message_id: str,
        traceparent: str = "",
        timeout_s: float = 5.0,
    ) -> None:
        """As `publish`, without a future, which costs as much as the publish: `tell(about, answer)` is called once, as
        the answer is read, never before this returns. Raises what `publish` raises; then nothing is told."""

    def publish_rows(
        self,
        subject: str,
        rows: Sequence[Row],
        tell: Callable[[Any, Stored | PublishRefused | PublishUnknown], None],
        stored: Callable[[list[Any]], None],
        *,
        timeout_s: float = 5.0,
    ) -> int:
        """As `publish_told` of each row, in order, for less; answers how many were taken. The first that was not is one
        that `publish_told` would have raised for, and nothing of it or after it is written or told. What is each row's
        about goes once either to `tell`, with its answer, or to `stored`, in a list of what one read told to be stored
        and not known before."""

    def publish_batch(self, messages: Sequence[BatchMessage], *, timeout_s: float = 5.0) -> asyncio.Future[Stored]:
        """An atomic batch (server 2.12): all are stored, one after the other, or none.

        The future ends in Stored (sequence of the last message), PublishRefused (10077: one edge full; 10201: a
        known id inside; 10071: the fence; 10054: too large), or PublishUnknown (also where the broker says that it
        got the batch only in part). A repeat is a new batch for the broker: give messages ids, or a fence. Raises
        LaneFull, ValueError (nothing, more than 1 000 messages, or what cannot be sent). Counts as one publish.
        """

    async def last_message(self, stream: str, subject: str, *, timeout_s: float = 2.0) -> Kept | None:
        """The newest message on a subject, read from the stream's leader; None if there is none. ReadFailed."""

    async def ack_floor(self, stream: str, consumer: str, *, timeout_s: float = 2.0) -> tuple[int, int]:
        """Of a consumer: the number of the delivery, and the stream sequence, up to which everything is acknowledged.
        ReadFailed."""

    async def purge_through(self, stream: str, subject: str, sequence: int, *, timeout_s: float = 2.0) -> int:
        """Removes all messages on a subject up to a stream sequence, whoever holds them; answers how many. ReadFailed:
        removed or not."""

    async def room(self) -> None:
        """Returns when `publish` would not raise LaneFull."""

    def consume(
        self, stream: str, consumer: str, *, credit: int, on_deliveries: Callable[[list[Delivery]], None]
    ) -> Consumption:
        """Overlapping pull requests with idle heartbeats; at most `credit` messages unreleased."""

    def acknowledge(self, delivery: Delivery) -> asyncio.Future[None]:
        """Confirmed ack. Repeated by the lane after a reconnect, before it pulls, until confirmed or timed out
        (then AckUnknown)."""

    def acknowledge_told(self, delivery: Delivery, tell: Callable[[Any, AckUnknown | None], None], about: Any) -> None:
        """As `acknowledge`, without a future: `tell(about, None)` when the broker has confirmed, else with the cause;
        once, never before this returns."""

    def when_down(self, callback: Callable[[], None]) -> None:
        """`callback` is called each time the connection breaks. What is acknowledged in it is among what is repeated
        before the lane pulls again."""

    def extend(self, delivery: Delivery) -> None:
        """In-progress: restarts the ack deadline."""

    def send(self, subject: str, payload: bytes, *, on_unheard: Callable[[], None] | None = None) -> None:
        """Core NATS publish. Kept while the connection is down; LaneFull past the bound of what is kept.

        `on_unheard` is called before the next `flush` returns if nobody listened to the subject; never for what was
        lost with the connection.
        """

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Returns when the server has read what was written; TimeoutError, or ConnectionError if the connection
        broke meanwhile (what was sent before may be lost)."""

    @property
    def outstanding(self) -> int:
        """Publishes and acks without an answer."""

    async def close(self, timeout_s: float = 2.0) -> None:
        """Stops pulls, waits for answers up to the limit, then ends what is left in PublishUnknown or AckUnknown.

        The connection itself stays with its owner.
        """


class StreamClosed(ConnectionError):
    """The stream to the component is over; `code` is a gRPC status name, for example UNAVAILABLE."""

    def __init__(self, cause: str, code: str = "UNKNOWN") -> None:
        super().__init__(cause)
        self.code = code


class StreamFull(Exception):
    """More inputs (or bytes) wait for a frame than the stream allows; nothing of this call was queued.

    Never raised while nothing waits."""


class ComponentInput(msgspec.Struct, frozen=True):
    """One call to make."""

    call: int
    body: bytes
    content_type: str
    headers: Mapping[str, str]
    message_id: str
    execution_id: str
    attempt: int
    wants_reply: bool
    timeout_ms: int
    traceparent: str
    passthrough: Sequence[Any] = ()
    """`message_pb2.Passed` of the steps before."""
    baggage: str = ""
    snapshot: StepSnapshot | None = None
    """What the step keeps; None while nothing is."""
    attachments: Sequence[Any] = ()
    """`attachment_pb2.Attachment` of the message."""
    bare: bool = False
    """It has none of the last four and no headers, is a first attempt, and nobody waits for its reply: it may go in a
    lot."""


class EndedLot(msgspec.Struct, frozen=True, eq=False):
    """Calls that ended well with one output each, which is a body and no more; or, where `bodies` is None, without any:
    field by field, the n-th value of each list is of the n-th call. Times are nanoseconds of CLOCK_MONOTONIC."""

    calls: Sequence[int]
    bodies: Sequence[bytes] | None
    content_type: str
    started_at_mono_ns: Sequence[int]
    ended_at_mono_ns: Sequence[int]


class ComponentStream(Protocol):
    """The batched call stream to one component process (the `Process` method of component/v1).

    Events are the generated `component_pb2.Event`; the port keeps them raw to save a copy per message.
    """

    def send(self, inputs: Sequence[ComponentInput]) -> None:
        """Queues inputs for the next frame, which leaves at once if none is being written.

        StreamClosed when the stream is over, StreamFull past its bound, ValueError for an input that fits no
        frame (about 15 MiB).
        """

    def take_lots(self, on_ended: Callable[[EndedLot], None]) -> None:
        """From now on bare calls may go in lots, where the component takes such, and calls that ended in lots come to
        `on_ended`, before the events of their frame. Without it all comes as events."""

    async def ping(self, timeout_s: float) -> None:
        """Self-check through the stream; TimeoutError, or StreamClosed (a ConnectionError)."""

    async def close(self, timeout_s: float = 2.0) -> None:
        """Half-closes, waits for the component to end the stream, then cancels. `on_closed` is not called."""
