"""Events on their way to the sidecar: everything finished in a turn leaves in one frame, one write at a time.

No timer holds anything back: a frame is written as soon as none is being written; what comes meanwhile makes
the next one. What may wait here is bounded by the sidecar's credit (calls it allows in flight).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping

from headrace.api.component.v1 import component_pb2
from headrace.sdk.event_frame import FULL_FRAME_BYTES, EventFrame


class Outbox:
    """EventSink of a stream, for the loop's thread; calls from other threads are passed on to the loop.

    `wake` is called (on the loop) when an event came outside of `hold`, so that a late emit leaves too.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._wake = wake
        self._woken = False
        self._frames: deque[EventFrame] = deque()
        self.new_frame: Callable[[], EventFrame] = EventFrame
        """Changed once the sidecar is known to take other frames."""
        self._frame = self.new_frame()
        self.held = False
        """True while a task runs calls and will write what they leave behind."""
        self.closed = False

    def _ready(self) -> EventFrame:
        if self.closed:
            raise ConnectionError("the stream to the sidecar is closed")
        frame = self._frame
        if frame.size >= FULL_FRAME_BYTES:
            self._frames.append(frame)
            frame = self._frame = self.new_frame()
        if not self.held and not self._woken:
            self._woken = True
            self._loop.call_soon(self._call_wake)
        return frame

    def _call_wake(self) -> None:
        self._woken = False
        self._wake()

    def _from_thread(self, event: Callable[..., None], *arguments: object) -> None:
        if self.closed:
            raise ConnectionError("the stream to the sidecar is closed")
        self._loop.call_soon_threadsafe(self._late, event, arguments)

    def _late(self, event: Callable[..., None], arguments: tuple[object, ...]) -> None:
        with contextlib.suppress(ConnectionError):
            event(*arguments)

    def _foreign(self) -> bool:
        return threading.get_ident() != self._thread

    def data(self, call: int, body: bytes, content_type: str, headers: Mapping[str, str] | None, key: str) -> None:
        if self._foreign():
            self._from_thread(self.data, call, body, content_type, headers, key)
        else:
            self._ready().data(call, body, content_type, headers, key)

    def reply(self, call: int, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None) -> None:
        if self._foreign():
            self._from_thread(self.reply, call, status, body, content_type, headers)
        else:
            self._ready().reply(call, status, body, content_type, headers)

    def output(self, call: int, emit: component_pb2.Emit) -> None:
        if self._foreign():
            self._from_thread(self.output, call, emit)
        else:
            self._ready().output(call, emit)

    def answer(self, call: int, reply: component_pb2.ReplyEmit) -> None:
        if self._foreign():
            self._from_thread(self.answer, call, reply)
        else:
            self._ready().answer(call, reply)

    def error(self, call: int, code: str, message: str, retryable: bool, status: int) -> None:
        self._ready().error(call, code, message, retryable, status)

    def rebound(self, call: int, reason: str, delay_ms: int) -> None:
        self._ready().rebound(call, reason, delay_ms)

    def snapshot(self, call: int, json: str, merge: bool, if_revision: int | None) -> None:
        if self._foreign():
            self._from_thread(self.snapshot, call, json, merge, if_revision)
        else:
            self._ready().snapshot(call, json, merge, if_revision)

    def end(self, call: int, started_ns: int, ended_ns: int) -> None:
        self._ready().end(call, started_ns, ended_ns)

    def done(self, call: int, body: bytes | None, content_type: str, started_ns: int, ended_ns: int) -> None:
        self._ready().done(call, body, content_type, started_ns, ended_ns)

    def pong(self, nonce: int) -> None:
        frame = EventFrame()
        frame.pong(nonce)
        self.add_frame(frame)

    def add_frame(self, frame: EventFrame) -> None:
        """Queues a frame that was filled elsewhere, behind what is here already."""
        if self._frame.size:
            self._frames.append(self._frame)
            self._frame = self.new_frame()
        self._frames.append(frame)

    def take(self) -> component_pb2.ProcessResponse | None:
        """The next frame to write; None when there is nothing."""
        if self._frames:
            return self._frames.popleft().finished()
        if not self._frame.size:
            return None
        frame, self._frame = self._frame, self.new_frame()
        return frame.finished()

    def __bool__(self) -> bool:
        return bool(self._frames) or self._frame.size > 0
