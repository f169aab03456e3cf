"""Plain (not async) functions, run in threads: a thread takes a whole frame, not a message.

A hand-over to a thread costs more than most calls, so one thread works through what waits and gives its events
back together. Calls that turn out slow bring more threads, and a call that blocks never holds up those behind
it for longer than a moment.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic_ns

from headrace.api.component.v1 import component_pb2
from headrace.sdk.call import begin_call
from headrace.sdk.context import StepScope
from headrace.sdk.event_frame import FULL_FRAME_BYTES, EventFrame
from headrace.sdk.function import Function
from headrace.sdk.outbox import Outbox

MAX_THREADS = 32
SLOW_CALL_NS = 500_000
HAND_BACK_AFTER_NS = 1_000_000
BLOCKED_AFTER_S = 0.005


class _CallSink:
    """Sink of one call in a thread: its frame while it runs there; the outbox for late and foreign emits."""

    __slots__ = ("_frame", "_outbox", "_thread")

    def __init__(self, frame: EventFrame, outbox: Outbox) -> None:
        self._frame: EventFrame | None = frame
        self._outbox = outbox
        self._thread = threading.get_ident()

    def _target(self) -> EventFrame | Outbox:
        frame = self._frame
        return frame if frame is not None and threading.get_ident() == self._thread else self._outbox

    def data(self, call: int, body: bytes, content_type: str, headers: Mapping[str, str] | None, key: str) -> None:
        self._target().data(call, body, content_type, headers, key)

    def reply(self, call: int, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None) -> None:
        self._target().reply(call, status, body, content_type, headers)

    def output(self, call: int, emit: component_pb2.Emit) -> None:
        self._target().output(call, emit)

    def answer(self, call: int, reply: component_pb2.ReplyEmit) -> None:
        self._target().answer(call, reply)

    def error(self, call: int, code: str, message: str, retryable: bool, status: int) -> None:
        self._target().error(call, code, message, retryable, status)

    def rebound(self, call: int, reason: str, delay_ms: int) -> None:
        self._target().rebound(call, reason, delay_ms)

    def snapshot(self, call: int, json: str, merge: bool, if_revision: int | None) -> None:
        self._target().snapshot(call, json, merge, if_revision)

    def end(self, call: int, started_ns: int, ended_ns: int) -> None:
        self._target().end(call, started_ns, ended_ns)
        self._frame = None

    def done(self, call: int, body: bytes | None, content_type: str, started_ns: int, ended_ns: int) -> None:
        self._target().done(call, body, content_type, started_ns, ended_ns)
        self._frame = None


class ThreadedCalls:
    """`submit` from the loop; finished frames go to the outbox and `wrote` is called, on the loop."""

    def __init__(self, function: Function, scope: StepScope, outbox: Outbox, wrote: Callable[[], None]) -> None:
        self._function = function
        self._scope = scope
        self._outbox = outbox
        self._wrote = wrote
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="headrace-call")
        self._lock = threading.Lock()
        self._waiting: deque[component_pb2.Input] = deque()
        self._working = 0
        self._unreturned = 0
        self._slow = False
        self._watch: asyncio.TimerHandle | None = None
        self._taken_at_watch = -1
        self._taken = 0

    @property
    def busy(self) -> bool:
        """True until all calls were made and their events received (on the loop)."""
        return self._unreturned > 0 or bool(self._waiting)

    def submit(self, inputs: Iterable[component_pb2.Input]) -> None:
        """Queues the calls of a frame; their number is bounded by the sidecar's credit."""
        with self._lock:
            self._waiting.extend(inputs)
            wanted = min(len(self._waiting), MAX_THREADS) if self._slow else min(len(self._waiting), 1)
            missing = wanted - self._working
            # Also a single call is watched over when it waits for a thread that is in a call already.
            watched = len(self._waiting) > 1 or (missing <= 0 and bool(self._waiting))
        for _ in range(missing):
            self._add_thread()
        if watched and self._watch is None:
            self._watch = self._loop.call_later(BLOCKED_AFTER_S, self._check_progress)

    def _add_thread(self) -> None:
        with self._lock:
            if self._working >= MAX_THREADS:
                return
            self._working += 1
            self._unreturned += 1
        self._executor.submit(self._work)

    def _check_progress(self) -> None:
        """Calls wait and none was taken since the last look: those in hand block."""
        self._watch = None
        if not self._waiting:
            return
        if self._taken == self._taken_at_watch or self._working == 0:
            self._add_thread()
        self._taken_at_watch = self._taken
        self._watch = self._loop.call_later(BLOCKED_AFTER_S, self._check_progress)

    def _work(self) -> None:
        frame = self._outbox.new_frame()
        handed_back_ns = before_ns = monotonic_ns()
        while True:
            with self._lock:
                if not self._waiting:
                    self._working -= 1
                    break
                item = self._waiting.popleft()
                self._taken += 1
            begin_call(self._function, item, self._scope, _CallSink(frame, self._outbox))
            now_ns = monotonic_ns()
            self._slow = now_ns - before_ns > SLOW_CALL_NS
            before_ns = now_ns
            if self._slow and self._waiting:
                self._add_thread()
            if now_ns - handed_back_ns > HAND_BACK_AFTER_NS or frame.size > FULL_FRAME_BYTES:
                self._hand_back(frame, False)
                frame, handed_back_ns = self._outbox.new_frame(), now_ns
        self._hand_back(frame, True)

    def _hand_back(self, frame: EventFrame, last: bool) -> None:
        try:
            self._loop.call_soon_threadsafe(self._received, frame, last)
        except RuntimeError:
            return  # the loop is closed: the process ends

    def _received(self, frame: EventFrame, last: bool) -> None:
        if last:
            with self._lock:
                self._unreturned -= 1
        if frame.size:
            self._outbox.add_frame(frame)
        self._wrote()

    def close(self) -> None:
        """Starts nothing more; threads inside a call are left to it (the process ends with them)."""
        with self._lock:
            self._waiting.clear()
        if self._watch is not None:
            self._watch.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
