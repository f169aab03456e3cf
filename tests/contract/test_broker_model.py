"""What the simulation's broker in memory claims, tried on it and on a real nats-server alike."""

from __future__ import annotations

import pytest

from headrace.edge.assets_transport import AssetsTransport
from headrace.edge.jetstream_assets import PAUSED_UNTIL, JetStreamApiError, NoResponders
from headrace.model import subjects
from headrace.ports import BatchMessage, Fence, PublishRefused
from services.orchestrator.domain.assets import consumer_view_config, stream_view
from tests.contract.broker_sides import INGRESS, SECOND, STREAM, Side, at, config, durable, put

# Buckets.


# Streams.


async def test_a_stream_is_as_it_was_asked_for(side: Side) -> None:
    assert await side.assets.stream_info(STREAM, ">") is None
    for wanted in (config("p1"), config("p1", "d1", ingress="d1"), config("p2", limit=7)):
        await side.assets.ensure_stream(wanted)
        info = await side.assets.stream_info(STREAM, ">")
        assert info is not None
        shown = dict(stream_view(info).config)
        shown["subjects"] = list(shown["subjects"])  # type: ignore[call-overload]
        assert shown == wanted
    with pytest.raises(JetStreamApiError) as refused:
        await side.assets.create_stream(config("d9"))
    assert refused.value.code == 10058
    await side.assets.create_stream(config("p2", limit=7))
    await side.assets.delete_stream(STREAM)
    await side.assets.delete_stream(STREAM)
    assert await side.assets.stream_info(STREAM) is None
    assert await side.assets.consumers(STREAM) == []


async def test_the_transform_gives_the_ingress_its_owner(side: Side) -> None:
    with pytest.raises(NoResponders):
        await put(side, INGRESS, "0")
    await side.assets.ensure_stream(config("p1", ingress="p1"))
    assert (await put(side, INGRESS, "1"))["seq"] == 1
    await side.assets.ensure_stream(config("p1", "d1", ingress="d1"))
    await put(side, INGRESS, "2")
    assert (await put(side, INGRESS, "1")).get("duplicate") is True
    info = await side.assets.stream_info(STREAM, "hr.default.orders.>")
    assert info is not None
    assert info["state"]["subjects"] == {at("p1"): 1, at("d1"): 1}
    assert info["state"]["messages"] == 2
    only = await side.assets.stream_info(STREAM, "hr.default.orders.d1.>")
    assert only is not None
    assert only["state"]["subjects"] == {at("d1"): 1}
    assert await side.assets.message_subject(STREAM, 2) == at("d1")
    assert await side.assets.barrier(STREAM, subjects.barrier_subject("default", "orders")) == at("d1", "_barrier")


async def test_without_the_subject_nothing_is_taken_and_what_is_stored_stays(side: Side) -> None:
    await side.assets.ensure_stream(config("d1", ingress="d1"))
    await put(side, INGRESS, "1")
    await side.assets.ensure_stream(config("p2"))
    for subject in (INGRESS, at("d1")):
        with pytest.raises(NoResponders):
            await put(side, subject, "2")
    assert await side.assets.barrier(STREAM, subjects.barrier_subject("default", "orders")) is None
    info = await side.assets.stream_info(STREAM, ">")
    assert info is not None
    assert info["state"]["subjects"] == {at("d1"): 1}


async def test_a_full_edge_refuses_but_knows_what_it_has(side: Side) -> None:
    await side.assets.ensure_stream(config("d1", ingress="d1", limit=1))
    await put(side, INGRESS, "1")
    with pytest.raises(JetStreamApiError) as refused:
        await put(side, INGRESS, "2")
    assert refused.value.code == 10077
    assert (await put(side, INGRESS, "1")).get("duplicate") is True
    assert (await put(side, at("d1", "other"), "3"))["seq"] == 2


async def test_deleting_and_purging(side: Side) -> None:
    await side.assets.ensure_stream(config("d1", "d2"))
    for index, owner in enumerate(("d1", "d2", "d1")):
        await put(side, at(owner), str(index))
    await side.assets.delete_message(STREAM, 2)
    assert await side.assets.message_subject(STREAM, 2) is None
    assert await side.assets.purge(STREAM, at("d2")) == 0
    assert await side.assets.purge(STREAM) == 2
    assert (await put(side, at("d1"), "0")).get("duplicate") is True


async def test_a_purge_through_a_sequence_leaves_what_came_later(side: Side) -> None:
    await side.assets.ensure_stream(config("d1", "d2"))
    for index, owner in enumerate(("d1", "d2", "d1", "d2")):
        await put(side, at(owner), str(index))
    assert await side.assets.purge(STREAM, at("d1"), through=2) == 1
    assert await side.assets.purge(STREAM, through=3) == 2
    assert await side.assets.message_subject(STREAM, 4) == at("d2")
    assert await side.assets.purge(STREAM, through=9) == 1


async def test_messages_are_found_by_subject_and_read_whole(side: Side) -> None:
    await side.assets.ensure_stream(config("d1", "d2"))
    for index, owner in enumerate(("d1", "d2", "d1")):
        await put(side, at(owner), str(index))
    found = await side.assets.next_message(STREAM, "hr.default.orders.d1.>", 2)
    assert found is not None
    assert (found.subject, found.sequence, found.data) == (at("d1"), 3, b"x")
    assert found.headers["Nats-Msg-Id"] == "2"
    assert await side.assets.next_message(STREAM, "hr.default.orders.d1.>", 4) is None


async def test_a_subject_that_must_be_empty_is_written_once(side: Side) -> None:
    await side.assets.ensure_stream({**config("d1"), "retention": "limits"})
    expected = {"Nats-Expected-Last-Subject-Sequence": "0"}
    await side.assets.publish(at("d1"), b"1", expected)
    with pytest.raises(JetStreamApiError) as refused:
        await side.assets.publish(at("d1"), b"2", expected)
    assert refused.value.code == 10071
    await side.assets.publish(at("d1", "other"), b"3", expected)


async def test_a_batch_is_stored_whole_or_not_at_all(side: Side) -> None:
    await side.assets.ensure_stream(config("d1", "d2"))
    stored = await side.assets.publish_batch([BatchMessage(at("d1"), b"%d" % number) for number in range(3)])
    assert (stored["seq"], stored["count"]) == (3, 3)
    compared = [BatchMessage(at("d1"), b"4", expected_last=2), BatchMessage(at("d2"), b"5")]
    with pytest.raises(JetStreamApiError) as refused:
        await side.assets.publish_batch(compared)
    assert refused.value.code == 10071
    assert await side.assets.last_message(STREAM, at("d2")) is None
    replacing = [
        BatchMessage(at("d1"), b"6", rollup=True, expected_last=3),
        BatchMessage(at("d2"), b"7", rollup=True),
    ]
    assert (await side.assets.publish_batch(replacing))["seq"] == 5
    newest = await side.assets.last_message(STREAM, at("d1"))
    assert newest is not None
    assert (newest.sequence, newest.data) == (4, b"6")
    info = await side.assets.stream_info(STREAM)
    assert info is not None
    assert info["state"]["messages"] == 2
    assert await side.assets.last_message(STREAM, at("d3")) is None
    assert await side.assets.last_message("absent", at("d1")) is None


async def test_a_fence_holds_while_its_subject_ends_as_expected(side: Side) -> None:
    await side.assets.ensure_stream(config("d1", "d2"))
    await put(side, at("d1"), "fence")
    transport = AssetsTransport(side.assets)
    fence = Fence(at("d1"), 1)
    assert (await transport.publish(at("d2"), b"x", message_id="1", fence=fence)).sequence == 2
    assert (await transport.publish(at("d2"), b"x", message_id="2", fence=fence)).sequence == 3
    await side.assets.publish_batch([BatchMessage(at("d1"), b"next", rollup=True)])
    with pytest.raises(PublishRefused) as refused:
        await transport.publish(at("d2"), b"x", message_id="3", fence=fence)
    assert refused.value.fenced
    assert not refused.value.fence_in_use
    stored = await transport.publish(at("d2"), b"x", message_id="3", fence=Fence(at("d1"), 4))
    assert (stored.sequence, stored.duplicate) == (5, False)
    # What a sender repeats after a switch is a repeat, wherever it goes now. (A single server looks at the fence
    # first, a cluster at the id.)
    again = await transport.publish(at("d1", "other"), b"x", message_id="1", fence=Fence(at("d1"), 4))
    assert (again.sequence, again.duplicate) == (2, True)


# Consumers.


async def test_consumers_are_listed_as_they_were_asked_for(side: Side) -> None:
    await side.assets.ensure_stream(config("d1", "p1"))
    parked = durable("d1_order", at("p1"), at("d1"))
    await side.assets.ensure_consumer(STREAM, {**parked, "pause_until": PAUSED_UNTIL})
    await side.assets.ensure_consumer(STREAM, durable("d1_price", at("d1", "price")))
    infos = {info["name"]: info for info in await side.assets.consumers(STREAM)}
    assert [bool(infos[name].get("paused")) for name in ("d1_order", "d1_price")] == [True, False]
    shown = consumer_view_config(infos["d1_order"]["config"])
    assert shown == {**parked, "filter_subjects": tuple(parked["filter_subjects"])}
    with pytest.raises(JetStreamApiError) as refused:
        await side.assets.ensure_consumer(STREAM, durable("d2_order", at("p1")))
    assert refused.value.code == 10100
    await side.assets.ensure_consumer(STREAM, durable("d1_price", at("d1", "price"), ack_wait_s=7))
    infos = {info["name"]: info for info in await side.assets.consumers(STREAM)}
    assert infos["d1_price"]["config"]["ack_wait"] == 7 * SECOND
    await side.assets.delete_consumer(STREAM, "d1_price")
    await side.assets.delete_consumer(STREAM, "d1_price")
    assert [info["name"] for info in await side.assets.consumers(STREAM)] == ["d1_order"]
    with pytest.raises(JetStreamApiError) as absent:
        await side.assets.pause_consumer(STREAM, "d1_price", paused=True)
    assert absent.value.code == 10014


async def test_parked_messages_come_first_and_nothing_while_paused(side: Side) -> None:
    await side.assets.ensure_stream(config("p1", "d1", ingress="p1"))
    await put(side, INGRESS, "1")
    await side.assets.ensure_consumer(STREAM, {**durable("d1_order", at("p1"), at("d1")), "pause_until": PAUSED_UNTIL})
    assert await side.take("d1_order") is None
    await side.assets.ensure_stream(config("p1", "d1", ingress="d1"))
    await put(side, INGRESS, "2")
    await side.assets.pause_consumer(STREAM, "d1_order", paused=False)
    assert await side.take("d1_order") == (1, at("p1"))
    assert await side.take("d1_order") == (2, at("d1"))
    assert await side.take("d1_order") is None
    await side.ack("d1_order", 1)
    info = await side.assets.stream_info(STREAM, ">")
    assert info is not None
    assert info["state"]["subjects"] == {at("d1"): 1}
    assert (await side.assets.consumers(STREAM))[0]["num_ack_pending"] == 1


async def test_messages_of_an_owner_that_is_no_longer_listed_are_delivered(side: Side) -> None:
    await side.assets.ensure_stream(config("d1"))
    await side.assets.ensure_consumer(STREAM, durable("d1_order", at("d1")))
    await put(side, at("d1"), "1")
    await side.assets.ensure_stream(config("p2"))
    assert await side.take("d1_order") == (1, at("d1"))
    await side.ack("d1_order", 1)
    info = await side.assets.stream_info(STREAM)
    assert info is not None
    assert info["state"]["messages"] == 0


async def test_a_new_durable_is_given_what_the_deleted_one_held(side: Side) -> None:
    await side.assets.ensure_stream(config("d1"))
    await side.assets.ensure_consumer(STREAM, durable("one", at("d1")))
    await put(side, at("d1"), "1")
    assert await side.take("one") == (1, at("d1"))
    await side.assets.delete_consumer(STREAM, "one")
    await side.ack("one", 1)
    await side.assets.ensure_consumer(STREAM, durable("two", at("d1")))
    assert await side.take("two") == (1, at("d1"))


async def test_a_purge_takes_what_is_held_too(side: Side) -> None:
    await side.assets.ensure_stream(config("d1"))
    await side.assets.ensure_consumer(STREAM, durable("one", at("d1")))
    await put(side, at("d1"), "1")
    assert await side.take("one") == (1, at("d1"))
    assert await side.assets.purge(STREAM, at("d1")) == 1
    await side.ack("one", 1)
    assert await side.take("one") is None
