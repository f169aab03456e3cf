"""Writes down how often it is loaded, initialised, listened to and called, per process, as seen from inside.

The number of loads is kept outside the module, so that loading it twice in one process would show.
"""

import asyncio
import os
import time

import msgspec

from headrace.sdk import Component, Context

LOADS = "COUNTED_LOADS"
os.environ[LOADS] = str(int(os.environ.get(LOADS, "0")) + 1)

component = Component()
opened: dict[str, int] = {}
counts = {"inits": 0, "listens": 0, "calls": 0}


def note(event: str) -> None:
    line = {"event": event, "pid": os.getpid(), "loads": int(os.environ[LOADS]), **counts}
    os.write(opened["file"], msgspec.json.encode(line) + b"\n")


@component.init
def init(config: dict) -> None:  # type: ignore[type-arg]
    opened["file"] = os.open(config["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    counts["inits"] += 1
    note("init")


@component.trigger
async def tick(tick: dict) -> dict:  # type: ignore[type-arg]
    counts["calls"] += 1
    note("call")
    return tick


@component.listener
async def listen(ctx: Context) -> None:
    counts["listens"] += 1
    note("listen")
    while not ctx.draining.is_set():
        counts["calls"] += 1
        now = time.time_ns() // 1_000_000
        await ctx.emit({"instant": f"{now}", "unix_ms": now}, source_id=f"{os.getpid()}-{counts['calls']}")
        note("call")
        await asyncio.sleep(0.01)  # tidy: pace
