"""A component process: its socket, its stream, and its end."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
import pytest

from headrace.api.component.v1 import component_pb2 as pb
from tests.support.eventually import eventually
from tests.support.served_component import events_until_ended, message, served


@pytest.fixture(params=[False, True], ids=["main-socket", "own-socket"])
def own_socket(request: pytest.FixtureRequest) -> bool:
    """Whether Process is called by gRPC's client on gRPC's server, or on our own."""
    return bool(request.param)


async def test_a_whole_life(own_socket: bool, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        shook = await it.stub.Handshake(pb.HandshakeRequest(protocol_version=1), timeout=5)
        assert shook.protocol_version == 1
        assert {f.name: f.kind for f in shook.functions} == {"work": 1, "plain": 1, "echo": 2, "poll": 3}
        with pytest.raises(grpc.aio.AioRpcError) as early:
            await it.call_process().read()
        assert early.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await it.init("work", {"a": 1})
        stream = it.call_process()
        await stream.write(pb.ProcessRequest(ping=pb.Ping(nonce=7)))
        assert (await stream.read()).pong.nonce == 7
        before = time.monotonic_ns()
        await stream.write(pb.ProcessRequest(inputs=[message(1, {"n": 5})]))
        events = await events_until_ended(stream, 1)
        assert json.loads(events[0].data.body) == {"n": 5, "config": {"a": 1}}
        end = events[1].end
        assert before < end.started_at_mono_ns < end.ended_at_mono_ns < time.monotonic_ns()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        await it.stub.Shutdown(pb.ShutdownRequest(reason="test"), timeout=5)
        assert await asyncio.to_thread(it.process.wait, 5) == 0
        assert "goodbye" in it.output.read_text()


async def test_one_bad_call_harms_no_other(own_socket: bool, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        await it.init("work")
        stream = it.call_process()
        doing = [{"do": "exit"}, {"do": "sleep", "s": 0.2}, b"{", {"do": "cancel myself"}, b"[]", {"n": 9}]
        inputs = [message(n, value) for n, value in enumerate(doing)]
        inputs.append(message(6, {"do": "sleep", "s": 30}, timeout_ms=50))
        await stream.write(pb.ProcessRequest(inputs=inputs))
        events = await events_until_ended(stream, 7)
        errors = {event.call: event.error.code for event in events if event.HasField("error")}
        assert errors == {0: "COMPONENT_ERROR", 2: "BAD_INPUT", 4: "BAD_INPUT", 6: "TIMEOUT"}
        done = sorted(event.call for event in events if event.HasField("data"))
        assert done == [1, 3, 5]
        ends = [event.call for event in events if event.HasField("end")]
        assert sorted(ends) == list(range(7))
        assert ends.index(5) < ends.index(1), "a call that waits holds up no other"
        assert it.process.poll() is None


async def test_late_emits_and_emits_of_other_threads_leave(own_socket: bool, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        await it.init("work")
        stream = it.call_process()
        await stream.write(pb.ProcessRequest(inputs=[message(1, {"do": "late", "n": 1}), message(2, {"do": "thread"})]))
        events = await events_until_ended(stream, 2)
        async with asyncio.timeout(5):
            while sum(event.HasField("data") for event in events) < 4:
                events.extend((await stream.read()).events)
        bodies = [(event.call, event.data.body) for event in events if event.HasField("data")]
        assert (1, b'{"late":1}') in bodies
        assert (2, b'{"from":"thread"}') in bodies


async def test_plain_functions_share_threads_until_they_block(own_socket: bool, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        await it.init("plain")
        stream = it.call_process()
        started = time.monotonic()
        inputs = [message(n, {"s": 0.2 if n % 2 else 0}) for n in range(20)]
        await stream.write(pb.ProcessRequest(inputs=inputs))
        events = await events_until_ended(stream, 20)
        assert sorted(event.call for event in events if event.HasField("data")) == list(range(20))
        assert time.monotonic() - started < 1.5, "ten calls of 0.2 s each went on side by side"
        await stream.write(pb.ProcessRequest(inputs=[message(n, {}) for n in range(100, 300)]))
        await stream.done_writing()
        await events_until_ended(stream, 200)
        assert await stream.read() is grpc.aio.EOF


@pytest.mark.parametrize("function", ["echo", "plain"])
async def test_ten_thousand_messages(own_socket: bool, function: str, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        await it.init(function)
        stream = it.call_process()
        total, a_frame = 10_000, 100
        body = json.dumps({"text": "x" * 240}).encode()
        seen: set[int] = set()
        room = asyncio.Semaphore(4)

        async def write() -> None:
            for first in range(0, total, a_frame):
                await room.acquire()
                await stream.write(pb.ProcessRequest(inputs=[message(first + n, body) for n in range(a_frame)]))

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(write())
            started, ended = time.monotonic(), 0
            while ended < total:
                for event in (await stream.read()).events:
                    if event.HasField("data"):
                        seen.add(event.call)
                    elif event.HasField("end"):
                        ended += 1
                        if ended % a_frame == 0:
                            room.release()
        print(f"{function}: {total / (time.monotonic() - started):.0f} messages/s")
        assert seen == set(range(total))


async def test_large_bodies_of_one_turn_are_split_over_frames(own_socket: bool, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        await it.init("echo")
        stream = it.call_process()
        body = b"x" * 500_000
        await stream.write(pb.ProcessRequest(inputs=[message(n, body) for n in range(30)]))
        frames = 0
        ended = 0
        async with asyncio.timeout(10):
            while ended < 30:
                frame = await stream.read()
                frames += 1
                ended += sum(event.HasField("end") for event in frame.events)
        assert frames >= 8


async def test_listen_stream(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("poll")
        stream = it.stub.Listen()
        await stream.write(pb.ListenRequest(start=pb.ListenStart(max_unresolved=4)))
        for n in range(1, 4):
            frame = await asyncio.wait_for(stream.read(), 5)
            assert [(emit.emit, emit.source_id) for emit in frame.emits] == [(n, str(n))]
            await stream.write(pb.ListenRequest(resolved=pb.ListenResolved(emit=n)))
        await asyncio.wait_for(stream.read(), 5)
        await stream.write(pb.ListenRequest(drain=pb.ListenDrain()))
        await stream.write(pb.ListenRequest(resolved=pb.ListenResolved(emit=4)))
        assert await asyncio.wait_for(stream.read(), 5) is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_listener_answers_pings_and_refuses_calls(own_socket: bool, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        await it.init("poll")
        stream = it.call_process()
        await stream.write(pb.ProcessRequest(ping=pb.Ping(nonce=3), inputs=[message(1, {})]))
        events: list[Any] = []
        pongs: list[int] = []
        async with asyncio.timeout(5):
            while not pongs or not events:
                frame = await stream.read()
                pongs += [frame.pong.nonce] if frame.HasField("pong") else []
                events += frame.events
        assert (pongs, events[0].error.code) == ([3], "NOT_CALLABLE")


async def test_logs_are_lines(own_socket: bool, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        await it.init("work")
        stream = it.call_process()
        await stream.write(pb.ProcessRequest(inputs=[message(1, {"do": "log"})]))
        await events_until_ended(stream, 1)
        lines = it.output.read_text().splitlines()
        call = {"execution_id": "e", "message_id": "m1"}
        assert [json.loads(line) for line in lines] == [
            {"level": "info", "message": "priced", "fields": {"sku": "A"}, **call},
            {"level": "warning", "message": "careful", "fields": {"logger": "lib"}, **call},
            {"level": "info", "message": "plain", **call},
        ]


async def test_init_that_fails_says_why(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await it.init("work", {"fail": True})
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "ValueError: no such account" in str(failed.value.details())
        with pytest.raises(grpc.aio.AioRpcError, match="it has: echo, plain, poll, work"):
            await it.init("wrk")


async def test_a_closed_stream_cancels_its_calls(own_socket: bool, tmp_path: Path) -> None:
    async with served(tmp_path / "b", own_socket=own_socket) as it:
        await it.init("work")
        stream = it.call_process()
        await stream.write(pb.ProcessRequest(inputs=[message(1, {"do": "sleep", "s": 60})]))
        await eventually(lambda: "sleeping" in it.output.read_text())
        stream.cancel()
        again = it.call_process()
        await again.write(pb.ProcessRequest(inputs=[message(1, {"n": 1})]))
        await events_until_ended(again, 1)
