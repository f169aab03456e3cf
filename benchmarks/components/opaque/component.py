"""Passes opaque bytes on."""

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
