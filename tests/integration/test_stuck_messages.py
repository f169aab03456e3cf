"""Messages that are stored and that their durable would never deliver are delivered again, and drains end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.api.message.v1 import message_pb2
from headrace.model import subjects
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import OrchestratorRig, chain, orchestrator_rig, published

STREAM = subjects.flow_stream("default", "orders")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


async def store_behind(rig: OrchestratorRig, durable: str, subject: str, *bodies: str) -> None:
    """As a broker that was killed between an acknowledgement and the removal leaves it: the durable is past what is
    stored. While nobody repairs it."""
    await rig.assets.pause_consumer(STREAM, durable, paused=True)
    for body in bodies:
        envelope = message_pb2.Envelope(id=f"id of {body}", execution_id=body, parent_id="x", body=body.encode())
        stored = await rig.assets.publish(subject, envelope.SerializeToString(), {"Nats-Msg-Id": envelope.id})
    await rig.assets.reset_consumer(STREAM, durable, to_sequence=int(stored["seq"]) + 1)
    await rig.assets.pause_consumer(STREAM, durable, paused=False)
    info = await rig.assets.consumer_info(STREAM, durable)
    assert info is not None
    assert (info["num_pending"], info["num_ack_pending"]) == (0, 0)


def handled(rig: OrchestratorRig) -> list[str]:
    return sorted(message_pb2.Envelope.FromString(raw).body.decode() for _, _, _, raw in rig.agent.handled)


async def test_what_no_durable_would_deliver_is_delivered_and_a_drain_ends(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        await rig.kill()
        await store_behind(rig, "d1_price", "hr.default.orders.d1.price.0", "one", "two")
        await rig.restart()
    async with rig.client() as client:
        await client.stop("orders")
        assert handled(rig) == ["one", "two"]
        assert (await client.get_status("orders")).stuck_redelivered == 2
        assert not await rig.counts("orders")
        entries, _ = await client.list_history("orders")
        assert [entry.what for entry in entries].count("stuck-redelivered") == 1


async def test_it_is_found_in_a_flow_that_runs_and_new_messages_go_on(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        await rig.kill()
        await store_behind(rig, "d1_order", "hr.default.orders.d1.order.0", "old")
        await rig.assets.publish(
            "hr.default.orders.in.order.0", message_pb2.Envelope(body=b"new").SerializeToString(), {}
        )
        await eventually(lambda: handled(rig) == ["new"])
        await rig.restart()
        await eventually(lambda: handled(rig) == ["new", "old"], within_s=20)
    async with rig.client() as client:
        assert (await client.get_status("orders")).stuck_redelivered == 1
