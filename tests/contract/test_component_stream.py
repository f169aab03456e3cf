"""Contract of `headrace.ports.ComponentStream`: our own HTTP/2 framing and gRPC's library, each with each other.

Another implementation joins by one line in `CLIENTS` or `SERVERS`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headrace.api.component.v1 import component_pb2
from headrace.edge.grpc_channel import open_channel
from headrace.edge.grpc_component_stream import GrpcComponentStream
from headrace.edge.http2_component_stream import Http2ComponentStream
from headrace.ports import ComponentInput, ComponentStream, EndedLot, StreamClosed, StreamFull
from tests.contract.component_servers import (
    EchoComponent,
    bytes_over_grpc,
    bytes_over_http2,
    serve_over_grpc,
    serve_over_http2,
)
from tests.support.eventually import eventually


@dataclass
class Seen:
    """What a stream told its owner."""

    frames: list[list[component_pb2.Event]] = field(default_factory=list)
    causes: list[StreamClosed] = field(default_factory=list)

    @property
    def events(self) -> list[component_pb2.Event]:
        return [event for frame in self.frames for event in frame]

    @property
    def ended(self) -> list[int]:
        return [event.call for event in self.events if event.HasField("end")]


@asynccontextmanager
async def over_grpc_aio(address: str, seen: Seen) -> AsyncIterator[ComponentStream]:
    async with open_channel(address) as channel:
        stream = GrpcComponentStream(channel, on_events=seen.frames.append, on_closed=seen.causes.append)
        await stream.start()
        try:
            yield stream
        finally:
            await stream.close()


@asynccontextmanager
async def over_own_http2(address: str, seen: Seen) -> AsyncIterator[ComponentStream]:
    path = address.removeprefix("unix:")
    stream = Http2ComponentStream(path, on_events=seen.frames.append, on_closed=seen.causes.append)
    await stream.start()
    try:
        yield stream
    finally:
        await stream.close()


Opened = Callable[[str, Seen], AbstractAsyncContextManager[ComponentStream]]
CLIENTS: dict[str, Opened] = {"own": over_own_http2, "grpc": over_grpc_aio}
SERVERS: dict[str, tuple[Any, Any]] = {
    "own": (serve_over_http2, bytes_over_http2),
    "grpc": (serve_over_grpc, bytes_over_grpc),
}


@pytest.fixture(params=CLIENTS)
def opened(request: pytest.FixtureRequest) -> Opened:
    return CLIENTS[request.param]


@pytest.fixture(params=SERVERS)
def serve_component(request: pytest.FixtureRequest) -> Any:
    return SERVERS[request.param][0]


@pytest.fixture(params=SERVERS)
def serve_bytes(request: pytest.FixtureRequest) -> Any:
    return SERVERS[request.param][1]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, since a socket's path has at most 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="hr-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def given(call: int, body: bytes = b"{}", **changes: object) -> ComponentInput:
    values: dict[str, object] = {
        "call": call,
        "body": body,
        "content_type": "application/json",
        "headers": {"x-order": "é"},
        "message_id": f"{call:032x}",
        "execution_id": "e" * 32,
        "attempt": 1,
        "wants_reply": False,
        "timeout_ms": 1000,
        "traceparent": "",
        **changes,
    }
    return ComponentInput(**values)  # type: ignore[arg-type]


async def test_fields_reach_the_component_unchanged(serve_component: Any, opened: Opened, folder: Path) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        stream.send([given(7, b"\x00\xff", attempt=3, wants_reply=True, traceparent="00-" + "a" * 32)])
        await eventually(lambda: seen.ended == [7])
    (arrived,) = component.inputs
    assert (arrived.call, arrived.body, arrived.content_type) == (7, b"\x00\xff", "application/json")
    assert dict(arrived.headers) == {"x-order": "é"}
    assert (arrived.message_id, arrived.execution_id) == (f"{7:032x}", "e" * 32)
    assert (arrived.attempt, arrived.wants_reply, arrived.timeout_ms) == (3, True, 1000)
    assert arrived.traceparent == "00-" + "a" * 32


async def test_many_inputs_share_frames_and_keep_their_order(
    serve_component: Any, opened: Opened, folder: Path
) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        stream.send([given(0)])
        for first in range(1, 2001, 100):
            stream.send([given(first + offset, b"x" * 256) for offset in range(100)])
        await eventually(lambda: len(seen.ended) == 2001)
    assert seen.ended == list(range(2001))
    assert max(component.frames) <= 300
    assert len(component.frames) < 100, component.frames
    assert all(len(frame) >= 2 for frame in seen.frames)


async def test_one_input_leaves_at_once(serve_component: Any, opened: Opened, folder: Path) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        for call in range(20):
            stream.send([given(call)])
            await eventually(lambda: len(seen.ended) == len(component.inputs) > call, every_s=0.001)  # noqa: B023
    assert component.frames == [1] * 20


async def test_big_bodies_stay_below_the_message_limit(serve_component: Any, opened: Opened, folder: Path) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        body = bytes(range(256)) * 4096
        stream.send([given(call, body) for call in range(24)])
        stream.send([given(24, body * 9)])
        await eventually(lambda: len(seen.ended) == 25)
    assert max(component.frames) <= 4
    assert all(event.data.body[: len(body)] == body for event in seen.events if event.HasField("data"))


async def test_what_fits_no_frame_is_refused_and_the_stream_lives(
    serve_component: Any, opened: Opened, folder: Path
) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        with pytest.raises(ValueError, match="fit no frame"):
            stream.send([given(1), given(2, bytes(16 * 1024 * 1024))])
        stream.send([given(3)])
        await eventually(lambda: seen.ended == [3])


async def test_the_queue_is_bounded(serve_component: Any, opened: Opened, folder: Path) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        component.hold.clear()
        for call in range(4096):
            stream.send([given(call)])
        with pytest.raises(StreamFull):
            stream.send([given(4096)])
        component.hold.set()
        await eventually(lambda: len(seen.ended) == 4096)


async def test_bytes_that_wait_are_bounded_too(serve_component: Any, opened: Opened, folder: Path) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        component.hold.clear()
        for call in range(60):
            stream.send([given(call, bytes(1024 * 1024))])
        with pytest.raises(StreamFull):
            stream.send([given(call, bytes(1024 * 1024)) for call in range(60, 80)])
        component.hold.set()
        await eventually(lambda: len(seen.ended) == 60)
        stream.send([given(call, bytes(1024 * 1024)) for call in range(60, 150)])
        await eventually(lambda: len(seen.ended) == 150)


async def test_a_component_that_dies_ends_the_stream_once(serve_component: Any, opened: Opened, folder: Path) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, server), opened(address, seen) as stream:
        component.answers_pings = False
        waiting = asyncio.create_task(stream.ping(10.0))
        await server.stop(0)
        await eventually(lambda: len(seen.causes) == 1)
        with pytest.raises(StreamClosed):
            await waiting
        with pytest.raises(StreamClosed):
            stream.send([given(1)])
        with pytest.raises(StreamClosed):
            await stream.ping(1.0)
    assert len(seen.causes) == 1
    assert seen.causes[0].code in ("UNAVAILABLE", "CANCELLED")


@pytest.mark.parametrize(("body", "code"), [(b"abort", "INTERNAL"), (b"finish", "OK")])
async def test_the_cause_names_how_the_component_ended_it(
    serve_component: Any, opened: Opened, folder: Path, body: bytes, code: str
) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        stream.send([given(1, body)])
        await eventually(lambda: len(seen.causes) == 1)
    assert seen.causes[0].code == code
    if code == "INTERNAL":
        assert str(seen.causes[0]) == "told to abort"


async def test_events_for_unknown_calls_are_handed_over_and_harm_nothing(
    serve_component: Any, opened: Opened, folder: Path
) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        stream.send([given(1, b"unknown-call"), given(2)])
        await eventually(lambda: seen.ended == [1_000_001, 2])
        await stream.ping(5.0)


async def test_an_answer_that_cannot_be_parsed_ends_the_stream(serve_bytes: Any, opened: Opened, folder: Path) -> None:
    seen = Seen()
    async with serve_bytes(folder, b"\x0a\xff\xff\xff") as address, opened(address, seen) as stream:
        stream.send([given(1)])
        await eventually(lambda: len(seen.causes) == 1)
    assert seen.causes[0].code == "DATA_LOSS"
    assert seen.events == []


async def test_an_empty_or_unknown_answer_is_ignored(serve_bytes: Any, opened: Opened, folder: Path) -> None:
    seen = Seen()
    # Field 15, which this version does not know.
    async with serve_bytes(folder, b"\x7a\x01x") as address, opened(address, seen) as stream:
        stream.send([given(1)])
        with pytest.raises(TimeoutError):
            await stream.ping(0.2)
        assert seen.causes == []


async def test_a_handler_that_raises_does_not_end_the_stream(
    serve_component: Any, opened: Opened, folder: Path
) -> None:
    component = EchoComponent()
    calls: list[int] = []

    class Exploding(list[list[component_pb2.Event]]):
        def append(self, events: list[component_pb2.Event]) -> None:
            calls.append(len(events))
            raise RuntimeError("a bug of the owner")

    seen = Seen(frames=Exploding())
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        stream.send([given(1)])
        await eventually(lambda: len(calls) == 1)
        stream.send([given(2)])
        await eventually(lambda: len(calls) == 2)


async def test_bare_calls_go_and_end_in_lots_where_both_sides_take_them(
    serve_component: Any, opened: Opened, folder: Path
) -> None:
    component, seen = EchoComponent(), Seen()
    lots: list[EndedLot] = []
    inputs = [given(call, b"%d" % call if call % 3 else b"", headers={}, bare=call % 5 > 0) for call in range(60)]
    inputs.insert(5, given(60, b"60", headers={}, bare=True, content_type="text/plain"))
    inputs += [given(call, b"%d" % call, headers={}, bare=True) for call in range(61, 90)]
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        stream.component_takes_lots = True  # type: ignore[attr-defined]
        stream.send(inputs)
        await eventually(lambda: len(seen.ended) == 90)
        assert not lots
        stream.take_lots(lots.append)
        stream.send(inputs)
        # Those before the last that is not bare go as they did.
        await eventually(lambda: sum(len(lot.calls) for lot in lots) + len(seen.ended[90:]) == 90)
        assert sum(len(lot.calls) for lot in lots) >= 29
        await eventually(lambda: sum(event.data.body == b"late" for event in seen.events) == 1)
        component.breaks_lots = True
        stream.send(inputs)
        # Lists that do not fit each other are of no use, and seen as such; the stream goes on.
        await eventually(lambda: any(event.WhichOneof("kind") is None for event in seen.events))
        await stream.ping(timeout_s=5.0)
        assert not seen.causes
    first, second = component.inputs[:90], component.inputs[90:180]
    fields = ("call", "body", "content_type", "message_id", "execution_id", "attempt", "timeout_ms", "wants_reply")
    for name in fields:
        assert [getattr(item, name) for item in first] == [getattr(item, name) for item in second], name
    ended = {call: body for lot in lots if lot.bodies for call, body in zip(lot.calls, lot.bodies, strict=True)}
    without = [call for lot in lots if not lot.bodies for call in lot.calls]
    assert set(without) <= {call for call in range(60) if call % 3 == 0}
    assert ended.items() <= {call: b"%d" % call for call in range(90)}.items()
    assert all(set(lot.started_at_mono_ns) == {1} and set(lot.ended_at_mono_ns) == {2} for lot in lots)


async def test_ping_answers_or_times_out(serve_component: Any, opened: Opened, folder: Path) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        await stream.ping(5.0)
        await asyncio.gather(*(stream.ping(5.0) for _ in range(10)))
        component.answers_pings = False
        with pytest.raises(TimeoutError):
            await stream.ping(0.05)
        component.answers_pings = True
        await stream.ping(5.0)
    assert component.inputs == []


async def test_close_sends_what_waits_and_half_closes(serve_component: Any, opened: Opened, folder: Path) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        stream.send([given(call) for call in range(700)])
        await stream.close()
        assert seen.ended == list(range(700))
        assert component.half_closed.is_set()
        with pytest.raises(StreamClosed):
            stream.send([given(1)])
    assert seen.causes == []


async def test_close_does_not_wait_for_ever_on_a_component_that_hangs(
    serve_component: Any, opened: Opened, folder: Path
) -> None:
    component, seen = EchoComponent(), Seen()
    async with serve_component(folder, component) as (address, _), opened(address, seen) as stream:
        component.hold.clear()
        stream.send([given(call, bytes(500_000)) for call in range(30)])
        async with asyncio.timeout(3.0):
            await stream.close(timeout_s=0.2)
    assert seen.causes == []


async def test_start_without_a_component_ends_in_an_error(folder: Path) -> None:
    async with open_channel(f"unix:{folder}/nobody.sock") as channel:
        seen = Seen()
        told: dict[str, Any] = {"on_events": seen.frames.append, "on_closed": seen.causes.append}
        for stream in (GrpcComponentStream(channel, **told), Http2ComponentStream(f"{folder}/nobody.sock", **told)):
            with pytest.raises(StreamClosed):
                await stream.start(timeout_s=0.3)
            await stream.close()
    assert seen.causes == []
