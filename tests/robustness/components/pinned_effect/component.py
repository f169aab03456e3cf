"""An effect that can be counted from outside, with every revision that its message met, then the reply."""

import os
from typing import Any

import msgspec

from headrace.sdk import Component, Context

REVISION = "r0"

component = Component()
opened: dict[str, int] = {}


@component.init
def open_file(config: dict[str, str]) -> None:
    opened["file"] = os.open(config["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


@component.action
async def effect(order: dict[str, Any], ctx: Context) -> None:
    message = ctx.message
    touched = [*order.get("touched", []), [ctx.step.step, ctx.step.deployment, REVISION]]
    line = {"id": order["id"], "revision": REVISION, "touched": touched}
    line |= {"message_id": message.id, "attempt": message.attempt}
    os.write(opened["file"], msgspec.json.encode(line) + b"\n")
    await ctx.reply({"id": order["id"], "revision": REVISION, "touched": touched})


@component.close
def close_file() -> None:
    os.close(opened.pop("file"))
