"""A component process: its socket, its stream, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
import psutil
import pytest

from headrace.api.component.v1 import component_pb2 as pb
from headrace.api.component.v1 import component_pb2_grpc
from headrace.edge.readiness import read_ready
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]

CODE = """
import asyncio, logging, os, sys, time
from headrace.sdk import Component, Context, ComponentError, EmitRefused
component = Component()
started = []

@component.init
async def init(config: dict):
    if config.get("fail"):
        raise ValueError("no such account")
    if config.get("exit"):
        os._exit(9)
    started.append(config)

@component.action
async def work(value: dict, ctx: Context):
    what = value.get("do")
    if what == "sleep":
        print("sleeping", flush=True)
        await asyncio.sleep(value["s"])  # tidy: pace
    elif what == "cancel myself":
        asyncio.current_task().cancel()
    elif what == "exit":
        sys.exit(1)
    elif what == "late":
        asyncio.get_running_loop().call_later(0.02, ctx.emit, {"late": value["n"]})
    elif what == "thread":
        import threading
        thread = threading.Thread(target=ctx.emit, args=({"from": "thread"},))
        thread.start()
        await asyncio.sleep(0.05)  # tidy: pace
    elif what == "log":
        ctx.log.info("priced", sku="A")
        logging.getLogger("lib").warning("careful")
        print("plain")
    return {"n": value.get("n"), "config": started[0]}

@component.action
def plain(value: dict, ctx: Context):
    time.sleep(value.get("s", 0))  # tidy: pace
    return value

@component.trigger
async def echo(body: bytes, ctx: Context):
    return body

@component.listener
async def poll(ctx: Context):
    n = 0
    while not ctx.draining.is_set():
        n += 1
        try:
            await ctx.emit({"n": n}, source_id=str(n))
        except EmitRefused:
            return

@component.shutdown
async def stop():
    print("goodbye", flush=True)
"""


def call_number(event: Any) -> int:
    return int(event.call)


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    stub: Any
    output: Path

    async def init(self, function: str, config: dict[str, Any] | None = None) -> None:
        await self.stub.Init(pb.InitRequest(function=function, config_json=json.dumps(config or {})), timeout=5)


def start_component(
    folder: Path, entrypoint: str, environment: dict[str, str], output: Path, ready: int
) -> subprocess.Popen[bytes]:
    with output.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "headrace.sdk.serve", "--bundle", str(folder), "--entrypoint", entrypoint],
            env=environment, pass_fds=[ready], stdout=out, stderr=out, cwd=ROOT,
        )  # fmt: skip


@asynccontextmanager
async def served(folder: Path, code: str = CODE, entrypoint: str = "component:component") -> AsyncIterator[Served]:
    folder.mkdir(exist_ok=True)
    (folder / "component.py").write_text(code)
    socket = folder / "c.sock"
    read_end, write_end = os.pipe()
    environment = {
        **os.environ,
        "HEADRACE_COMPONENT_SOCKET": str(socket),
        "HEADRACE_READY_FD": str(write_end),
        "HEADRACE_PARENT_PID": str(os.getpid()),
    }
    output = folder / "output"
    process = start_component(folder, entrypoint, environment, output, write_end)
    os.close(write_end)
    try:
        assert (await read_ready(read_end, 15))["address"] == f"unix:{socket}"
        options = [("grpc.max_receive_message_length", 16 << 20)]
        async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
            yield Served(process, component_pb2_grpc.ComponentServiceStub(channel), output)  # type: ignore[no-untyped-call]
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, 5)


def message(call: int, value: Any, timeout_ms: int = 0) -> Any:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return pb.Input(call=call, body=body, message_id=f"m{call}", execution_id="e", attempt=1, timeout_ms=timeout_ms)


async def events_until_ended(stream: Any, calls: int, limit_s: float = 10) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(limit_s):
        while sum(event.HasField("end") for event in found) < calls:
            frame = await stream.read()
            assert frame is not grpc.aio.EOF, "the stream ended early"
            found.extend(frame.events)
    return found


async def test_a_whole_life(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        shook = await it.stub.Handshake(pb.HandshakeRequest(protocol_version=1), timeout=5)
        assert shook.protocol_version == 1
        assert {f.name: f.kind for f in shook.functions} == {"work": 1, "plain": 1, "echo": 2, "poll": 3}
        with pytest.raises(grpc.aio.AioRpcError) as early:
            await it.stub.Process().read()
        assert early.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await it.init("work", {"a": 1})
        stream = it.stub.Process()
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


async def test_one_bad_call_harms_no_other(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("work")
        stream = it.stub.Process()
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


async def test_late_emits_and_emits_of_other_threads_leave(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("work")
        stream = it.stub.Process()
        await stream.write(pb.ProcessRequest(inputs=[message(1, {"do": "late", "n": 1}), message(2, {"do": "thread"})]))
        events = await events_until_ended(stream, 2)
        async with asyncio.timeout(5):
            while sum(event.HasField("data") for event in events) < 4:
                events.extend((await stream.read()).events)
        bodies = [(event.call, event.data.body) for event in events if event.HasField("data")]
        assert (1, b'{"late":1}') in bodies
        assert (2, b'{"from":"thread"}') in bodies


async def test_plain_functions_share_threads_until_they_block(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("plain")
        stream = it.stub.Process()
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
async def test_ten_thousand_messages(function: str, tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init(function)
        stream = it.stub.Process()
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


async def test_large_bodies_of_one_turn_are_split_over_frames(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("echo")
        stream = it.stub.Process()
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


async def test_a_listener_answers_pings_and_refuses_calls(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("poll")
        stream = it.stub.Process()
        await stream.write(pb.ProcessRequest(ping=pb.Ping(nonce=3), inputs=[message(1, {})]))
        events: list[Any] = []
        pongs: list[int] = []
        async with asyncio.timeout(5):
            while not pongs or not events:
                frame = await stream.read()
                pongs += [frame.pong.nonce] if frame.HasField("pong") else []
                events += frame.events
        assert (pongs, events[0].error.code) == ([3], "NOT_CALLABLE")


async def test_logs_are_lines(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("work")
        stream = it.stub.Process()
        await stream.write(pb.ProcessRequest(inputs=[message(1, {"do": "log"})]))
        await events_until_ended(stream, 1)
        lines = it.output.read_text().splitlines()
        assert json.loads(lines[0]) == {
            "level": "info", "message": "priced", "fields": {"sku": "A"}, "execution_id": "e", "message_id": "m1",
        }  # fmt: skip
        assert json.loads(lines[1]) == {"level": "warning", "message": "careful", "fields": {"logger": "lib"}}
        assert lines[2] == "plain"


async def test_init_that_fails_says_why(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await it.init("work", {"fail": True})
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "ValueError: no such account" in str(failed.value.details())
        with pytest.raises(grpc.aio.AioRpcError, match="it has: echo, plain, poll, work"):
            await it.init("wrk")


async def test_a_closed_stream_cancels_its_calls(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("work")
        stream = it.stub.Process()
        await stream.write(pb.ProcessRequest(inputs=[message(1, {"do": "sleep", "s": 60})]))
        await eventually(lambda: "sleeping" in it.output.read_text())
        stream.cancel()
        again = it.stub.Process()
        await again.write(pb.ProcessRequest(inputs=[message(1, {"n": 1})]))
        await events_until_ended(again, 1)


@pytest.mark.parametrize(
    ("code", "entrypoint", "last_line"),
    [
        ("import nowhere_to_be_found", "component:component", "ModuleNotFoundError: No module named 'nowhere"),
        ("x = = 1", "component:component", "SyntaxError"),
        ("raise SystemExit('stop')", "component:component", "SystemExit: stop"),
        (CODE, "component:other", "'other' is nothing, not a headrace.sdk.Component"),
        (CODE, "missing:component", "the bundle has no module 'missing'"),
        ("from headrace.sdk import Component\ncomponent = Component()", "component:component", "has no function"),
    ],
)
def test_code_that_does_not_load_ends_with_status_3(code: str, entrypoint: str, last_line: str, tmp_path: Path) -> None:
    (tmp_path / "component.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "headrace.sdk.serve", "--bundle", str(tmp_path), "--entrypoint", entrypoint],
        env={**os.environ, "HEADRACE_COMPONENT_SOCKET": str(tmp_path / "s")},
        capture_output=True, text=True, timeout=20, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 3
    assert last_line in done.stderr.splitlines()[-1]
    assert not (tmp_path / "s").exists()


async def test_sigterm_runs_the_shutdown_hook(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("work")
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 5) == 0
        assert "goodbye" in it.output.read_text()


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-m", "headrace.sdk.serve", "--bundle", sys.argv[1], "--entrypoint", "component:component"],
    env={**os.environ, "HEADRACE_PARENT_PID": str(os.getpid()), "HEADRACE_COMPONENT_SOCKET": sys.argv[2]},
)
print(child.pid, flush=True)
time.sleep(60)  # tidy: pace
"""


def start_parent(folder: Path, socket: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PARENT, str(folder), str(socket)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


async def test_the_component_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "component.py").write_text(CODE)
    socket = tmp_path / "s"
    parent = start_parent(tmp_path, socket)
    try:
        assert parent.stdout is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        await eventually(lambda: socket.exists())
    finally:
        parent.kill()
        await asyncio.to_thread(parent.wait, 5)
        assert parent.stdout is not None
        parent.stdout.close()

    def gone() -> bool:
        return not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE

    await eventually(gone)


def test_describe(tmp_path: Path) -> None:
    (tmp_path / "component.yaml").write_text("name: a\nfunctions: {work: {kind: action}}\n")
    (tmp_path / "component.py").write_text("print('noise')\n" + CODE)
    done = subprocess.run(
        [sys.executable, "-m", "headrace.sdk.describe", str(tmp_path)], capture_output=True, timeout=20, cwd=ROOT
    )
    described = json.loads(done.stdout)
    assert described["work"] == {"kind": "action", "in": {"type": "object"}, "out": None}
    assert described["poll"] == {"kind": "listener", "in": None, "out": None}
