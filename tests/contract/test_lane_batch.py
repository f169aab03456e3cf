"""Contract of `headrace.ports.JetStreamLane`: atomic batches with a fence, and the last message of a subject."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from headrace.ports import BatchMessage, JetStreamLane, LaneFull, PublishRefused, PublishUnknown, ReadFailed, Stored
from tests.contract.lane_world import CONSUMER, STREAM, SUBJECT, Inbox, World
from tests.support.eventually import eventually

MESSAGES = 400
CURSOR = "hr.default.orders.c1.price.0"


@pytest.fixture
async def flow(world: World) -> World:
    """The world's stream as flows with keyed steps have it; edges take ten."""
    await _change(world, max_msgs_per_subject=10)
    return world


async def _change(world: World, **changes: object) -> None:
    config = (await world.api(f"STREAM.INFO.{STREAM}"))["config"]
    wanted = {
        "subjects": ["hr.default.orders.d1.>", "hr.default.orders.c1.>"],
        "allow_atomic": True,
        "allow_rollup_hdrs": True,
    }
    await world.api(f"STREAM.UPDATE.{STREAM}", {**config, **wanted, **changes})


def outputs(*ids: str, subject: str = SUBJECT) -> list[BatchMessage]:
    return [BatchMessage(subject, label.encode(), label) for label in ids]


def cursor(expected: int, text: bytes = b"cursor") -> BatchMessage:
    return BatchMessage(CURSOR, text, rollup=True, expected_last=expected)


async def refused(lane: JetStreamLane, messages: list[BatchMessage]) -> PublishRefused:
    with pytest.raises(PublishRefused) as found:
        await lane.publish_batch(messages)
    return found.value


async def test_a_batch_is_stored_whole_and_moves_the_cursor(flow: World) -> None:
    async with flow.lane() as lane:
        assert await lane.last_message(STREAM, CURSOR) is None
        assert await lane.publish_batch([*outputs("a", "b"), cursor(0, b"one")]) == Stored(3, False)
        assert await lane.publish_batch([*outputs("c"), cursor(3, b"two")]) == Stored(5, False)
        last = await lane.last_message(STREAM, CURSOR)
        assert last is not None
        assert (last.sequence, last.payload) == (5, b"two")
        assert lane.outstanding == 0
        assert await flow.stored() == 4


async def test_a_wrong_fence_stores_nothing(flow: World) -> None:
    async with flow.lane() as lane:
        stored = await lane.publish_batch([*outputs("a"), cursor(0)])
        error = await refused(lane, [*outputs("b"), cursor(0)])
        assert error.fenced
        assert error.code == 10071
        assert (await lane.publish(SUBJECT, b"b", message_id="b")).duplicate is False, "its id is not burned"
        await lane.publish_batch([cursor(stored.sequence)])


async def test_a_known_id_refuses_the_batch_without_a_word_which(flow: World) -> None:
    async with flow.lane() as lane:
        await lane.publish(SUBJECT, b"old", message_id="old")
        assert (await refused(lane, [*outputs("new", "old"), cursor(0)])).duplicate_inside
        assert (await refused(lane, [*outputs("twin", "twin"), cursor(0)])).duplicate_inside
        assert await lane.publish_batch([*outputs("new"), cursor(0)]) == Stored(3, False)


async def test_one_full_edge_refuses_the_batch(flow: World) -> None:
    async with flow.lane() as lane:
        free = "hr.default.orders.d1.free.0"
        await lane.publish_batch(outputs(*(f"m{number}" for number in range(9))))
        error = await refused(lane, [*outputs("x", subject=free), *outputs("y", "z"), cursor(0)])
        assert error.edge_full
        assert await lane.last_message(STREAM, free) is None
        assert await lane.publish_batch([*outputs("x", subject=free), *outputs("y"), cursor(0)]) == Stored(12, False)


async def test_what_the_broker_does_not_take(flow: World) -> None:
    async with flow.lane() as lane:
        assert (await refused(lane, [BatchMessage(SUBJECT, bytes(1024 * 1024), "big"), cursor(0)])).code == 10054
        for messages in ([], [cursor(0)] * 1001, [BatchMessage("a b", b"")], [BatchMessage(SUBJECT, b"", "x\r\ny")]):
            with pytest.raises(ValueError):
                lane.publish_batch(messages)
        for absent in (0, 1, 2):
            messages = [*outputs("p", "q"), cursor(0)]
            messages[absent] = BatchMessage("hr.default.orders.d9.price.0", b"nobody")
            with pytest.raises(PublishUnknown):
                await lane.publish_batch(messages)
        assert await flow.stored() == 0
        await _change(flow, allow_atomic=False)
        assert (await refused(lane, [*outputs("a"), cursor(0)])).code == 10174
        assert lane.outstanding == 0


async def test_a_thousand_messages_fit(flow: World) -> None:
    await _change(flow, max_msgs_per_subject=5000)
    async with flow.lane() as lane:
        assert (await lane.publish_batch([*outputs(*(f"m{n}" for n in range(999))), cursor(0)])).sequence == 1000


async def test_bounds_and_deadline(world: World) -> None:
    await _change(world)
    async with world.lane(max_outstanding=2) as lane:
        world.proxy.freeze()
        futures = [lane.publish_batch(outputs(f"m{number}"), timeout_s=0.2) for number in range(2)]
        with pytest.raises(LaneFull):
            lane.publish_batch(outputs("m2"))
        async with asyncio.timeout(2.0):
            ended = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(error, PublishUnknown) for error in ended)
        with pytest.raises(ReadFailed):
            await lane.last_message(STREAM, CURSOR, timeout_s=0.1)
        world.proxy.thaw()
        await lane.flush()
        assert (await refused(lane, outputs("m0", "m9"))).duplicate_inside, "written, and stored after all"


async def test_reads_end_when_the_connection_breaks_or_the_lane_closes(flow: World) -> None:
    async with flow.lane() as lane:
        flow.proxy.freeze()
        reading = asyncio.ensure_future(lane.last_message(STREAM, CURSOR, timeout_s=30))
        await asyncio.sleep(0)
        flow.proxy.cut()
        flow.proxy.thaw()
        with pytest.raises(ReadFailed):
            await reading
        assert await lane.last_message(STREAM, CURSOR, timeout_s=10) is None
        with pytest.raises(ReadFailed):
            await lane.last_message("hr_default_none", CURSOR)
        await lane.close(0.1)
        with pytest.raises(ReadFailed):
            await lane.last_message(STREAM, CURSOR)


async def commit_all(lane: JetStreamLane, count: int) -> Counter[str]:
    """Batches of two outputs and a cursor, each repeated until it is known to be stored; answers how batches ended."""
    ended: Counter[str] = Counter()
    fence, done = 0, 0
    while done < count:
        batch = [*outputs(f"m{done}", f"m{done + 1}"), cursor(fence, b"%d" % (done + 2))]
        try:
            fence, done = (await lane.publish_batch(batch, timeout_s=2.0)).sequence, done + 2
            ended["stored"] += 1
        except (PublishUnknown, PublishRefused) as error:
            # 10201 is told before 10071: whichever it is, the cursor knows.
            if isinstance(error, PublishRefused) and not (error.fenced or error.duplicate_inside):
                raise
            ended[type(error).__name__] += 1
            try:
                last = await lane.last_message(STREAM, CURSOR)
            except ReadFailed:
                await asyncio.sleep(0.02)  # tidy: pace
                continue
            fence, done = (last.sequence, int(last.payload)) if last is not None else (0, 0)
    return ended


async def test_kill_9_of_the_broker_in_the_middle_of_fenced_batches(world: World) -> None:
    await _change(world, max_msgs_per_subject=5000)
    chance = random.Random(7)
    async with world.lane() as lane:
        committing = asyncio.ensure_future(commit_all(lane, MESSAGES))
        for _ in range(3):
            await asyncio.sleep(chance.uniform(0.05, 0.15))  # tidy: pace
            assert not committing.done()
            world.broker.kill()
            assert world.broker.process is not None
            await world.broker.process.wait()
            await world.broker.start()
            await eventually(lambda: world.admin.is_connected)
        async with asyncio.timeout(30):
            ended = await committing
    inbox = Inbox()
    async with world.lane() as lane:
        lane.consume(STREAM, CONSUMER, credit=1000, on_deliveries=inbox.take)
        await eventually(lambda: len(inbox.bodies) >= MESSAGES)
    print(f"ended {dict(ended)}: {len(inbox.bodies)} stored, {len(set(inbox.bodies))} different")
    assert inbox.bodies == [b"m%d" % number for number in range(MESSAGES)]
    assert await world.stored() == MESSAGES + 1
    assert ended["PublishUnknown"] > 0
