"""Passes opaque bytes on; some functions work or wait before they do."""

import asyncio
import time

from headrace.sdk import Component, ComponentError, Context

component = Component()


@component.trigger
async def start(body: bytes) -> bytes:
    return body


@component.action
async def relay(body: bytes) -> bytes:
    return body


@component.action
async def answer(body: bytes, ctx: Context) -> None:
    await ctx.reply(body)


@component.action
async def refuse(body: bytes) -> None:
    raise ComponentError("REFUSED", "every message is refused", retryable=False)


@component.action
async def burn(body: bytes, ctx: Context) -> bytes:
    """`ms` of processor time a message."""
    until = time.process_time_ns() + int(ctx.config["ms"] * 1e6)
    while time.process_time_ns() < until:
        pass
    return body


@component.action
async def rest(body: bytes, ctx: Context) -> bytes:
    """Waits `ms` a message, as for somebody else's server."""
    await asyncio.sleep(ctx.config["ms"] / 1e3)
    return body
