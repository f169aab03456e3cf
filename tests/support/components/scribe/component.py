"""`say` emits what its config says (else its input); `write` appends what it gets to the file in its config, `gather` a
line a batch."""

import asyncio
import os
from typing import Any

import msgspec

from headrace.sdk import Component, ComponentError, Context

component = Component()


@component.action
async def write(body: Any, ctx: Context) -> None:
    line = {"step": ctx.step.step, "id": ctx.message.id, "body": body, "headers": ctx.message.headers}
    line["steps"] = {name: earlier.json() for name, earlier in ctx.steps.items()}
    with open(ctx.config["path"], "ab", buffering=0) as file:
        os.write(file.fileno(), msgspec.json.encode(line) + b"\n")


@component.action
async def say(body: Any, ctx: Context) -> None:
    for value in ctx.config.get("emits", [body]):
        await ctx.emit(value, headers=ctx.message.headers)


@component.action
async def count(body: Any, ctx: Context) -> None:
    """Counts its messages in the snapshot, and emits the number; `save` in the body is saved as it is instead."""
    if isinstance(body, dict) and "save" in body:
        await ctx.snapshot.replace(body["save"])
        return
    number = (ctx.snapshot.value or {}).get("n", 0) + 1
    await ctx.snapshot.merge({"n": number}, if_unchanged=bool(ctx.config.get("careful")))
    await ctx.emit({"n": number, "key": body["key"]})


@component.process_batch
async def gather(bodies: list[Any], contexts: list[Context]) -> list[Any]:
    """Passes on, slowly; `poison` fails the whole batch, `refuse` one message."""
    line = {"step": contexts[0].step.step, "bodies": bodies}
    with open(contexts[0].config["path"] + ".batches", "ab", buffering=0) as file:
        os.write(file.fileno(), msgspec.json.encode(line) + b"\n")
    await asyncio.sleep(0.01)  # tidy: pace
    does = {body.get("does") for body in bodies}
    if "poison" in does:
        raise RuntimeError("poisoned")
    for body, ctx in zip(bodies, contexts, strict=True):
        if ctx.message.wants_reply:
            await ctx.reply(body)
    return [ComponentError("REFUSED") if body.get("does") == "refuse" else body for body in bodies]
