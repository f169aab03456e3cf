"""The way to the ingress on a cluster: to the owner, on condition that it is still the owner."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from headrace.edge.ingress_publisher import IngressPublisher
from headrace.model.ingress_owner import FENCES, IngressOwner, encode_owner
from headrace.ports import Fence, Kept, LaneFull, PublishRefused, PublishUnknown, ReadFailed, Stored
from tests.support.eventually import eventually

FLOW = "orders"


@dataclass
class Stream:
    """What a stream's leader does: an owner, the sequences of its fences, and the messages that it has taken."""

    owner: str = "d1"
    first: int = 1
    stored: list[str] = field(default_factory=list)
    reads: int = 0
    tried: list[Fence | None] = field(default_factory=list)
    in_use: set[str] = field(default_factory=set)
    silent: bool = False
    gate: asyncio.Event | None = None

    def give(self, owner: str) -> None:
        self.owner, self.first = owner, self.first + 1000

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        traceparent: str = "",
        fence: Fence | None = None,
        timeout_s: float = 5.0,
    ) -> Stored:
        self.tried.append(fence)
        if self.gate is not None:
            await self.gate.wait()
        if self.silent:
            raise PublishUnknown("no answer in time")
        if fence is not None:
            number = int(fence.subject.rpartition(".")[2])
            assert 1 <= number <= FENCES
            if fence.subject in self.in_use:
                raise PublishRefused(10164, "wrong last sequence")
            if fence.sequence != self.first + number:
                raise PublishRefused(10071, "wrong last sequence")
        self.stored.append(subject)
        return Stored(len(self.stored), duplicate=False)

    async def last_message(self, stream: str, subject: str, *, timeout_s: float = 2.0) -> Kept | None:
        assert (stream, subject) == ("hr_default_orders", "hr.default.orders.in._owner.0")
        self.reads += 1
        await asyncio.sleep(0)
        return Kept(self.first, encode_owner(IngressOwner(self.owner, 1))) if self.owner != "absent" else None


async def put(publisher: IngressPublisher, number: int = 0, *, fenced: bool = True, timeout_s: float = 1.0) -> Stored:
    return await publisher.publish(FLOW, "order", 2, b"", fenced=fenced, message_id=f"m{number}", timeout_s=timeout_s)


async def test_without_fences_it_goes_to_the_ingress() -> None:
    stream = Stream()
    await put(IngressPublisher(stream, "default"), fenced=False)
    assert (stream.stored, stream.tried, stream.reads) == (["hr.default.orders.in.order.2"], [None], 0)


async def test_it_goes_to_the_owner_and_after_a_switch_to_the_next_one() -> None:
    stream = Stream()
    publisher = IngressPublisher(stream, "default")
    await put(publisher, 1)
    await put(publisher, 2)
    assert stream.reads == 1
    stream.give("p4")
    await asyncio.gather(*(put(publisher, number) for number in range(3, 23)))
    assert stream.stored == ["hr.default.orders.d1.order.2"] * 2 + ["hr.default.orders.p4.order.2"] * 20
    assert stream.reads == 2  # all who were refused shared one


@pytest.mark.parametrize("owner", ["", "absent"])
async def test_a_closed_ingress_takes_nothing(owner: str) -> None:
    stream = Stream(owner)
    publisher = IngressPublisher(stream, "default")
    with pytest.raises(PublishUnknown) as closed:
        await put(publisher)
    assert closed.value.no_responders
    assert stream.tried == []
    stream.give("d2")  # it is not remembered as closed
    await put(publisher)
    assert stream.stored == ["hr.default.orders.d2.order.2"]


async def test_a_fence_that_somebody_else_uses_costs_another_try_and_no_reading() -> None:
    stream = Stream()
    publisher = IngressPublisher(stream, "default")
    await put(publisher)
    used = stream.tried[-1]
    assert used is not None
    stream.in_use.add(used.subject)
    for number in range(FENCES - 1):
        await put(publisher, number)
    assert stream.reads == 1
    # It went to the end of the line: it was met once.
    assert [fence.subject for fence in stream.tried if fence].count(used.subject) == 2


async def test_a_switch_that_does_not_settle_ends_with_nothing_stored() -> None:
    stream = Stream()
    stream.in_use.update(f"hr.default.orders.in._owner.{number}" for number in range(1, FENCES + 1))
    with pytest.raises(LaneFull):
        await put(IngressPublisher(stream, "default"), timeout_s=0.1)
    assert stream.stored == []


async def test_what_nobody_knows_is_told_and_its_fence_used_again() -> None:
    stream = Stream(silent=True)
    publisher = IngressPublisher(stream, "default")
    for number in range(FENCES + 3):
        with pytest.raises(PublishUnknown) as unknown:
            await put(publisher, number)
        assert not unknown.value.no_responders
    stream.silent = False
    await put(publisher)
    assert stream.reads == 1


async def test_an_owner_that_cannot_be_read_is_no_answer() -> None:
    class Mute(Stream):
        async def last_message(self, stream: str, subject: str, *, timeout_s: float = 2.0) -> Kept | None:
            raise ReadFailed("no answer")

    with pytest.raises(ReadFailed):
        await put(IngressPublisher(Mute(), "default"))


async def test_more_than_there_are_fences_wait_in_line() -> None:
    stream = Stream(gate=asyncio.Event())
    assert stream.gate is not None
    publisher = IngressPublisher(stream, "default")
    under_way = [asyncio.create_task(put(publisher, number, timeout_s=5.0)) for number in range(FENCES)]
    await eventually(lambda: len(stream.tried) == FENCES)
    hasty = asyncio.create_task(put(publisher, 100, timeout_s=0.05))
    gone, patient = (asyncio.create_task(put(publisher, number, timeout_s=5.0)) for number in (101, 102))
    with pytest.raises(LaneFull):
        await hasty
    gone.cancel()
    stream.gate.set()
    await asyncio.gather(*under_way, patient)
    assert len(stream.stored) == FENCES + 1
