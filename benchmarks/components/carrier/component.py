"""Reads a body of any size as a stream, and keeps nothing of it."""

from headrace.sdk import Component, Context

component = Component()


@component.action
async def weigh(ctx: Context) -> None:
    size = 0
    async for chunk in ctx.message.stream():
        size += len(chunk)
    assert size == ctx.message.size
