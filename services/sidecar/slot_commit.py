"""Commits what a slot's inputs became, in stream order: one fenced part of a batch at a time (`commit_turns`).

A part is the outputs of the next finished inputs, as many as are ready, and the slot's cursor, which is stored only
while the cursor is still the one this owner wrote last. So outputs are stored once under any failure, and whoever
does not own the slot any more stores nothing. An answer that was lost is found in the cursor, which says the number
of the batch that it came with.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from headrace.edge.clock_pair import read_clocks
from headrace.edge.structured_log import get_logger
from headrace.ports import (
    BatchMessage,
    JetStreamLane,
    Kept,
    LaneFull,
    PublishRefused,
    PublishUnknown,
    ReadFailed,
    Stored,
)
from headrace.wire.cursor import Cursor, decode_cursor, encode_cursor
from headrace.wire.envelope import seal
from services.sidecar.domain.commit_size import CommitSize
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.output_answers import MESSAGE_TOO_LARGE
from services.sidecar.domain.retry_delay import PROBE_S, jittered, republish_delay_s
from services.sidecar.outbox import Blocked, Outgoing

if TYPE_CHECKING:
    from services.sidecar.commit_turns import Answer, CommitTurns
    from services.sidecar.timers import Timers

log = get_logger(__name__)


class SlotTaken(Exception):
    """Somebody else owns the slot."""


@dataclass(slots=True)
class Chunk:
    """What one batch stores: messages, and the inputs that are done with it, up to stream sequence `through` (0:
    none). Without `effects` nothing need be stored."""

    messages: list[Outgoing] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    through: int = 0
    effects: bool = False
    snapshots: dict[str, bytes] = field(default_factory=dict)
    """What the inputs' step keeps from now on, by subject."""


class CommitSource(Protocol):
    """The slot, as its commit sees it."""

    def next_chunk(self, size: CommitSize) -> Chunk | None:
        """What to commit now; None while nothing is ready."""

    def stored(self, chunk: Chunk) -> None:
        """The broker has it."""

    def known(self, chunk: Chunk) -> None:
        """The broker has its messages, by whatever way; its inputs are not committed yet."""

    def refused(self, chunk: Chunk, problem: Problem, after: Callable[[], None]) -> None:
        """The broker will never take its messages: calls `after` when they are settled otherwise. Its inputs are
        not committed yet."""

    def lost(self, cause: str) -> None:
        """Somebody else owns the slot."""


class SlotCommit:
    """`take` first, then `pump` whenever something may be ready. `retired` and `no_responders` as in the outbox."""

    def __init__(
        self,
        lane: JetStreamLane,
        stream: str,
        subject: str,
        lease: tuple[int, str],
        source: CommitSource,
        timers: Timers,
        tasks: asyncio.TaskGroup,
        counters: dict[str, int],
        turns: CommitTurns,
        *,
        retired: Callable[[], bool],
        no_responders: Callable[[], None],
    ) -> None:
        self._turns = turns
        self._chunk: Chunk | None = None
        self._lane, self._stream, self._subject = lane, stream, subject
        self._generation, self._holder = lease
        self._source = source
        self._timers, self._tasks, self._counters = timers, tasks, counters
        self._retired, self._no_responders = retired, no_responders
        self._fence: int | None = None
        self._number = 0
        self._through = 0
        # Sent since the last success, by number: one of them may be stored, its answer lost.
        self._unresolved: dict[int, Chunk] = {}
        self._size = CommitSize()
        self._tries = 0
        self._ended = False
        self._full: Chunk | None = None
        self._full_since = 0.0
        self.busy = False
        self.problem = ""

    def end(self) -> None:
        """Nothing is sent any more."""
        self._ended = True
        self._turns.forget(self)

    def blocked(self) -> list[Blocked]:
        """The receivers of a batch that is refused because one of their edges is full; which one is not said."""
        if self._full is None:
            return []
        for_s = time.monotonic() - self._full_since
        counts = Counter(message.subject for message in self._full.messages)
        return [Blocked(subject, count, "full", for_s) for subject, count in counts.items()]

    async def take(self) -> int:
        """Makes the slot this owner's: from here on nobody else's batch is stored. Answers up to which stream
        sequence the slot was committed before. SlotTaken when a later owner has it. Tries until it is known."""
        tries = 0
        while True:
            try:
                last = await self._lane.last_message(self._stream, self._subject)
                found = self._cursor_of(last)
                if found.generation > self._generation:
                    raise SlotTaken(f"generation {found.generation} has it, ours is {self._generation}")
                self._through = found.through
                claim = self._cursor_message(found.through, last.sequence if last is not None else 0)
                self._fence = (await self._lane.publish_batch([claim])).sequence
                self._unresolved.clear()
                self.problem = ""
                return found.through
            except (ReadFailed, PublishUnknown, PublishRefused, LaneFull) as error:
                if isinstance(error, PublishUnknown) and error.no_responders:
                    self._no_responders()
                tries += 1
                self.problem = f"the slot's cursor cannot be written: {error}"
                log.debug("slot not taken yet", subject=self._subject, error=str(error), tries=tries)
                await asyncio.sleep(republish_delay_s(tries))

    async def still_ours(self) -> bool:
        """Whether nobody took the slot, as far as can be known; SlotCommit.take was called before."""
        try:
            found = self._cursor_of(await self._lane.last_message(self._stream, self._subject))
        except ReadFailed:
            return True
        return found.holder in ("", self._holder) or found.generation < self._generation

    def pump(self) -> None:
        """What is ready goes with the next batch, unless something of the slot is on its way."""
        if not (self.busy or self._ended or self._fence is None):
            self._turns.want(self)

    def begin(self) -> list[BatchMessage]:
        """See `commit_turns.Turn`."""
        while not (self.busy or self._ended or self._fence is None):
            chunk = self._source.next_chunk(self._size)
            if chunk is None:
                break
            if chunk.effects:
                return self._messages(chunk)
            self._source.stored(chunk)  # nothing to store: its inputs are only acknowledged
        return []

    def _cursor_message(self, through: int, fence: int) -> BatchMessage:
        self._number += 1
        cursor = Cursor(through, self._generation, self._holder, self._number)
        return BatchMessage(self._subject, encode_cursor(cursor), rollup=True, expected_last=fence)

    def _messages(self, chunk: Chunk) -> list[BatchMessage]:
        assert self._fence is not None
        self.busy, self._chunk = True, chunk
        unix_ns, mono_ns = read_clocks()
        messages: dict[str, BatchMessage] = {}
        for outgoing in chunk.messages:
            outgoing.written_at_unix_ns, outgoing.written_at_mono_ns = unix_ns, mono_ns
            payload = seal(outgoing.payload, outgoing.message_id, unix_ns)
            message = BatchMessage(outgoing.subject, payload, outgoing.message_id, outgoing.traceparent)
            messages.setdefault(outgoing.message_id, message)  # the same id twice is one message: the first
        snapshots = [BatchMessage(subject, payload, rollup=True) for subject, payload in chunk.snapshots.items()]
        cursor = self._cursor_message(max(chunk.through, self._through), self._fence)
        self._unresolved[self._number] = chunk
        return [*messages.values(), *snapshots, cursor]

    def answered(self, answer: Answer) -> None:
        """See `commit_turns.Turn`."""
        chunk, error = self._chunk, answer
        if self._ended or chunk is None:
            return
        self._chunk = None
        if isinstance(error, Stored):
            self._stored(chunk, error.sequence)
        elif isinstance(error, LaneFull):
            self._again(PROBE_S)
        elif isinstance(error, ValueError):
            self._refuse(chunk, f"the output cannot be published: {error}")
        elif isinstance(error, PublishRefused) and error.edge_full:
            self._counters["refused_full"] += 1
            self._size.full(len(chunk.inputs))
            self._full, self._full_since = chunk, self._full_since or time.monotonic()
            self._again(jittered(PROBE_S, random.random()))  # noqa: S311
        elif isinstance(error, PublishRefused) and (error.fenced or error.duplicate_inside):
            self._tasks.create_task(self._look(chunk, duplicate=error.duplicate_inside), name="slot fence")
        elif isinstance(error, PublishRefused) and error.code == MESSAGE_TOO_LARGE:
            self._refuse(chunk, f"the broker refuses the output: {error}")
        else:
            self._unanswered(chunk, error)

    def _stored(self, chunk: Chunk, fence: int) -> None:
        self._counters["commits"] += 1
        self._fence = fence
        self._through = max(self._through, chunk.through)
        self._unresolved.clear()
        self._tries, self.problem = 0, ""
        self._full, self._full_since = None, 0.0
        self._size.stored()
        self.busy = False
        self._source.stored(chunk)
        self.pump()

    def _unanswered(self, chunk: Chunk, error: BaseException) -> None:
        self._tries += 1
        self._counters["republished"] += 1
        if isinstance(error, PublishRefused):
            self.problem = f"the broker refuses what the slot commits: {error}"
            log.warning("batch refused", subject=self._subject, error=str(error), tries=self._tries)
        else:
            self._no_responders()  # a part that met no stream looks like one that got lost
        if self._retired():
            self._unresolved.clear()
            problem = Problem("DEPLOYMENT_RETIRED", "the deployment is retired; its edges take no more messages")
            self._source.refused(chunk, problem, partial(self._stored, replace(chunk, messages=[]), self._fence or 0))
            return
        self._again(jittered(republish_delay_s(self._tries), random.random()))  # noqa: S311

    def _refuse(self, chunk: Chunk, text: str) -> None:
        """One message of it is at fault: it is found by sending less."""
        if self._size.shrink(len(chunk.inputs), len(chunk.messages)):
            self._again(0.0)
            return
        self._source.refused(chunk, Problem("OUTPUT_REFUSED", text), self._free)

    def _again(self, delay_s: float) -> None:
        self._timers.later(delay_s, self._free)

    def _free(self) -> None:
        self.busy = False
        self.pump()

    async def _look(self, chunk: Chunk, *, duplicate: bool) -> None:
        """The fence, or an id inside, refused a batch: the cursor tells whether it, or an earlier try, was stored."""
        tries = 0
        while not self._ended:
            try:
                last = await self._lane.last_message(self._stream, self._subject)
                break
            except ReadFailed:
                tries += 1
                await asyncio.sleep(republish_delay_s(tries))
        if self._ended:
            return
        found = self._cursor_of(last)
        if found.holder not in ("", self._holder):
            self._ended = True
            self._source.lost(f"generation {found.generation} ({found.holder}) has it, ours is {self._generation}")
            return
        fence = last.sequence if last is not None else 0
        before = self._unresolved.get(found.number) if last is not None else None
        if before is not None:
            self._stored(before, fence)
            return
        self._fence = fence
        if duplicate and not self._size.shrink(len(chunk.inputs), len(chunk.messages)):
            self._counters["duplicates"] += 1
            self._source.known(chunk)
        self._again(0.0)

    def _cursor_of(self, last: Kept | None) -> Cursor:
        if last is None:
            return Cursor()
        try:
            return decode_cursor(last.payload)
        except ValueError as error:
            log.error("cursor unreadable", subject=self._subject, error=str(error))
            return Cursor()
