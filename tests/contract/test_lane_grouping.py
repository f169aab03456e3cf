"""Contract of `GroupingLane`: what is stored and acknowledged together ends as if each message had gone alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

import pytest

from headrace.edge.broker_process import BrokerProcess
from headrace.ports import Delivery, JetStreamLane, PublishRefused, PublishUnknown
from tests.contract.lane_world import CONSUMER, STREAM, SUBJECT, Inbox, World, grouping_lane, make_world
from tests.support.eventually import eventually

MESSAGES = 600
OWNERS = "hr.default.orders.in."


@pytest.fixture
async def world(broker: BrokerProcess) -> AsyncIterator[World]:
    async with make_world(broker, grouping_lane) as made:
        yield made


async def _empty(world: World) -> bool:
    return await world.stored() == 0


def _acknowledges(
    lane: JetStreamLane, inbox: Inbox, acks: list[asyncio.Future[None]], deliveries: list[Delivery]
) -> None:
    inbox.take(deliveries)
    acks.extend(lane.acknowledge(delivery) for delivery in deliveries)
    assert inbox.consumption is not None
    inbox.consumption.release(len(deliveries))


async def test_many_are_stored_and_removed_with_few_writes(world: World) -> None:
    async with world.lane() as lane:
        answers = await asyncio.gather(*(lane.publish(SUBJECT, b"x", message_id=f"{n}") for n in range(MESSAGES)))
        assert len({answer.sequence for answer in answers}) == MESSAGES
        assert await world.stored() == MESSAGES
        inbox = Inbox()
        lane.consume(STREAM, CONSUMER, credit=MESSAGES, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.deliveries) == MESSAGES)
        await asyncio.gather(*(lane.acknowledge(delivery) for delivery in inbox.deliveries[: MESSAGES - 100]))
        assert await world.stored() == 100
        # One that is not done keeps what is behind it from going together, and is not gone itself.
        await asyncio.gather(*(lane.acknowledge(delivery) for delivery in inbox.deliveries[MESSAGES - 99 :]))
        assert await world.stored() == 1
        await lane.acknowledge(inbox.deliveries[MESSAGES - 100])
        assert await _empty(world)


async def test_nothing_of_another_puller_is_removed(world: World) -> None:
    async with world.lane() as one, world.lane() as other:
        inboxes = Inbox(), Inbox()
        for lane, inbox in zip((one, other), inboxes, strict=True):
            lane.consume(STREAM, CONSUMER, credit=150, on_deliveries=inbox.take)
        await asyncio.gather(*(one.publish(SUBJECT, b"x", message_id=f"{n}") for n in range(280)))
        await eventually(lambda: sum(len(inbox.deliveries) for inbox in inboxes) == 280)
        mine = inboxes[0].deliveries
        assert mine
        await asyncio.gather(*(one.acknowledge(delivery) for delivery in mine))
        assert await world.stored() == 280 - len(mine)


async def test_kill_9_of_the_broker_loses_nothing_and_stores_each_once(world: World) -> None:
    done: Counter[bytes] = Counter()
    acks: list[asyncio.Future[None]] = []

    async with world.lane() as lane:

        async def store(number: int) -> None:
            async with asyncio.timeout(30):
                while True:
                    try:
                        await lane.publish(SUBJECT, b"%d" % number, message_id=f"{number}", timeout_s=2.0)
                    except PublishUnknown:
                        await asyncio.sleep(0.02)  # tidy: pace
                        continue
                    return

        inbox = Inbox()
        inbox.consumption = lane.consume(
            STREAM, CONSUMER, credit=200, on_deliveries=partial(_acknowledges, lane, inbox, acks)
        )
        stores = [asyncio.create_task(store(number)) for number in range(MESSAGES)]
        await eventually(lambda: len(inbox.deliveries) >= 100, every_s=0.001)
        world.broker.kill()
        assert world.broker.process is not None
        await world.broker.process.wait()
        await world.broker.start()
        await asyncio.gather(*stores)
        await eventually(lambda: len(set(inbox.bodies)) == MESSAGES)
        async with asyncio.timeout(20):
            await asyncio.gather(*acks, return_exceptions=True)
        await eventually(lambda: _empty(world))
        done.update(inbox.bodies)
    assert set(done) == {b"%d" % number for number in range(MESSAGES)}


async def test_a_known_id_and_a_full_edge_are_told_to_whom_they_concern(world: World) -> None:
    config = (await world.api(f"STREAM.INFO.{STREAM}"))["config"]
    await world.api(f"STREAM.UPDATE.{STREAM}", {**config, "max_msgs_per_subject": 120})
    other = SUBJECT.replace("price", "other")
    async with world.lane() as lane:
        await lane.publish(other, b"x", message_id="known")
        futures = [lane.publish(other, b"x", message_id=f"o{n}") for n in range(60)]
        futures += [lane.publish(other, b"x", message_id="known")]
        futures += [lane.publish(SUBJECT, b"x", message_id=f"s{n}") for n in range(200)]
        answers = await asyncio.gather(*futures, return_exceptions=True)
    full = [answer for answer in answers if isinstance(answer, PublishRefused)]
    assert len(full) == 80
    assert all(answer.edge_full for answer in full)
    stored = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert [answer.duplicate for answer in stored].count(True) == 1
    assert await world.stored() == 1 + 60 + 120


async def test_owners_are_monotone_across_a_switch_in_the_middle_of_batches(world: World) -> None:
    """Law 2: the broker gives each message its owner as it stores it, also inside a batch."""
    config = (await world.api(f"STREAM.INFO.{STREAM}"))["config"]
    config |= {"subjects": ["hr.default.orders.*.*.*"]}

    async def switch(owner: int) -> None:
        destination = f"hr.default.orders.d{owner}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"
        transform = {"src": f"{OWNERS}*.*", "dest": destination}
        await world.api(f"STREAM.UPDATE.{STREAM}", {**config, "subject_transform": transform})

    await switch(1)
    async with world.lane() as lane:
        stores = [
            asyncio.ensure_future(lane.publish(f"{OWNERS}price.0", b"x", message_id=f"{number}"))
            for number in range(3000)
        ]
        for owner in range(2, 12):
            await switch(owner)
        answers = await asyncio.gather(*stores)
    found = await asyncio.gather(*(_owner(world, answer.sequence) for answer in answers[::7]))
    assert found == sorted(found)
    assert len(set(found)) > 1


async def _owner(world: World, sequence: int) -> int:
    answer = await world.api(f"STREAM.MSG.GET.{STREAM}", {"seq": sequence})
    return int(str(answer["message"]["subject"]).split(".")[3].removeprefix("d"))
