"""Notes each tick: one line in a file. What the process did before is kept in the module, not in the messages."""

import os
from pathlib import Path

import msgspec

from headrace.sdk import Component, Context

component = Component()
opened: dict[str, int] = {}
written = 0


class Tick(msgspec.Struct):
    instant: str
    unix_ms: int


@component.init
def open_file(config: dict[str, str]) -> None:
    path = Path(config["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    opened["file"] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


@component.action
async def write(tick: Tick, ctx: Context) -> None:
    global written
    written += 1
    line = {
        "instant": tick.instant,
        "unix_ms": tick.unix_ms,
        "message_id": ctx.message.id,
        "process": os.getpid(),
        "nth_of_process": written,
    }
    # One write of one line: whole or not at all, and kept by the system when this process is killed.
    os.write(opened["file"], msgspec.json.encode(line) + b"\n")


@component.close
def close_file() -> None:
    os.close(opened.pop("file"))
