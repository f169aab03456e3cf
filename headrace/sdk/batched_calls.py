"""Functions that take batches: whatever waits when a batch ends is the next one, so a lone message goes at once.

One batch runs at a time: what a call costs is paid once for all that came meanwhile. A message that was tried before
is called alone and beside the others, since it may be what the batch failed for; and where a batch takes so long that
those who wait would run into their own time limit, the next begins beside it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headrace.api.component.v1 import component_pb2
from headrace.sdk.batch_function import BatchFunction
from headrace.sdk.batch_run import Arrival, BatchRunner, RunningBatch
from headrace.sdk.context import StepScope
from headrace.sdk.event_frame import EventFrame
from headrace.sdk.outbox import Outbox

MAX_THREADS = 32
LONGEST_PATIENCE_S = 5.0
PATIENCE = 0.25
"""This part of its time limit a message waits for the batch that runs."""


class BatchedCalls:
    """`submit` from the loop. Bounded by the sidecar's credit. `spawn` owns the tasks, `write` writes what is in the
    outbox."""

    def __init__(
        self,
        function: BatchFunction,
        scope: StepScope,
        outbox: Outbox,
        write: Callable[[], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._most = function.most
        self._outbox, self._write, self._spawn = outbox, write, spawn
        self._loop = asyncio.get_running_loop()
        self._executor: ThreadPoolExecutor | None = None
        if not function.is_async:
            self._executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="headrace-batch")
        self._runner = BatchRunner(function, scope, outbox, self._hand_back, self._executor)
        self._waiting: deque[Arrival] = deque()
        self._holder: object | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Messages wait for their batch."""
        return bool(self._waiting)

    @property
    def running(self) -> Iterable[RunningBatch]:
        """Batches that wait for something."""
        return self._runner.running

    def submit(self, inputs: Iterable[component_pb2.Input]) -> None:
        """Takes the calls of a frame."""
        now = self._loop.time()
        for source in inputs:
            if source.attempt > 1:
                self._spawn(self._runner.run([Arrival(source, now)]))
            else:
                self._waiting.append(Arrival(source, now))
        self._next()

    def _next(self) -> None:
        waiting = self._waiting
        if waiting and self._holder is None:
            count = min(len(waiting), self._most)
            self._holder = turn = object()
            self._spawn(self._run(turn, [waiting.popleft() for _ in range(count)]))
        if waiting and self._timer is None:
            limit_s = waiting[0].source.timeout_ms / 1000 or LONGEST_PATIENCE_S / PATIENCE
            patience_s = min(LONGEST_PATIENCE_S, limit_s * PATIENCE)
            self._timer = self._loop.call_at(waiting[0].at + patience_s, self._impatient)

    def _impatient(self) -> None:
        """The batch that runs loses its turn to those who wait."""
        self._timer = None
        self._holder = None
        self._next()

    async def _run(self, turn: object, arrivals: list[Arrival]) -> None:
        try:
            await self._runner.run(arrivals)
            if self._waiting:
                await asyncio.sleep(0)  # frames that have arrived meanwhile are read first
        finally:
            if self._holder is turn:
                self._holder = None
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                if not self._outbox.closed:
                    self._next()

    async def _hand_back(self, frames: list[EventFrame]) -> None:
        for frame in frames:
            self._outbox.add_frame(frame)
        await self._write()

    def close(self) -> None:
        """Begins nothing more; a thread inside a call is left to it (the process ends with it)."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
