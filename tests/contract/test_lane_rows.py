"""Contract of `JetStreamLane.publish_rows`: what goes by the lot ends as if each message had gone alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from headrace.ports import JetStreamLane, PublishRefused, PublishUnknown, Row, Stored
from tests.contract.lane_world import CONSUMER, STREAM, SUBJECT, Inbox, World
from tests.support.eventually import eventually

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


class Told:
    """Each row's answer, and how many there were; a row that was simply stored counts as `stored`."""

    def __init__(self) -> None:
        self.answers: dict[Any, str] = {}
        self.times = 0
        self.lots = 0

    def one(self, about: Any, answer: Stored | PublishRefused | PublishUnknown) -> None:
        self.times += 1
        if isinstance(answer, Stored):
            self.answers[about] = "duplicate" if answer.duplicate else "stored"
        else:
            self.answers[about] = "full" if isinstance(answer, PublishRefused) and answer.edge_full else "unknown"

    def many(self, lot: list[Any]) -> None:
        self.lots += 1
        for about in lot:
            self.one(about, Stored(1, False))


def rows(numbers: Sequence[int], **changes: Any) -> list[Row]:
    fields = {"message_id": "m{}", "traceparent": TRACE, **changes}
    return [
        (b"%d" % n, fields["message_id"].format(n), fields["traceparent"], n) for n in numbers
    ]  # fmt: skip


def put(lane: JetStreamLane, told: Told, lot: list[Row], **options: Any) -> int:
    return lane.publish_rows(SUBJECT, lot, told.one, told.many, **options)


async def test_rows_are_stored_in_order_with_their_headers_and_told_by_the_lot(world: World) -> None:
    async with world.lane() as lane:
        told = Told()
        assert put(lane, told, rows(range(500))) == 500
        assert put(lane, told, rows(range(500, 600), traceparent="")) == 100
        assert put(lane, told, rows(range(600, 700), message_id="ü{}")) == 100
        assert not told.answers
        await eventually(lambda: len(told.answers) == 700)
        assert set(told.answers.values()) == {"stored"}
        assert told.times == 700
        assert told.lots < 350
        assert lane.outstanding == 0
        inbox = Inbox()
        lane.consume(STREAM, CONSUMER, credit=700, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.deliveries) == 700)
        got = [(delivery.payload, delivery.message_id, delivery.traceparent) for delivery in inbox.deliveries]
        ids = [f"ü{n}" if n >= 600 else f"m{n}" for n in range(700)]
        assert got == [(b"%d" % n, ids[n], "" if 500 <= n < 600 else TRACE) for n in range(700)]


async def test_each_row_has_its_own_answer(world: World) -> None:
    config: dict[str, Any] = (await world.api(f"STREAM.INFO.{STREAM}"))["config"]
    await world.api(f"STREAM.UPDATE.{STREAM}", {**config, "max_msgs_per_subject": 30})
    async with world.lane() as lane:
        told = Told()
        put(lane, told, rows([1, 2, 1, 3]))
        await eventually(lambda: told.times == 4)
        assert told.answers == {1: "duplicate", 2: "stored", 3: "stored"}
        put(lane, told, [*rows(range(10, 50)), *rows([2])])
        await eventually(lambda: told.times == 45)
        assert [told.answers[n] for n in range(10, 50)] == ["stored"] * 27 + ["full"] * 13
        assert told.answers[2] == "duplicate"
    assert await world.stored() == 30


async def test_rows_that_cannot_go_are_left_with_what_is_behind_them(world: World) -> None:
    async with world.lane(max_outstanding=10) as lane:
        told = Told()
        evil = rows([3], message_id="x\r\nEvil: {}")
        assert put(lane, told, [*rows([1, 2]), *evil, *rows([4])]) == 2
        assert put(lane, told, rows([5], traceparent="00\n")) == 0
        big: list[Row] = [(bytes(1024 * 1024), "big", TRACE, "big"), *rows([6])]
        assert put(lane, told, big) == 2
        await eventually(lambda: told.times == 4)
        assert told.answers == {1: "stored", 2: "stored", "big": "unknown", 6: "stored"}
        world.proxy.freeze()
        assert put(lane, told, rows(range(10, 30))) == 10
        assert lane.outstanding == 10
        assert put(lane, told, rows([30])) == 0
        world.proxy.thaw()
        await eventually(lambda: told.times == 14)
    assert await world.stored() == 13


async def test_rows_end_unknown_at_their_deadline_or_with_the_connection_and_a_repeat_is_safe(world: World) -> None:
    async with world.lane() as lane:
        told = Told()
        world.proxy.freeze()
        put(lane, told, rows(range(20)), timeout_s=0.2)
        await eventually(lambda: told.times == 20)
        assert set(told.answers.values()) == {"unknown"}
        world.proxy.thaw()
        await lane.flush()
        world.proxy.drop_sent = lambda chunk: b"lost" in chunk
        put(lane, told, rows(range(20, 40), message_id="lost{}"), timeout_s=60)
        await eventually(lambda: b"lost" in world.proxy.sent)
        world.proxy.drop_sent = lambda chunk: False
        # Made while it is down, they leave at the reconnect.
        lane.when_down(lambda: put(lane, told, rows(range(40, 60))) and None)
        world.proxy.cut()
        await eventually(lambda: told.times == 60)
        assert {told.answers[n] for n in range(20, 40)} == {"unknown"}
        assert {told.answers[n] for n in range(40, 60)} == {"stored"}
        put(lane, told, [*rows(range(20)), *rows(range(20, 40), message_id="lost{}")])
        await eventually(lambda: told.times == 100)
        assert [told.answers[n] for n in range(40)] == ["duplicate"] * 20 + ["stored"] * 20
    assert await world.stored() == 60


async def test_a_caller_that_fails_loses_no_other_answer(world: World) -> None:
    async with world.lane() as lane:
        told = Told()

        def fails(*_: Any) -> None:
            raise RuntimeError("whoever is told fails")

        put(lane, told, rows([0]))
        await eventually(lambda: told.times == 1)
        lane.publish_rows(SUBJECT, rows([1, 0]), fails, fails)
        put(lane, told, rows([2, 0]))
        async with asyncio.timeout(5):
            await lane.publish(SUBJECT, b"3", message_id="m3")
        assert told.answers == {0: "duplicate", 2: "stored"}
        assert lane.outstanding == 0
