"""An effect that can be counted from outside: one line per message, whole or not at all, then the reply."""

import os

import msgspec

from headrace.sdk import Component, Context

REVISION = "effect-r1"

component = Component()
opened: dict[str, int] = {}


@component.init
def open_file(config: dict[str, str]) -> None:
    opened["file"] = os.open(config["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


@component.action
async def effect(order: dict, ctx: Context) -> None:  # type: ignore[type-arg]
    message = ctx.message
    line = {"id": order["id"], "revision": REVISION, "message_id": message.id, "attempt": message.attempt}
    os.write(opened["file"], msgspec.json.encode(line) + b"\n")
    await ctx.reply({"id": order["id"], "revision": REVISION})


@component.close
def close_file() -> None:
    os.close(opened.pop("file"))
