"""The same request id gets the same answer, and the work is done once, also when a process died over it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from google.protobuf import wrappers_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.api.flow.v1 import flow_pb2
from headrace.edge.request_book import MAX_REQUEST_ID, RequestBook, Ticket
from headrace.model.errors import AlreadyExists, Conflict, HeadraceError, InvalidInput, Unavailable
from tests.support.memory_bucket import MemoryBucket

Answer = wrappers_pb2.StringValue


class Killed(BaseException):
    """The process ends here."""


@dataclass
class World:
    """A flow that may be created once; who created it is written with it."""

    marks: list[str] = field(default_factory=list)
    runs: int = 0

    async def create(self, ticket: Ticket, *, die: str = "") -> Answer:
        self.runs += 1
        if die == "before":
            raise Killed
        if ticket.mark and ticket.mark in self.marks:
            return Answer(value=f"flow {self.marks.index(ticket.mark)}")
        if die == "unavailable":
            raise Unavailable("the broker is away")
        self.marks.append(ticket.mark)
        if die == "after":
            raise Killed
        return Answer(value=f"flow {len(self.marks) - 1}")


def request(name: str = "orders", request_id: str = "one") -> flow_pb2.CreateFlowRequest:
    return flow_pb2.CreateFlowRequest(flow_id=name, request_id=request_id)


async def test_a_repeat_gets_the_first_answer_and_another_request_is_refused() -> None:
    bucket, world = MemoryBucket("requests"), World()
    book = RequestBook(bucket)
    first = await book.once("Create", request(), Answer, world.create)
    assert await book.once("Create", request(), Answer, world.create) == first
    assert await RequestBook(bucket).once("Create", request(), Answer, world.create) == first
    assert world.runs == 1
    with pytest.raises(InvalidInput) as caught:
        await book.once("Create", request("other"), Answer, world.create)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    await book.once("Delete", request("other"), Answer, world.create)  # ids are of a method
    await book.once("Create", request(request_id=""), Answer, world.create)
    await book.once("Create", request(request_id=""), Answer, world.create)
    assert world.runs == 4
    with pytest.raises(InvalidInput):
        await book.once("Create", request(request_id="x" * (MAX_REQUEST_ID + 1)), Answer, world.create)


async def test_what_was_refused_may_be_asked_again_under_the_same_id() -> None:
    book = RequestBook(MemoryBucket("requests"))

    async def refused(ticket: Ticket) -> Answer:
        raise AlreadyExists("there is one")

    with pytest.raises(AlreadyExists):
        await book.once("Create", request(), Answer, refused)
    assert (await book.once("Create", request("another"), Answer, World().create)).value == "flow 0"


async def test_repeats_that_come_meanwhile_wait_for_the_first() -> None:
    book, world, gate = RequestBook(MemoryBucket("requests")), World(), asyncio.Event()

    async def slow(ticket: Ticket) -> Answer:
        await gate.wait()
        return await world.create(ticket)

    calls = [asyncio.create_task(book.once("Create", request(), Answer, slow)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    assert {answer.value for answer in await asyncio.gather(*calls)} == {"flow 0"}
    assert world.runs == 1


async def test_a_call_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.edge.request_book.WAIT_S", 0.1)
    book, begun, gate = RequestBook(MemoryBucket("requests")), asyncio.Event(), asyncio.Event()

    async def stuck(ticket: Ticket) -> Answer:
        begun.set()
        await gate.wait()
        return Answer()

    first = asyncio.create_task(book.once("Create", request(), Answer, stuck))
    await begun.wait()
    with pytest.raises(Conflict) as caught:
        await book.once("Create", request(), Answer, stuck)
    assert caught.value.reason == "REQUEST_IN_PROGRESS"
    gate.set()
    await first


@given(deaths=st.lists(st.sampled_from(["before", "after", "unavailable", ""]), max_size=5))
@settings(deadline=None)
def test_processes_that_die_over_it_do_not_make_it_happen_twice(deaths: list[str]) -> None:
    async def story() -> None:
        bucket, world = MemoryBucket("requests"), World()
        answers = []
        for death in [*deaths, ""]:
            book = RequestBook(bucket)  # of a new process
            try:
                work = lambda ticket, death=death: world.create(ticket, die=death)  # noqa: E731
                answers.append((await book.once("Create", request(), Answer, work)).value)
            except (Killed, HeadraceError):
                pass
        assert len(world.marks) == 1
        assert set(answers) == {"flow 0"}

    asyncio.run(story())


async def test_a_note_outlives_the_process_that_wrote_it() -> None:
    bucket, notes = MemoryBucket("requests"), []

    async def work(ticket: Ticket) -> Answer:
        notes.append((ticket.note, ticket.repeated))
        if not ticket.note:
            await ticket.write("through 17")
            raise Killed
        return Answer(value=ticket.note)

    with pytest.raises(Killed):
        await RequestBook(bucket).once("Replay", request(), Answer, work)
    assert (await RequestBook(bucket).once("Replay", request(), Answer, work)).value == "through 17"
    assert notes == [("", False), ("through 17", True)]
