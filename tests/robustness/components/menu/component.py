"""A component that does what its input says, none of it good. What it eats is bounded by itself as well: the machine
that runs the tests has others on it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from headrace.sdk import Component, Context

component = Component()
CRIMES: dict[str, Callable[[Context], Awaitable[None] | None]] = {}
CEILING_BYTES = 600 * 1024 * 1024
HOARD: list[bytes] = []


def crime(function: Callable[[Context], Awaitable[None] | None]) -> None:
    CRIMES[function.__name__] = function


@component.action
async def act(body: bytes, ctx: Context) -> None:
    name = ctx.message.headers.get("crime", "")
    if name in CRIMES:
        done = CRIMES[name](ctx)
        if done is not None:
            await done
    await ctx.emit(body)


@crime
def fill_memory(ctx: Context) -> None:
    while sum(map(len, HOARD)) < CEILING_BYTES:
        HOARD.append(os.urandom(1024) * 4096)


@crime
async def leak_memory(ctx: Context) -> None:
    while sum(map(len, HOARD)) < CEILING_BYTES:
        HOARD.append(os.urandom(1024) * 4096)
        await asyncio.sleep(0.01)  # tidy: pace


def spawn_sleeper(*, own_session: bool) -> None:
    subprocess.Popen(["sleep", "61"], env={}, start_new_session=own_session)


@crime
async def fork_without_end(ctx: Context) -> None:
    """Half of them leave the group and the session; all of them drop their environment."""
    for number in range(300):
        spawn_sleeper(own_session=number % 2 == 0)
        await asyncio.sleep(0.001)  # tidy: pace
    await asyncio.sleep(60)  # tidy: pace


@crime
def spin_and_ignore_sigterm(ctx: Context) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pass


@crime
def block_the_loop(ctx: Context) -> None:
    time.sleep(60)  # tidy: pace


@crime
async def never_end(ctx: Context) -> None:
    """Shrugs off its time limit."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            await asyncio.sleep(60)  # tidy: pace
        except asyncio.CancelledError:
            continue


@crime
def close_the_socket(ctx: Context) -> None:
    os.closerange(3, 512)


@crime
def corrupt_the_socket(ctx: Context) -> None:
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), b"\xff\x00 no frame at all \x00" * 200)
        except OSError:
            continue


@crime
async def answer_unknown_calls(ctx: Context) -> None:
    for call in (0, 2**63, 999_999_999):
        ctx._sink.data(call, b"who?", "", None, "")
        ctx._sink.end(call, 1, 2)


@crime
async def answer_twice(ctx: Context) -> None:
    ctx._sink.data(ctx.call, b"early", "", None, "")
    ctx._sink.end(ctx.call, 1, 2)
    await asyncio.sleep(0.05)  # tidy: pace
    ctx._sink.end(ctx.call, 1, 2)
    ctx._sink.error(ctx.call, "TOO_LATE", "again", True, 500)


@crime
async def emit_millions(ctx: Context) -> None:
    """Past the SDK's own limit, straight into the stream, as a component in another language might."""
    for _ in range(1000):
        for _ in range(10_000):
            ctx._sink.data(ctx.call, b"x", "", None, "")
        await asyncio.sleep(0.02)  # tidy: pace


@crime
async def emit_after_end(ctx: Context) -> None:
    """For ever, and for each call it has ever had."""
    call, sink = ctx.call, ctx._sink

    async def go_on() -> None:
        while True:
            for _ in range(5_000):
                sink.data(call, b"late", "", None, "")
            await asyncio.sleep(0.02)  # tidy: pace

    HOARD_TASKS.append(asyncio.get_running_loop().create_task(go_on()))


HOARD_TASKS: list[asyncio.Task[None]] = []


@crime
async def emit_100_mb(ctx: Context) -> None:
    await ctx.emit(bytes(100 * 1024 * 1024 + 1))


@crime
async def emit_100_mb_raw(ctx: Context) -> None:
    ctx._sink.data(ctx.call, bytes(100 * 1024 * 1024), "", None, "")


@crime
async def emit_100_mb_in_pieces(ctx: Context) -> None:
    for _ in range(250):
        ctx._sink.data(ctx.call, bytes(400 * 1024), "", None, "")
        await asyncio.sleep(0)


@crime
async def emit_huge_headers(ctx: Context) -> None:
    ctx._sink.data(ctx.call, b"x", "", {f"h{number}": "v" * 1000 for number in range(200)}, "")


@crime
def flood_logs(ctx: Context) -> None:
    """A thread of its own, for two seconds, some hundred megabytes if nobody holds it up."""

    def flood() -> None:
        until = time.monotonic() + 2
        line = "x" * 200 + "\n"
        while time.monotonic() < until:
            sys.stdout.write(line * 1000)

    threading.Thread(target=flood, daemon=True).start()


@crime
def log_deep_json(ctx: Context) -> None:
    print('{"message": "deep", "fields": ' + "[" * 6000)


@crime
def delete_own_directory(ctx: Context) -> None:
    shutil.rmtree(Path(__file__).parent)
    os._exit(7)


@crime
def alter_own_code(ctx: Context) -> None:
    path = Path(__file__)
    path.chmod(0o644)
    path.write_text(path.read_text().replace("await ctx.emit(body)", "await ctx.emit(b'altered')"))
    os._exit(8)


@crime
async def return_deep_json(ctx: Context) -> None:
    await ctx.emit(b"[" * 200_000, content_type="application/json")
    await ctx.emit(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, content_type="application/json")


@crime
def segfault(ctx: Context) -> None:
    ctypes.string_at(0)


@crime
def abort(ctx: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
