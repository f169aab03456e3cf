"""Contract of `headrace.ports.JetStreamLane`: publishing, against a real broker."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from headrace.edge.jetstream_lane import NatsLane
from headrace.ports import AckUnknown, JetStreamLane, LaneFull, PublishRefused, PublishUnknown, Stored
from tests.contract.lane_world import CONSUMER, STREAM, SUBJECT, Inbox, World
from tests.support.eventually import eventually


async def test_stored_then_duplicate(world: World) -> None:
    async with world.lane() as lane:
        first = await lane.publish(SUBJECT, b"a", message_id="one")
        second = await lane.publish(SUBJECT, b"b", message_id="two")
        again = await lane.publish(SUBJECT, b"a", message_id="one")
        assert (first, second, again) == (Stored(1, False), Stored(2, False), Stored(1, True))
        assert lane.outstanding == 0
    assert await world.stored() == 2


async def test_many_at_once_each_get_their_own_answer(world: World) -> None:
    async with world.lane() as lane:
        answers = await asyncio.gather(
            *(lane.publish(SUBJECT, b"%d" % number, message_id=f"m{number}") for number in range(2000))
        )
    assert [answer.sequence for answer in answers] == list(range(1, 2001))


async def test_a_full_edge_refuses_and_lets_in_again(world: World) -> None:
    await world.api(f"STREAM.UPDATE.{STREAM}", {**(await _config(world)), "max_msgs_per_subject": 2})
    async with world.lane() as lane:
        await lane.publish(SUBJECT, b"1", message_id="1")
        await lane.publish(SUBJECT, b"2", message_id="2")
        with pytest.raises(PublishRefused) as refused:
            await lane.publish(SUBJECT, b"3", message_id="3")
        assert refused.value.edge_full
        assert refused.value.code == 10077
        inbox = Inbox()
        lane.consume(STREAM, CONSUMER, credit=1, on_deliveries=inbox.take)
        await eventually(lambda: inbox.deliveries)
        await lane.acknowledge(inbox.deliveries[0])
        assert (await lane.publish(SUBJECT, b"3", message_id="3")).duplicate is False


async def _config(world: World) -> dict[str, object]:
    config: dict[str, object] = (await world.api(f"STREAM.INFO.{STREAM}"))["config"]
    return config


async def test_no_responders_where_no_stream_listens(world: World) -> None:
    async with world.lane() as lane:
        with pytest.raises(PublishUnknown) as unknown:
            await lane.publish("hr.default.orders.d9.price.0", b"x", message_id="x")
        assert unknown.value.no_responders
        assert lane.outstanding == 0


async def test_too_large_is_refused_without_harm(world: World) -> None:
    async with world.lane() as lane:
        with pytest.raises(PublishRefused) as refused:
            await lane.publish(SUBJECT, bytes(1024 * 1024), message_id="big")
        assert refused.value.code == 10054
        with pytest.raises(ValueError, match="exceed"):
            lane.send("somewhere", bytes(1024 * 1024 + 1))
        assert await lane.publish(SUBJECT, bytes(1024 * 1023), message_id="fits") == Stored(1, False)


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB x 1", "a\tb"])
async def test_what_would_break_the_protocol_is_refused(world: World, subject: str) -> None:
    async with world.lane() as lane:
        with pytest.raises(ValueError):
            lane.publish(subject, b"x", message_id="x")
        with pytest.raises(ValueError):
            lane.send(subject, b"x")
        with pytest.raises(ValueError):
            lane.publish(SUBJECT, b"x", message_id="x\r\nEvil: 1")
        with pytest.raises(ValueError):
            lane.publish(SUBJECT, b"x", message_id="x", traceparent="00\n")
        assert await lane.publish(SUBJECT, b"x", message_id="x") == Stored(1, False)


async def test_no_answer_ends_at_the_deadline(world: World) -> None:
    async with world.lane() as lane:
        world.proxy.freeze()
        async with asyncio.timeout(2.0):
            with pytest.raises(PublishUnknown) as unknown:
                await lane.publish(SUBJECT, b"x", message_id="x", timeout_s=0.2)
        assert not unknown.value.no_responders
        world.proxy.thaw()
        await lane.flush()
        assert (await lane.publish(SUBJECT, b"x", message_id="x")).duplicate


async def test_outstanding_is_bounded_and_room_returns(world: World) -> None:
    async with world.lane(max_outstanding=10) as lane:
        world.proxy.freeze()
        futures = [lane.publish(SUBJECT, b"x", message_id=f"{number}") for number in range(10)]
        with pytest.raises(LaneFull):
            lane.publish(SUBJECT, b"x", message_id="10")
        assert lane.outstanding == 10
        waiting = asyncio.ensure_future(lane.room())
        world.proxy.thaw()
        async with asyncio.timeout(5.0):
            await waiting
            await asyncio.gather(*futures)
        assert (await lane.publish(SUBJECT, b"x", message_id="10")).sequence == 11


async def test_a_broken_connection_ends_written_publishes_and_a_repeat_is_safe(world: World) -> None:
    async with world.lane() as lane:
        await lane.publish(SUBJECT, b"first", message_id="first")
        world.proxy.drop_sent = lambda chunk: b"lost" in chunk
        futures = [lane.publish(SUBJECT, b"lost", message_id=f"{number}", timeout_s=60) for number in range(20)]
        await eventually(lambda: b"lost" in world.proxy.sent)
        world.proxy.drop_sent = lambda chunk: False
        world.proxy.cut()
        async with asyncio.timeout(5.0):
            ended = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(error, PublishUnknown) and not error.no_responders for error in ended)
        repeated = await asyncio.gather(*(lane.publish(SUBJECT, b"x", message_id=f"{number}") for number in range(20)))
        assert [answer.duplicate for answer in repeated] == [False] * 20
    assert await world.stored() == 21


async def test_kill_9_of_the_broker_and_a_repeat_with_the_same_ids_stores_each_once(world: World) -> None:
    ids = [f"id{number}" for number in range(400)]
    confirmed: dict[str, int] = {}

    async with world.lane() as lane:

        async def store(message_id: str) -> None:
            async with asyncio.timeout(30):
                while True:
                    try:
                        answer = await lane.publish(SUBJECT, message_id.encode(), message_id=message_id, timeout_s=2.0)
                    except PublishUnknown:
                        await asyncio.sleep(0.02)  # tidy: pace
                        continue
                    confirmed[message_id] = answer.sequence
                    return

        for message_id in ids[:100]:
            await store(message_id)
        storing = asyncio.gather(*(store(message_id) for message_id in ids[100:]))
        await asyncio.sleep(0)
        world.broker.kill()
        assert world.broker.process is not None
        await world.broker.process.wait()
        await world.broker.start()
        await storing
    assert len(confirmed) == 400
    assert len(set(confirmed.values())) == 400
    assert await world.stored() == 400


async def test_publishes_made_while_the_connection_is_down_leave_at_the_reconnect(world: World) -> None:
    async with world.lane() as lane:
        await world.broker.stop()
        await eventually(lambda: _is_down(lane))
        future = lane.publish(SUBJECT, b"kept", message_id="kept", timeout_s=20)
        too_late = lane.publish(SUBJECT, b"late", message_id="late", timeout_s=0.05)
        with pytest.raises(PublishUnknown):
            await too_late
        await world.broker.start()
        (answer,) = await asyncio.gather(future, return_exceptions=True)
        if isinstance(answer, PublishUnknown):
            # JetStream may not be up yet when the server is.
            assert answer.no_responders
            answer = await lane.publish(SUBJECT, b"kept", message_id="kept")
        assert answer == Stored(1, False)
        assert await world.stored() == 1


def _is_down(lane: JetStreamLane) -> bool:
    return isinstance(lane, NatsLane) and not lane._link.up


async def test_a_frozen_broker_is_outlived(world: World) -> None:
    async with world.lane() as lane:
        assert world.broker.process is not None
        world.broker.process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{world.broker.process.pid}/status")
        await eventually(lambda: "T (stopped)" in status.read_text())
        futures = [lane.publish(SUBJECT, b"x", message_id=f"{number}", timeout_s=0.3) for number in range(50)]
        with pytest.raises(TimeoutError):
            await lane.flush(0.1)
        ended = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(error, PublishUnknown) for error in ended)
        world.broker.process.send_signal(signal.SIGCONT)
        await lane.flush(5.0)
        assert (await lane.publish(SUBJECT, b"x", message_id="0")).duplicate


async def test_send_reaches_subscribers_in_order_and_flush_means_read(world: World) -> None:
    subscription = await world.admin.subscribe("hr.default._reply.gw")
    await world.admin.flush()
    async with world.lane() as lane:
        for number in range(100):
            lane.send("hr.default._reply.gw", b"%d" % number)
        await asyncio.gather(*(lane.flush() for _ in range(10)))
        got = [(await subscription.next_msg(timeout=5)).data for _ in range(100)]
        assert got == [b"%d" % number for number in range(100)]
        world.proxy.freeze()
        with pytest.raises(TimeoutError):
            await lane.flush(0.1)
        world.proxy.thaw()
        await lane.flush()


async def test_a_flush_ends_when_the_connection_breaks(world: World) -> None:
    async with world.lane() as lane:
        world.proxy.freeze()
        flushing = asyncio.ensure_future(lane.flush(30.0))
        await asyncio.sleep(0)
        world.proxy.cut()
        world.proxy.thaw()
        async with asyncio.timeout(5.0):
            with pytest.raises(ConnectionError):
                await flushing
            await lane.flush(5.0)


async def test_close_ends_what_is_outstanding(world: World) -> None:
    await world.fill(3)
    async with world.lane() as lane:
        inbox = Inbox()
        lane.consume(STREAM, CONSUMER, credit=10, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.deliveries) == 3)
        world.proxy.freeze()
        publishes = [lane.publish(SUBJECT, b"x", message_id=f"{number}", timeout_s=60) for number in range(5)]
        acks = [lane.acknowledge(delivery) for delivery in inbox.deliveries]
        async with asyncio.timeout(5.0):
            await lane.close(timeout_s=0.1)
        assert lane.outstanding == 0
        assert all(isinstance(future.exception(), PublishUnknown) for future in publishes)
        assert all(isinstance(future.exception(), AckUnknown) for future in acks)
        with pytest.raises(PublishUnknown):
            await lane.publish(SUBJECT, b"x", message_id="after")
        with pytest.raises(AckUnknown):
            await lane.acknowledge(inbox.deliveries[0])
        with pytest.raises(ConnectionError):
            lane.consume(STREAM, CONSUMER, credit=1, on_deliveries=inbox.take)
        world.proxy.thaw()


async def test_what_is_sent_while_the_connection_is_down_arrives_after_the_reconnect(world: World) -> None:
    subscription = await world.admin.subscribe("hr.default._reply.gw")
    await world.admin.flush()
    async with world.lane() as lane:
        world.proxy.freeze()
        world.proxy.cut()
        with pytest.raises(ConnectionError):
            await lane.flush(5.0)
        lane.send("hr.default._reply.gw", b"kept")
        for _ in range(7):
            lane.send("hr.default._reply.other", bytes(1024 * 1024))
        with pytest.raises(LaneFull):
            lane.send("hr.default._reply.other", bytes(1024 * 1024))
        world.proxy.thaw()
        await lane.flush(5.0)
        assert (await subscription.next_msg(timeout=5)).data == b"kept"


async def test_close_waits_for_answers_on_their_way(world: World) -> None:
    async with world.lane() as lane:
        futures = [lane.publish(SUBJECT, b"x", message_id=f"{number}") for number in range(500)]
        await lane.close(timeout_s=5.0)
        assert len({future.result().sequence for future in futures}) == 500
