"""Slots that share batches: each part is stored once, under its own fence, whatever happens to the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.ports import BatchMessage, PublishRefused, PublishUnknown, Stored
from services.sidecar.commit_turns import MOST, Answer, CommitTurns
from services.sidecar.timers import Timers
from tests.support.eventually import eventually

FENCED, EDGE_FULL = 10071, 10077


class Stream:
    """Stores batches whole: fences are the sequence of a cursor's last message; every n-th answer is lost."""

    def __init__(self, limit: int, lost: int) -> None:
        self.sequence = 0
        self.cursors: dict[str, int] = {}
        self.outputs: Counter[str] = Counter()
        self.batches: list[int] = []
        self.limit, self.lost = limit, lost
        self.room = limit

    def publish_batch(self, messages: Sequence[BatchMessage], **_: Any) -> asyncio.Future[Stored]:
        self.batches.append(len(messages))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Stored] = loop.create_future()
        answer = self._store(messages)
        if self.lost and len(self.batches) % self.lost == 0:
            answer = PublishUnknown("lost")
        loop.call_later(0, future.set_exception if isinstance(answer, Exception) else future.set_result, answer)
        return future

    def _store(self, messages: Sequence[BatchMessage]) -> Stored | Exception:
        if len(messages) > MOST:
            raise ValueError("too many")
        if any(m.expected_last is not None and m.expected_last != self.cursors.get(m.subject, 0) for m in messages):
            return PublishRefused(FENCED, "wrong last sequence")
        full = sum(message.subject == "full" for message in messages)
        if full > self.room:
            self.room = self.limit  # somebody reads meanwhile
            return PublishRefused(EDGE_FULL, "full")
        self.room -= full
        for message in messages:
            self.sequence += 1
            if message.expected_last is None:
                self.outputs[message.payload.decode()] += 1
            else:
                self.cursors[message.subject] = self.sequence
        return Stored(self.sequence, False)


class Slot:
    """Stores its outputs a few at a time, in order; after a refusal one at a time."""

    def __init__(self, name: str, edge: str, outputs: int, stream: Stream, turns: CommitTurns) -> None:
        self.name, self.edge, self.stream, self.turns = name, edge, stream, turns
        self.left = [f"{name}.{number}" for number in range(outputs)]
        self.sent: list[str] = []
        self.fence = 0
        self.size = 7

    def begin(self) -> list[BatchMessage]:
        if self.sent or not self.left:
            return []
        self.sent = self.left[: self.size]
        outputs = [BatchMessage(self.edge, text.encode()) for text in self.sent]
        return [*outputs, BatchMessage(f"cursor.{self.name}", b"", expected_last=self.fence)]

    def answered(self, answer: Answer) -> None:
        stored = self.stream.cursors.get(f"cursor.{self.name}", 0)
        if isinstance(answer, Stored):
            assert answer.sequence == stored
        if stored != self.fence:
            self.fence = stored  # also where the answer was lost
            del self.left[: len(self.sent)]
        elif isinstance(answer, PublishRefused):
            assert answer.edge_full
            assert self.edge == "full"
            self.size = 1
        self.sent = []
        self.turns.want(self)


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.lists(st.tuples(st.booleans(), st.integers(0, 60)), min_size=1, max_size=8),
    limit=st.integers(1, 9),
    lost=st.sampled_from([0, 3]),
)
def test_every_part_is_stored_once_whatever_the_others_meet(
    outputs: list[tuple[bool, int]], limit: int, lost: int
) -> None:
    async def run() -> None:
        stream, timers = Stream(limit, lost), Timers()
        turns = CommitTurns(stream, timers)  # type: ignore[arg-type]
        slots = [
            Slot(str(number), "full" if narrow else "wide", count, stream, turns)
            for number, (narrow, count) in enumerate(outputs)
        ]
        for slot in slots:
            turns.want(slot)
        await eventually(lambda: not any(slot.left for slot in slots), every_s=0.001)
        timers.close()
        assert stream.outputs == Counter(
            f"{number}.{index}" for number, (_, count) in enumerate(outputs) for index in range(count)
        )

    asyncio.run(run())


def test_what_is_ready_in_one_turn_goes_in_one_batch() -> None:
    async def run() -> None:
        stream, timers = Stream(1_000, 0), Timers()
        turns = CommitTurns(stream, timers)  # type: ignore[arg-type]
        slots = [Slot(str(number), "wide", 3, stream, turns) for number in range(8)]
        for slot in slots:
            turns.want(slot)
        await eventually(lambda: not any(slot.left for slot in slots), every_s=0.001)
        timers.close()
        assert stream.batches == [8 * 4]

    asyncio.run(run())


def test_a_slot_that_is_over_sends_nothing_more() -> None:
    async def run() -> None:
        stream, timers = Stream(1_000, 0), Timers()
        turns = CommitTurns(stream, timers)  # type: ignore[arg-type]
        over, other = (Slot(name, "wide", 3, stream, turns) for name in ("over", "other"))
        turns.want(over)
        turns.want(other)
        turns.forget(over)
        await eventually(lambda: not other.left, every_s=0.001)
        timers.close()
        assert over.left

    asyncio.run(run())
