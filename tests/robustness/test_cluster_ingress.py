"""The ingress of a stream with three copies, on three real servers that fail: several senders publish as fast as they
can while it goes from owner to owner. Whatever happens, all copies hold the same; owners follow each other in the
stream as they were decided; what was acknowledged is there, once.

The short form takes seconds; a soak does more rounds of faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nats.aio.client import Client

from headrace.edge.assets_transport import AssetsTransport
from headrace.edge.ingress_publisher import IngressPublisher
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.nats_link import NatsLink
from headrace.model import subjects
from headrace.model.errors import Conflict, HeadraceError
from headrace.model.flow_stream import flow_stream_config
from headrace.model.ingress_owner import IngressOwner
from headrace.ports import LaneFull, PublishUnknown, ReadFailed
from services.orchestrator.ingress_proof import IngressProof
from tests.support import soak
from tests.support.broker_cluster import SIZE, BrokerCluster, ClusterNode
from tests.support.eventually import eventually

ROUNDS = soak.rounds(one_in=20)
FAULTS = ("follower paused", "leader cut off", "leader paused", "leader killed", "follower cut off", "none")
SHORT = ("follower paused", "leader killed")
FLOW, WORKSPACE, TRIGGER = "probe", "default", "hook"
STREAM = subjects.flow_stream(WORKSPACE, FLOW)
SENDERS, WINDOW = 3, 6
SWITCHES_A_ROUND = 8
OWNERS = 8 + SWITCHES_A_ROUND * (ROUNDS or len(SHORT))
PAUSE_S = 0.05


@dataclass
class Sender:
    """Publishes ids of its own; one without an answer is repeated, as a gateway does."""

    name: str
    publisher: IngressPublisher
    acknowledged: dict[str, int] = field(default_factory=dict)
    attempted: set[str] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    stopping: bool = False
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WINDOW):
                tasks.create_task(self._worker())

    async def _worker(self) -> None:
        while not self.stopping:
            identifier = f"{self.name}-{next(self._numbers)}"
            self.attempted.add(identifier)
            began = time.monotonic()
            while True:
                try:
                    stored = await self.publisher.publish(
                        FLOW, TRIGGER, 0, identifier.encode(), fenced=True, message_id=identifier, timeout_s=2.0
                    )
                except (PublishUnknown, LaneFull, ReadFailed, HeadraceError) as error:
                    self.refusals[type(error).__name__] += 1
                    if time.monotonic() > began + 60:
                        raise AssertionError(f"{identifier} was not stored within a minute") from error
                    await asyncio.sleep(0.02)  # tidy: pace
                    continue
                self.acknowledged[identifier] = stored.sequence
                break
            self.longest_s = max(self.longest_s, time.monotonic() - began)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[BrokerCluster]:
    async with BrokerCluster(tmp_path, proxied=bool(ROUNDS)) as running:
        yield running


@pytest.mark.timeout(180)
async def test_owners_of_the_ingress_follow_each_other_on_every_copy(
    cluster: BrokerCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("HEADRACE_SEED") or random.randrange(10**6))
    chance = random.Random(seed)
    faults = [FAULTS[number % len(FAULTS)] for number in range(ROUNDS)] or list(SHORT)
    assets = JetStreamAssets(cluster.connection)
    await assets.create_stream(config())
    proof = IngressProof(assets, WORKSPACE)
    decided = itertools.count(1)
    await give(proof, next(decided))
    async with senders(cluster) as sending:
        began = time.monotonic()
        for fault in faults:
            await one_round(fault, cluster, proof, decided, chance)
            soak.TOTALS.round(kills=int(fault.endswith("killed")))
            enough = sum(len(sender.acknowledged) for sender in sending) + 50
            await eventually(lambda: sum(len(each.acknowledged) for each in sending) > enough, within_s=30)  # noqa: B023
        took_s = time.monotonic() - began
    await eventually(lambda: cluster.is_whole(STREAM), within_s=40, every_s=0.1)
    copies = await copies_of(cluster, assets)
    verdict = Verdict.of(copies, sending)
    soak.TOTALS.judge(verdict.stored, lost=verdict.lost, duplicated=verdict.doubled, disordered=verdict.inversions)
    with capsys.disabled():
        print(
            f"\nseed {seed}: {len(faults)} rounds in {took_s:.1f} s, d{next(decided) - 1} in the end; {verdict.line()}"
        )
    assert verdict.ok, f"seed {seed}: {verdict.line()}\n{verdict.complaints}"


async def one_round(
    fault: str, cluster: BrokerCluster, proof: IngressProof, decided: itertools.count[int], chance: random.Random
) -> None:
    """Switches before, in and after a fault; then a server that was behind leads."""
    leader, followers = await cluster.leader_of(STREAM), await cluster.followers_of(STREAM)
    victim = chance.choice(followers) if fault.startswith("follower") else leader
    if fault.endswith("cut off"):
        await cut_off_round(cluster, victim, decided)
    switches = [chance.random() for _ in range(SWITCHES_A_ROUND)]
    for number, share in enumerate(switches):
        if number == 2:
            if fault.endswith("paused"):
                cluster.pause(victim)
            elif fault.endswith("killed"):
                await cluster.kill(victim)
        if number == SWITCHES_A_ROUND - 2 and fault.endswith("paused"):
            cluster.resume(victim)
        await asyncio.sleep(PAUSE_S * share)  # tidy: pace
        await give(proof, next(decided))
    if fault.endswith("killed"):
        await victim.start()
    if fault != "none":
        await eventually(lambda: cluster.is_whole(STREAM), within_s=40, every_s=0.05)
        await cluster.let_lead(STREAM, victim)
    await give(proof, next(decided))
    with pytest.raises(Conflict):
        await give(proof, 1)  # what a leader of the past decided


async def cut_off_round(cluster: BrokerCluster, victim: ClusterNode, decided: itertools.count[int]) -> None:
    """The others switch without it; senders that are connected to it wait, for it cannot store anything."""
    others = ",".join(node.url for node in cluster.nodes if node is not victim)
    connection = await connect_nats(others, "person on the other side")
    proof = IngressProof(JetStreamAssets(connection, timeout_s=2.0), WORKSPACE)
    cluster.cut_off(victim)
    try:
        for _ in range(3):
            await give(proof, next(decided))
    finally:
        cluster.join(victim)
        await close_nats(connection)


async def give(proof: IngressProof, number: int) -> None:
    """As the reconcile loop does: tried again until it is done."""
    async with asyncio.timeout(40):
        while True:
            try:
                await proof.by_writing(FLOW, IngressOwner(f"d{number}", number))
                return
            except Conflict:
                raise
            except HeadraceError:
                await asyncio.sleep(PAUSE_S)  # tidy: pace


@contextlib.asynccontextmanager
async def senders(cluster: BrokerCluster) -> AsyncIterator[list[Sender]]:
    """Two that publish as gateways do, one as the orchestrator; they end when all they sent is acknowledged."""
    made: list[Sender] = []
    opened: list[tuple[Client, NatsLane | None]] = []
    for number in range(SENDERS):
        connection = await connect_nats(cluster.url, f"sender {number}")
        lane = NatsLane(await NatsLink.connect(cluster.url, f"sender {number} lane")) if number else None
        if lane is not None:
            await lane.start()
        transport = lane or AssetsTransport(JetStreamAssets(connection, timeout_s=2.0))
        made.append(Sender(f"s{number}", IngressPublisher(transport, WORKSPACE)))
        opened.append((connection, lane))
    try:
        async with asyncio.TaskGroup() as tasks:
            for sender in made:
                tasks.create_task(sender.run())
            yield made
            for sender in made:
                sender.stopping = True
    finally:
        for connection, lane in opened:
            if lane is not None:
                await lane.close(1.0)
            await close_nats(connection)


@dataclass
class Verdict:
    """All copies, against what the senders were told."""

    stored: int
    switches: int
    differing: int
    inversions: int
    lost: int
    doubled: int
    refusals: Counter[str]
    longest_s: float
    complaints: list[str]

    @property
    def ok(self) -> bool:
        return not (self.differing or self.inversions or self.lost or self.doubled)

    @classmethod
    def of(cls, copies: dict[str, dict[int, tuple[str, str]]], sending: list[Sender]) -> Verdict:
        names = sorted(copies)
        first = copies[names[0]]
        differing = [
            f"{sequence}: {[copy.get(sequence) for copy in copies.values()]} on {names}"
            for sequence in sorted(set().union(*copies.values()))
            if len({copy.get(sequence) for copy in copies.values()}) > 1
        ]
        stored = [first[sequence] for sequence in sorted(first)]
        owners = [int(subject.split(".")[3][1:]) for subject, _ in stored]
        ids = Counter(identifier for _, identifier in stored)
        acknowledged = {identifier for sender in sending for identifier in sender.acknowledged}
        refusals: Counter[str] = Counter()
        for sender in sending:
            refusals.update(sender.refusals)
        return cls(
            stored=len(stored),
            switches=len(set(owners)),
            differing=len(differing),
            inversions=sum(a > b for a, b in itertools.pairwise(owners)),
            lost=len(acknowledged - set(ids)),
            doubled=sum(count > 1 for count in ids.values()),
            refusals=refusals,
            longest_s=max(sender.longest_s for sender in sending),
            complaints=differing[:5],
        )

    def line(self) -> str:
        return (
            f"{'ok' if self.ok else 'BROKEN'}: {self.stored} stored for {self.switches} owners, copies differ in "
            f"{self.differing}, owners out of order {self.inversions}, lost {self.lost}, doubled {self.doubled}; "
            f"longest wait of a sender {self.longest_s:.2f} s, tried again {dict(self.refusals)}"
        )


def config() -> dict[str, object]:
    owners = [subjects.owner_filter(WORKSPACE, FLOW, f"d{number}") for number in range(1, OWNERS * 2)]
    listed = [subjects.ingress_owner_filter(WORKSPACE, FLOW), *owners]
    made = flow_stream_config(STREAM, listed, max_waiting=1_000_000, copies=SIZE)
    return made | {"retention": "limits"}  # so that everything stays to be looked at


async def copies_of(cluster: BrokerCluster, assets: JetStreamAssets) -> dict[str, dict[int, tuple[str, str]]]:
    """By server: sequence to subject and id, read by a consumer that runs on that server, from its own copy."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    for number in range(60):
        if len(found) == SIZE:
            return found
        name = f"reader{number}"
        consumer = {
            "name": name,
            "ack_policy": "none",
            "deliver_policy": "all",
            "headers_only": True,
            "num_replicas": 1,
            "mem_storage": True,
            "inactive_threshold": 60_000_000_000,
        }
        body = {"stream_name": STREAM, "config": consumer, "action": ""}
        info = await assets.request(f"CONSUMER.CREATE.{STREAM}.{name}", body)
        server = str(info["cluster"]["leader"])
        if server not in found:
            found[server] = await read_all(cluster.connection, name, int(info["num_pending"]))
    raise AssertionError(f"no reader came to run on every server: {sorted(found)}")


async def read_all(connection: Client, consumer: str, count: int) -> dict[int, tuple[str, str]]:
    read: dict[int, tuple[str, str]] = {}
    inbox = connection.new_inbox()
    subscription = await connection.subscribe(inbox)
    left = count
    async with asyncio.timeout(60):
        while left:
            asked = min(left, 1000)
            request = json.dumps({"batch": asked, "expires": 20_000_000_000}).encode()
            await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}", request, reply=inbox)
            for _ in range(asked):
                message = await subscription.next_msg(timeout=20)
                assert message.headers is not None
                assert "Status" not in message.headers, message.headers
                if subjects.parse_data_subject(message.subject).step == TRIGGER:
                    read[message.metadata.sequence.stream] = (message.subject, message.headers["Nats-Msg-Id"])
            left -= asked
    await subscription.unsubscribe()
    return read
