"""A good neighbour: answers what it got, or keeps a line of it."""

import os

from headrace.sdk import Component, Context

component = Component()


@component.action
async def answer(body: bytes, ctx: Context) -> None:
    await ctx.reply(body)


@component.action
async def keep(body: bytes, ctx: Context) -> None:
    """One line of the file `path` for each message: its body's first bytes."""
    descriptor = os.open(ctx.config["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, body[:100] + b"\n")
    os.close(descriptor)
