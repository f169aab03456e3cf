"""Contract of `headrace.ports.JetStreamLane` under a connection that keeps breaking, by seeded chance."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest
from nats.aio.msg import Msg

from headrace.ports import Delivery, PublishUnknown
from tests.contract.lane_world import CONSUMER, STREAM, SUBJECT, World
from tests.support.eventually import eventually

MESSAGES = 400


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_is_lost_or_handed_over_twice_while_the_connection_breaks(world: World, seed: int) -> None:
    """What is acknowledged in the turn it is handed over comes once, whatever breaks; what was on its way when the
    connection broke comes after the ack wait."""
    chance = random.Random(seed)
    await world.delete_consumer()
    await world.make_consumer(ack_wait_s=2.0)
    handed_over: Counter[bytes] = Counter()
    stored: set[bytes] = set()
    unknown = 0
    frozen = asyncio.Event()
    async with world.lane() as lane:

        def take(deliveries: list[Delivery]) -> None:
            for delivery in deliveries:
                handed_over[delivery.payload] += 1
                lane.acknowledge(delivery)
            consumption.release(len(deliveries))

        consumption = lane.consume(STREAM, CONSUMER, credit=16, on_deliveries=take)

        async def store(body: bytes) -> None:
            nonlocal unknown
            async with asyncio.timeout(30):
                while body not in stored:
                    try:
                        await lane.publish(SUBJECT, body, message_id=body.decode(), timeout_s=1.0)
                    except PublishUnknown:
                        unknown += 1
                        await asyncio.sleep(0.01)  # tidy: pace
                        continue
                    stored.add(body)

        async def trouble() -> None:
            for _ in range(8):
                await asyncio.sleep(chance.uniform(0.01, 0.12))  # tidy: pace
                world.proxy.freeze()
                frozen.set()
                await asyncio.sleep(chance.uniform(0.0, 0.05))  # tidy: pace
                world.proxy.cut()
                world.proxy.thaw()

        async def traffic() -> None:
            for number in range(MESSAGES):
                if number == MESSAGES // 2:
                    await frozen.wait()  # however fast the machine is, a fault has something to hit
                await store(b"m%d" % number)

        await asyncio.gather(trouble(), *(traffic() for _ in range(3)))
        await eventually(lambda: len(handed_over) == MESSAGES, within_s=20)
        await eventually(lambda: lane.outstanding == 0, within_s=20)
        assert await world.stored() == 0
        assert {body: count for body, count in handed_over.items() if count > 1} == {}, f"seed {seed}"
        print(f"seed {seed}: {unknown} publishes had no outcome and were repeated")
        assert unknown > 0, "no fault hit anything"


async def test_many_kills_of_the_broker(world: World) -> None:
    """Ids are repeated until confirmed; each message is stored and handed over once."""
    await world.delete_consumer()
    await world.make_consumer(ack_wait_s=2.0)
    handed_over: Counter[bytes] = Counter()
    async with world.lane() as lane:

        def take(deliveries: list[Delivery]) -> None:
            for delivery in deliveries:
                handed_over[delivery.payload] += 1

        # Kept unacknowledged, so that the stream remembers every id across the restarts.
        await world.delete_consumer()

        async def store(number: int) -> None:
            async with asyncio.timeout(30):
                while True:
                    try:
                        await lane.publish(SUBJECT, b"m%d" % number, message_id=f"m{number}", timeout_s=1.0)
                        return
                    except PublishUnknown:
                        await asyncio.sleep(0.01)  # tidy: pace

        async def trouble() -> None:
            for _ in range(3):
                await asyncio.sleep(0.05)  # tidy: pace
                world.broker.kill()
                assert world.broker.process is not None
                await world.broker.process.wait()
                await world.broker.start()

        async def traffic(first: int) -> None:
            for number in range(first, first + 200):
                await store(number)

        await asyncio.gather(trouble(), *(traffic(first) for first in range(0, 800, 200)))
        assert await world.stored() == 800
        await world.make_consumer()
        lane.consume(STREAM, CONSUMER, credit=1000, on_deliveries=take)
        await eventually(lambda: len(handed_over) == 800)
        assert set(handed_over.values()) == {1}


async def test_a_send_that_nobody_listens_to_is_known_by_the_next_flush(world: World) -> None:
    async with world.lane() as lane:
        unheard: list[str] = []

        def send(subject: str) -> None:
            lane.send(subject, b"x", on_unheard=lambda: unheard.append(subject))

        send("nobody.here")
        await lane.flush()
        assert unheard == ["nobody.here"]
        got: list[bytes] = []

        async def take(message: Msg) -> None:
            got.append(message.data)

        subscription = await world.admin.subscribe("somebody.here", cb=take)
        await world.admin.flush()
        for number in range(100):
            send("somebody.here" if number % 2 else "nobody.here")
        await lane.flush()
        assert unheard == ["nobody.here"] * 51
        await eventually(lambda: len(got) == 50)
        await subscription.unsubscribe()
        await world.admin.flush()
        send("somebody.here")
        await lane.flush()
        assert unheard[-1] == "somebody.here"
        # Across a broken connection either the flush fails, or it is known.
        world.proxy.cut()
        unheard.clear()

        async def known() -> bool:
            send("nobody.here")
            with contextlib.suppress(ConnectionError, TimeoutError):
                await lane.flush()
                assert unheard, "flushed, and nobody knows"
            return bool(unheard)

        await eventually(known)
