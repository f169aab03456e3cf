"""Contract of `headrace.ports.JetStreamLane`: consuming and acknowledging, against a real broker."""

from __future__ import annotations

import asyncio
import time

import pytest

from headrace.ports import AckUnknown, Consumption, Delivery
from tests.contract.lane_world import CONSUMER, STREAM, SUBJECT, Inbox, World
from tests.support.eventually import eventually, remains

TRACEPARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


async def test_a_delivery_tells_all_there_is(world: World) -> None:
    inbox = Inbox()
    async with world.lane() as lane:
        before = time.time_ns()
        await lane.publish(SUBJECT, b"\x00body\r\n", message_id="m1", traceparent=TRACEPARENT)
        lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await eventually(lambda: inbox.deliveries)
        after = time.time_ns()
    (delivery,) = inbox.deliveries
    assert (delivery.subject, delivery.payload) == (SUBJECT, b"\x00body\r\n")
    assert (delivery.message_id, delivery.traceparent) == ("m1", TRACEPARENT)
    assert (delivery.stream_sequence, delivery.attempt) == (1, 1)
    assert before <= delivery.stored_at_unix_ns <= delivery.received_at_unix_ns <= after
    assert delivery.received_at_mono_ns <= time.monotonic_ns()


async def test_a_message_without_headers_and_one_without_body(world: World) -> None:
    inbox = Inbox()
    await world.admin.request(SUBJECT, b"plain", timeout=5)
    await world.admin.request(SUBJECT, b"", timeout=5)
    async with world.lane() as lane:
        lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await eventually(lambda: inbox.bodies == [b"plain", b""])
    assert [delivery.message_id for delivery in inbox.deliveries] == ["", ""]


async def test_order_and_batches(world: World) -> None:
    expected = await world.fill(1500)
    inbox = Inbox()
    async with world.lane() as lane:

        def take(deliveries: list[Delivery]) -> None:
            inbox.take(deliveries)
            for delivery in deliveries:
                lane.acknowledge(delivery)
            consumption.release(len(deliveries))

        consumption = lane.consume(STREAM, CONSUMER, credit=200, on_deliveries=take)
        await eventually(lambda: len(inbox.bodies) == 1500)
        await eventually(lambda: lane.outstanding == 0)
    assert inbox.bodies == expected
    assert len(inbox.batches) < 750
    assert await world.stored() == 0


@pytest.mark.parametrize("credit", [1, 2, 7, 64])
async def test_credit_is_respected_and_returned(world: World, credit: int) -> None:
    expected = await world.fill(150)
    inbox, released = Inbox(), 0
    async with world.lane() as lane:
        consumption = lane.consume(STREAM, CONSUMER, credit=credit, on_deliveries=inbox.take)
        while released < 150:
            await eventually(lambda: len(inbox.bodies) == min(150, released + credit), every_s=0.002)  # noqa: B023
            step = min(max(1, credit // 3), 150 - released)
            await asyncio.gather(*(lane.acknowledge(one) for one in inbox.deliveries[released : released + step]))
            assert len(inbox.bodies) <= released + credit
            released += step
            consumption.release(step)
    assert inbox.bodies == expected


async def test_no_more_than_the_credit_comes(world: World) -> None:
    await world.fill(100)
    inbox = Inbox()
    async with world.lane(heartbeat_s=0.1) as lane:
        lane.consume(STREAM, CONSUMER, credit=10, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.bodies) == 10)
        info = await world.api(f"CONSUMER.INFO.{STREAM}.{CONSUMER}")
        assert info["num_ack_pending"] == 10
        assert info["num_waiting"] == 0


async def test_what_is_not_acknowledged_comes_again_with_the_next_attempt(world: World) -> None:
    await world.delete_consumer()
    await world.make_consumer(ack_wait_s=0.5)
    await world.fill(2)
    inbox = Inbox()
    async with world.lane() as lane:
        lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.deliveries) == 2)
        await lane.acknowledge(inbox.deliveries[1])
        await eventually(lambda: len(inbox.deliveries) == 3)
        again = inbox.deliveries[2]
        assert (again.stream_sequence, again.attempt) == (1, 2)
        assert again.stored_at_unix_ns == inbox.deliveries[0].stored_at_unix_ns
        await lane.acknowledge(again)
        assert await world.stored() == 0


async def test_extend_keeps_a_message(world: World) -> None:
    await world.delete_consumer()
    await world.make_consumer(ack_wait_s=0.4)
    await world.fill(2)
    inbox = Inbox()
    async with world.lane() as lane:
        lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.deliveries) == 2)
        kept, let_go = inbox.deliveries

        def let_go_came_twice() -> bool:
            lane.extend(kept)
            return [delivery.stream_sequence for delivery in inbox.deliveries[2:]].count(let_go.stream_sequence) == 2

        await eventually(let_go_came_twice, every_s=0.1)
        assert [delivery.stream_sequence for delivery in inbox.deliveries].count(kept.stream_sequence) == 1


async def test_a_confirmed_ack_has_removed_the_message(world: World) -> None:
    await world.fill(1)
    inbox = Inbox()
    async with world.lane() as lane:
        lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await eventually(lambda: inbox.deliveries)
        assert lane.outstanding == 0
        await lane.acknowledge(inbox.deliveries[0])
        await lane.acknowledge(inbox.deliveries[0])
        assert await world.stored() == 0


async def test_acks_lost_with_the_connection_are_repeated_before_pulling(world: World) -> None:
    await world.delete_consumer()
    await world.make_consumer(ack_wait_s=1.0)
    await world.fill(20)
    inbox = Inbox()
    async with world.lane() as lane:
        lane.consume(STREAM, CONSUMER, credit=40, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.deliveries) == 20)
        world.proxy.drop_sent = lambda chunk: b"+ACK" in chunk
        acks = [lane.acknowledge(delivery) for delivery in inbox.deliveries]
        await eventually(lambda: b"+ACK" in world.proxy.sent)
        world.proxy.drop_sent = lambda chunk: False
        del world.proxy.sent[:]
        world.proxy.cut()
        async with asyncio.timeout(5.0):
            await asyncio.gather(*acks)
        assert await world.stored() == 0
        expected = await world.fill(1)
        await eventually(lambda: inbox.bodies[20:] == expected)
    sent = bytes(world.proxy.sent)
    assert sent.rindex(b"+ACK", 0, sent.index(b"MSG.NEXT")) > 0, "pulled before the acks were repeated"
    assert [delivery.attempt for delivery in inbox.deliveries] == [1] * 21


@pytest.mark.parametrize("others", [0, 30])
async def test_a_consumer_that_forgot_deliveries_is_asked_for_them_again(world: World, others: int) -> None:
    """What a kill -9 of the broker can do, here by hand: acks for messages it does not know as delivered stay
    without an answer until it has delivered them again, while they hold the whole credit."""
    first = await world.fill(10)
    inbox = Inbox()
    async with world.lane() as lane:

        def take(deliveries: list[Delivery]) -> None:
            inbox.take(deliveries)
            assert held() <= 10

        def held() -> int:
            return len(inbox.deliveries) - len(released)

        released: list[object] = []
        consumption = lane.consume(STREAM, CONSUMER, credit=10, on_deliveries=take)
        await eventually(lambda: len(inbox.deliveries) == 10)
        world.proxy.drop_sent = lambda chunk: b"+ACK" in chunk
        acks = [lane.acknowledge(delivery) for delivery in inbox.deliveries]
        await eventually(lambda: b"+ACK" in world.proxy.sent)
        await world.delete_consumer()
        await world.make_consumer()
        more = await world.fill(others)
        world.proxy.drop_sent = lambda chunk: False
        world.proxy.cut()
        async with asyncio.timeout(10):
            await asyncio.gather(*acks)
        assert await world.stored() == others

        def released_one_by_one() -> bool:
            if len(released) < len(inbox.deliveries):
                released.append(None)
                consumption.release()
            return len(released) == 10 + others and inbox.bodies == first + more

        await eventually(released_one_by_one, every_s=0.005)
        assert lane.outstanding == 0


async def test_kill_9_of_the_broker_delivers_nothing_acknowledged_again(world: World) -> None:
    await world.delete_consumer()
    await world.make_consumer(ack_wait_s=3.0)
    expected = await world.fill(300)
    inbox = Inbox()
    acks: list[asyncio.Future[None]] = []
    async with world.lane() as lane:

        def take(deliveries: list[Delivery]) -> None:
            inbox.take(deliveries)
            acks.extend(lane.acknowledge(delivery) for delivery in deliveries)
            consumption.release(len(deliveries))

        consumption: Consumption = lane.consume(STREAM, CONSUMER, credit=20, on_deliveries=take)
        await eventually(lambda: len(inbox.deliveries) >= 100, every_s=0.001)
        world.broker.kill()
        assert world.broker.process is not None
        await world.broker.process.wait()
        await world.broker.start()
        await eventually(lambda: set(inbox.bodies) == set(expected))
        async with asyncio.timeout(10):
            await asyncio.gather(*acks)
        await eventually(lambda: _is_empty(world))
        assert not consumption.problem
    # Also where the acks died with the broker: the lane claims those redeliveries.
    assert sorted(inbox.bodies) == sorted(expected)


async def _is_empty(world: World) -> bool:
    return await world.stored() == 0


async def test_the_consumer_is_deleted_under_us_and_made_anew(world: World) -> None:
    inbox = Inbox()
    async with world.lane() as lane:
        consumption = lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        first = await world.fill(1)
        await eventually(lambda: inbox.bodies == first)
        assert consumption.problem == ""
        await world.delete_consumer()
        await eventually(lambda: CONSUMER in consumption.problem)
        ack = lane.acknowledge(inbox.deliveries[0])
        await world.make_consumer()
        second = await world.fill(1)
        await eventually(lambda: inbox.bodies[-1:] == second)
        await eventually(lambda: consumption.problem == "")
        # The new consumer delivers the message again: its ack, and only its ack, counts.
        await asyncio.gather(ack, return_exceptions=True)


async def test_an_ack_for_a_consumer_that_is_gone_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.edge.lane_acks.ABSENT_LIMIT_S", 0.3)
    await world.fill(1)
    inbox = Inbox()
    async with world.lane() as lane:
        consumption = lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await eventually(lambda: inbox.deliveries)
        await consumption.stop()
        await world.delete_consumer()
        async with asyncio.timeout(8.0):
            with pytest.raises(AckUnknown) as unknown:
                await lane.acknowledge(inbox.deliveries[0])
        assert unknown.value.no_responders
    assert await world.stored() == 1


async def test_a_consumer_that_does_not_exist_yet(world: World) -> None:
    await world.delete_consumer()
    expected = await world.fill(3)
    inbox = Inbox()
    async with world.lane() as lane:
        consumption = lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await eventually(lambda: CONSUMER in consumption.problem)
        await world.make_consumer()
        await eventually(lambda: inbox.bodies == expected)
        assert consumption.problem == ""


async def test_paused_then_resumed(world: World) -> None:
    inbox = Inbox()
    await world.pause_consumer(3600)
    expected = await world.fill(3)
    async with world.lane(heartbeat_s=0.1) as lane:
        lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        pulls = bytes(world.proxy.sent).count(b"MSG.NEXT")
        await remains(lambda: inbox.deliveries == [], for_s=0.5)
        assert bytes(world.proxy.sent).count(b"MSG.NEXT") - pulls < 10, "a busy loop of pulls"
        await world.pause_consumer(-1)
        await eventually(lambda: inbox.bodies == expected)
        await world.pause_consumer(3600)
        more = await world.fill(2)
        await world.pause_consumer(-1)
        await eventually(lambda: inbox.bodies == expected + more)


async def test_a_pull_that_got_lost_is_found_by_missing_heartbeats(world: World) -> None:
    inbox = Inbox()
    async with world.lane(heartbeat_s=0.1) as lane:
        world.proxy.drop_sent = lambda chunk: b"MSG.NEXT" in chunk
        consumption = lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await eventually(lambda: "heartbeat" in consumption.problem)
        world.proxy.drop_sent = lambda chunk: False
        expected = await world.fill(1)
        await eventually(lambda: inbox.bodies == expected)


async def test_idle_for_many_heartbeats_then_at_once(world: World) -> None:
    inbox = Inbox()
    async with world.lane(heartbeat_s=0.05) as lane:
        consumption = lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=inbox.take)
        await remains(lambda: consumption.problem == "", for_s=0.5)
        assert bytes(world.proxy.sent).count(b"MSG.NEXT") == 1
        await world.fill(1)
        await eventually(lambda: inbox.deliveries)
    (delivery,) = inbox.deliveries
    assert delivery.received_at_unix_ns - delivery.stored_at_unix_ns < 200_000_000


async def test_stop_hands_over_what_was_delivered_and_asks_no_more(world: World) -> None:
    expected = await world.fill(50)
    inbox = Inbox()
    async with world.lane() as lane:
        consumption = lane.consume(STREAM, CONSUMER, credit=30, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.deliveries) == 30)
        consumption.release(5)
        await consumption.stop()
        handed_over = len(inbox.deliveries)
        info = await world.api(f"CONSUMER.INFO.{STREAM}.{CONSUMER}")
        assert info["num_waiting"] == 0
        await asyncio.gather(*(lane.acknowledge(delivery) for delivery in inbox.deliveries))
        consumption.release(handed_over)
        await consumption.stop()
        assert len(inbox.deliveries) == handed_over
        lane.consume(STREAM, CONSUMER, credit=30, on_deliveries=inbox.take)
        rest = 50 - handed_over - info["num_ack_pending"] + handed_over
        await eventually(lambda: len(inbox.deliveries) >= min(handed_over + 20, rest))
    assert set(inbox.bodies) <= set(expected)


async def test_a_handler_that_raises_does_not_stop_the_pull(world: World) -> None:
    calls: list[int] = []
    async with world.lane() as lane:

        def explode(deliveries: list[Delivery]) -> None:
            calls.append(len(deliveries))
            raise RuntimeError("a bug of the owner")

        lane.consume(STREAM, CONSUMER, credit=8, on_deliveries=explode)
        await world.fill(1)
        await eventually(lambda: sum(calls) == 1)
        await world.fill(1)
        await eventually(lambda: sum(calls) == 2)


async def test_two_consumers_on_one_lane(world: World) -> None:
    other = "hr.default.orders.d1.check.0"
    config = {"durable_name": "d1_check", "ack_policy": "explicit", "filter_subject": other}
    await world.api(f"CONSUMER.CREATE.{STREAM}.d1_check.{other}", {"stream_name": STREAM, "config": config})
    price, check = Inbox(), Inbox()
    async with world.lane() as lane:
        lane.consume(STREAM, CONSUMER, credit=5, on_deliveries=price.take)
        lane.consume(STREAM, "d1_check", credit=5, on_deliveries=check.take)
        for number in range(5):
            await lane.publish(SUBJECT, b"p", message_id=f"p{number}")
            await lane.publish(other, b"c", message_id=f"c{number}")
        await eventually(lambda: len(price.bodies) == len(check.bodies) == 5)
    assert set(price.bodies) == {b"p"}
    assert set(check.bodies) == {b"c"}
