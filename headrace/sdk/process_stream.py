"""The `Process` stream of a component: frames of calls in, frames of events out.

One task leads: it reads a frame and begins its calls one after the other. A call that has to wait keeps the
task it began in, and a new task takes the lead: so only calls that wait cost a task, and each function still
runs inside a real one. While calls are seen to wait, each gets its own task from the start, so that those of
one frame are begun together. How many calls run at once is the sidecar's credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterator, Sequence
from time import monotonic_ns
from typing import Any, Protocol

import grpc

from headrace.api.component.v1 import component_pb2, span_pb2
from headrace.sdk.batch_function import BatchFunction
from headrace.sdk.batched_calls import BatchedCalls
from headrace.sdk.call import Suspended, begin_call, end_call
from headrace.sdk.call_lot import calls_of
from headrace.sdk.context import StepScope
from headrace.sdk.event_frame import EventFrame
from headrace.sdk.function import Function
from headrace.sdk.lot_frame import LotFrame
from headrace.sdk.outbox import Outbox
from headrace.sdk.stacks import RunningCall
from headrace.sdk.telemetry import TELEMETRY
from headrace.sdk.threaded_calls import ThreadedCalls

# A turn that takes longer gives back what it has, and lets others run, before it goes on with its frame.
LONG_TURN_NS = 2_000_000
CLOSE_TIMEOUT_S = 2.0

EOF = grpc.aio.EOF


class ProcessRpc(Protocol):
    """The sidecar's side of the stream: a gRPC servicer context."""

    async def read(self) -> Any:
        """The next ProcessRequest, or EOF."""

    async def write(self, frame: component_pb2.ProcessResponse, /) -> None:
        """One at a time."""


class ProcessStream:
    """Serves one stream: `await run()` returns when the sidecar ended it and every call of it is answered."""

    def __init__(self, function: Function, scope: StepScope, rpc: ProcessRpc) -> None:
        loop = asyncio.get_running_loop()
        self._function = function
        self._scope = scope
        self._rpc = rpc
        self._loop = loop
        self._outbox = Outbox(loop, self._start_writing)
        self._finished: asyncio.Future[None] = loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[Suspended] = set()
        self._writing = False
        self._ended = False
        self._closing = False
        self._waits = False
        self._taker: ThreadedCalls | BatchedCalls | None = None
        """Who takes the calls over, where they are not made one after the other on the loop."""
        if isinstance(function, BatchFunction):
            self._taker = BatchedCalls(function, scope, self._outbox, self._write_one, self._spawn)
        elif not function.is_async:
            self._taker = ThreadedCalls(function, scope, self._outbox, self._start_writing)

    @property
    def waiting(self) -> Collection[RunningCall]:
        """Calls that were begun and wait for something; of a batch the first."""
        return [*self._waiting, *(self._taker.running if isinstance(self._taker, BatchedCalls) else ())]

    async def run(self) -> None:
        """Raises what broke the stream; cancelled, it cancels every call."""
        TELEMETRY.connect(self._loop, self._send_spans)
        self._spawn(self._lead(iter(())))
        try:
            await self._finished
        finally:
            TELEMETRY.disconnect(self._send_spans)
            self._closing = True
            self._outbox.closed = True
            if self._taker is not None:
                self._taker.close()
            for call in self._waiting:
                call.cancel_as = Suspended.CLOSED
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._closing or self._finished.done():
            if not task.cancelled():
                task.exception()
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            self._finished.set_exception(error)
        elif self._ended and not self._tasks and not (self._taker and self._taker.busy):
            if self._outbox:
                self._start_writing()
            else:
                self._finished.set_result(None)

    async def _lead(self, inputs: Iterator[component_pb2.Input]) -> None:
        function, scope, outbox = self._function, self._scope, self._outbox
        task = asyncio.current_task()
        assert task is not None
        while not self._closing:
            if self._waits:
                for item in inputs:
                    self._spawn(self._one(item))
            outbox.held = True
            turn_ns = monotonic_ns()
            for item in inputs:
                call = begin_call(function, item, scope, outbox)
                if call is None and not task.cancelling():
                    if monotonic_ns() - turn_ns > LONG_TURN_NS:
                        outbox.held = False
                        await self._write_one()
                        await asyncio.sleep(0)
                        outbox.held = True
                        turn_ns = monotonic_ns()
                    continue
                outbox.held = False
                self._waits = call is not None
                self._spawn(self._lead(inputs))
                if call is not None:
                    await self._follow(call, item.timeout_ms)
                return
            outbox.held = False
            await self._write_one()
            frame: Any = await self._rpc.read()
            if frame is EOF:
                TELEMETRY.flush()
                self._ended = True
                return
            if frame.HasField("ping"):
                outbox.pong(frame.ping.nonce)
            if frame.HasField("lot"):
                outbox.new_frame = LotFrame
            if self._taker is None:
                inputs = iter(calls_of(frame))
            else:
                self._taker.submit(calls_of(frame))

    async def _one(self, item: component_pb2.Input) -> None:
        """A call in a task of its own: calls that wait are begun together, and their answers go together."""
        call = begin_call(self._function, item, self._scope, self._outbox)
        self._waits = call is not None
        if call is not None:
            await self._follow(call, item.timeout_ms)

    async def _follow(self, call: Suspended, timeout_ms: int) -> None:
        """Drives a waiting call; the wake-up of its last event writes it out, with all others of that turn."""
        self._waiting.add(call)
        try:
            await end_call(call, timeout_ms)
        finally:
            self._waiting.discard(call)

    async def _write_one(self) -> None:
        """Writes what there is, unless a write is in flight (whose task goes on with the rest)."""
        if self._writing or (frame := self._outbox.take()) is None:
            return
        self._writing = True
        try:
            await self._rpc.write(frame)
        finally:
            self._writing = False
        if self._outbox:
            self._start_writing()

    def _send_spans(self, spans: Sequence[span_pb2.Span]) -> None:
        frame = EventFrame()
        frame.spans(spans)
        self._outbox.add_frame(frame)
        self._start_writing()

    def _start_writing(self) -> None:
        if not self._writing and not self._closing and not self._finished.done():
            self._writing = True
            self._spawn(self._write_all())

    async def _write_all(self) -> None:
        try:
            while (frame := self._outbox.take()) is not None:
                await self._rpc.write(frame)
        finally:
            self._writing = False
