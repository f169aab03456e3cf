"""Messages that are stored together end as if each had been published alone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.edge.group_commit import MAX_WAITING, Answer, GroupCommit
from headrace.model.commit_pace import ENOUGH, FEW, LEAST, CommitPace
from headrace.ports import BatchMessage, LaneFull, PublishRefused, PublishUnknown, Stored
from tests.support.eventually import eventually

EDGE_FULL, DUPLICATE_INSIDE, TOO_LARGE = 10077, 10201, 10054


class Broker:
    """One stream: ids, a limit per subject, answers a turn later; every `silent`-th answer is lost."""

    def __init__(self, limit: int = 10_000, silent: int = 0) -> None:
        self.stored: list[BatchMessage] = []
        self.ids: dict[str, int] = {}
        self.batches: list[int] = []
        self.limit, self.silent = limit, silent
        self._asked = 0

    def _answer(self, answer: Stored | Exception) -> asyncio.Future[Stored]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Stored] = loop.create_future()
        self._asked += 1
        if self.silent and self._asked % self.silent == 0:
            answer = PublishUnknown("lost")
        loop.call_soon(future.set_exception if isinstance(answer, Exception) else future.set_result, answer)
        return future

    def _room(self, subject: str, more: int) -> bool:
        return sum(message.subject == subject for message in self.stored) + more <= self.limit

    def _store(self, message: BatchMessage) -> int:
        self.stored.append(message)
        self.ids[message.message_id] = len(self.stored)
        return len(self.stored)

    def publish(self, subject: str, payload: bytes, *, message_id: str, **_: Any) -> asyncio.Future[Stored]:
        if message_id in self.ids:
            return self._answer(Stored(self.ids[message_id], True))
        if len(payload) > 100:
            return self._answer(PublishRefused(TOO_LARGE, "too large"))
        if not self._room(subject, 1):
            return self._answer(PublishRefused(EDGE_FULL, "full"))
        return self._answer(Stored(self._store(BatchMessage(subject, payload, message_id)), False))

    def publish_batch(self, messages: Sequence[BatchMessage], **_: Any) -> asyncio.Future[Stored]:
        self.batches.append(len(messages))
        ids = {message.message_id for message in messages}
        if len(ids) < len(messages) or ids & self.ids.keys():
            return self._answer(PublishRefused(DUPLICATE_INSIDE, "duplicate"))
        if any(len(message.payload) > 100 for message in messages):
            return self._answer(PublishRefused(TOO_LARGE, "too large"))
        if not all(self._room(*count) for count in Counter(message.subject for message in messages).items()):
            return self._answer(PublishRefused(EDGE_FULL, "full"))
        return self._answer(Stored([self._store(message) for message in messages][-1], False))


ONE_OF_A_LOT = Stored(0, False)


async def published(
    broker: Broker, messages: Sequence[tuple[str, str, int]], *, lots: bool = False
) -> list[list[Answer]]:
    """(subject, id, size) of each: all that each was told. In lots: what follows each other to one subject."""
    group = GroupCommit(broker)
    told: list[list[Answer]] = [[] for _ in messages]

    def stored(lot: list[list[Answer]]) -> None:
        for about in lot:
            about.append(ONE_OF_A_LOT)

    if lots:
        numbered = zip(messages, told, strict=True)
        for subject, found in itertools.groupby(numbered, key=lambda each: each[0][0]):
            rows = [(b"x" * size, message_id, "", about) for (_, message_id, size), about in found]
            assert group.publish_rows(subject, rows, lambda about, answer: about.append(answer), stored) == len(rows)
            await asyncio.sleep(0)
        messages = []
    for number, (subject, message_id, size) in enumerate(messages):
        group.publish_told(
            subject, b"x" * size, lambda about, answer: about.append(answer), told[number], message_id=message_id
        )
        if number % 40 == 0:
            await asyncio.sleep(0)
    await eventually(lambda: all(told) and not group.waiting, every_s=0.001)
    return told


MESSAGES = st.lists(
    st.tuples(st.sampled_from(["s.a", "s.b"]), st.integers(0, 400).map(str), st.sampled_from([10, 10, 10, 10, 200])),
    max_size=400,
)


@settings(max_examples=60, deadline=None)
@given(messages=MESSAGES, limit=st.sampled_from([5, 40, 10_000]), silent=st.sampled_from([0, 3]), lots=st.booleans())
def test_each_is_told_once_what_publishing_it_alone_would_have_said(
    messages: list[tuple[str, str, int]], limit: int, silent: int, lots: bool
) -> None:
    broker = Broker(limit, silent)
    told = asyncio.run(published(broker, messages, lots=lots))
    assert all(len(answers) == 1 for answers in told)
    kept = Counter(message.message_id for message in broker.stored)
    assert set(kept.values()) <= {1}
    for (subject, message_id, size), (answer,) in zip(messages, told, strict=True):
        if answer is ONE_OF_A_LOT:
            assert message_id in kept
        elif isinstance(answer, Stored):
            there = broker.stored[answer.sequence - 1]
            assert there.message_id == message_id
            assert answer.duplicate or there.subject == subject
        elif isinstance(answer, PublishRefused):
            full = sum(message.subject == subject for message in broker.stored) == limit
            assert answer.code == (TOO_LARGE if size > 100 else EDGE_FULL)
            assert size > 100 or full
        else:
            assert silent


def test_many_go_together_and_few_alone() -> None:
    broker = Broker()
    asyncio.run(published(broker, [("s.a", str(number), 10) for number in range(2_000)]))
    assert len(broker.stored) == 2_000
    assert len(broker.batches) < 2_000 / LEAST
    lot = Broker()
    asyncio.run(published(lot, [("s.a", str(number), 10) for number in range(3 * LEAST)], lots=True))
    assert lot.batches == [3 * LEAST]
    few = Broker()
    asyncio.run(published(few, [("s.a", str(number), 10) for number in range(FEW)]))
    assert not few.batches
    assert len(few.stored) == FEW


def test_what_waits_is_bounded() -> None:
    async def fill() -> None:
        group = GroupCommit(Broker())
        taken = 0
        with contextlib.suppress(LaneFull):
            for taken in range(3 * MAX_WAITING):
                group.publish_told("s.a", b"", lambda about, answer: None, None, message_id=str(taken))
        assert MAX_WAITING <= taken < 2 * MAX_WAITING

    asyncio.run(fill())


def test_pace_sends_a_lone_message_at_once_and_pauses_after_a_batch() -> None:
    pace = CommitPace()
    assert pace.next_step(1, 0.0).singles == 1
    pace.singles = FEW
    assert pace.next_step(LEAST - 1, 0.0).singles == 0
    assert pace.next_step(LEAST, 0.0).batch
    pace.batch_began(0.0)
    assert not pace.next_step(ENOUGH, 0.001).batch
    pace.batch_ended(0.002)
    assert pace.next_step(LEAST, 0.002).wait_s > 0
    assert pace.next_step(ENOUGH, 0.002).batch
    assert pace.next_step(LEAST, 0.005).batch


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["s.a", "s.b"]), st.integers(1, 30)), max_size=40),
    limit=st.sampled_from([20, 10_000]),
    silent=st.sampled_from([0, 3]),
)
def test_a_row_is_stored_whole_and_in_order_or_not_at_all(rows: list[tuple[str, int]], limit: int, silent: int) -> None:
    async def run() -> tuple[Broker, list[list[Answer]]]:
        broker = Broker(limit, silent)
        group = GroupCommit(broker)
        told: list[list[Answer]] = [[] for _ in rows]
        for number, (subject, count) in enumerate(rows):
            row = [BatchMessage(subject, b"x", f"{number}.{index}") for index in range(count)]
            group.publish_in_order(row, lambda about, answer: about.append(answer), told[number])
        await eventually(lambda: all(told) and not group.waiting, every_s=0.001)
        return broker, told

    broker, told = asyncio.run(run())
    places = {message.message_id: number for number, message in enumerate(broker.stored, 1)}
    for number, (_, count) in enumerate(rows):
        found = [places.get(f"{number}.{index}") for index in range(count)]
        answer = told[number][0]
        assert len(told[number]) == 1
        first = found[0]
        if first is None:
            assert not any(found)
            assert not isinstance(answer, Stored)
        else:
            assert found == list(range(first, first + count))
            assert isinstance(answer, PublishUnknown) or answer == Stored(first + count - 1, False)
