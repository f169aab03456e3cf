"""The batches of all slots of an instance, one after the other, and several slots' in one where several are ready.

A batch costs the broker about the same whatever is in it, and batches of a stream do not overlap there. So one is under
way at a time; what becomes ready meanwhile is in the next, whichever slot it is of. Each slot's part has the slot's own
cursor and fence, and is told where its cursor was stored. A batch is refused as a whole, for whichever part: then each
goes by itself, and a slot that is refused alone goes alone until it fits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from headrace.model.limits import MAX_BATCH_OUTPUTS
from headrace.ports import BatchMessage, JetStreamLane, LaneFull, PublishRefused, PublishUnknown, Stored
from services.sidecar.domain.commit_size import MAX_BYTES

if TYPE_CHECKING:
    from services.sidecar.timers import Timers

MOST = MAX_BATCH_OUTPUTS + 1
MANY = 16
"""A batch of so many messages is a sign of load: the next begins a moment later, to be larger."""
LONGEST_PAUSE_S = 0.025

Answer = Stored | PublishRefused | PublishUnknown | LaneFull | ValueError


class Turn(Protocol):
    """One slot."""

    def begin(self) -> list[BatchMessage]:
        """What is to be stored now, the cursor last; nothing where there is nothing."""

    def answered(self, answer: Answer) -> None:
        """What became of it; `Stored` names the cursor."""


Part = tuple[Turn, list[BatchMessage]]


class CommitTurns:
    """Bounded by the slots: each has at most one part here."""

    def __init__(self, lane: JetStreamLane, timers: Timers) -> None:
        self._lane, self._timers = lane, timers
        self._loop = asyncio.get_running_loop()
        self._wanting: dict[Turn, None] = {}
        self._alone: deque[Part] = deque()
        """Sent by themselves, first."""
        self._cautious: set[Turn] = set()
        """Refused when they were alone."""
        self._under_way = self._scheduled = False
        self._began_at = self._resume_at = 0.0

    def want(self, turn: Turn) -> None:
        """The slot has something to store. What becomes ready in the same turn of the loop goes with it."""
        self._wanting[turn] = None
        self._soon(0.0)

    def forget(self, turn: Turn) -> None:
        """The slot is over."""
        self._wanting.pop(turn, None)
        self._cautious.discard(turn)
        self._alone = deque(part for part in self._alone if part[0] is not turn)

    def _soon(self, delay_s: float) -> None:
        if not self._scheduled and not self._under_way:
            self._scheduled = True
            self._timers.later(delay_s, self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        if self._under_way:
            return
        wait_s = self._resume_at - self._loop.time()
        if wait_s > 0 and not self._alone:
            self._soon(wait_s)
            return
        parts = [self._alone.popleft()] if self._alone else self._gather()
        if parts:
            self._send(parts)

    def _gather(self) -> list[Part]:
        """What the slots have now, as much as fits in one batch; whoever must go alone waits its turn."""
        parts: list[Part] = []
        count = size = 0
        for turn in list(self._wanting):
            del self._wanting[turn]
            messages = turn.begin()
            if not messages:
                continue
            count += len(messages)
            size += sum(len(message.payload) for message in messages)
            if turn in self._cautious or (parts and (count > MOST or size > MAX_BYTES)):
                self._alone.append((turn, messages))
                count, size = count - len(messages), size - sum(len(message.payload) for message in messages)
                if turn not in self._cautious:
                    break
            else:
                parts.append((turn, messages))
        return parts or ([self._alone.popleft()] if self._alone else [])

    def _send(self, parts: Sequence[Part]) -> None:
        try:
            future = self._lane.publish_batch([message for _, messages in parts for message in messages])
        except (LaneFull, ValueError) as error:
            self._resolved(parts, error)
            self._next()
            return
        self._under_way, self._began_at = True, self._loop.time()
        future.add_done_callback(partial(self._answered, parts))

    def _answered(self, parts: Sequence[Part], future: asyncio.Future[Stored]) -> None:
        self._under_way = False
        now = self._loop.time()
        if sum(len(messages) for _, messages in parts) >= MANY:
            self._resume_at = now + min(now - self._began_at, LONGEST_PAUSE_S)
        error = PublishUnknown("given up") if future.cancelled() else future.exception()
        if error is None:
            sequence = future.result().sequence - sum(len(messages) for _, messages in parts)
            for turn, messages in parts:
                sequence += len(messages)
                self._cautious.discard(turn)
                turn.answered(Stored(sequence, False))
        elif isinstance(error, PublishRefused | PublishUnknown):
            self._resolved(parts, error)
        else:
            self._resolved(parts, PublishUnknown(str(error)))
        self._next()

    def _resolved(self, parts: Sequence[Part], error: PublishRefused | PublishUnknown | LaneFull | ValueError) -> None:
        """Not stored, or nobody knows."""
        if len(parts) > 1 and isinstance(error, PublishRefused | ValueError):
            self._alone.extend(parts)
            return
        for turn, _ in parts:
            if isinstance(error, PublishRefused | ValueError):
                self._cautious.add(turn)
            turn.answered(error)

    def _next(self) -> None:
        if self._alone or self._wanting:
            self._soon(0.0)
