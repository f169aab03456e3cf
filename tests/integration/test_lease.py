"""The lease on a real broker: never two leaders at once, whatever happens to processes, bucket and connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import bucket_names
from headrace.model.errors import Unavailable
from services.orchestrator.domain.leadership import LeaseTerms
from services.orchestrator.lease import Lease
from tests.support.eventually import eventually
from tests.support.tcp_proxy import TcpProxy

TERMS = LeaseTerms(ttl=1.0, renew=0.2, margin=0.25, poll=0.05)


class Candidate:
    """A lease with the task that owns it; `hold` stops the task as SIGSTOP would, the clock goes on."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.gained = self.lost = 0
        self._task: asyncio.Task[None] | None = None

    async def _on_gained(self) -> None:
        self.gained += 1

    async def _on_lost(self) -> None:
        self.lost += 1

    def go(self) -> None:
        self._task = asyncio.create_task(self.lease.run(self._on_gained, self._on_lost))

    async def hold(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class Place:
    """A broker and candidates on it."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.candidates: list[Candidate] = []
        self._connections: list[object] = []

    async def candidate(self, name: str = "", *, url: str = "") -> Candidate:
        connection = await connect_nats(url or self.broker.url, "test")
        self._connections.append(connection)
        epochs = await KvBucket.open(connection, bucket_names.flow_bucket("default"))
        lease = Lease(connection, "default", epochs, name=name, terms=TERMS)
        lease.address = f"127.0.0.1:{len(self.candidates) + 1}"
        self.candidates.append(Candidate(lease))
        return self.candidates[-1]

    def leaders(self) -> list[str]:
        """Who may act now; never two."""
        found = [item.lease.name for item in self.candidates if item.lease.leading]
        assert len(found) <= 1, f"{found} lead at once"
        return found

    async def led_by(self, candidate: Candidate, *, within_s: float = 5.0) -> None:
        await eventually(lambda: self.leaders() == [candidate.lease.name], within_s=within_s, every_s=0.002)

    async def stop(self) -> None:
        for candidate in self.candidates:
            await candidate.hold()
        for connection in self._connections:
            await close_nats(connection)  # type: ignore[arg-type]


@pytest.fixture
async def place(broker: BrokerProcess) -> AsyncIterator[Place]:
    made = Place(broker)
    yield made
    await made.stop()


async def test_of_several_that_start_at_once_one_leads(place: Place) -> None:
    for number in range(5):
        await place.candidate(f"o{number}")
    for candidate in place.candidates:
        candidate.go()
    await eventually(place.leaders, every_s=0.002)
    for _ in range(100):
        assert len(place.leaders()) == 1
        await asyncio.sleep(0.01)  # tidy: pace
    assert sum(candidate.gained for candidate in place.candidates) == 1
    names = {candidate.lease.leader.name for candidate in place.candidates if candidate.lease.leader}
    assert names == set(place.leaders())
    standby = next(candidate for candidate in place.candidates if not candidate.lease.leading)
    with pytest.raises(Unavailable, match="does not lead; the leader is o"):
        standby.lease.check()


async def test_a_held_up_leader_stops_before_the_next_one_begins(place: Place) -> None:
    first, second = await place.candidate("a"), await place.candidate("b")
    first.go()
    await place.led_by(first)
    second.go()
    for leader, other in ((first, second), (second, first)):
        epoch = leader.lease.epoch
        await leader.hold()
        await eventually(lambda: not place.leaders(), every_s=0.002)  # a moment without any
        await place.led_by(other)
        assert other.lease.epoch == epoch + 1
        leader.go()
        await eventually(lambda leader=leader: leader.lost == 1)  # type: ignore[misc]
        assert place.leaders() == [other.lease.name]


async def test_a_lease_given_back_is_taken_at_once(place: Place) -> None:
    first, second = await place.candidate("a"), await place.candidate("b")
    first.go()
    await place.led_by(first)
    second.go()
    await first.hold()
    await first.lease.release()
    await place.led_by(second, within_s=TERMS.ttl / 2)


async def test_a_successor_on_the_same_place_need_not_wait(place: Place) -> None:
    dead, other = await place.candidate("a"), await place.candidate("b")
    dead.go()
    await place.led_by(dead)
    other.go()
    await dead.hold()
    place.candidates.remove(dead)
    successor = await place.candidate("a")
    successor.go()
    await place.led_by(successor, within_s=TERMS.ttl / 2)
    assert successor.lease.epoch == dead.lease.epoch + 1


async def test_a_lost_bucket_never_makes_two_leaders(place: Place) -> None:
    for name in ("a", "b", "c"):
        (await place.candidate(name)).go()
    await eventually(place.leaders, every_s=0.002)
    connection = await connect_nats(place.broker.url, "test")
    for _ in range(5):
        await JetStreamAssets(connection).delete_stream(f"KV_{bucket_names.lease_bucket('default')}")
        for _ in range(60):
            place.leaders()
            await asyncio.sleep(0.01)  # tidy: pace
        await eventually(place.leaders, every_s=0.002)
    await close_nats(connection)


async def test_a_stalled_connection_ends_the_term_in_time(place: Place) -> None:
    proxy = TcpProxy(place.broker.port)
    await proxy.start()
    try:
        first, second = await place.candidate("a", url=proxy.url), await place.candidate("b")
        first.go()
        await place.led_by(first)
        second.go()
        proxy.freeze()
        await place.led_by(second)
        proxy.thaw()  # late renewals reach the broker now
        for _ in range(100):
            assert place.leaders() == ["b"]
            await asyncio.sleep(0.01)  # tidy: pace
        assert (first.lost, first.gained) == (1, 1)
    finally:
        await place.stop()
        await proxy.stop()


async def test_broker_restarts_during_renewals(place: Place) -> None:
    for name in ("a", "b"):
        (await place.candidate(name)).go()
    await eventually(place.leaders, every_s=0.002)
    for _ in range(3):
        place.broker.kill()
        await place.broker.start()
        for _ in range(50):
            place.leaders()
            await asyncio.sleep(0.01)  # tidy: pace
        await eventually(place.leaders, every_s=0.002, within_s=15.0)
