"""A mesh with fault points, that runs flows of the fault matrix; with a broker and a proxy of its own, or without."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from headrace.client import AsyncClient
from headrace.edge.broker_process import BrokerProcess
from headrace.edge.fault_points import VARIABLE
from headrace.edge.nats_connection import close_nats, connect_nats
from tests.robustness.matrix_flow import write_flow
from tests.robustness.matrix_rig import ACK_WAIT_S, FLOW, MatrixRig, effects_file
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.tcp_proxy import TcpProxy


@contextlib.asynccontextmanager
async def matrix_rigs(folder: Path, flows: Mapping[str, bool]) -> AsyncIterator[list[MatrixRig]]:
    """Broker, proxy, mesh, and a rig for each of the flows (which ones are keyed); ended in order."""
    broker = BrokerProcess(folder / "broker")
    await broker.start()
    proxy = TcpProxy(broker.port)
    proxy.keep_sent = False
    await proxy.start()
    try:
        async with matrix_mesh(folder, proxy.url, flows=flows) as mesh:
            connection = await connect_nats(broker.url, "ledger")
            rigs = [
                MatrixRig(folder, mesh, connection, broker, proxy, flow=flow, keyed=keyed)
                for flow, keyed in flows.items()
            ]
            try:
                yield rigs
            finally:
                await asyncio.gather(*(rig.end() for rig in rigs))
                await close_nats(connection)
    finally:
        await proxy.stop()
        await broker.stop()


@contextlib.asynccontextmanager
async def matrix_mesh(
    folder: Path, nats_url: str, *, flows: Mapping[str, bool] | None = None, **more: str
) -> AsyncIterator[RunningMesh]:
    """A mesh with fault points, that runs the flows (which ones are keyed; one that is, otherwise); `more` is set in
    its environment."""
    (folder / "faults").mkdir()
    environment = {VARIABLE: f"@{folder / 'faults'}", "HEADRACE_RESTART_DELAY_LIMIT_S": "0.1", **more}
    starting = start_mesh(folder, "fast", "--nats", nats_url, ack_wait_s=ACK_WAIT_S, **environment)
    # A proxy runs on this loop: what blocks goes to a thread, which stays until the end (children are tied to it).
    mesh = await asyncio.to_thread(starting.__enter__)
    try:
        async with AsyncClient(mesh.api) as client:
            for flow, keyed in (flows or {FLOW: True}).items():
                await client.apply(write_flow(flow, folder, effects_file(folder, flow), keyed=keyed))
                await client.publish(flow)
                await client.start(flow)
        yield mesh
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)
