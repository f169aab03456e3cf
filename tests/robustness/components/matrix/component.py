"""The steps of the fault matrix's flow. What they do can be counted from outside: lines of a file, whole or not at all.

take:  passes an order on
split: two outputs to each receiver, or a failure (`do` is `fail`), or one that passes (`flaky`)
side:  writes its own name into the part and passes it on
join:  one effect for each part and side
keep:  three outputs, in order
sink:  one effect for each, and the reply at the last
"""

import asyncio
import os
import time
from typing import Any

import msgspec

from headrace.sdk import Component, ComponentError, Context

component = Component()
opened: dict[str, int] = {}


@component.init
def open_file(config: dict[str, str]) -> None:
    if "path" in config:
        opened["file"] = os.open(config["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


@component.action
async def take(order: dict[str, Any], ctx: Context) -> None:
    await ctx.emit(order, headers=ctx.message.headers)


@component.action
async def split(order: dict[str, Any], ctx: Context) -> None:
    await asyncio.sleep(0.002)  # tidy: pace
    if order["do"] == "fail":
        raise ComponentError("BROKEN_ORDER", "this order is meant to fail", status=500)
    if order["do"] == "flaky" and ctx.message.attempt == 1:
        raise ComponentError("FLAKY", "fails once", retryable=True)
    for part in range(2):
        await ctx.emit({**order, "part": part})


@component.action
async def side(order: dict[str, Any], ctx: Context) -> None:
    await asyncio.sleep(0.002)  # tidy: pace
    await ctx.emit({**order, "side": ctx.step.step})


@component.action
async def join(order: dict[str, Any], ctx: Context) -> None:
    write(order, f"{order['side']}{order['part']}", ctx)


@component.action
async def keep(order: dict[str, Any], ctx: Context) -> None:
    for part in range(3):
        await ctx.emit({**order, "part": part})


@component.action
async def sink(order: dict[str, Any], ctx: Context) -> None:
    write(order, f"sink{order['part']}", ctx)
    if order["part"] == 2 and order["do"] != "fail":
        await ctx.reply({"id": order["id"]})


def write(order: dict[str, Any], leaf: str, ctx: Context) -> None:
    message = ctx.message
    line = {
        "id": order["id"],
        "leaf": leaf,
        "key": order["key"],
        "n": order["n"],
        "part": order["part"],
        "at": time.time(),
    }
    line |= {"message_id": message.id, "attempt": message.attempt}
    os.write(opened["file"], msgspec.json.encode(line) + b"\n")
