"""Messages of one ordered edge are stored in the order they were put, whatever the broker answers or does not."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.ports import BatchMessage, LaneFull, PublishRefused, PublishUnknown, Stored
from services.sidecar import outbox
from services.sidecar.outbox import Outbox, Outgoing
from services.sidecar.timers import Timers
from tests.support.virtual_time import run_in_virtual_time

Tell = Callable[[Any, Any], None]


class Fate(Enum):
    STORED = "stored"
    FULL = "full"
    LOST = "lost"
    STORED_UNANSWERED = "stored, and the answer is lost"
    LANE_FULL = "the lane has no room"


class ScriptedBroker:
    """A lane to a broker that stores, refuses or falls silent as told; it knows the ids it has stored."""

    def __init__(self, fates: list[Fate]) -> None:
        self._fates = list(fates)
        self.stored: dict[str, list[str]] = defaultdict(list)
        self.on_their_way: dict[str, int] = defaultdict(int)
        self.most = 0

    def publish_told(self, subject: str, payload: bytes, tell: Tell, about: Any, *, message_id: str, **_: Any) -> None:
        fate = self._fates.pop(0) if self._fates else Fate.STORED
        if fate is Fate.LANE_FULL:
            raise LaneFull("no room")
        self.on_their_way[subject] += 1
        self.most = max(self.most, self.on_their_way[subject])
        asyncio.get_running_loop().call_later(0.001, self._answer, subject, message_id, fate, tell, about)

    def _answer(self, subject: str, message_id: str, fate: Fate, tell: Tell, about: Any) -> None:
        self.on_their_way[subject] -= 1
        if fate is Fate.FULL:
            tell(about, PublishRefused(10077, "maximum messages per subject exceeded"))
            return
        if fate is Fate.LOST:
            tell(about, PublishUnknown("no answer"))
            return
        known = message_id in self.stored[subject]
        if not known:
            self.stored[subject].append(message_id)
        if fate is Fate.STORED:
            tell(about, Stored(1, known))
        else:
            tell(about, PublishUnknown("no answer"))


class BrokerOfRows(ScriptedBroker):
    """Takes several messages of an edge in a row: all or none."""

    def __init__(self, fates: list[Fate]) -> None:
        super().__init__(fates)
        self.rows = 0

    def publish_in_order(self, messages: list[BatchMessage], tell: Tell, about: Any) -> None:
        fate = self._fates.pop(0) if self._fates else Fate.STORED
        if fate is Fate.LANE_FULL:
            raise LaneFull("no room")
        self.rows += 1
        subject = messages[0].subject
        self.on_their_way[subject] += 1
        self.most = max(self.most, self.on_their_way[subject])
        asyncio.get_running_loop().call_later(0.001, self._answer_row, subject, messages, fate, tell, about)

    def _answer_row(self, subject: str, row: list[BatchMessage], fate: Fate, tell: Tell, about: Any) -> None:
        if {message.message_id for message in row} & set(self.stored[subject]):
            self.on_their_way[subject] -= 1
            tell(about, PublishRefused(10201, "a known id is among them"))
        elif fate in (Fate.FULL, Fate.LOST):
            self._answer(subject, "", fate, tell, about)
        else:
            self.stored[subject] += [message.message_id for message in row[:-1]]
            self._answer(subject, row[-1].message_id, fate, tell, about)


class BrokerOfBatches(BrokerOfRows):
    """Takes rows as atomic batches, with a future for each; others one by one."""

    publish_in_order = None  # type: ignore[assignment]

    def publish_batch(self, messages: list[BatchMessage]) -> asyncio.Future[Stored]:
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        BrokerOfRows.publish_in_order(self, messages, _end, future)
        return future


def _end(future: asyncio.Future[Stored], answer: Any) -> None:
    if isinstance(answer, Stored):
        future.set_result(answer)
    else:
        future.set_exception(answer)


@pytest.mark.parametrize("broker_of", [ScriptedBroker, BrokerOfRows, BrokerOfBatches])
@given(
    fates=st.lists(st.sampled_from(Fate), max_size=60),
    puts=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([0, 0, 0, 0, 1, 2, 5])), max_size=80),
)
def test_order_is_kept(broker_of: type[ScriptedBroker], fates: list[Fate], puts: list[tuple[str, int]]) -> None:
    broker = broker_of(fates)
    expected: dict[str, list[str]] = defaultdict(list)
    settled: list[str] = []

    async def run() -> None:
        timers = Timers()
        idle = asyncio.Event()
        box = Outbox(
            broker,  # type: ignore[arg-type]
            timers,
            defaultdict(int),
            retired=lambda: False,
            no_responders=lambda: None,
            on_idle=idle.set,
        )
        for number, (edge, pause_ms) in enumerate(puts):
            expected[edge].append(f"m{number}")
            box.put(
                Outgoing(
                    edge, f"m{number}", b"", "", lambda out, _: settled.append(out.message_id), _never, ordered=True
                )
            )
            await asyncio.sleep(pause_ms / 1000)  # tidy: pace
        async with asyncio.timeout(600):
            while box.unsettled:
                idle.clear()
                await idle.wait()
        timers.close()

    with patch.object(outbox, "LONG_LINE", 3 if broker_of is BrokerOfBatches else 1_000):
        run_in_virtual_time(run())
    assert dict(broker.stored) == dict(expected)
    assert sorted(settled) == sorted(f"m{number}" for number in range(len(puts)))
    assert broker.most <= 1


@pytest.mark.parametrize("broker_of", [BrokerOfRows, BrokerOfBatches])
def test_what_waits_for_an_edge_goes_in_rows(broker_of: type[BrokerOfRows]) -> None:
    broker = broker_of([])

    async def run() -> None:
        timers, idle = Timers(), asyncio.Event()
        box = Outbox(
            broker,  # type: ignore[arg-type]
            timers,
            defaultdict(int),
            retired=lambda: False,
            no_responders=lambda: None,
            on_idle=idle.set,
        )
        for number in range(200):
            box.put(Outgoing("a", f"m{number}", b"", "", lambda out, _: None, _never, ordered=True))
        async with asyncio.timeout(60):
            await idle.wait()
        timers.close()

    run_in_virtual_time(run())
    assert broker.stored["a"] == [f"m{number}" for number in range(200)]
    assert broker.rows == 2


def _never(outgoing: Outgoing, problem: object) -> None:
    raise AssertionError(f"{outgoing.message_id}: {problem}")
