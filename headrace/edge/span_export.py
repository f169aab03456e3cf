"""Sends records as OTLP spans over gRPC, in batches, and never in the way of anybody.

Records wait here (bounded; what finds no room is dropped and counted), are encoded a few at a time between other work
of the loop, and leave in one call at a time with a deadline. A collector that is away or silent costs what waits here
and nothing else: nothing is encoded while nothing can be sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from headrace.edge.otlp_target import OtlpRefused
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.hop_record import Exportable, SpanCounts
from headrace.wire.otlp_spans import SpanEncoder

log = get_logger(__name__)

MAX_WAITING = 8_192
BATCH_BYTES = 1024 * 1024
"""Collectors take 4 MiB unless they are told otherwise. A request of a quarter costs them, and the sender, half as much
again a span."""
GATHER_S = 0.2
PLENTY = 800
"""Where requests would follow one another faster than that, so many records are gathered for one: about a batch."""
SLICE = 32
"""Records encoded in one turn of the loop: some tenths of a millisecond."""
TRIES = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
TELL_EVERY_S = 30.0
FLUSH_LIMIT_S = 0.5

Send = Callable[[bytes], Awaitable[int]]
"""Sends a request; answers how many spans were rejected. OtlpRefused; must end within a limit."""


class SpanExporter:
    """Implements `Exporter`. Give `run` to a TaskGroup, and end its task with `close`."""

    def __init__(self, send: Send, counts: SpanCounts, *, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._send = send
        self.counts = counts
        self._first_pause_s = first_pause_s
        self._encoder = SpanEncoder()
        self._waiting: deque[Exportable] = deque()
        self._work, self._idle, self._plenty = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._next_at = 0.0
        self._closing = False
        self._idle.set()
        self._failures = 0
        self._told_at = -TELL_EVERY_S
        self._told_dropped = 0

    def put(self, records: Sequence[Exportable]) -> None:
        """See `Exporter`: the newest are dropped where there is no room."""
        room = MAX_WAITING - len(self._waiting)
        if len(records) > room:
            self.counts.dropped += len(records) - room
            records = records[:room]
        self._waiting.extend(records)
        if self._waiting:
            self._idle.clear()
            self._work.set()
            if len(self._waiting) >= PLENTY:
                self._plenty.set()

    async def run(self) -> None:
        """Sends for ever; only a cancellation ends it."""
        while True:
            await self._work.wait()
            await self._gather()
            await self._send_one_batch()
            if not self._waiting:
                self._work.clear()
                self._idle.set()

    async def _gather(self) -> None:
        """Waits for more where the last request is not long ago."""
        now = asyncio.get_running_loop().time()
        if now < self._next_at and len(self._waiting) < PLENTY and not self._closing:
            self._plenty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_at - now):
                    await self._plenty.wait()
        self._next_at = asyncio.get_running_loop().time() + GATHER_S

    async def close(self, running: asyncio.Task[None], limit_s: float = FLUSH_LIMIT_S) -> None:
        """Lets `run` send what waits, for as long, unless the collector takes nothing anyway; then ends it. What is
        left is counted as dropped."""
        self._closing = True
        self._plenty.set()
        if not self._failures:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._idle.wait()
        await end_tasks([running])
        self.counts.dropped += len(self._waiting)
        self._waiting.clear()
        self._tell()

    async def _send_one_batch(self) -> None:
        records = await self._encode_some()
        request, spans = self._encoder.take()
        if not spans:
            return
        for tries in range(1, TRIES + 1):
            try:
                rejected = await self._send(request)
            except OtlpRefused as refused:
                self._note_failure(str(refused))
                if refused.again and tries < TRIES:
                    await self._pause()
                    continue
                self.counts.dropped += records
                await self._pause()
                return
            except BaseException:
                self.counts.dropped += records
                raise
            self.counts.exported += spans - rejected
            self.counts.rejected += rejected
            self._note_success()
            return

    async def _encode_some(self) -> int:
        """Encodes until a batch is full or nothing waits; answers how many records it took."""
        taken = 0
        while self._waiting and self._encoder.size < BATCH_BYTES:
            for _ in range(min(SLICE, len(self._waiting))):
                taken += 1
                try:
                    self._encoder.add(self._waiting.popleft())
                except (ValueError, IndexError, OverflowError) as error:
                    taken -= 1
                    self.counts.dropped += 1
                    log.debug("a record is no span", error=str(error)[:200])
            await asyncio.sleep(0)
        return taken

    async def _pause(self) -> None:
        longest = min(LONGEST_PAUSE_S, self._first_pause_s * 2 ** min(self._failures - 1, 10))
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311

    def _note_failure(self, cause: str) -> None:
        self._failures += 1
        self.counts.problem = cause[:300]
        self._tell()

    def _note_success(self) -> None:
        if self.counts.problem:
            log.info("the collector takes spans", dropped=self.counts.dropped)
        self._failures, self.counts.problem = 0, ""
        self._tell()

    def _tell(self) -> None:
        """Says in the log, now and then, what was lost and why."""
        now = asyncio.get_running_loop().time()
        lost = self.counts.dropped - self._told_dropped
        if now - self._told_at < TELL_EVERY_S or not (lost or self.counts.problem):
            return
        self._told_at, self._told_dropped = now, self.counts.dropped
        log.warning(
            "spans are not exported" if self.counts.problem else "spans were dropped",
            dropped=self.counts.dropped,
            cause=self.counts.problem,
        )
