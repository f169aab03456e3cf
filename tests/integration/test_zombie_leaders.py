"""What a leader had sent before it was stopped, and what comes when another one leads, harms nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.api.flow.v1 import flow_pb2
from headrace.api.message.v1 import message_pb2
from headrace.client import AsyncClient
from headrace.edge.grpc_channel import open_channel
from headrace.model.errors import Conflict, HeadraceError
from headrace.model.route import Route, decode_route
from headrace.wire.flow import flow_spec_to_proto
from services.orchestrator.domain.leadership import GENERATIONS_PER_EPOCH
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import (
    WORK,
    Orchestrator,
    OrchestratorRig,
    chain,
    led_by,
    orchestrator_rig,
    published,
)
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


@pytest.fixture
async def proxy(rig: OrchestratorRig) -> AsyncIterator[TcpProxy]:
    """Between the broker and the first leader; what is held there comes when the test lets it."""
    held = TcpProxy(rig.broker.port)
    await held.start()
    try:
        yield held
    finally:
        await held.stop()


async def test_a_stopped_leader_that_goes_on_can_write_nothing(rig: OrchestratorRig) -> None:
    """SIGSTOP past its lease, then SIGCONT: it finds that it does not lead, and what it sends is refused."""
    standby = await rig.add_orchestrator("orchestrator-2")
    async with AsyncClient(standby.address, timeout_s=20.0) as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        old_document, old_revision = await rig.stores.existing_flow("orders")
        found = await rig.stores.state("orders", 1)
        assert found is not None
        old_state, state_revision = found
        os.kill(rig.process.pid, signal.SIGSTOP)
        await led_by(standby.address, "orchestrator-2")
        await eventually(lambda: all(_epoch(item) == 2 for item in rig.agent.of("orders", 1)))
        # What the zombie had read before it was stopped is of no use to anybody any more.
        with pytest.raises(Conflict):
            await rig.stores.write_flow(old_document, old_revision)
        with pytest.raises(Conflict):
            await rig.stores.write_state("orders", 1, old_state, state_revision)
        async with open_channel(rig.agent_address) as channel:
            stop = agent_pb2.StopInstanceRequest(name=rig.agent.started[0], generation=old_state.generation)
            with pytest.raises(Exception, match="lower generation"):
                await agent_pb2_grpc.AgentServiceStub(channel).StopInstance(stop, timeout=5.0)
        os.kill(rig.process.pid, signal.SIGCONT)
        await led_by(rig.address, "orchestrator-2")
        # It is a good standby from now on: passes calls on, and leads again when it is its turn.
        async with AsyncClient(rig.address, timeout_s=20.0) as other:
            await other.stop("orders")
            standby.process.kill()
            await led_by(rig.address, "orchestrator")
            await other.start("orders")
        assert "lease lost" in (rig.folder / "orchestrator.log").read_text()


def _epoch(sidecar: object) -> int:
    return int(sidecar.generation) // GENERATIONS_PER_EPOCH  # type: ignore[attr-defined]


async def test_a_leader_whose_broker_connection_stalls_stops_acting(rig: OrchestratorRig, proxy: TcpProxy) -> None:
    """Its requests lie in the connection and reach the broker when another leads already."""
    await rig.process.end(3.0)
    stalled = await rig.add_orchestrator("orchestrator", rig.address, nats=proxy.url)
    standby = await rig.add_orchestrator("orchestrator-2")
    async with AsyncClient(standby.address, timeout_s=20.0) as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        proxy.freeze()
        late = asyncio.create_task(_refused_update(stalled))
        await led_by(standby.address, "orchestrator-2")
        await client.stop("orders")
        proxy.thaw()
        await late
        await led_by(stalled.address, "orchestrator-2")
        assert (await client.get_flow("orders")).state == flow_pb2.FLOW_STATE_STOPPED
        await client.start("orders")
        assert len(await client.list_deployments("orders")) == 2


async def _refused_update(orchestrator: Orchestrator) -> None:
    """A verb sent to the one that cannot reach the broker; it ends, however it ends."""
    async with AsyncClient(orchestrator.address, timeout_s=4.0) as client:
        with contextlib.suppress(HeadraceError):
            await client.update_draft("orders", flow_spec_to_proto(chain("order", "zombie")))


async def test_a_zombies_switch_that_comes_late_loses_nothing(rig: OrchestratorRig, proxy: TcpProxy) -> None:
    """The leader's stream update is held up on its way, another leads and switches twice, then the old one lands."""
    await rig.process.end(3.0)
    sent: list[str] = []

    async def stimuli(client: AsyncClient) -> None:
        while True:
            sent.append(f"s{len(sent)}")
            await client.inject("orders", sent[-1].encode(), request_id=sent[-1])
            await asyncio.sleep(0.01)  # tidy: pace

    await rig.add_orchestrator("orchestrator", rig.address, nats=proxy.url)
    standby = await rig.add_orchestrator("orchestrator-2")
    async with AsyncClient(standby.address, timeout_s=20.0) as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        proxy.freeze_at = b"STREAM.UPDATE"
        await rig.push(WORK)
        begun = await client.begin_restart("orders")
        restarted = asyncio.create_task(client.wait_operation(begun, timeout_s=30.0))
        await led_by(standby.address, "orchestrator-2")
        traffic = asyncio.create_task(stimuli(client))
        assert (await restarted).deployment == 2
        assert (await client.restart("orders")).deployment == 3
        assert not proxy.freeze_at, "the leader's update was not on its way"
        proxy.thaw()

        async def is_put_right() -> bool:
            return (await client.get_status("orders")).ingress_repairs == 1

        await eventually(is_put_right)
        await client.restart("orders")
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)
        await client.stop("orders")
    handled = [message_pb2.Envelope.FromString(raw).body.decode() for _, _, _, raw in rig.agent.handled]
    assert sorted(handled) == sorted(set(handled))
    assert set(handled) >= set(sent[:-1])


async def test_a_late_purge_takes_nothing_of_a_later_start(rig: OrchestratorRig, proxy: TcpProxy) -> None:
    """A stop with DROP: the leader is stopped with its purge on the way; another one drops, and starts anew."""
    await rig.process.end(3.0)
    zombie = await rig.add_orchestrator("orchestrator", rig.address, nats=proxy.url)
    standby = await rig.add_orchestrator("orchestrator-2")
    async with AsyncClient(standby.address, timeout_s=20.0) as client:
        await published(rig, client, "orders", chain("order", "price"))
        rig.agent.keep.add("order")
        await client.start("orders")
        for number in range(5):
            await client.inject("orders", b"{}", request_id=f"dropped {number}")
        proxy.freeze_at = b"STREAM.PURGE.hr_default_orders"
        begun = await client.begin_stop("orders", drop=True)
        await eventually(lambda: not proxy.freeze_at)
        os.kill(zombie.process.pid, signal.SIGSTOP)
        await led_by(standby.address, "orchestrator-2")
        assert (await client.wait_operation(begun, timeout_s=30.0)).dropped == 5
        await client.start("orders")
        for number in range(3):
            await client.inject("orders", b"{}", request_id=f"kept {number}")
        assert sum((await rig.counts("orders")).values()) == 3
        proxy.thaw()
        os.kill(zombie.process.pid, signal.SIGCONT)
        await led_by(zombie.address, "orchestrator-2", within_s=30.0)
        assert b"STREAM.PURGE" in proxy.sent, "the purge never reached the broker"
        rig.agent.keep.clear()
        await eventually(lambda: len({raw for _, _, _, raw in rig.agent.handled}) == len(rig.agent.handled) == 3)
        assert (await client.get_flow("orders")).state == flow_pb2.FLOW_STATE_RUNNING


async def test_a_late_route_is_refused(rig: OrchestratorRig, proxy: TcpProxy) -> None:
    """Else gateways would refuse requests of a flow that runs, until the leader's next look."""
    await rig.process.end(3.0)
    zombie = await rig.add_orchestrator("orchestrator", rig.address, nats=proxy.url)
    standby = await rig.add_orchestrator("orchestrator-2")
    written: list[Route] = []

    async def watch_routes() -> None:
        async with contextlib.aclosing(rig.stores.routes.watch("orders")) as watch:
            async for entry in watch:
                if entry is not None and entry.value:
                    written.append(decode_route(entry.value))

    watching = asyncio.create_task(watch_routes())
    async with AsyncClient(standby.address, timeout_s=20.0) as client:
        await published(rig, client, "orders", chain("order", "price"))
        await client.start("orders")
        proxy.freeze_at = b"PUB $KV.hr_default_routes.orders"
        begun = await client.begin_stop("orders")
        await eventually(lambda: not proxy.freeze_at)
        os.kill(zombie.process.pid, signal.SIGSTOP)
        await led_by(standby.address, "orchestrator-2")
        await client.wait_operation(begun, timeout_s=30.0)
        await client.start("orders")
        proxy.thaw()
        os.kill(zombie.process.pid, signal.SIGCONT)
        await led_by(zombie.address, "orchestrator-2", within_s=30.0)
        assert b"STOPPING" in proxy.sent.rpartition(b"PUB $KV.hr_default_routes.orders")[2]
        await client.stop("orders")
        await eventually(lambda: written[-1].state == "STOPPED")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert [route.epoch for route in written] == sorted(route.epoch for route in written), written
    later = [route.state for route in written if route.epoch > 1]
    told = [state for state, before in zip(later, ["", *later], strict=False) if state != before]
    assert told[-5:] == ["STOPPED", "STARTING", "RUNNING", "STOPPING", "STOPPED"]
