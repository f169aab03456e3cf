"""A mesh on three real brokers, streams kept on all of them: leaders and followers fail under load, the ledger holds.

A soak does rounds of all kinds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.client.rollout_calls import RESTART
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from tests.robustness.matrix_mesh import matrix_mesh
from tests.robustness.matrix_rig import FLOW, WORKSPACE, MatrixRig
from tests.robustness.pinned_flow import WORK, PinnedFlow
from tests.robustness.traffic import Traffic
from tests.support import soak
from tests.support.broker_cluster import SIZE, BrokerCluster, ClusterNode
from tests.support.eventually import eventually

ROUNDS = soak.rounds(one_in=100)
STREAM = subjects.flow_stream(WORKSPACE, FLOW)
RATE = 20.0
AWAY_S = 2.0


@dataclass(frozen=True)
class Trouble:
    """What is done to which server of the flow's stream, and `when`: before, in or after the operation (none: while
    nothing else happens). In the end the server leads which was away."""

    what: str
    when: str = ""
    operation: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.when} {self.operation}".strip()


SHORT = (
    Trouble("follower paused", "in", "warm switch"),
    Trouble("leader killed", "in", "restart"),
)
KINDS = (
    *SHORT,
    Trouble("follower paused", "before", "restart"),
    Trouble("leader paused", "in", "warm switch"),
    Trouble("leader killed"),
    Trouble("follower paused", "after", "rollback"),
    Trouble("follower killed", "in", "restart"),
    Trouble("leader killed", "in", "warm switch"),
    Trouble("follower paused"),
    Trouble("follower paused", "before", "warm switch"),
    Trouble("leader killed", "in", "rollback"),
    Trouble("leader paused", "in", "restart"),
    Trouble("follower killed"),
    Trouble("leader paused", "after", "warm switch"),
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[BrokerCluster]:
    async with BrokerCluster(tmp_path) as running:
        yield running


@pytest.mark.timeout(150)
async def test_a_cluster_loses_servers_and_the_mesh_loses_nothing(
    cluster: BrokerCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two flows under load: one with keyed steps, whose ledger knows the order; one whose answers say which code made
    them."""
    seed = int(os.environ.get("HEADRACE_SEED") or random.randrange(10**6))
    chance = random.Random(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(ROUNDS)] or SHORT
    async with matrix_mesh(tmp_path, cluster.url) as mesh, AsyncClient(mesh.api, timeout_s=20) as client:
        connection = await connect_nats(cluster.url, "ledger")
        rig = MatrixRig(tmp_path, mesh, connection)
        pinned = PinnedFlow("pinned", tmp_path).use(client)
        try:
            await pinned.begin()
            await every_stream_has_three_copies(cluster)
            for kind in kinds:
                rig.begin()
                async with Traffic(mesh.endpoints.gateways, pinned.path, rate=RATE) as traffic:
                    await rig.recovered()
                    began = time.monotonic()
                    away = await do(kind, cluster, Operations(rig, pinned, client), chance)
                    soak.TOTALS.round(kills=int("killed" in kind.what))
                    await rig.recovered()
                    took_s = time.monotonic() - began
                    await asyncio.gather(*(revive(cluster, number) for number in range(SIZE)))
                    await eventually(lambda: cluster.is_whole(STREAM), within_s=40, every_s=0.1)
                    await cluster.let_lead(STREAM, away)
                    await rig.recovered()
                    attempts = await traffic.finish()
                ledger = await rig.settle()
                answers, pins = await pinned.judge(traffic.run, attempts)
                with capsys.disabled():
                    print(
                        f"\ncluster, seed {seed}: {kind}, works after {took_s:.1f} s; {ledger.line()}; "
                        f"{pins.line()}; {answers.line()}"
                    )
                assert ledger.ok, f"seed {seed}, {kind}: {ledger.line()}\n" + "\n".join(
                    f"{rig.history(id)}\n  {ledger.why(id)}" for id in ledger.offenders[:3]
                )
                assert pins.ok, pins.complaints()
                assert answers.ok, answers.line()
                status = await client.get_status(FLOW)
                assert (status.ingress_repairs, status.strays_moved) == (0, 0)
        finally:
            await rig.end()
            await close_nats(connection)


@dataclass
class Operations:
    """What a person does, to both flows at once."""

    rig: MatrixRig
    pinned: PinnedFlow
    client: AsyncClient

    async def run(self, operation: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            how = {"strategy": RESTART} if operation == "restart" else {}
            switched = tasks.create_task(self.client.restart(FLOW, timeout_s=60, **how))
            if operation == "rollback":
                tasks.create_task(self.pinned.rollback(1, timeout_s=60))
            elif operation == "restart":
                await self.pinned.push(WORK)
                tasks.create_task(self.pinned.restart(timeout_s=60, **how))
            else:
                work = await self.pinned.push(WORK)
                tasks.create_task(self.pinned.publish(work.reference, timeout_s=60))
        self.rig.now_on(switched.result().deployment)


async def every_stream_has_three_copies(cluster: BrokerCluster) -> None:
    """The flow's stream, dead letters, logs, history, buckets and the object store."""
    assets = JetStreamAssets(cluster.connection)
    infos = (await assets.request("STREAM.LIST"))["streams"]
    copies = {info["config"]["name"]: info["config"]["num_replicas"] for info in infos}
    assert len(copies) >= 10
    assert {name: number for name, number in copies.items() if number != SIZE} == {}


async def do(trouble: Trouble, cluster: BrokerCluster, operations: Operations, chance: random.Random) -> ClusterNode:
    """What was killed is dead when it returns, what was paused goes on. Answers the server that was away."""
    leader, followers = await cluster.leader_of(STREAM), await cluster.followers_of(STREAM)
    node = leader if trouble.what.startswith("leader") else chance.choice(followers)
    match trouble.when:
        case "before":
            async with away(trouble, cluster, node):
                await operations.run(trouble.operation)
        case "in":
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(operations.run(trouble.operation))
                await asyncio.sleep(chance.uniform(0.0, 1.5))  # tidy: pace
                async with away(trouble, cluster, node):
                    await asyncio.sleep(AWAY_S)  # tidy: pace
        case _:
            if trouble.operation:
                await operations.run(trouble.operation)
            async with away(trouble, cluster, node):
                await asyncio.sleep(AWAY_S)  # tidy: pace
    return node


@contextlib.asynccontextmanager
async def away(trouble: Trouble, cluster: BrokerCluster, node: ClusterNode) -> AsyncIterator[None]:
    if trouble.what.endswith("killed"):
        await cluster.kill(node)
        yield
        return
    cluster.pause(node)
    try:
        yield
    finally:
        cluster.resume(node)


async def revive(cluster: BrokerCluster, number: int) -> None:
    node = cluster.nodes[number]
    if node.process is not None and node.process.returncode is not None:
        await node.start()
