"""A component served by the Python SDK in a process of its own, and calls to it by hand."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.api.component.v1 import component_pb2 as pb
from headrace.api.component.v1 import component_pb2_grpc
from headrace.edge.readiness import read_ready

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

@component.close
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
    call_process: Any
    """A new call of Process, on the main socket or on its own."""

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
async def served(
    folder: Path, code: str = CODE, entrypoint: str = "component:component", *, own_socket: bool = False
) -> AsyncIterator[Served]:
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
        for_process = f"unix:{socket}.process" if own_socket else f"unix:{socket}"
        async with (
            grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel,
            grpc.aio.insecure_channel(for_process, options=options) as other,
        ):
            stub = component_pb2_grpc.ComponentServiceStub(channel)  # type: ignore[no-untyped-call]
            call_process = component_pb2_grpc.ComponentServiceStub(other).Process  # type: ignore[no-untyped-call]
            yield Served(process, stub, output, call_process)
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
