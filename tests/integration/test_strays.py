"""Messages that lie where nobody reads are moved to where they belong, or to the dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.api.message.v1 import message_pb2
from headrace.client import AsyncClient
from headrace.model import subjects
from headrace.wire.flow import flow_spec_to_proto
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import OrchestratorRig, chain, orchestrator_rig, published


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


async def put(rig: OrchestratorRig, subject: str, body: str, parent: str = "") -> None:
    """What a sender with an old view stores."""
    envelope = message_pb2.Envelope(id=f"id of {body}", execution_id=body, parent_id=parent, body=body.encode())
    await rig.assets.publish(subject, envelope.SerializeToString(), {"Nats-Msg-Id": envelope.id})


def handled(rig: OrchestratorRig) -> dict[str, tuple[int, str]]:
    """Body to (deployment, step) that handled it."""
    return {
        message_pb2.Envelope.FromString(raw).body.decode(): (deployment, step)
        for deployment, step, _, raw in rig.agent.handled
    }


async def letters(rig: OrchestratorRig) -> int:
    info = await rig.assets.stream_info(subjects.dead_letter_stream("default", "orders"))
    return int(info["state"]["messages"]) if info is not None else 0


async def renamed(rig: OrchestratorRig, client: AsyncClient) -> None:
    """The next version's trigger has another name; a restart is needed for that."""
    await client.update_draft("orders", flow_spec_to_proto(chain("entry", "price")))
    await client.publish("orders", strategy="restart")


async def test_a_stale_trigger_or_slot_reaches_the_trigger_that_runs(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        await renamed(rig, client)
        await put(rig, "hr.default.orders.in.order.0", "old name")
        await put(rig, "hr.default.orders.in.entry.5", "old slots")
        await put(rig, "hr.default.orders.in.entry.junk", "no slot")
        await eventually(lambda: len(rig.agent.handled) == 3)
        assert handled(rig) == dict.fromkeys(("old name", "old slots", "no slot"), (2, "entry"))
        assert (await client.get_status("orders")).strays_moved == 3
        moved = [message_pb2.Envelope.FromString(raw) for _, _, _, raw in rig.agent.handled]
        assert all(item.incarnation == 1 and item.moved.id == f"id of {item.body.decode()}" for item in moved)


async def test_what_was_parked_for_a_trigger_of_another_name_is_moved_at_the_start(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        rig.agent.hold.add("price")
        await rig.push("name: work\nfunctions:\n  work: {kind: action}\n")
        await client.update_draft("orders", flow_spec_to_proto(chain("entry", "price")))
        begun = await client.begin_publish("orders", strategy="restart")
        await eventually(lambda: _is_parked(rig))
        await put(rig, "hr.default.orders.in.order.0", "old name")
        rig.agent.release("price")
        await client.wait_operation(begun, timeout_s=30.0)
        await eventually(lambda: handled(rig) == {"old name": (2, "entry")})


async def _is_parked(rig: OrchestratorRig) -> bool:
    transform = (await rig.stream_config("orders"))["subject_transform"]
    assert isinstance(transform, dict)
    return str(transform["dest"]).split(".")[3].startswith("p")


async def test_an_output_for_a_step_that_is_not_there_is_dead_and_does_not_keep_a_stop_waiting(
    rig: OrchestratorRig,
) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        await put(rig, "hr.default.orders.d1.gone.0", "output", parent="before")
        await eventually(lambda: _has_letters(rig, 1))
        await put(rig, "hr.default.orders.d1.gone.0", "output 2", parent="before")
        await client.stop("orders")
        await eventually(lambda: _has_letters(rig, 2))
        assert not rig.agent.handled


async def _has_letters(rig: OrchestratorRig, count: int) -> bool:
    return await letters(rig) == count
